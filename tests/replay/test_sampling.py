from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import UserError
from tunescope.replay import sample_examples, sample_with_steps

TASKS = st.integers(1, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.integers(0, k - 1), min_size=1, max_size=40),
        st.lists(st.integers(0, 50).map(lambda n: n / 10), min_size=k, max_size=k),
    )
)


@given(task=TASKS, quota=st.integers(0, 50), seed=st.integers(0, 99))
def test_exactly_the_quota_is_chosen_each_once(task, quota, seed):
    of, information = task
    chosen = sample_examples(of, information, quota, seed=seed)
    assert len(chosen) == min(quota, len(of))
    assert chosen == sorted(set(chosen))
    assert all(0 <= position < len(of) for position in chosen)
    assert chosen == sample_examples(of, information, quota, seed=seed)


@given(task=TASKS, quota=st.integers(0, 50), seed=st.integers(0, 99))
def test_few_are_those_of_most_information_and_many_hold_every_instruction(task, quota, seed):
    of, information = task
    chosen = Counter(of[position] for position in sample_examples(of, information, quota, seed=seed))
    present = sorted(set(of), key=lambda k: (-information[k], k))
    if quota < len(present):
        assert chosen == Counter(present[:quota])
    else:
        assert set(chosen) == set(present)


@given(task=TASKS, quota=st.integers(0, 50), seed=st.integers(0, 99))
def test_many_are_shared_by_information_as_far_as_there_are_examples(task, quota, seed):
    of, information = task
    counts = Counter(of)
    if quota < len(counts) or quota > len(of):
        return
    whole = sum(information[k] for k in counts)
    share = {k: information[k] / whole if whole else 1 / len(counts) for k in counts}
    wanted = {k: min(counts[k], max(1, math.floor(share[k] * quota + 1e-9))) for k in counts}
    chosen = Counter(of[position] for position in sample_examples(of, information, quota, seed=seed))
    # Either something is added to the shares or something is taken away, never both.
    if sum(wanted.values()) <= quota:
        assert all(chosen[k] >= wanted[k] for k in counts)
    else:
        assert all(1 <= chosen[k] <= wanted[k] for k in counts)


def test_shares_follow_the_information():
    of = [0] * 50 + [1] * 50 + [2] * 50
    chosen = Counter(of[p] for p in sample_examples(of, [6.0, 3.0, 1.0], 50, seed=0))
    assert chosen == {0: 30, 1: 15, 2: 5}
    even = Counter(of[p] for p in sample_examples(of, [0.0, 0.0, 0.0], 51, seed=0))
    assert even == {0: 17, 1: 17, 2: 17}


def test_an_instruction_without_information_keeps_its_last_example():
    of = [0] * 30 + [1] * 30 + [2]
    for seed in range(20):
        chosen = Counter(of[p] for p in sample_examples(of, [1.0, 0.0, 0.0], 3, seed=seed))
        assert chosen == {0: 1, 1: 1, 2: 1}  # three shares of 3, 1 and 1, two of the first taken away


def test_an_instruction_gives_no_more_than_it_has_and_others_fill_up():
    of = [0] * 2 + [1] * 30
    steps = sample_with_steps(of, [9.0, 1.0], 10, seed=0)
    assert [p for p, _ in steps][:2] == [0, 1]
    assert Counter(step for _, step in steps) == {"information_share": 3, "top_up": 7}


def test_within_an_instruction_every_example_has_the_same_chance():
    drawn = Counter(p for seed in range(3000) for p in sample_examples([0] * 6 + [1], [1.0, 0.5], 1, seed=seed))
    assert set(drawn) == set(range(6))
    assert max(abs(drawn[p] - 500) for p in range(6)) < 5 * math.sqrt(500)
    topped = Counter(p for seed in range(3000) for p in sample_examples([0] * 6, [1.0], 2, seed=seed))
    assert max(abs(topped[p] - 1000) for p in range(6)) < 5 * math.sqrt(1000)


def test_everything_is_chosen_if_there_is_no_more():
    assert sample_examples([0, 1, 1], [1.0, 2.0], 99, seed=0) == [0, 1, 2]
    assert sample_examples([], [], 5, seed=0) == []
    assert sample_examples([0], [0.0], 0, seed=0) == []
    assert sample_examples(np.array([5, 5]), [0.0] * 6, 1, seed=0) in (
        [0],
        [1],
    )  # instructions without examples do not matter


@pytest.mark.parametrize(
    ("of", "information", "quota", "message"),
    [
        ([0, 2], [1.0, 1.0], 1, "holds 0 to 2, but there are 2 instructions"),
        ([-1], [1.0], 1, "holds -1"),
        ([0.0], [1.0], 1, "one whole number per example"),
        ([[0]], [1.0], 1, "one whole number per example"),
        ([0], [-1.0], 1, "negative or not finite"),
        ([0], [math.nan], 1, "negative or not finite"),
        ([0], [1.0], -1, "quota -1"),
        ([0], [1.0], 0.5, "quota 0.5"),
    ],
)
def test_what_is_out_of_range_is_refused(of, information, quota, message):
    with pytest.raises(UserError, match=message):
        sample_examples(of, information, quota, seed=0)
