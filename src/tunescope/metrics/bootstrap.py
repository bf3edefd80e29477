"""Intervals and comparisons by resampling examples.

The number that is resampled is the **macro mean**: the unweighted mean of the task means, examples being drawn with
replacement within their task (`strata`). Without strata it is the plain mean.

A percentile bootstrap has width zero where all examples agree (30 of 30 right, or two arms that are right on the same
examples), which would claim certainty from few examples. So its interval is an inner bound here; the outer bounds are

* for one arm, the Wilson score interval in every task whose scores are all 0 or 1, or all equal (valid for these too,
  because no score in [0, 1] varies more than a 0/1 score with the same mean);
* for a difference, the interval of Agresti & Min (2005) in every task whose differences are all -1, 0 or 1, or all
  equal: two pseudo-examples are added, half a gain, half a loss and one draw;
* over tasks the distances are added in squares, each with the weight of its task (Zou & Donner 2008); tasks with other
  scores enter with their normal standard error.

The wider end wins on each side. Nothing depends on the order of the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunescope.metrics.margins import Margin, difference_margin, mean_margin, of_tasks, wilson

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Strata = Sequence[object] | npt.NDArray[np.generic] | None

_CHUNK_CELLS = 2_000_000
"""Resampled examples held at a time: bounds the memory to some tens of megabytes."""


@dataclass(frozen=True)
class Interval:
    """A number with its interval.

    Attributes:
        value: the number on the examples themselves.
        low: lower end.
        high: upper end.
        n: number of examples.
        enough: False with fewer than 2 examples: then the interval of a score is all of [0, 1], and says nothing.
    """

    value: float
    low: float
    high: float
    n: int
    enough: bool = True


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval.

    Attributes:
        value: first minus second.
        low: lower end.
        high: upper end.
        noise_floor: half width of the interval: a smaller difference decides nothing.
        share_positive: share of the resamples in which the first is higher; ties count half.
        n: number of examples.
    """

    value: float
    low: float
    high: float
    noise_floor: float
    share_positive: float
    n: int

    @property
    def decides(self) -> bool:
        """Whether it is outside its noise: the interval leaves out 0 and the value is above the noise floor."""
        return (self.low > 0 or self.high < 0) and abs(self.value) > self.noise_floor


def interval(
    values: Sequence[float] | Floats,
    *,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    strata: Strata = None,
    bounded: bool = True,
) -> Interval:
    """Gives the macro mean of one number per example, with its interval.

    Args:
        values: n numbers, one per example.
        n_bootstrap: resamples.
        confidence: level of the interval, in (0, 1).
        seed: of the resampling.
        strata: n task names, or None for one task.
        bounded: the values are scores in [0, 1]; False for losses, which get the bootstrap's interval alone.

    Returns:
        Value and interval. With one example a score's interval is [0, 1] and a loss's has width 0; `enough` is False
        for both.

    Raises:
        ValueError: if there are no values, one is not finite (or a score outside [0, 1]), the strata have another
            length, or the settings are out of range.

    Source:
        Efron (1979), percentile interval; Wilson (1927). How ours combines them stands at the top of this module.

    Example:
        >>> sure = interval([1.0] * 30)
        >>> sure.value, round(sure.low, 2), sure.high
        (1.0, 0.89, 1.0)
    """
    array = _check(values, "values", (0.0, 1.0) if bounded else None)
    groups = _groups(len(array), strata)
    array = _in_canonical_order(array[None], groups)
    value = float(_macro_mean(array, groups)[0])
    means = resampled_means(array, strata=strata, n_bootstrap=n_bootstrap, seed=seed)[0]
    if array.size < 2:
        return Interval(value, *((0.0, 1.0) if bounded else (value, value)), 1, enough=False)
    outer = of_tasks([mean_margin(array[0, group], confidence) for group in groups]) if bounded else None
    low, high = _ends(means, value, confidence, outer, (0.0, 1.0) if bounded else None)
    return Interval(value, low, high, array.size)


def paired_difference(
    a: Sequence[float] | Floats,
    b: Sequence[float] | Floats,
    *,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    strata: Strata = None,
    bounded: bool = True,
) -> Difference:
    """Compares two arms on the same examples.

    Args:
        a: n numbers of the first arm.
        b: n numbers of the second arm, same examples in the same order.
        n_bootstrap: resamples.
        confidence: level of the interval, in (0, 1).
        seed: of the resampling.
        strata: n task names, or None for one task.
        bounded: both are scores in [0, 1]; False for losses.

    Returns:
        Macro mean of a minus macro mean of b, with interval and noise floor. With one example a score's interval is
        [-1, 1].

    Raises:
        ValueError: as `interval`, or if a and b differ in length.

    Source:
        Koehn (2004) for paired resampling; Agresti & Min (2005), section 2, for the outer bound. How ours combines them
        stands at the top of this module.

    Example:
        >>> gain = paired_difference([1.0] * 40, [0.0] * 30 + [1.0] * 10)
        >>> gain.value, gain.decides
        (0.75, True)
    """
    limits = (0.0, 1.0) if bounded else None
    first, second = _check(a, "a", limits), _check(b, "b", limits)
    if first.shape != second.shape:
        raise ValueError(f"a has {len(first)} numbers and b {len(second)}: a paired comparison needs the same examples")
    groups = _groups(len(first), strata)
    ordered = _in_canonical_order((first - second)[None], groups)
    resamples = resampled_means(ordered, strata=strata, n_bootstrap=n_bootstrap, seed=seed)[0]
    return difference_of_resamples(ordered[0], resamples, confidence=confidence, strata=strata, bounded=bounded)


def difference_of_resamples(
    differences: Floats, resamples: Floats, *, confidence: float, strata: Strata = None, bounded: bool = True
) -> Difference:
    """Sums up a paired comparison whose resamples are already there, so that many arms share one bootstrap.

    Args:
        differences: first minus second, per example [n].
        resamples: their macro mean in every resample [n_bootstrap], from `resampled_means`.
        confidence: level of the interval, in (0, 1).
        strata: n task names, or None for one task.
        bounded: the differences are of scores in [0, 1].

    Returns:
        As `paired_difference`.

    Raises:
        ValueError: if a difference is not finite, the strata have another length, or `confidence` is out of range.
    """
    array = _check(differences, "differences", (-1.0, 1.0) if bounded else None)
    groups = _groups(len(array), strata)
    value = float(_macro_mean(_in_canonical_order(array[None], groups), groups)[0])
    if len(array) < 2:
        low, high = (-1.0, 1.0) if bounded else (value, value)
        return Difference(value, low, high, (high - low) / 2, 0.5, len(array))
    outer = of_tasks([difference_margin(array[group], confidence) for group in groups]) if bounded else None
    low, high = _ends(resamples, value, confidence, outer, (-1.0, 1.0) if bounded else None)
    return Difference(value, low, high, (high - low) / 2, _share_positive(resamples), len(array))


def resampled_means(values: Floats, *, strata: Strata = None, n_bootstrap: int = 2000, seed: int = 0) -> Floats:
    """Gives the macro mean of several arms in the same resamples of the examples.

    Args:
        values: one row per arm, one column per example [rows, n].
        strata: n task names, or None for one task.
        n_bootstrap: resamples.
        seed: of the resampling.

    Returns:
        Macro means [rows, n_bootstrap]; column k of every row stands on the same examples.

    Raises:
        ValueError: if there are no examples, the strata have another length, or `n_bootstrap` is below 1.

    Example:
        >>> means = resampled_means(np.array([[0.0, 1.0], [0.5, 1.5]]), n_bootstrap=100)
        >>> means.shape, bool(np.allclose(means[1] - means[0], 0.5))
        ((2, 100), True)
    """
    groups = _groups(values.shape[1], strata)
    ordered = _in_canonical_order(values, groups)
    means = np.empty((len(values), n_bootstrap))
    done = 0
    for indices in _resamples(groups, n_bootstrap, seed):
        for row, numbers in enumerate(ordered):
            means[row, done : done + len(indices)] = _means_at(numbers, indices, groups)
        done += len(indices)
    return means


def interval_of(
    statistic: Callable[[Indices], Floats],
    n: int,
    *,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    strata: Strata = None,
) -> Interval:
    """Gives a score that is not a mean over examples (macro-F1), with its interval.

    Args:
        statistic: from indices of examples [rows, n] to scores in [0, 1] [rows].
        n: number of examples.
        n_bootstrap: resamples.
        confidence: level of the interval, in (0, 1).
        seed: of the resampling.
        strata: n task names, or None for one task; resamples keep the size of each.

    Returns:
        Value and percentile interval. Where all resamples agree, the Wilson interval of the value over n is the outer
        bound; with one example the interval is [0, 1].

    Raises:
        ValueError: if n is 0, the strata have another length, or the settings are out of range.

    Example:
        >>> scores = np.array([0.0, 1.0, 1.0, 1.0])
        >>> interval_of(lambda indices: scores[indices].mean(axis=1), 4).value
        0.75
    """
    groups = _groups(n, strata)
    value = float(statistic(np.arange(n)[None])[0])
    if n < 2:
        return Interval(value, 0.0, 1.0, n, enough=False)
    samples = np.concatenate([statistic(indices) for indices in _resamples(groups, n_bootstrap, seed)])
    below, above = wilson(value, n, confidence=confidence)
    outer = Margin(value - below, above - value, needed=bool(np.ptp(samples) == 0))
    low, high = _ends(samples, value, confidence, outer, (0.0, 1.0))
    return Interval(value, low, high, n)


def difference_of(
    a: Callable[[Indices], Floats],
    b: Callable[[Indices], Floats],
    n: int,
    *,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    strata: Strata = None,
) -> Difference:
    """Compares two arms by a score that is not a mean over examples, on the same resamples.

    Args:
        a: the first arm's statistic, as in `interval_of`.
        b: the second arm's.
        n: number of examples.
        n_bootstrap: resamples.
        confidence: level of the interval, in (0, 1).
        seed: of the resampling.
        strata: n task names, or None for one task.

    Returns:
        As `paired_difference`; where all resamples agree, the outer bound is that of a constant difference.

    Raises:
        ValueError: as `interval_of`.
    """
    groups = _groups(n, strata)
    every = np.arange(n)[None]
    value = float((a(every) - b(every))[0])
    if n < 2:
        return Difference(value, -1.0, 1.0, 1.0, 0.5, n)
    samples = np.concatenate([a(indices) - b(indices) for indices in _resamples(groups, n_bootstrap, seed)])
    outer = difference_margin(np.full(n, value), confidence) if np.ptp(samples) == 0 else None
    low, high = _ends(samples, value, confidence, outer, (-1.0, 1.0))
    return Difference(value, low, high, (high - low) / 2, _share_positive(samples), n)


def _check(values: Sequence[float] | Floats, name: str, limits: tuple[float, float] | None) -> Floats:
    """Returns the numbers as an array [n]."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}: give one number per example, at least one")
    low, high = limits or (-np.inf, np.inf)
    wrong = array[~(np.isfinite(array) & (array >= low) & (array <= high))]
    if wrong.size:
        allowed = "finite" if limits is None else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} holds {wrong[0]}: every number must be {allowed}; use bounded=False for losses")
    return array


def _groups(n: int, strata: Strata) -> list[Indices]:
    """Returns the places of the examples of each task, tasks in the order of their names."""
    if n < 1:
        raise ValueError("got no examples: an interval needs at least one")
    if strata is None:
        return [np.arange(n)]
    if len(strata) != n:
        raise ValueError(f"strata has {len(strata)} names for {n} examples: give one per example")
    names, codes = np.unique([str(name) for name in strata], return_inverse=True)
    return [np.flatnonzero(codes == code) for code in range(len(names))]


def _in_canonical_order(values: Floats, groups: Sequence[Indices]) -> Floats:
    """Sorts the columns within each task, so that the order of the examples changes no resample."""
    ordered = values.copy()
    for group in groups:
        ordered[:, group] = values[:, group[np.lexsort(values[:, group])]]
    return ordered


def _resamples(groups: Sequence[Indices], n_bootstrap: int, seed: int) -> Iterator[Indices]:
    """Yields resamples [chunk, n]; a column of a task's place holds an example of that task."""
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap is {n_bootstrap}: use at least 1, better 2000")
    n = sum(len(group) for group in groups)
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n)
    for start in range(0, n_bootstrap, chunk):
        indices = np.empty((min(chunk, n_bootstrap - start), n), dtype=np.intp)
        for group in groups:
            indices[:, group] = group[random.integers(0, len(group), size=(len(indices), len(group)))]
        yield indices


def _means_at(numbers: Floats, indices: Indices, groups: Sequence[Indices]) -> Floats:
    """Returns the macro mean of every resample."""
    total = np.zeros(len(indices))
    for group in groups:
        total += numbers[indices[:, group]].mean(axis=1)
    means: Floats = total / len(groups)
    return means


def _macro_mean(values: Floats, groups: Sequence[Indices]) -> Floats:
    means: Floats = np.stack([values[:, group].mean(axis=1) for group in groups]).mean(axis=0)
    return means


def _share_positive(resamples: Floats) -> float:
    return float((resamples > 0).mean() + (resamples == 0).mean() / 2)


def _ends(
    resamples: Floats, value: float, confidence: float, outer: Margin | None, limits: tuple[float, float] | None
) -> tuple[float, float]:
    """Returns the percentile interval, widened to the outer bound where it is needed and kept within the limits."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it is a level, use a number between 0 and 1, such as 0.95")
    low, high = np.quantile(resamples, [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = min(float(low), value), max(float(high), value)
    if outer is not None and outer.needed:
        low, high = min(low, value - outer.below), max(high, value + outer.above)
    return (low, high) if limits is None else (max(limits[0], low), min(limits[1], high))
