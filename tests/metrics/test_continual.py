"""Measures of a stream of tasks."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.metrics import backward_transfer, forgetting, forward_transfer, relative_gain

MATRIX = [[0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.6, 0.85, 0.9]]
RAGGED = [[0.9], [0.7, 0.8], [0.6, 0.85, 0.9]]
SQUARES = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)
)


def test_values_by_hand():
    assert forgetting(MATRIX) == pytest.approx([0.3, -0.05])
    assert backward_transfer(MATRIX) == pytest.approx((-0.3 + 0.05) / 2)
    assert relative_gain(MATRIX, [0.8, 0.85, 1.0]) == pytest.approx((0.75 + 1.0) / 2 * 100)


def test_rows_may_end_after_the_diagonal_and_the_last_expert_may_be_missing():
    assert forgetting(RAGGED) == forgetting(MATRIX)
    assert backward_transfer(RAGGED) == backward_transfer(MATRIX)
    assert relative_gain(RAGGED, [0.8, 0.85]) == relative_gain(MATRIX, [0.8, 0.85, 0.1])


def test_the_best_earlier_score_counts_not_the_first():
    assert forgetting([[0.5, 0, 0], [0.9, 0.5, 0], [0.6, 0.5, 0.5]])[0] == pytest.approx(0.3)


@given(SQUARES)
def test_forgetting_is_at_least_the_loss_that_backward_transfer_sees(scores):
    lost = forgetting(scores)
    assert len(lost) == len(scores) - 1
    assert sum(lost) / len(lost) >= -backward_transfer(scores) - 1e-12


@given(SQUARES)
def test_a_stream_that_keeps_every_score_forgets_nothing(scores):
    kept = [scores[0]] * len(scores)
    assert forgetting(kept) == [0.0] * (len(scores) - 1)
    assert backward_transfer(kept) == 0.0


def test_the_final_scores_as_experts_give_100_percent():
    assert relative_gain(MATRIX, MATRIX[-1]) == pytest.approx(100.0)


def test_one_stage_has_nothing_to_forget():
    assert forgetting([[0.7]]) == []


@pytest.mark.parametrize("measure", [forgetting, backward_transfer, lambda scores: relative_gain(scores, [1, 1])])
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], r"got 0 stage\(s\)"),
        ([[0.1, 0.2]], r"scores\[0\] has 2 numbers|got 1 stage"),
        ([[0.1], [0.2]], r"scores\[1\] has 1 numbers"),
        ([[], [0.2, 0.1]], r"scores\[0\] has 0 numbers"),
        ([[0.1, 0.2, 0.3], [0.2, 0.1]], r"scores\[0\] has 3 numbers"),
        ([[math.nan, 0.1], [0.2, 0.1]], r"scores\[0\]\[0\] is nan"),
        ([[0.3, 0.1], [math.inf, 0.1]], r"scores\[1\]\[0\] is inf"),
    ],
)
def test_a_wrong_matrix_is_named(measure, scores, message):
    with pytest.raises(ValueError, match=message):
        measure(scores)


@pytest.mark.parametrize("measure", [backward_transfer, lambda scores: relative_gain(scores, [1])])
def test_measures_between_stages_need_two(measure):
    with pytest.raises(ValueError, match="at least 2"):
        measure([[0.5]])


@pytest.mark.parametrize(
    ("upper", "message"),
    [
        ([0.8], "upper has 1"),
        ([1, 1, 1, 1], "upper has 4"),
        ([0.8, 0.0], r"upper\[1\] is 0"),
        ([math.nan, 1], "nan"),
        ([-1, 1], "-1"),
    ],
)
def test_wrong_experts_are_named(upper, message):
    with pytest.raises(ValueError, match=message):
        relative_gain(MATRIX, upper)


def test_forward_transfer_is_what_was_gained_before_a_task_was_learned():
    assert forward_transfer(MATRIX, [0.0, 0.05, 0.4]) == pytest.approx(((0.1 - 0.05) + (0.3 - 0.4)) / 2)


@given(SQUARES)
def test_a_stream_that_never_moves_transfers_nothing_forward(scores):
    assert forward_transfer([scores[0]] * len(scores), scores[0]) == 0.0


@given(SQUARES)
def test_forward_transfer_reads_only_the_scores_before_learning(scores):
    next_only = [row[: i + 2] for i, row in enumerate(scores)]
    assert forward_transfer(next_only, scores[0]) == forward_transfer(scores, scores[0])


@pytest.mark.parametrize(
    ("scores", "base", "message"),
    [
        (MATRIX, [0.1, 0.2], "base has 2 numbers for 3 tasks"),
        (MATRIX, [0.1, 0.2, math.nan], "one finite score"),
        (RAGGED, [0.1, 0.2, 0.3], r"scores\[0\] has 1 numbers: forward transfer"),
        ([[0.5]], [0.1], "at least 2"),
    ],
)
def test_what_forward_transfer_lacks_is_named(scores, base, message):
    with pytest.raises(ValueError, match=message):
        forward_transfer(scores, base)
