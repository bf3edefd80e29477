"""Whether a model is above chance, per domain: no claim is built on one that is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from tunescope.errors import UserError
from tunescope.knowledge.questions import Probe, by_key, check_probes
from tunescope.knowledge.resampling import wilson
from tunescope.runs.records import Record

Floats = npt.NDArray[np.float64]

ALL = "*"
"""Stands for all domains together."""


@dataclass(frozen=True)
class ChanceRow(Record):
    """One domain of one model against guessing.

    Attributes:
        domain: its name; ``*`` for all questions together.
        n: questions.
        correct: answered right; a tie at the top is no answer.
        accuracy: correct / n.
        low: lower end of its Wilson interval.
        high: upper end.
        chance: share right by guessing: mean of 1 / n_choices.
        p_value: probability that guessing gets at least as many right (exact).
        p_adjusted: the same after Holm over the domains; for ``*`` equal to `p_value`.
        state: ``above`` chance, ``below`` it (the same test on the other side), or ``not_above``.
        mean_confidence: mean probability of the most likely choice; far above the accuracy means overconfident.
    """

    domain: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    chance: float
    p_value: float
    p_adjusted: float
    state: Literal["above", "below", "not_above"]
    mean_confidence: float


def chance_table(probes: Sequence[Probe], *, alpha: float = 0.05, confidence: float = 0.95) -> tuple[ChanceRow, ...]:
    """Compares a model with guessing in every domain.

    Args:
        probes: of one model.
        alpha: level of the tests, in (0, 1); over the domains together (Holm), and for all questions together by itself.
        confidence: level of the intervals, in (0, 1).

    Returns:
        One row per domain, sorted by name, and a last one (``*``) for all questions.

    Raises:
        DataError: if the probes cannot be used (see `check_probes`).
        UserError: if a level is out of range.

    Source:
        Exact binomial test; with differing numbers of choices the sum of Bernoulli trials of differing probability (Poisson 1837).
        Holm 1979, *A Simple Sequentially Rejective Multiple Test Procedure*.

    Example:
        >>> probes = [Probe(str(i), "it", ("a", "b"), 0, (0.9, 0.1)) for i in range(10)]
        >>> [(row.domain, row.state, round(row.p_value, 4)) for row in chance_table(probes)]
        [('it', 'above', 0.001), ('*', 'above', 0.001)]
    """
    check_probes(probes)
    if not 0 < alpha < 1:
        raise UserError(f"alpha is {alpha}: it is the level of a test, use a number between 0 and 1, such as 0.05")
    groups = by_key(probes, lambda each: each.domain)
    tails = [_tails(group) for group in groups.values()]
    above = holm([p for p, _ in tails])
    below = holm([p for _, p in tails])
    rows = [
        _row(domain, group, (p, up, down), alpha, confidence)
        for (domain, group), (p, _), up, down in zip(groups.items(), tails, above, below, strict=True)
    ]
    p, other = _tails(probes)
    return (*rows, _row(ALL, probes, (p, p, other), alpha, confidence))


def probability_of_at_least(count: int, probabilities: Sequence[float] | Floats) -> float:
    """Gives the probability that at least `count` of independent trials succeed (Poisson binomial, exact).

    Args:
        count: successes, 0 to the number of trials.
        probabilities: of success of each trial, in [0, 1]; may be empty.

    Returns:
        The probability, in [0, 1].

    Raises:
        UserError: if the count or a probability is out of range.

    Example:
        >>> probability_of_at_least(2, [0.5, 0.25])
        0.125
    """
    chances = np.asarray(probabilities, dtype=np.float64)
    if chances.ndim != 1 or not ((chances >= 0) & (chances <= 1)).all():
        raise UserError(f"probabilities are {chances.tolist()}: give one per trial, in [0, 1]")
    if not 0 <= count <= len(chances):
        raise UserError(f"got {count} successes of {len(chances)} trials: use 0 to {len(chances)}")
    values, sizes = np.unique(chances, return_counts=True)
    if len(values) == 1:
        return float(binom.sf(count - 1, sizes[0], values[0]))
    mass = np.ones(1)
    for value, size in zip(values, sizes, strict=True):
        one = [1 - value, value] if size == 1 else binom.pmf(np.arange(size + 1), size, value)
        mass = np.convolve(mass, one)
    return min(1.0, float(mass[count:].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number, so that the chance of any false alarm stays at the level.

    Args:
        p_values: of the family, in [0, 1]; may be empty.

    Returns:
        Adjusted p-values in the same order, at most 1.

    Source:
        Holm 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    adjusted = np.empty_like(values)
    adjusted[order] = scaled
    return [float(value) for value in adjusted]


def _tails(probes: Sequence[Probe]) -> tuple[float, float]:
    """Returns the probabilities that guessing gets at least, and at most, as many right."""
    correct = sum(each.correct for each in probes)
    guess = np.array([1 / len(each.choices) for each in probes])
    at_most = probability_of_at_least(len(probes) - correct, 1 - guess)
    return probability_of_at_least(correct, guess), at_most


def _row(
    domain: str, probes: Sequence[Probe], p_values: tuple[float, float, float], alpha: float, confidence: float
) -> ChanceRow:
    p_value, above, below = p_values
    correct = sum(each.correct for each in probes)
    share = wilson(correct, len(probes), confidence=confidence)
    assert share.value is not None
    assert share.low is not None
    assert share.high is not None
    return ChanceRow(
        domain=domain,
        n=len(probes),
        correct=correct,
        accuracy=share.value,
        low=share.low,
        high=share.high,
        chance=math.fsum(1 / len(each.choices) for each in probes) / len(probes),
        p_value=p_value,
        p_adjusted=above,
        state="above" if above < alpha else "below" if below < alpha else "not_above",
        mean_confidence=math.fsum(each.confidence for each in probes) / len(probes),
    )
