"""Comparison of models that were tuned on different groups of questions.

Every test is paired: all groups answer the same questions. Questions are drawn again within a test, for all groups and all of their seeds
together; the figure over all tests (``*``) is the unweighted mean of the tests. The intervals hold for these trained models: how far another
seed of tuning would move them shows only in a group that was tuned with several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tunescope.errors import UserError
from tunescope.knowledge.chance import ALL
from tunescope.knowledge.measures import partial_spearman
from tunescope.knowledge.resampling import (
    Estimate,
    check_confidence,
    mean_estimate,
    needs_outer_bound,
    outer_bound,
    percentiles,
    resampled_means,
)
from tunescope.runs.records import Record

Floats = npt.NDArray[np.float64]
Scores = Mapping[str, Mapping[str, Sequence[float] | Sequence[Sequence[float]] | Floats]]
"""Group -> test -> right (1) or wrong (0) per question [n], or per seed and question [n_seeds, n]."""

ORDER = ("harmonious", "self_aligning", "incompatible")
"""Expected order of the groups, best first (Ren et al. 2024)."""


@dataclass(frozen=True)
class GroupDifference(Record):
    """Accuracy of one group minus that of another.

    Attributes:
        test: name of the test; ``*`` for the mean of all.
        first: group.
        second: the group it is compared with.
        difference: accuracy of the first less that of the second, with its paired interval.
        share_positive: share of the resamples in which the first is better; ties count half.
    """

    test: str
    first: str
    second: str
    difference: Estimate
    share_positive: float


@dataclass(frozen=True)
class GroupComparison(Record):
    """All comparisons of an intervention study.

    Attributes:
        accuracy: test -> group -> accuracy, the mean over the group's seeds.
        differences: every pair of groups, on every test and on ``*``; groups of the order first, in that order.
        order: the expected order that was checked, best first; empty where fewer than two of its groups were tuned.
        order_holds: test -> whether the accuracies are strictly in that order.
        order_probability: test -> share of the resamples in which they are.
        n_seeds: group -> tuned models behind it.
    """

    accuracy: Mapping[str, Mapping[str, Estimate]]
    differences: tuple[GroupDifference, ...]
    order: tuple[str, ...]
    order_holds: Mapping[str, bool]
    order_probability: Mapping[str, float]
    n_seeds: Mapping[str, int]


@dataclass(frozen=True)
class Cell(Record):
    """One tuned group on one test.

    Attributes:
        group: its name.
        test: the test's name.
        consistency: rank consistency of base and tuned model on the test's questions.
        accuracy: of the tuned model.
        base_accuracy: of the base.
    """

    group: str
    test: str
    consistency: float
    accuracy: float
    base_accuracy: float


@dataclass(frozen=True)
class PartialConsistency(Record):
    """Partial Spearman of consistency and tuned accuracy given base accuracy, over groups and tests.

    Attributes:
        value: the correlation; None where it is undefined or there are fewer than 3 cells.
        low: lowest value with one group at a time left out; None where any of these is undefined.
        high: highest of them.
        n: cells.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def compare_groups(
    scores: Scores, *, order: Sequence[str] = ORDER, n_bootstrap: int, confidence: float = 0.95, seed: int
) -> GroupComparison:
    """Compares the groups pair by pair on every test, and says how sure their order is.

    Args:
        scores: group -> test -> right (1) or wrong (0) per question (n,), or per seed and question (n_seeds, n); the same tests with the
            same questions in the same order for all groups. A name of a test may not be ``*``.
        order: expected order, best first; groups that were not tuned are left out of it.
        n_bootstrap: resamples.
        confidence: level of the intervals, in (0, 1).
        seed: of the resampling.

    Returns:
        The comparison.

    Raises:
        UserError: if there are no groups or tests, groups differ in their tests, questions or a group in its seeds, a score is not in
            [0, 1], or a setting is out of range.

    Source:
        The comparison is that of Ren et al. 2024 (arXiv 2402.18243); paired bootstrap after Koehn 2004. Intervals and the
        probability of the order are ours.

    Example:
        >>> right = {"harmonious": [1] * 9 + [0], "self_aligning": [1] * 6 + [0] * 4, "incompatible": [1, 0] + [0] * 8}
        >>> found = compare_groups({name: {"homo": rows} for name, rows in right.items()}, n_bootstrap=500, seed=0)
        >>> found.order_holds["homo"], found.order_probability["homo"] > 0.9
        (True, True)
    """
    check_confidence(confidence)
    tables, n_seeds = _tables(scores)
    ranked = [name for name in order if name in n_seeds]
    groups = [*ranked, *(name for name in n_seeds if name not in ranked)]
    resamples = {
        test: resampled_means(
            np.stack([table[name] for name in groups]), n_bootstrap=n_bootstrap, seed=_test_seed(seed, place)
        )
        for place, (test, table) in enumerate(tables.items())
    }
    resamples[ALL] = np.mean(list(resamples.values()), axis=0)
    accuracy = {
        test: {
            name: mean_estimate(
                table[name],
                limits=(0.0, 1.0),
                n_bootstrap=n_bootstrap,
                confidence=confidence,
                seed=_test_seed(seed, place),
            )
            for name in groups
        }
        for place, (test, table) in enumerate(tables.items())
    }
    differences = []
    for test, rows in resamples.items():
        of = list(tables.values()) if test == ALL else [tables[test]]
        for i, first in enumerate(groups):
            for j, second in enumerate(groups[i + 1 :], i + 1):
                apart = rows[i] - rows[j]
                estimate = _difference([table[first] - table[second] for table in of], apart, confidence)
                positive = float((apart > 0).mean() + (apart == 0).mean() / 2)
                differences.append(GroupDifference(test, first, second, estimate, positive))
    ordered = tuple(ranked) if len(ranked) > 1 else ()
    values = {test: [math.fsum(table[name]) / len(table[name]) for name in ranked] for test, table in tables.items()}
    values[ALL] = [float(np.mean(column)) for column in zip(*values.values(), strict=True)]
    return GroupComparison(
        accuracy=accuracy,
        differences=tuple(differences),
        order=ordered,
        order_holds={test: all(a > b for a, b in pairwise(found)) for test, found in values.items()} if ordered else {},
        order_probability={
            test: float(np.all(rows[: len(ranked) - 1] > rows[1 : len(ranked)], axis=0).mean())
            for test, rows in resamples.items()
        }
        if ordered
        else {},
        n_seeds=n_seeds,
    )


def partial_consistency(cells: Sequence[Cell]) -> PartialConsistency:
    """Says whether the groups that stay closer to the base's order of the choices are right more often, whatever the base was.

    Args:
        cells: one per tuned group and test (and seed, where a group was tuned with several).

    Returns:
        The partial Spearman over all cells. Cells of one group come from one model and are not independent, so there is no p-value;
        instead the range of the values when one group at a time is left out.

    Raises:
        UserError: if a number is NaN.

    Source:
        Ren et al. 2024 (arXiv 2402.18243); the range is ours.

    Example:
        >>> rows = [("a", 0.2, 0.3), ("b", 0.5, 0.4), ("c", 0.6, 0.6), ("d", 0.9, 0.7)]
        >>> partial_consistency([Cell(name, "homo", consistency, right, 0.3) for name, consistency, right in rows]).value
        1.0
    """
    value = _partial(cells)
    names = list(dict.fromkeys(cell.group for cell in cells))
    left = [_partial([cell for cell in cells if cell.group != name]) for name in names]
    known = [found for found in left if found is not None]
    if value is None or len(names) < 2 or len(known) < len(left):
        return PartialConsistency(value, None, None, len(cells))
    return PartialConsistency(value, min(known), max(known), len(cells))


def _partial(cells: Sequence[Cell]) -> float | None:
    if len(cells) < 3:
        return None
    value = partial_spearman(
        [cell.consistency for cell in cells], [cell.accuracy for cell in cells], [cell.base_accuracy for cell in cells]
    )
    return None if math.isnan(value) else value


def _tables(scores: Scores) -> tuple[dict[str, dict[str, Floats]], dict[str, int]]:
    """Returns test -> group -> mean over the seeds per question, and how many seeds each group has."""
    if not scores or not next(iter(scores.values())):
        raise UserError("got no groups or no tests: give at least one of each")
    first = next(iter(scores))
    tables: dict[str, dict[str, Floats]] = {test: {} for test in scores[first]}
    if ALL in tables:
        raise UserError(f"a test is named {ALL}: that name stands for the mean of all tests, use another")
    n_seeds: dict[str, int] = {}
    for group, tests in scores.items():
        if tests.keys() != tables.keys():
            raise UserError(
                f"group {group} has the tests {sorted(tests)}, {first} {sorted(tables)}: give all groups the same"
            )
        for test, values in tests.items():
            if len({np.size(row) for row in values}) > 1:
                raise UserError(
                    f"group {group} has seeds with different numbers of questions on {test}: ask every seed the same"
                )
            rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
            if rows.ndim != 2 or not rows.size:
                raise UserError(
                    f"group {group} has scores of shape {rows.shape} on {test}: give one per question, or rows of seeds"
                )
            if not ((rows >= 0) & (rows <= 1)).all():
                raise UserError(f"group {group} has a score on {test} that is not in [0, 1]: 1 is right, 0 wrong")
            if n_seeds.setdefault(group, len(rows)) != len(rows):
                raise UserError(
                    f"group {group} has {n_seeds[group]} seeds and {len(rows)} on {test}: test every seed on all tests"
                )
            if rows.shape[1] != len(tables[test].get(first, rows[0])):
                raise UserError(
                    f"group {group} has {rows.shape[1]} questions on {test}, {first} {len(tables[test][first])}: use the same"
                )
            tables[test][group] = rows.mean(axis=0)
    return tables, n_seeds


def _difference(differences: Sequence[Floats], resamples: Floats, confidence: float) -> Estimate:
    """Sums up the mean over tests of paired differences."""
    n = sum(len(each) for each in differences)
    value = math.fsum(math.fsum(each) / len(each) for each in differences) / len(differences)
    if n < 2:
        return Estimate(value, -1.0, 1.0, n)
    low, high = percentiles(resamples, confidence)
    if any(needs_outer_bound(each) for each in differences):
        bounds = [outer_bound(each, confidence) for each in differences]
        shift = float(np.mean([middle for middle, _ in bounds]))
        error = math.hypot(*(half for _, half in bounds)) / len(bounds)
        low, high = min(low, shift - error), max(high, shift + error)
    return Estimate(value, max(-1.0, min(low, value)), min(1.0, max(high, value)), n)


def _test_seed(seed: int, place: int) -> int:
    """Returns a seed of its own for every test, so that tests are drawn independently."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
