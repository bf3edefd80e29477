"""Intervals: against scipy where it has them, their coverage, and the edges where a bootstrap has no width."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from tunescope.errors import UserError
from tunescope.knowledge import Estimate, paired_difference, wilson
from tunescope.knowledge.resampling import mean_estimate, ratio_estimate, resampled_means
from tunescope.metrics import paired_difference as difference_of_metrics
from tunescope.metrics import wilson as wilson_of_metrics

HOW = {"n_bootstrap": 800, "seed": 3}


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 22)])
def test_wilson_is_that_of_the_metrics_and_holds_the_share(count: int, n: int) -> None:
    found = wilson(count, n)
    assert (found.low, found.high) == pytest.approx(wilson_of_metrics(count / n, n), abs=1e-12)
    assert found.low <= found.value <= found.high


def test_a_share_of_nothing_is_none_and_not_zero() -> None:
    assert wilson(0, 0) == Estimate(None, None, None, 0)
    for count, n in ((-1, 3), (4, 3)):
        with pytest.raises(UserError, match=f"got {count} of {n}"):
            wilson(count, n)


def test_a_paired_difference_is_that_of_the_metrics() -> None:
    random = np.random.default_rng(0)
    for a, b in (
        (random.random(80), random.random(80)),
        ((random.random(80) < 0.7) * 1.0, (random.random(80) < 0.5) * 1.0),
    ):
        ours = paired_difference(a, b, n_bootstrap=4000, seed=0)
        theirs = difference_of_metrics(a, b, n_bootstrap=4000, seed=0)
        assert ours.value == pytest.approx(theirs.value)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_a_difference_without_spread_still_has_an_interval() -> None:
    same = paired_difference([1.0] * 30, [1.0] * 30, **HOW)
    assert same.value == 0
    assert same.low == pytest.approx(-0.061, abs=1e-3)
    assert same.high == pytest.approx(0.061, abs=1e-3)
    assert paired_difference([1.0], [0.0], **HOW) == Estimate(1.0, -1.0, 1.0, 1)
    always = paired_difference([1.0] * 10, [0.0] * 10, **HOW)
    assert always.high == 1.0
    assert 0.5 < always.low < 1.0


def test_neither_the_order_of_the_questions_nor_the_names_of_the_strata_matter() -> None:
    random = np.random.default_rng(1)
    a, b, strata = random.random(50), random.random(50), np.array(list("aaabb") * 10)
    order = random.permutation(50)
    plain = paired_difference(a, b, strata=list(strata), **HOW)
    assert paired_difference(a[order], b[order], strata=list(strata[order]), **HOW) == plain
    assert paired_difference(a, b, strata=[f"x{name}" for name in strata], **HOW) == plain


def test_strata_keep_the_share_of_every_domain() -> None:
    values = np.array([0.0] * 20 + [1.0] * 20)
    assert np.ptp(resampled_means(values, strata=["a"] * 20 + ["b"] * 20, **HOW)) == 0
    assert np.ptp(resampled_means(values, **HOW)) > 0.2


def test_rows_share_their_resamples() -> None:
    values = np.random.default_rng(2).random(25)
    first, second = resampled_means(np.stack([values, 2 * values + 1]), **HOW)
    assert second == pytest.approx(2 * first + 1)


def test_large_data_are_drawn_in_pieces_that_change_nothing_but_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(40)
    whole = resampled_means(values, n_bootstrap=3000, seed=0)
    monkeypatch.setattr("tunescope.knowledge.resampling._CHUNK_CELLS", 100)
    pieces = resampled_means(values, n_bootstrap=3000, seed=0)
    assert pieces.shape == whole.shape == (3000,)
    assert pieces.std() == pytest.approx(whole.std(), rel=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        a, b = (random.random(60) < 0.6) * 1.0, (random.random(60) < 0.45) * 1.0
        found = paired_difference(a, b, n_bootstrap=300, seed=trial)
        hits += found.low <= 0.15 <= found.high
    assert 0.9 <= hits / 200 <= 1.0


def test_a_mean_of_equal_bounded_values_has_wilsons_interval() -> None:
    found = mean_estimate(np.ones(20), limits=(-1.0, 1.0), confidence=0.95, **HOW)
    ends = binomtest(20, 20).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((2 * ends.low - 1, 1.0))
    middle = mean_estimate(np.zeros(20), limits=(-1.0, 1.0), confidence=0.95, **HOW)
    assert middle.low == pytest.approx(-middle.high)
    assert mean_estimate(np.array([0.3]), limits=(-1.0, 1.0), confidence=0.95, **HOW) == Estimate(0.3, -1.0, 1.0, 1)
    assert mean_estimate(np.array([0.3]), limits=None, confidence=0.95, **HOW) == Estimate(0.3, None, None, 1)
    assert mean_estimate(np.array([]), limits=None, confidence=0.95, **HOW) == Estimate(None, None, None, 0)


def test_a_ratio_weighs_tokens_and_draws_answers() -> None:
    top, bottom = np.array([1.0, 9.0, 0.0]), np.array([10.0, 10.0, 0.0])
    found = ratio_estimate(top, bottom, confidence=0.95, **HOW)
    assert (found.value, found.n) == (0.5, 2)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.9))
    assert ratio_estimate(np.zeros(2), np.zeros(2), confidence=0.95, **HOW) == Estimate(None, None, None, 0)
    even = ratio_estimate(np.array([5.0] * 9), np.array([10.0] * 9), confidence=0.95, **HOW)
    assert even.low < 0.3
    assert even.high > 0.7


@pytest.mark.parametrize(
    ("a", "b", "change", "message"),
    [
        ([], [], {}, "at least one"),
        ([1.0], [1.0, 0.0], {}, "same questions"),
        ([1.5], [1.0], {}, "a holds 1.5"),
        ([1.0], [math.nan], {}, "b holds nan"),
        ([1.0, 0.0], [1.0, 0.0], {"strata": ["a"]}, "1 names for 2 questions"),
        ([1.0, 0.0], [1.0, 0.0], {"n_bootstrap": 0}, "n_bootstrap is 0"),
        ([1.0, 0.0], [1.0, 0.0], {"confidence": 1.0}, "confidence is 1.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, change, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        paired_difference(a, b, **(HOW | change))
