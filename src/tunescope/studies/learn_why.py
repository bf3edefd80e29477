"""Why a policy helps, or does not: is what is far from the new task what is lost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def lost_at_stages(
    distances: Sequence[Mapping[str, float]], scores: Sequence[Mapping[str, float]]
) -> list[tuple[Floats, Floats]]:
    """Returns, for every stage with earlier tasks, how far each of them is and what it lost in that stage.

    Args:
        distances: for every stage, earlier task -> distance to what is learned.
        scores: for every stage, task -> score after it, of a stream that repeats nothing.

    Returns:
        Per stage two arrays of the same earlier tasks, (n_earlier,): distances, and scores before the stage minus after it. Tasks without
        a score before are left out.

    Example:
        >>> lost_at_stages([{}, {"a": 0.2}], [{"a": 0.9}, {"a": 0.4, "b": 1.0}])
        [(array([0.2]), array([0.5]))]
    """
    found = []
    for far, before, after in zip(distances[1:], scores, scores[1:], strict=False):
        tasks = [task for task in far if task in before and task in after]
        if tasks:
            found.append((np.array([far[t] for t in tasks]), np.array([before[t] - after[t] for t in tasks])))
    return found


def within_stages(
    stages: Sequence[tuple[Floats, Floats]], *, n_bootstrap: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, float] | None:
    """Returns the rank correlation of distance and loss within stages: what a policy that shares a budget by distance lives on.

    Ranks are taken within a stage, since a budget is shared within one, and centred there; the correlation is over all of them together.

    Args:
        stages: of `lost_at_stages`, of one stream or several.
        n_bootstrap: resamples, of whole stages.
        confidence: level of the interval.
        seed: of the resamples.

    Returns:
        ``value``, ``low``, ``high`` in [-1, 1], ``stages`` and ``pairs``; None where no stage has two earlier tasks that differ in both.

    Source:
        Spearman 1904, *The Proof and Measurement of Association between Two Things*; ranks are centred within stages.

    Example:
        >>> near_is_kept = [(np.array([0.1, 0.2, 0.9]), np.array([0.0, 0.1, 0.3]))]
        >>> within_stages(near_is_kept)["value"]
        1.0
    """
    from scipy.stats import rankdata

    parts = []
    for far, lost in stages:
        if len(far) > 1:
            x, y = rankdata(far), rankdata(lost)
            x, y = x - x.mean(), y - y.mean()
            parts.append((x @ y, x @ x, y @ y))
    sums = np.array(parts).reshape(-1, 3)
    value = _correlation(sums.sum(0))
    if value is None:
        return None
    dice = np.random.default_rng([seed, 0xD1])
    drawn = sums[dice.integers(len(sums), size=(n_bootstrap, len(sums)))].sum(1)
    draws = [found for row in drawn if (found := _correlation(row)) is not None]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    pairs = sum(len(far) for far, _ in stages if len(far) > 1)
    return {"value": value, "low": min(low, value), "high": max(high, value), "stages": len(sums), "pairs": pairs}


def _correlation(sums: Floats) -> float | None:
    xy, xx, yy = sums.tolist()
    return xy / float(np.sqrt(xx * yy)) if xx > 0 and yy > 0 else None
