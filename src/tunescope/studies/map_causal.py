"""The causal check of a map: how much each task's loss rises when blocks go back to the base's weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tunescope import engine, layers
from tunescope.config import Config
from tunescope.data import Encoded
from tunescope.errors import ConfigError
from tunescope.models import blocks
from tunescope.runs.records import LayerScores
from tunescope.studies.bench import Bench
from tunescope.studies.map_models import Tuned
from tunescope.studies.progress import Progress, ticker
from tunescope.studies.specialists import Specialists

Floats = NDArray[np.float64]


def windows_of(config: Config, n_layers: int) -> list[tuple[int, int]]:
    """Returns the windows of blocks that are put back together: each overlaps the next by about half.

    Raises:
        ConfigError: a window has more blocks than the model.
    """
    width = config.map.causal_window or max(1, round(n_layers / 10))
    if width > n_layers:
        raise ConfigError(
            f"map.causal_window: got {width}, the model has {n_layers} blocks; allowed are 1 to {n_layers}"
        )
    return layers.windows(n_layers, width, (width + 1) // 2)


def put_back_scores(
    bench: Bench,
    rows: Mapping[str, Sequence[Encoded]],
    progress: Progress,
    *,
    tuned: Tuned | None = None,
    specialists: Specialists | None = None,
    scratch: Path | None = None,
) -> list[LayerScores]:
    """Scores every block by the rise of the loss, per task and over all.

    Args:
        bench: the settings.
        rows: task -> encoded examples, of which the first few are read.
        progress: told about every pass.
        tuned: the tuned model that is put back; or
        specialists: each task's specialist is put back, on its own task.
        scratch: folder that keeps each task as it is done, so that an interrupted check goes on with the next; or None.

    Returns:
        Records named ``causal``; none if the settings want no check.

    Raises:
        ModelError: a loss is not finite, or the models do not fit each other.
        IntegrityError: what was kept of a task is damaged.
        RunError: it cannot be written.
    """
    count = bench.config.map.causal_examples
    if count == 0:
        return []
    windows = windows_of(bench.config, _n_layers(tuned, specialists))
    passes = len(windows) + 1
    progress.stage("put blocks back", passes * sum(len(mine[:count]) for mine in rows.values()))
    rises: dict[str, Floats] = {}
    for task, mine in rows.items():
        some = mine[:count]
        file = None if scratch is None else _file_of(scratch, task)
        if file is not None and file.is_file():
            tensors, _ = engine.read_tensors(file)
            rises[task] = tensors["rises"].numpy()
            progress.advance(passes * len(some))
            continue
        if tuned is not None:
            model, base = tuned.model, tuned.put_back_to
        else:
            assert specialists is not None
            model, base = specialists.put_on(task), None
        rises[task] = layers.put_back_rises(
            model, base, windows, some, batch_tokens=bench.config.evaluation.batch_tokens, done=ticker(progress)
        )
        if file is not None:
            engine.write_tensors(file, {"rises": torch.from_numpy(rises[task])}, {"task": task})
    settings = bench.config
    found = layers.causal_scores(
        rises,
        confidence=settings.evaluation.confidence,
        n_bootstrap=settings.map.n_bootstrap,
        seed=settings.seed,
    )
    return [_rounded(row) for row in found]


def _file_of(scratch: Path, task: str) -> Path:
    return scratch / f"causal-{hashlib.sha256(task.encode()).hexdigest()[:16]}.safetensors"


def _n_layers(tuned: Tuned | None, specialists: Specialists | None) -> int:
    opened = tuned or specialists
    assert opened is not None
    return len(blocks(opened.model))


def _rounded(row: LayerScores) -> LayerScores:
    """Six significant digits, as in all rows of a map."""

    def plain(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(f"{value:.6g}") for value in values)

    low, high = (None if ends is None else plain(ends) for ends in (row.low, row.high))
    return dataclasses.replace(row, values=plain(row.values), low=low, high=high)
