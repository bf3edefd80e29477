"""Finds the numbers that stand for an arm among all the results of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tunescope.report.source import RunSource
from tunescope.runs.records import Result, Role

OVERALL = "*"


def headline(run: RunSource, arm: str, role: Role) -> Result | None:
    """Returns the result that stands for an arm in a role.

    Over tasks that is the mean row (task ``*``), or the only task there is. Over several guard files it is the one
    that got worst, since a good average must not hide a loss.

    Args:
        run: the run.
        arm: name of the arm.
        role: in_domain, out_of_domain or guard.

    Returns:
        The result; several seeds are merged by `merge_seeds`. None if it was not measured.
    """
    rows = [row for row in run.results if row.arm == arm and row.role == role]
    overall = [row for row in rows if row.task == OVERALL]
    if overall:
        first = overall[0]
        return merge_seeds([row for row in overall if (row.metric, row.dataset) == (first.metric, first.dataset)])
    groups = group_by_file(rows)
    if role == "guard" and groups:
        return max(groups, key=lambda row: (row.difference or 0.0, row.value))
    return groups[0] if len(groups) == 1 else None


def group_by_file(rows: Sequence[Result]) -> list[Result]:
    """Returns one result per (task, data set, metric) of one arm, seeds merged, in order of appearance."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.task, row.dataset, row.metric), []).append(row)
    return [merge_seeds(group) for group in groups.values()]


def merge_seeds(rows: Sequence[Result]) -> Result:
    """Returns one result for several seeds: mean values, and intervals wide enough to hold every seed's interval.

    Raises:
        ValueError: `rows` is empty.

    Example:
        >>> a = Result("selected", "*", "in_domain", "mean", 0.70, 0.60, 0.80, 90, seed=1)
        >>> b = Result("selected", "*", "in_domain", "mean", 0.74, 0.65, 0.83, 90, seed=2)
        >>> both = merge_seeds([a, b])
        >>> round(both.value, 2), both.low, both.high, both.seed
        (0.72, 0.6, 0.83, None)
    """
    if not rows:
        raise ValueError("no results to merge; give at least one")
    if len(rows) == 1:
        return rows[0]
    gaps = [row for row in rows if row.difference is not None]
    lows = [row.difference_low for row in gaps if row.difference_low is not None]
    highs = [row.difference_high for row in gaps if row.difference_high is not None]
    floors = [row.noise_floor for row in gaps if row.noise_floor is not None]
    return dataclasses.replace(
        rows[0],
        value=sum(row.value for row in rows) / len(rows),
        low=min(row.low for row in rows),
        high=max(row.high for row in rows),
        difference=sum(row.difference or 0.0 for row in gaps) / len(gaps) if gaps else None,
        difference_low=min(lows) if lows else None,
        difference_high=max(highs) if highs else None,
        noise_floor=max(floors) if floors else None,
        seed=None,
    )


def focus_arm(run: RunSource) -> str | None:
    """Returns the arm that the report follows: the recommended one, else ``selected``, else the first tuned one."""
    arms = run.arms
    if run.verdict is not None and run.verdict.arm in arms:
        return run.verdict.arm
    tuned = run.tuned_arms
    if "selected" in tuned:
        return "selected"
    return tuned[0] if tuned else arms[0] if arms else None


def n_seeds(run: RunSource) -> int:
    """Returns how many seeds the tuned arms were trained with; 0 where none is recorded."""
    return len({row.seed for row in run.results if row.seed is not None})
