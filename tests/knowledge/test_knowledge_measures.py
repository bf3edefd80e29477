"""Consistency, KL and partial Spearman against naive loops and scipy, their invariances, and what they refuse."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import entropy, pearsonr, rankdata, spearmanr

from tunescope.errors import UserError
from tunescope.knowledge import (
    choice_probabilities,
    consistencies,
    divergences,
    mean_kl,
    partial_spearman,
    rank_consistency,
)

RANDOM = np.random.default_rng(7)


def ragged(n: int, seed: int) -> list[list[float]]:
    """Probabilities of questions with 2 to 6 choices, rounded so that ties occur."""
    random = np.random.default_rng(seed)
    rows = []
    for size in np.random.default_rng(3).integers(2, 7, n):  # the same sizes for every seed
        counts = random.integers(1, 4, size)
        rows.append((counts / counts.sum()).tolist())
    return rows


def ranks_by_counting(row: list[float]) -> list[float]:
    """Rank 1 = largest; ties share the mean of the places they take."""
    return [sum(other > value for other in row) + (sum(other == value for other in row) + 1) / 2 for value in row]


def correlation_by_hand(a: list[float], b: list[float]) -> float:
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    below = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return top / below if below else 0.0


# Consistency


def test_consistency_is_that_of_a_naive_loop_on_rows_of_differing_length_with_ties() -> None:
    p, q = ragged(200, 1), ragged(200, 2)
    expected = [correlation_by_hand(ranks_by_counting(a), ranks_by_counting(b)) for a, b in zip(p, q, strict=True)]
    assert consistencies(p, q) == pytest.approx(expected, abs=1e-12)
    assert rank_consistency(p, q) == pytest.approx(sum(expected) / len(expected), abs=1e-12)
    assert any(len(set(row)) < len(row) for row in p)  # ties did occur


def test_consistency_of_each_question_is_scipys_spearman() -> None:
    p, q = RANDOM.dirichlet(np.ones(5), 50), RANDOM.dirichlet(np.ones(5), 50)
    assert consistencies(p, q) == pytest.approx([spearmanr(a, b).statistic for a, b in zip(p, q, strict=True)])


def test_a_constant_side_counts_zero_and_is_not_left_out() -> None:
    same = [0.7, 0.2, 0.1]
    flat = [1 / 3] * 3
    assert rank_consistency([same, same], [same, flat]) == 0.5
    assert rank_consistency([flat], [same]) == rank_consistency([flat], [flat]) == 0.0


def test_all_questions_weigh_the_same_however_many_choices_they_have() -> None:
    assert rank_consistency([[0.9, 0.1], [0.1, 0.2, 0.3, 0.4]], [[0.1, 0.9], [0.1, 0.2, 0.3, 0.4]]) == 0.0


def test_consistency_with_itself_is_one_and_with_the_reverse_minus_one() -> None:
    p = RANDOM.dirichlet(np.ones(4), 30)
    assert rank_consistency(p, p) == pytest.approx(1.0, abs=1e-15)
    assert rank_consistency(p, -p) == pytest.approx(-1.0, abs=1e-15)
    assert rank_consistency(p, p) <= 1.0


@given(st.integers(0, 10_000))
def test_consistency_ignores_monotone_transforms_order_of_questions_of_choices_and_of_sides(seed: int) -> None:
    random = np.random.default_rng(seed)
    p, q = random.dirichlet(np.ones(4), 9), random.dirichlet(np.ones(4), 9)
    questions, choices = random.permutation(9), random.permutation(4)
    value = rank_consistency(p, q)
    assert rank_consistency(np.log(p), q**3) == pytest.approx(value, abs=1e-12)
    assert rank_consistency(p[questions], q[questions]) == pytest.approx(value, abs=1e-12)
    assert rank_consistency(p[:, choices], q[:, choices]) == pytest.approx(value, abs=1e-12)
    assert rank_consistency(q, p) == pytest.approx(value, abs=1e-12)
    assert -1 <= value <= 1


def test_choices_permuted_differently_in_every_question_change_nothing() -> None:
    p, q = ragged(40, 5), ragged(40, 6)
    orders = [np.random.default_rng(i).permutation(len(row)) for i, row in enumerate(p)]
    moved = [[[row[k] for k in order] for row, order in zip(rows, orders, strict=True)] for rows in (p, q)]
    assert consistencies(*moved) == pytest.approx(consistencies(p, q), abs=1e-12)
    assert divergences(*moved) == pytest.approx(divergences(p, q), abs=1e-12)


def test_recorded_values() -> None:
    p = [[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.4, 0.1], [0.6, 0.4]]
    q = [[0.3, 0.4, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4], [0.45, 0.55]]
    assert consistencies(p, q) == pytest.approx([0.6, -0.316227766, -1.0])
    assert divergences(p, q) == pytest.approx([0.098083, 0.261302, 0.045228], abs=1e-6)


# KL


def test_kl_is_scipys_entropy_question_by_question() -> None:
    p, q = ragged(100, 1), ragged(100, 2)
    expected = [entropy(a, b) for a, b in zip(p, q, strict=True)]
    assert divergences(p, q) == pytest.approx(expected, abs=1e-12)
    assert mean_kl(p, q) == pytest.approx(np.mean(expected))


def test_kl_is_not_symmetric_and_goes_from_the_first_to_the_second() -> None:
    p, q = [[0.9, 0.1]], [[0.5, 0.5]]
    assert mean_kl(p, q) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert mean_kl(q, p) != pytest.approx(mean_kl(p, q))


def test_a_zero_on_the_left_adds_nothing_and_one_on_the_right_makes_it_infinite() -> None:
    assert mean_kl([[1.0, 0.0]], [[0.5, 0.5]]) == pytest.approx(math.log(2))
    assert mean_kl([[1.0, 0.0]], [[1.0, 0.0]]) == 0.0
    assert mean_kl([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [1.0, 0.0]]) == math.inf
    assert divergences([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [1.0, 0.0]]).tolist() == [0.0, math.inf]


def test_kl_of_a_row_with_itself_is_exactly_zero_and_never_below() -> None:
    p = RANDOM.dirichlet(np.ones(7), 200)
    assert mean_kl(p, p) == 0.0
    assert (divergences(p, p * (1 + 1e-16)) >= 0).all()


def test_rounding_within_the_tolerance_changes_hardly_anything() -> None:
    p, q = RANDOM.dirichlet(np.ones(4), 20), RANDOM.dirichlet(np.ones(4), 20)
    assert mean_kl(p * (1 + 5e-5), q) == pytest.approx(mean_kl(p, q), abs=1e-12)


@pytest.mark.parametrize(
    "row", [[0.5, 0.6], [0.5, 0.4], [1.5, -0.5], [math.inf, 0.0], [0.0, 0.0], [-0.1, 1.1], [0.5, 0.499]]
)
@pytest.mark.parametrize("side", [0, 1])
def test_kl_refuses_what_is_no_distribution(row: list[float], side: int) -> None:
    rows = [[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]
    rows[side][1] = row
    with pytest.raises(UserError, match=f"question 1 of {'pq'[side]} is .* summing to 1"):
        mean_kl(*rows)


@pytest.mark.parametrize("measure", [rank_consistency, mean_kl, consistencies, divergences])
@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([], [], "at least one"),
        ([[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], "p has 1 questions and q 2"),
        ([[0.5, 0.5]], [[0.2, 0.3, 0.5]], "question 0 has 2 choices in p and 3 in q"),
        ([[1.0]], [[1.0]], "at least 2"),
        ([[]], [[]], "at least 2"),
        ([0.5, 0.5], [0.5, 0.5], "one number per choice"),
        ([[math.nan, 0.5]], [[0.5, 0.5]], "question 0 of p holds NaN"),
        ([[0.5, 0.5]], [[0.5, math.nan]], "question 0 of q holds NaN"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(measure, p, q, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message) as refused:
        measure(p, q)
    assert len(refused.value.problems) == 1


# Partial Spearman


def partial_by_regression(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Ranks, least squares with a constant, scipy's Spearman of the residuals."""
    a, b, c = (rankdata(values) for values in (x, y, z))
    design = np.column_stack([np.ones(len(c)), c])
    left = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (a, b)]
    assume(all(np.diff(np.sort(values)).min() > 1e-7 for values in left))  # no ties but for rounding
    return float(spearmanr(*left).statistic)


@given(st.integers(0, 100_000), st.integers(4, 40))
def test_partial_spearman_is_that_of_a_regression_of_ranks(seed: int, n: int) -> None:
    x, y, z = np.random.default_rng(seed).normal(size=(3, n))
    assert partial_spearman(x, y, z) == pytest.approx(partial_by_regression(x, y, z), abs=1e-9)


def partial_in_fractions(x: list[int], y: list[int], z: list[int]) -> float:
    """The same in exact fractions up to the last step; nan where a residual is constant."""

    def centred(values: list[float]) -> list[Fraction]:
        ranks = [Fraction(-rank).limit_denominator(2) for rank in ranks_by_counting(values)]
        return [rank - sum(ranks) / len(ranks) for rank in ranks]

    def residuals(values: list[Fraction], given_: list[Fraction]) -> list[Fraction]:
        spread = sum(c * c for c in given_)
        slope = sum(v * c for v, c in zip(values, given_, strict=True)) / spread if spread else Fraction(0)
        return [v - slope * c for v, c in zip(values, given_, strict=True)]

    c = centred(z)  # type: ignore[arg-type]
    left = [residuals(centred(values), c) for values in (x, y)]  # type: ignore[arg-type]
    if any(len(set(values)) == 1 for values in left):
        return math.nan
    return correlation_by_hand(*(ranks_by_counting(values) for values in left))  # type: ignore[arg-type]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=3, max_size=12))
def test_equal_residuals_are_ties_in_any_order_of_the_points(points: list[tuple[int, int, int]]) -> None:
    x, y, z = (list(column) for column in zip(*points, strict=True))
    expected = partial_in_fractions(x, y, z)
    found = partial_spearman(x, y, z)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
    turned = (list(reversed(column)) for column in (x, y, z))
    assert partial_spearman(*turned) == pytest.approx(found, abs=1e-12, nan_ok=True)


def test_a_least_squares_fit_in_floats_can_miss_a_tie_that_is_there() -> None:
    """Why the arithmetic is exact: the slope is 1/3 and two residuals are equal, which a fit tells by luck alone."""
    points = [(a, b, c) for a, b, c in itertools.product(range(4), repeat=3)]
    random = np.random.default_rng(0)
    tied = 0
    for _ in range(300):
        x, y, z = (list(column) for column in zip(*(points[i] for i in random.integers(0, 64, 9)), strict=True))
        exact = partial_in_fractions(x, y, z)
        if math.isnan(exact):
            continue
        design = np.column_stack([np.ones(9), rankdata(z)])
        left = [rankdata(v) - design @ np.linalg.lstsq(design, rankdata(v), rcond=None)[0] for v in (x, y)]
        tied += abs(spearmanr(*left).statistic - exact) > 1e-6
        assert partial_spearman(x, y, z) == pytest.approx(exact, abs=1e-12)
    assert tied > 0


def test_it_is_not_the_usual_partial_rank_correlation_which_leaves_the_residuals_unranked() -> None:
    x, y, z = np.random.default_rng(1).normal(size=(3, 12))
    a, b, c = (rankdata(values) for values in (x, y, z))
    ab, ac, bc = (pearsonr(*pair).statistic for pair in ((a, b), (a, c), (b, c)))
    usual = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
    assert abs(partial_spearman(x, y, z) - usual) > 0.01


@given(st.integers(0, 1000))
def test_partial_spearman_ignores_monotone_transforms_and_is_symmetric_in_its_first_two(seed: int) -> None:
    x, y, z = np.random.default_rng(seed).normal(size=(3, 15))
    value = partial_spearman(x, y, z)
    assert partial_spearman(np.exp(x), y**3, 5 - np.exp(-z)) == value
    assert partial_spearman(y, x, z) == pytest.approx(value, abs=1e-15)
    assert partial_spearman(-x, y, -z) == pytest.approx(-value, abs=1e-15)


def test_with_a_constant_third_it_is_spearmans_correlation() -> None:
    x, y = RANDOM.normal(size=(2, 20))
    assert partial_spearman(x, y, [3.0] * 20) == pytest.approx(spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("x", "y", "z"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], [1, 3, 2, 4]),
        ([1, 2, 3, 4], [5, 5, 5, 5], [1, 3, 2, 4]),
        ([1, 2, 3, 4], [1, 3, 2, 4], [10, 20, 30, 40]),  # x follows from z
        ([1, 3, 2, 4], [4, 3, 2, 1], [1, 2, 3, 4]),  # y follows from z
        ([1, 1, 1], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_where_nothing_is_left_to_correlate_it_is_nan(x: list[int], y: list[int], z: list[int]) -> None:
    assert math.isnan(partial_spearman(x, y, z))


@pytest.mark.parametrize(
    ("x", "y", "z", "message"),
    [
        ([1, 2], [1, 2], [2, 1], "x, y and z have 2, 2, 2 numbers: .* at least 3"),
        ([1, 2, 3], [1, 2, 3], [1, 2], "have 3, 3, 2 numbers"),
        ([], [], [], "at least 3"),
        ([1, 2, math.nan], [1, 2, 3], [1, 2, 3], "x holds NaN"),
        ([1, 2, 3], [1, 2, 3], [math.nan, 2, 3], "z holds NaN"),
        ([[1, 2, 3]], [1, 2, 3], [1, 2, 3], "x has shape"),
    ],
)
def test_partial_spearman_refuses(x, y, z, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        partial_spearman(x, y, z)


# Free choices


def test_choice_probabilities_are_a_softmax_and_survive_very_small_ones() -> None:
    found = choice_probabilities([-3000.0, -3001.0, -math.inf])
    assert found == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0])
    assert sum(found) == pytest.approx(1.0, abs=1e-15)


def test_normalised_by_length_the_mean_per_token_decides() -> None:
    logprobs, lengths = [-4.0, -6.0, -9.0], [1, 3, 3]
    plain, normed = choice_probabilities(logprobs), choice_probabilities(logprobs, lengths, length_normalised=True)
    assert max(range(3), key=plain.__getitem__) == 0
    assert max(range(3), key=normed.__getitem__) == 1
    assert normed == pytest.approx(np.exp([-4, -2, -3]) / np.exp([-4, -2, -3]).sum())
    assert choice_probabilities(logprobs, [1, 1, 1], length_normalised=True) == pytest.approx(plain)


def test_repeating_a_text_token_by_token_changes_no_length_normalised_choice() -> None:
    once = choice_probabilities([-2.0, -3.0], [2, 4], length_normalised=True)
    assert choice_probabilities([-6.0, -9.0], [6, 12], length_normalised=True) == pytest.approx(once)


@pytest.mark.parametrize(
    ("logprobs", "lengths", "message"),
    [
        ([-1.0], [1], "at least 2"),
        ([-1.0, math.nan], [1, 1], "at most 0"),
        ([-1.0, 0.5], [1, 1], "at most 0"),
        ([-math.inf, -math.inf], [1, 1], "finite"),
        ([-1.0, -2.0], None, "lengths are None"),
        ([-1.0, -2.0], [1], "one of at least 1 per choice"),
        ([-1.0, -2.0], [1, 0], "at least 1"),
    ],
)
def test_scores_that_are_none_are_refused(logprobs, lengths, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        choice_probabilities(logprobs, lengths, length_normalised=True)
