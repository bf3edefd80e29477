"""Intervals by drawing questions again, and of shares.

Questions are drawn with replacement within their stratum (a domain), so that every resample has as many of each as the data. Nothing
depends on the order of the questions. A percentile interval has no width where all questions agree, which would claim certainty from
few of them; there a bound that needs no spread (Wilson 1927; Agresti & Min 2005) takes its place where it is wider.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from tunescope.errors import UserError
from tunescope.runs.records import Record

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Strata = Sequence[str] | None

_CHUNK_CELLS = 4_000_000
"""Drawn places held at a time: bounds the memory to some tens of megabytes."""


@dataclass(frozen=True)
class Estimate(Record):
    """A number with its interval.

    Attributes:
        value: the number itself; None where there is nothing to count.
        low: lower end; None where it cannot be given.
        high: upper end; None where it cannot be given.
        n: questions (or answers) behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def wilson(count: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Gives a share with its Wilson interval.

    Args:
        count: how many of n, 0 to n.
        n: at least 0; without any, the share and its ends are None.
        confidence: level, in (0, 1).

    Returns:
        The share, in [0, 1].

    Raises:
        UserError: if an argument is out of range.

    Source:
        Wilson 1927, without continuity correction, in scipy's implementation.

    Example:
        >>> share = wilson(10, 10)
        >>> share.value, round(share.low, 3), share.high
        (1.0, 0.722, 1.0)
    """
    check_confidence(confidence)
    if not 0 <= count <= n:
        raise UserError(f"got {count} of {n}: a share counts some of all, from 0 to n")
    if not n:
        return Estimate(None, None, None, 0)
    value = count / n
    ends = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return Estimate(value, min(value, float(ends.low)), max(value, float(ends.high)), n)


def paired_difference(
    a: Sequence[float] | Floats,
    b: Sequence[float] | Floats,
    *,
    strata: Strata = None,
    n_bootstrap: int,
    confidence: float = 0.95,
    seed: int,
) -> Estimate:
    """Gives the mean of one model's scores minus the other's over the same questions.

    Args:
        a: scores of the first model in [0, 1], one per question (n,).
        b: scores of the other, same questions in the same order (n,).
        strata: domain of each question, or None for one.
        n_bootstrap: resamples, at least 1.
        confidence: level, in (0, 1).
        seed: of the resampling.

    Returns:
        The difference in [-1, 1] with its interval; with one question the interval is [-1, 1].

    Raises:
        UserError: if there are no questions, lengths differ, a score is outside [0, 1], or a setting is out of range.

    Source:
        Efron 1979 (percentile interval); Koehn 2004 (paired); Agresti & Min 2005, section 2, as the outer bound where all differences
        are -1, 0 or 1, or equal.

    Example:
        >>> gain = paired_difference([1.0] * 40, [0.0] * 30 + [1.0] * 10, n_bootstrap=500, seed=0)
        >>> gain.value, gain.low > 0.5
        (0.75, True)
    """
    first, second = scores(a, "a"), scores(b, "b")
    if first.shape != second.shape:
        raise UserError(f"a has {len(first)} scores and b {len(second)}: a paired comparison needs the same questions")
    differences = first - second
    resamples = resampled_means(differences, strata=strata, n_bootstrap=n_bootstrap, seed=seed)
    return difference_estimate(differences, resamples, confidence=confidence)


def difference_estimate(differences: Floats, resamples: Floats, *, confidence: float) -> Estimate:
    """Sums up paired differences (n,) in [-1, 1] and their resampled means (n_bootstrap,)."""
    value = math.fsum(differences) / len(differences)
    if len(differences) < 2:
        return Estimate(value, -1.0, 1.0, 1)
    low, high = percentiles(resamples, confidence)
    if needs_outer_bound(differences):
        shift, error = outer_bound(differences, confidence)
        low, high = min(low, shift - error), max(high, shift + error)
    return Estimate(value, max(-1.0, min(low, value)), min(1.0, max(high, value)), len(differences))


def needs_outer_bound(differences: Floats) -> bool:
    """Says whether all differences are -1, 0 or 1, or equal: then drawing again understates the interval."""
    return bool(np.isin(differences, (-1.0, 0.0, 1.0)).all() or np.ptp(differences) == 0)


def outer_bound(differences: Floats, confidence: float) -> tuple[float, float]:
    """Returns middle and half width of Agresti & Min's interval: two pseudo-questions, half a gain, half a loss, one draw."""
    n = len(differences)
    middle = math.fsum(differences) / (n + 2)
    variance = (math.fsum(differences**2) + 1) / (n + 2) - middle**2
    return middle, NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance / (n + 2))


def mean_estimate(
    values: Floats,
    *,
    limits: tuple[float, float] | None,
    strata: Strata = None,
    n_bootstrap: int,
    confidence: float,
    seed: int,
) -> Estimate:
    """Gives the mean of one finite number per question with its percentile interval.

    Args:
        values: one per question (n,); none: the mean is None.
        limits: smallest and largest possible value, or None where there is none. With limits, one question gives an interval over all
            of them, and equal values Wilson's (valid because no bounded value varies more than one that is always at a limit).
        strata: domain of each question, or None for one.
        n_bootstrap: resamples.
        confidence: level.
        seed: of the resampling.

    Returns:
        The mean; without limits, one question has no interval.
    """
    n = len(values)
    if not n:
        return Estimate(None, None, None, 0)
    value = math.fsum(values) / n
    if n < 2:
        low_end, high_end = limits or (None, None)
        return Estimate(value, low_end, high_end, 1)
    low, high = percentiles(resampled_means(values, strata=strata, n_bootstrap=n_bootstrap, seed=seed), confidence)
    if limits is not None and np.ptp(values) == 0:
        width = limits[1] - limits[0]
        share = (value - limits[0]) / width
        below, above = _wilson_of_share(share, n, confidence)
        low, high = limits[0] + width * below, limits[0] + width * above
    return Estimate(value, min(low, value), max(high, value), n)


def ratio_estimate(
    numerators: Floats, denominators: Floats, *, n_bootstrap: int, confidence: float, seed: int
) -> Estimate:
    """Gives sum(numerators) / sum(denominators), in [0, 1], drawing whole answers again (tokens of one answer hang together).

    Args:
        numerators: tokens that count, per answer (n,).
        denominators: tokens, per answer (n,), at least the numerators.
        n_bootstrap: resamples.
        confidence: level.
        seed: of the resampling.

    Returns:
        The share, n being the answers; None without tokens. Where no answer differs from the share, Wilson over the answers.
    """
    used = denominators > 0
    top, bottom = numerators[used], denominators[used]
    n = len(bottom)
    if not n:
        return Estimate(None, None, None, 0)
    value = math.fsum(top) / math.fsum(bottom)
    below, above = _wilson_of_share(value, n, confidence)
    if n < 2 or np.ptp(top / bottom) == 0:
        return Estimate(value, min(below, value), max(above, value), n)
    order = np.lexsort((top, bottom))
    top, bottom = top[order], bottom[order]
    sums = [
        (top[places].sum(axis=1), bottom[places].sum(axis=1))
        for places in _draws(np.zeros(n, dtype=np.intp), n_bootstrap, seed)
    ]
    low, high = percentiles(np.concatenate([a / b for a, b in sums]), confidence)
    return Estimate(value, min(low, value), max(high, value), n)


def resampled_means(values: Floats, *, strata: Strata = None, n_bootstrap: int, seed: int) -> Floats:
    """Gives the means of several rows of numbers in the same resamples of the questions.

    Args:
        values: one number per question (n,), or rows of them (rows, n).
        strata: domain of each question, or None for one.
        n_bootstrap: resamples, at least 1.
        seed: of the resampling.

    Returns:
        Means (n_bootstrap,) or (rows, n_bootstrap); column k of every row stands on the same questions.

    Raises:
        UserError: if there are no questions, the strata have another length, or `n_bootstrap` is below 1.

    Example:
        >>> means = resampled_means(np.array([[0.0, 1.0], [0.5, 1.5]]), n_bootstrap=100, seed=0)
        >>> means.shape, bool(np.allclose(means[1] - means[0], 0.5))
        ((2, 100), True)
    """
    rows = np.atleast_2d(values)
    n = rows.shape[1]
    if n_bootstrap < 1:
        raise UserError(f"n_bootstrap is {n_bootstrap}: use at least 1, better 2000")
    if not n:
        raise UserError("got no questions: an interval needs at least one")
    if strata is not None and len(strata) != n:
        raise UserError(f"strata has {len(strata)} names for {n} questions: give one per question")
    codes = np.zeros(n, dtype=np.intp) if strata is None else np.unique(list(strata), return_inverse=True)[1]
    order = np.lexsort((*rows[::-1], codes))  # so that the order of the questions changes no resample
    ordered = rows[:, order]
    means = [
        np.stack([row[places].mean(axis=1) for row in ordered]) for places in _draws(codes[order], n_bootstrap, seed)
    ]
    return np.concatenate(means, axis=1).reshape(*values.shape[:-1], n_bootstrap)


def percentiles(resamples: Floats, confidence: float) -> tuple[float, float]:
    """Returns the ends of the percentile interval."""
    check_confidence(confidence)
    low, high = np.quantile(resamples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def scores(values: Sequence[float] | Floats, name: str) -> Floats:
    """Returns numbers in [0, 1] as an array (n,), n at least 1, or refuses them."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise UserError(f"{name} has shape {array.shape}: give one score per question, at least one")
    wrong = array[~((array >= 0) & (array <= 1))]
    if wrong.size:
        raise UserError(f"{name} holds {wrong[0]}: every score must be in [0, 1]")
    return array


def check_confidence(confidence: float) -> None:
    """Refuses a level that is none."""
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}: it is a level, use a number between 0 and 1, such as 0.95")


def _wilson_of_share(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Returns Wilson's ends for a share that need not be a count of n."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _draws(codes: Indices, n_bootstrap: int, seed: int) -> Iterator[Indices]:
    """Yields places of the questions drawn (chunk, n), within their stratum; codes ascend."""
    random = np.random.default_rng(seed)
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    chunk = max(1, _CHUNK_CELLS // len(codes))
    for start in range(0, n_bootstrap, chunk):
        rows = min(chunk, n_bootstrap - start)
        parts = [
            random.integers(first, first + size, size=(rows, size)) for first, size in zip(starts, sizes, strict=True)
        ]
        yield np.concatenate(parts, axis=1)
