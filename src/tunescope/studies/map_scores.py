"""The numbers of a layer map: from the states of one task to its scores, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope import layers

Floats = NDArray[np.float64]

PROBE_ROWS = 1200  # prompts of all tasks together that the probe which tells tasks apart reads: more cost minutes and changed nothing
PROBE_FOLDS = 3
LABEL_FOLDS = 5


BASE, TUNED, SPECIALIST = "base", "tuned", "specialist"
PAIRS = {
    "cka_base_tuned": (BASE, TUNED),
    "cka_base_specialist": (BASE, SPECIALIST),
    "cka_tuned_specialist": (TUNED, SPECIALIST),
}


@dataclass(frozen=True)
class Read:
    """The states of one task in one model.

    Attributes:
        states: (n_layers + 1, n, d_model) float32; index 0 is the input of block 0.
        mean: the first two of them as means over the prompt: what block 0 is judged by.
    """

    states: NDArray[np.float32]
    mean: NDArray[np.float32]


@dataclass(frozen=True)
class TaskScores:
    """What a map knows of one task.

    Attributes:
        task: its name.
        n: prompts.
        values: name of the score -> (n_layers,).
        resampled: name -> (n_bootstrap, n_layers); lacking with 4 prompts.
        null: name -> (n_permutations, n_layers).
        sample: (n_layers, some of the prompts, d_model) float32 states of the base, for the probe that tells tasks apart.
        labels_read: accuracy of a probe for the labels (n_layers,); None without labels.
        n_labels: prompts behind it.
        chance: accuracy of always naming the most frequent label.
        seconds: part of the work -> seconds.
    """

    task: str
    n: int
    values: dict[str, Floats]
    resampled: dict[str, Floats]
    null: dict[str, Floats]
    sample: NDArray[np.float32]
    labels_read: Floats | None = None
    n_labels: int = 0
    chance: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


def compare(
    read: Mapping[str, Read], settings: Any, seed: int
) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, Floats]]:
    """Returns values, resampled scores and null scores of every comparison that the models allow, block by block.

    Args:
        read: base, tuned or specialist -> states of the same prompts.
        settings: of the map: n_bootstrap, n_permutations, estimator.
        seed: of resamples and permutations.

    Raises:
        UserError: states that are the same for all prompts, or for all but a few.
    """
    n_layers, n = read[BASE].states.shape[0] - 1, read[BASE].states.shape[1]
    draws = layers.Comparison(
        n,
        n_bootstrap=settings.n_bootstrap,
        n_permutations=settings.n_permutations,
        seed=seed,
        estimator=settings.estimator,
    )
    found: dict[str, list[layers.Similarity]] = {}
    # The input of block 0 at one token is only the embedding of that token, which a chat template makes the same for all prompts: block 0
    # is judged by the means over the prompt, on both sides.
    below = draws.geometry(read[BASE].mean[0], "the mean input of block.0 of the base model")
    first = draws.geometry(read[BASE].mean[1], "the mean output of block.0 of the base model")
    found["cka_in_out"] = [draws.similarity(below, first)]
    for block in range(n_layers):
        here = {
            model: draws.geometry(one.states[block + 1], f"the output of block.{block} of the {model} model")
            for model, one in read.items()
        }
        if block:
            found["cka_in_out"].append(draws.similarity(below, here[BASE]))
        for name, (one_side, other) in PAIRS.items():
            if one_side in here and other in here:
                found.setdefault(name, []).append(draws.similarity(here[one_side], here[other]))
        below = here[BASE]
    values = {name: np.array([one.value for one in row]) for name, row in found.items()}
    null = {name: np.stack([one.null for one in row], axis=1) for name, row in found.items()}
    resampled = {
        name: np.stack([one.resampled for one in row if one.resampled is not None], axis=1)
        for name, row in found.items()
        if row[0].resampled is not None
    }
    return values, resampled, null


def probe_labels(states: NDArray[np.float32], labels: Sequence[str], seed: int) -> tuple[Floats, int, float] | None:
    """Returns accuracy per block, prompts and chance level of a probe for a task's labels; None where it could not learn.

    A label with one prompt is left out: its probe could never have seen it.
    """
    kept = [i for i, label in enumerate(labels) if list(labels).count(label) > 1]
    known = [labels[i] for i in kept]
    if len(set(known)) < 2:
        return None
    folds = min(LABEL_FOLDS, len(kept))
    accuracy = [layers.separability(place[kept], known, n_folds=folds, seed=seed) for place in states[1:]]
    return np.array(accuracy), len(kept), layers.chance_level(known)


def probe_tasks(readings: Sequence[TaskScores], seed: int) -> tuple[Floats, int, float] | None:
    """Returns the same for a probe that tells the tasks apart; None for a single task."""
    if len(readings) < 2:
        return None
    names = [one.task for one in readings for _ in range(one.sample.shape[1])]
    n_layers = readings[0].sample.shape[0]
    accuracy = [
        layers.separability(np.concatenate([one.sample[i] for one in readings]), names, n_folds=PROBE_FOLDS, seed=seed)
        for i in range(n_layers)
    ]
    return np.array(accuracy), len(names), layers.chance_level(names)
