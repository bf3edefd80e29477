"""The causal check of a map: how much each task's loss rises when blocks go back to the base's weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunescope import layers
from tunescope.config import Config
from tunescope.data import Encoded
from tunescope.models import blocks
from tunescope.runs.folder import write_text
from tunescope.runs.records import LayerScores
from tunescope.studies.arms import Bench
from tunescope.studies.map_models import Tuned
from tunescope.studies.progress import Progress, ticker
from tunescope.studies.specialists import Specialists

_FILE = "causal.json"


def windows_of(config: Config, n_layers: int) -> list[tuple[int, int]]:
    """Returns the windows of blocks that are put back together: each overlaps the next by about half."""
    width = min(n_layers, config.map.causal_window or max(1, round(n_layers / 10)))
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
        scratch: folder that keeps the result, or None.

    Returns:
        Records named ``causal``; none if the settings want no check.

    Raises:
        ModelError: a loss is not finite, or the models do not fit each other.
    """
    count = bench.config.map.causal_examples
    if count == 0:
        return []
    if scratch is not None and (scratch / _FILE).is_file():
        return _read(scratch / _FILE)
    some = {task: list(mine[:count]) for task, mine in rows.items()}
    n_layers = _n_layers(tuned, specialists)
    windows = windows_of(bench.config, n_layers)
    progress.stage("put blocks back", (len(windows) + 1) * sum(len(mine) for mine in some.values()))
    settings: dict[str, Any] = {
        "batch_tokens": bench.config.evaluation.batch_tokens,
        "confidence": bench.config.evaluation.confidence,
        "done": ticker(progress),
    }
    if tuned is not None:
        found = layers.put_back(tuned.model, tuned.put_back_to, windows, some, **settings)
    else:
        assert specialists is not None
        found = []
        for task, mine in some.items():
            found.append(layers.put_back(specialists.put_on(task), None, windows, {task: mine}, **settings)[0])
        values = np.mean([row.values for row in found], axis=0)
        found.append(
            dataclasses.replace(
                found[0], task="*", values=tuple(values.tolist()), low=None, high=None, n=sum(r.n for r in found)
            )
        )
    found = [_named(row) for row in found]
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
        write_text(scratch / _FILE, json.dumps([row.to_dict() for row in found]))
    return found


def _n_layers(tuned: Tuned | None, specialists: Specialists | None) -> int:
    opened = tuned or specialists
    assert opened is not None
    return len(blocks(opened.model))


def _named(row: LayerScores) -> LayerScores:
    def plain(values: Sequence[float] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(float(f"{value:.6g}") for value in values)

    values = plain(row.values)
    assert values is not None
    return dataclasses.replace(row, name="causal", values=values, low=plain(row.low), high=plain(row.high))


def _read(path: Path) -> list[LayerScores]:
    found = []
    for values in json.loads(path.read_text(encoding="utf-8")):
        tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        found.append(LayerScores.from_dict(tuples))
    return found
