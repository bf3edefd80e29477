"""Rank agreement: Spearman's as SciPy gives it, and p-values that counting over all orders confirms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunescope.errors import UserError
from tunescope.layers import rank_agreement
from tunescope.models import block_names
from tunescope.runs.records import LayerScores


def scores(values: list[float], *, first: int = 0, name: str = "map") -> LayerScores:
    layers = block_names(first + len(values))[first:]
    return LayerScores(name, "1", layers, tuple(values), n=4, higher_means="matters")


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-9, 9)), min_size=3, max_size=30))
def test_the_correlation_is_spearmans_with_ties_as_in_scipy(pairs: list[tuple[int, float]]) -> None:
    a, b = (list(values) for values in zip(*pairs, strict=True))
    if len(set(a)) < 2 or len(set(b)) < 2:
        return
    wanted = stats.spearmanr(a, b).statistic
    assert rank_agreement(a, b).correlation == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_p_value_is_that_of_all_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, 7), rng.standard_normal(7) + np.arange(7) * (seed % 2)
    observed = abs(stats.spearmanr(a, b).statistic)
    ranks = stats.rankdata(a) - 4, stats.rankdata(b) - 4
    length = np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1])
    orders = np.array(list(itertools.permutations(ranks[1])))
    exact = float((np.abs(orders @ ranks[0]) / length >= observed - 1e-9).mean())
    found = rank_agreement(a, b).p_value
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999) + 2e-4)


@pytest.mark.parametrize("slope", [0.0, 0.02, 0.05])
def test_the_p_value_is_near_scipys_for_many_blocks(slope: float) -> None:
    rng = np.random.default_rng(5)
    a = rng.standard_normal(40)
    b = rng.standard_normal(40) + 10 * slope * a
    assert rank_agreement(a, b).p_value == pytest.approx(stats.spearmanr(a, b).pvalue, abs=0.02)


def test_the_p_value_is_never_zero_and_the_seed_decides() -> None:
    a = np.arange(30.0)
    assert rank_agreement(a, a).p_value == 1 / 10_000
    b = np.random.default_rng(0).standard_normal(30)
    assert rank_agreement(a, b, seed=1) == rank_agreement(a, b, seed=1)
    assert rank_agreement(a, b, seed=1).p_value != rank_agreement(a, b, seed=2).p_value


def test_the_shift_p_value_counts_the_shifts() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 12)).cumsum(axis=1)
    found = rank_agreement(a, b)
    shifted = [abs(stats.spearmanr(a, np.roll(b, k)).statistic) for k in range(12)]
    assert found.shift_p_value == np.mean(np.array(shifted) >= shifted[0] - 1e-9)
    assert found.shift_p_value >= 1 / 12


def test_two_smooth_maps_are_no_evidence_to_the_shifts() -> None:
    """Neighbours go together: shuffling says that two unrelated courses agree, shifting does not."""
    x = np.linspace(0, 1, 30)
    found = rank_agreement(np.sin(7 * x), np.sin(7 * x + 0.9))
    assert found.p_value < 0.01 < found.shift_p_value


@pytest.mark.parametrize("seed", range(3))
def test_only_the_order_counts_and_a_turned_map_changes_the_sign(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 15))
    first = rank_agreement(a, b)
    assert rank_agreement(np.exp(a), 3 * b + 1) == first
    turned = rank_agreement(-a, b)
    assert turned.correlation == pytest.approx(-first.correlation)
    assert (turned.p_value, turned.shift_p_value) == pytest.approx((first.p_value, first.shift_p_value))
    assert rank_agreement(b, a).correlation == pytest.approx(first.correlation)
    assert rank_agreement(scores(a.tolist()), scores(b.tolist(), name="other")) == first


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (scores([1, 2, 3]), scores([1, 2, 3], first=1), "scores map and map are of different blocks"),
        ([1, 2], [1, 2], r"the first scores have shape \(2,\): one number per block is needed, for at least 3 blocks"),
        ([1, 2, 3], [[1, 2, 3]], r"the second scores have shape \(1, 3\)"),
        ([1, 2, 3], [1, 2, 3, 4], "got scores of 3 and of 4 blocks"),
        ([1, np.nan, 3], [1, 2, 3], r"the first scores are not finite at block\.1"),
        ([1, 2, 3], [1, 2, -np.inf], r"the second scores are not finite at block\.2"),
        ([1, 2, 3], [5, 5, 5], r"the second scores are 5\.0 in every block: they put the blocks in no order"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(a: object, b: object, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        rank_agreement(a, b)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
