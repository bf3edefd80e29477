from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import UserError
from tunescope.replay import ALLOCATIONS, allocate

DISTANCES = st.lists(st.integers(0, 2000).map(lambda n: n / 1000), min_size=1, max_size=20)


def by_fractions(distances: list[float], total: int) -> list[int]:
    """The rule in exact thousandths."""
    parts = [round(d * 1000) for d in distances]
    if not any(parts):
        parts = [1] * len(parts)
    counts = [math.floor(Fraction(part * total, sum(parts))) for part in parts]
    for j in sorted(range(len(parts)), key=lambda j: -parts[j])[: total - sum(counts)]:
        counts[j] += 1
    return counts


@given(distances=DISTANCES, total=st.integers(0, 5000))
def test_equals_the_rule_in_exact_fractions(distances, total):
    assert allocate(distances, total) == by_fractions(distances, total)


@given(distances=DISTANCES, total=st.integers(0, 5000), allocation=st.sampled_from(ALLOCATIONS))
def test_everything_is_given_and_more_to_the_larger_share(distances, total, allocation):
    counts = allocate(distances, total, allocation=allocation)
    assert sum(counts) == total
    assert min(counts) >= 0
    sign = {"distance": 1, "similarity": -1, "even": 0}[allocation]
    for d, n in zip(distances, counts, strict=True):
        for e, m in zip(distances, counts, strict=True):
            if sign * (d - e) > 0:
                assert n >= m
    if allocation == "even":
        assert max(counts) - min(counts) <= 1


@given(distances=DISTANCES, total=st.integers(0, 500), data=st.data(), allocation=st.sampled_from(ALLOCATIONS))
def test_no_task_gives_more_than_it_has_and_nothing_is_lost(distances, total, data, allocation):
    available = data.draw(st.lists(st.integers(0, 60), min_size=len(distances), max_size=len(distances)))
    counts = allocate(distances, total, available=available, allocation=allocation)
    assert all(0 <= n <= most for n, most in zip(counts, available, strict=True))
    assert sum(counts) == min(total, sum(available))
    free = allocate(distances, total, allocation=allocation)
    if all(n <= most for n, most in zip(free, available, strict=True)):
        assert counts == free
    else:  # what is cut from one is never taken from another
        assert all(n >= min(m, most) for n, m, most in zip(counts, free, available, strict=True))


@given(distances=DISTANCES, total=st.integers(0, 500), scale=st.sampled_from([1e-200, 1e-3, 7.0, 1e200]))
def test_only_proportions_count(distances, total, scale):
    assert allocate([d * scale for d in distances], total) == allocate(distances, total)


def test_equal_tasks_are_not_given_the_remainder_twice():
    # The released code finds the place of the remainder by value and gives both to the first of two equal tasks.
    assert allocate([0.2, 0.4, 0.4], 4) == [0, 2, 2]
    assert allocate([0.3, 0.3, 0.3], 5) == [2, 2, 1]
    assert allocate([0.0, 0.0], 3) == [2, 1]


def test_the_cut_goes_to_the_others_by_the_same_rule():
    assert allocate([3, 1, 2], 12, available=[2, 9, 9]) == [2, 3, 7]  # first [6, 2, 4], then 4 to the shares 1 and 2
    assert allocate([5, 0, 0], 6, available=[2, 9, 9]) == [2, 2, 2]
    assert allocate([1, 1], 9, available=[3, 4]) == [3, 4]
    assert allocate([1, 2], 5, available=[0, 0]) == [0, 0]


def test_the_nearer_task_gets_more_if_that_is_asked_for():
    assert allocate([0.1, 0.3], 40) == [10, 30]
    assert allocate([0.1, 0.3], 40, allocation="similarity") == [30, 10]
    assert allocate([0.1, 0.3], 40, allocation="even") == [20, 20]
    assert allocate([0, 0], 3, allocation="similarity") == [2, 1]


def test_a_budget_below_the_number_of_tasks_goes_to_the_most_distant():
    assert allocate([0.1, 0.3, 0.2, 0.3], 2) == [0, 1, 0, 1]
    assert allocate([0.1, 0.3, 0.2], 0) == [0, 0, 0]


def test_without_tasks_there_is_nothing_to_share():
    assert allocate([], 0) == allocate([], 7) == []
    assert allocate([], 7, available=[], allocation="similarity") == []
    assert allocate([0.7], 7) == [7]


def test_numpy_numbers_are_numbers():
    counts = allocate(np.array([0.1, 0.3]), np.int64(8), available=np.array([8, 8]))
    assert counts == [2, 6]
    assert all(type(n) is int for n in counts)


@pytest.mark.parametrize(
    ("distances", "total", "more", "message"),
    [
        ([0.1, -0.1], 2, {}, "distance -0.1 of task 1"),
        ([math.nan], 2, {}, "distance nan of task 0"),
        ([math.inf], 2, {}, "distance inf of task 0"),
        ([0.1], -1, {}, "total -1"),
        ([0.1], 1.5, {}, "total 1.5"),
        ([0.1], 1, {"available": [1, 2]}, "2 available counts for 1 distances"),
        ([0.1], 1, {"available": [-1]}, "whole numbers, at least 0"),
        ([0.1], 1, {"allocation": "similar"}, r"did you mean similarity\?"),
    ],
)
def test_what_cannot_be_shared_is_refused(distances, total, more, message):
    with pytest.raises(UserError, match=message):
        allocate(distances, total, **more)
