"""How far a mean of few scores may lie from what was seen, where resampling cannot tell (see `bootstrap`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Margin:
    """How far a number may lie below and above what was seen.

    Attributes:
        below: distance downwards, at least 0.
        above: distance upwards, at least 0.
        needed: whether resampling understates it, so that this margin must be the outer bound.
    """

    below: float
    above: float
    needed: bool


def wilson(share: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Gives the Wilson score interval of a share.

    Args:
        share: observed share, in [0, 1].
        n: number of examples, at least 1.
        confidence: level, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: if an argument is out of range.

    Source:
        Wilson (1927), without continuity correction.

    Example:
        >>> tuple(round(end, 3) for end in wilson(1.0, 10))
        (0.722, 1.0)
    """
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"got share {share} of n {n}: the share must be in [0, 1] and n at least 1")
    z = _quantile(confidence)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def mean_margin(values: Floats, confidence: float) -> Margin:
    """Gives the margin of one task's mean score: Wilson where all scores are 0 or 1, or equal; else normal.

    Args:
        values: scores in [0, 1], at least one.
        confidence: level, in (0, 1).

    Returns:
        The margin.

    Raises:
        ValueError: if `confidence` is out of range.

    Example:
        >>> margin = mean_margin(np.ones(10), 0.95)
        >>> round(margin.below, 3), margin.above, margin.needed
        (0.278, 0.0, True)
    """
    mean, n = float(values.mean()), len(values)
    if np.isin(values, (0.0, 1.0)).all() or np.ptp(values) == 0:
        low, high = wilson(min(1.0, max(0.0, mean)), n, confidence=confidence)
        return Margin(max(0.0, mean - low), max(0.0, high - mean), needed=True)
    error = _quantile(confidence) * float(values.std(ddof=1)) / math.sqrt(n)
    return Margin(error, error, needed=False)


def difference_margin(differences: Floats, confidence: float) -> Margin:
    """Gives the margin of one task's mean difference: Agresti & Min where all are -1, 0 or 1, or equal; else normal.

    Args:
        differences: of paired scores, in [-1, 1], at least one.
        confidence: level, in (0, 1).

    Returns:
        The margin.

    Raises:
        ValueError: if `confidence` is out of range.

    Source:
        Agresti & Min (2005), section 2: two pseudo-examples, half a gain, half a loss and one draw.

    Example:
        >>> round(difference_margin(np.zeros(30), 0.95).above, 3)
        0.061
    """
    mean, n = float(differences.mean()), len(differences)
    if np.isin(differences, (-1.0, 0.0, 1.0)).all() or np.ptp(differences) == 0:
        shrunk = float(differences.sum()) / (n + 2)
        variance = (float((differences**2).sum()) + 1) / (n + 2) - shrunk**2
        error = _quantile(confidence) * math.sqrt(variance / (n + 2))
        return Margin(max(0.0, mean - shrunk + error), max(0.0, shrunk + error - mean), needed=True)
    error = _quantile(confidence) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Margin(error, error, needed=False)


def of_tasks(margins: Sequence[Margin]) -> Margin:
    """Combines the margins of tasks into that of the unweighted mean over the tasks.

    Args:
        margins: one per task, at least one.

    Returns:
        The margin; needed if any task's is.

    Source:
        Zou & Donner (2008), the method of variance estimates recovery: distances add in squares.

    Example:
        >>> of_tasks([Margin(0.3, 0.0, needed=True), Margin(0.4, 0.2, needed=False)])
        Margin(below=0.25, above=0.1, needed=True)
    """
    n = len(margins)
    return Margin(
        math.hypot(*(margin.below for margin in margins)) / n,
        math.hypot(*(margin.above for margin in margins)) / n,
        any(margin.needed for margin in margins),
    )


def _quantile(confidence: float) -> float:
    """Returns the normal quantile of a two-sided level."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it is a level, use a number between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)
