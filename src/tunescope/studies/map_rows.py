"""Rows of ``layers.json``: every score per task, and over all tasks the median, the spread, the gain and the bands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunescope import layers, metrics
from tunescope.models import block_names
from tunescope.runs.records import Bands, LayerScores
from tunescope.studies.map_scores import TaskScores, probe_tasks

Floats = NDArray[np.float64]

_NULL_LEVEL = 0.95
_MEANS = {
    "cka_in_out": "the block leaves the geometry of its input more as it is",
    "cka_base_tuned": "tuning left the states there more as they were",
    "cka_base_specialist": "the base model holds there more of what the task's specialist holds",
    "cka_tuned_specialist": "the tuned model holds there more of what the task's specialist holds",
}


def score_rows(readings: Sequence[TaskScores], *, confidence: float, seed: int) -> list[LayerScores]:
    """Returns every score per task, and over all tasks the median, the spread and the gain.

    Intervals of a task are over its prompts. Those over all tasks are over tasks and prompts: each resample draws the tasks anew and takes
    one resample of the prompts.
    """
    rows = []
    tail = (1 - confidence) / 2
    for name in readings[0].values:
        for one in readings:
            rows.append(_row(name, one.task, one.n, one.values[name], one.resampled.get(name), one.null[name], tail))
        rows += _over_all(name, readings, tail, seed)
    if {"cka_base_specialist", "cka_tuned_specialist"} <= readings[0].values.keys():
        rows.append(_gain(readings, tail, seed))
    rows += _probe_rows(readings, confidence, seed)
    return rows


def _row(
    name: str,
    task: str,
    n: int,
    values: Floats,
    resampled: Floats | None,
    null: Floats | None,
    tail: float,
    *,
    means: str = "",
) -> LayerScores:
    low = high = None
    if resampled is not None:
        low, high = (_plain(np.quantile(resampled, q, axis=0)) for q in (tail, 1 - tail))
    return LayerScores(
        name=name,
        unit="CKA",
        layers=block_names(len(values)),
        values=_plain(values),
        n=n,
        higher_means=means or _MEANS[name],
        low=low,
        high=high,
        task=task,
        null=None if null is None else _plain(np.quantile(null, _NULL_LEVEL, axis=0)),
    )


def _over_all(name: str, readings: Sequence[TaskScores], tail: float, seed: int) -> list[LayerScores]:
    values = np.stack([one.values[name] for one in readings])
    n = sum(one.n for one in readings)
    drawn = _drawn_tasks(readings, [name], seed)
    medians = None if drawn is None else np.median(drawn[0], axis=1)
    null = np.median(np.stack([one.null[name] for one in readings]), axis=0)
    rows = [_row(name, "*", n, np.median(values, axis=0), medians, null, tail)]
    if len(readings) > 1:
        spreads = None if drawn is None else _spread(drawn[0], axis=1)
        rows.append(
            _row(
                f"spread:{name}",
                "*",
                n,
                _spread(values, axis=0),
                spreads,
                None,
                tail,
                means="the tasks differ more there",
            )
        )
    return rows


def _gain(readings: Sequence[TaskScores], tail: float, seed: int) -> LayerScores:
    names = ["cka_base_specialist", "cka_tuned_specialist"]
    base, tuned = (np.stack([one.values[name] for one in readings]) for name in names)
    drawn = _drawn_tasks(readings, names, seed)
    resampled = None if drawn is None else np.median(drawn[1] - drawn[0], axis=1)
    means = "tuning brought the model nearer to the specialists there"
    return _row(
        "gain", "*", sum(one.n for one in readings), np.median(tuned - base, axis=0), resampled, None, tail, means=means
    )


def _drawn_tasks(readings: Sequence[TaskScores], names: Sequence[str], seed: int) -> list[Floats] | None:
    """Per name (n_bootstrap, n_tasks, n_layers): resampled prompts of resampled tasks; None where a task has no resamples."""
    if any(name not in one.resampled for one in readings for name in names):
        return None
    n_bootstrap = len(readings[0].resampled[names[0]])
    tasks = np.random.default_rng([seed, 0x7A5C5]).integers(len(readings), size=(n_bootstrap, len(readings)))
    prompts = np.arange(n_bootstrap)[:, None]
    return [np.stack([one.resampled[name] for one in readings])[tasks, prompts] for name in names]


def _spread(values: Floats, *, axis: int) -> Floats:
    lower, upper = np.quantile(values, [0.25, 0.75], axis=axis, method="averaged_inverted_cdf")
    spread: Floats = upper - lower
    return spread


def _probe_rows(readings: Sequence[TaskScores], confidence: float, seed: int) -> list[LayerScores]:
    rows = []
    for one in readings:
        if one.labels_read is not None:
            rows.append(_probe_row(one.task, one.labels_read, one.n_labels, one.chance, confidence, "the labels"))
    together = probe_tasks(readings, seed)
    if together is not None:
        rows.append(_probe_row("*", *together, confidence, "the tasks"))
    return rows


def _probe_row(task: str, accuracy: Floats, n: int, chance: float, confidence: float, what: str) -> LayerScores:
    ends = [metrics.wilson(float(share), n, confidence=confidence) for share in accuracy]
    return LayerScores(
        name="separability",
        unit="accuracy",
        layers=block_names(len(accuracy)),
        values=_plain(accuracy),
        n=n,
        higher_means=f"a linear probe tells {what} apart better there",
        low=_plain(np.array([low for low, _ in ends])),
        high=_plain(np.array([high for _, high in ends])),
        task=task,
        null=_plain(np.full(len(accuracy), chance)),
    )


def profile_of(readings: Sequence[TaskScores], mode: str) -> str:
    """Returns the name of the score by which a map is read: bands, clusters, median."""
    by_mode = {"base": "cka_in_out", "pair": "cka_base_tuned"}
    with_tuned = "cka_tuned_specialist" in readings[0].values
    return by_mode.get(mode, "cka_tuned_specialist" if with_tuned else "cka_base_specialist")


def not_comparable(mode: str, states: str) -> tuple[str, ...]:
    """Returns the blocks whose number in the profile is of another kind than that of the others, and which no choice may put first.

    In mode base with last-token states that is block 0. Its input at one token is the embedding of that token, the same for all
    prompts, so it is judged by means over the prompt; and from there to its output, words become words in context, in every
    model and for every task.
    """
    return (block_names(1)[0],) if mode == "base" and states == "last" else ()


def bands_of(readings: Sequence[TaskScores], mode: str, *, confidence: float, n_bootstrap: int, seed: int) -> Bands:
    """Looks for bands in the profiles of all tasks; with specialists and a tuned model by the published signs."""
    name = profile_of(readings, mode)
    names = ["cka_base_specialist", name] if name == "cka_tuned_specialist" else [name]
    profiles = [np.stack([one.values[n] for one in readings]) for n in names]
    resampled = None
    if all(n in one.resampled for one in readings for n in names):
        stacks = [
            np.stack([one.resampled[n] for one in readings], axis=1) for n in names
        ]  # (n_bootstrap, n_tasks, n_layers)
        resampled = [(draw[0], draw[1] if len(draw) > 1 else None) for draw in zip(*stacks, strict=True)]
    return layers.find_bands(*profiles, n_bootstrap=n_bootstrap, seed=seed, confidence=confidence, resampled=resampled)


def _plain(values: Floats) -> tuple[float, ...]:
    """Six significant digits: beyond them the number format of the states decides."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())
