"""What an unfinished map keeps of each task that was read: one safetensors file, hashed."""

from __future__ import annotations

from pathlib import Path

import torch

from tunescope import engine
from tunescope.studies.map_scores import TaskScores

_TABLES = ("values", "resampled", "null")


def save_scores(path: Path, scores: TaskScores) -> None:
    """Writes the scores of a task, whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    tensors = {
        f"{table}.{name}": torch.from_numpy(array.copy())
        for table in _TABLES
        for name, array in getattr(scores, table).items()
    }
    tensors["sample"] = torch.from_numpy(scores.sample)
    if scores.labels_read is not None:
        tensors["labels_read"] = torch.from_numpy(scores.labels_read)
    plain = ("task", "n", "n_labels", "chance", "seconds")
    engine.write_tensors(
        path, tensors, {name: getattr(scores, name) for name in plain} | {"names": list(scores.values)}
    )


def load_scores(path: Path) -> TaskScores:
    """Reads what `save_scores` wrote, names in their order.

    Raises:
        IntegrityError: the file is damaged.
    """
    tensors, facts = engine.read_tensors(path)
    names = facts.pop("names")
    tables = {
        table: {name: tensors[f"{table}.{name}"].numpy() for name in names if f"{table}.{name}" in tensors}
        for table in _TABLES
    }
    labels = tensors.get("labels_read")
    return TaskScores(
        **facts,
        values=tables["values"],
        resampled=tables["resampled"],
        null=tables["null"],
        sample=tensors["sample"].numpy(),
        labels_read=None if labels is None else labels.numpy(),
    )
