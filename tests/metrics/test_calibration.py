"""Calibration and risk–coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.metrics import choose_human_share, expected_calibration_error, risk_coverage

PAIRS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.77, 0.9, 1.0]), st.integers(0, 1)), min_size=1, max_size=50
)


def test_calibration_error_by_hand():
    # Two bins of two: gaps |0.15 - 0.5| and |0.85 - 0.5|, each with half of the examples.
    assert expected_calibration_error([0.1, 0.2, 0.8, 0.9], [0, 1, 0, 1], n_bins=2) == pytest.approx(0.35)


def test_calibration_error_with_ties_by_hand():
    # The three 0.6 share the bin of their middle; 0.9 has the last: (|1.8 - 2| + |0.9 - 0|) / 4.
    assert expected_calibration_error([0.6, 0.6, 0.6, 0.9], [1, 1, 0, 0], n_bins=4) == pytest.approx(1.1 / 4)


def test_risk_coverage_by_hand():
    curve = risk_coverage([0.9, 0.8, 0.8, 0.6], [1, 1, 0, 0])
    assert curve.coverage == pytest.approx((0.25, 0.75, 1.0))
    assert curve.risk == pytest.approx((0.0, 1 / 3, 0.5))
    assert curve.threshold == pytest.approx((0.9, 0.8, 0.6))
    assert curve.area == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 / 2)


def test_area_without_ties_is_the_mean_of_the_running_error_rates():
    random = np.random.default_rng(0)
    sure, right = random.permutation(200) / 200, random.integers(0, 2, 200)
    wrong = 1 - right[np.argsort(-sure)]
    assert risk_coverage(sure, right).area == pytest.approx((np.cumsum(wrong) / np.arange(1, 201)).mean())


@given(PAIRS, st.randoms(use_true_random=False))
def test_order_of_examples_changes_nothing_even_with_ties(pairs, random):
    sure, right = zip(*pairs, strict=True)
    again, right_again = zip(*random.sample(pairs, len(pairs)), strict=True)
    assert expected_calibration_error(again, right_again) == pytest.approx(expected_calibration_error(sure, right))
    assert risk_coverage(again, right_again) == risk_coverage(sure, right)


@given(PAIRS)
def test_repeating_every_example_changes_nothing(pairs):
    sure, right = zip(*pairs, strict=True)
    assert expected_calibration_error(sure * 2, right * 2) == pytest.approx(expected_calibration_error(sure, right))
    assert risk_coverage(sure * 2, right * 2).area == pytest.approx(risk_coverage(sure, right).area)


@given(PAIRS)
def test_all_numbers_lie_between_0_and_1_and_the_curve_ends_at_the_error_rate(pairs):
    sure, right = zip(*pairs, strict=True)
    curve = risk_coverage(sure, right)
    assert 0 <= expected_calibration_error(sure, right) <= 1
    assert 0 <= curve.area <= 1
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == pytest.approx(1 - np.mean(right))


def test_calibrated_confidence_has_a_small_error_and_overconfidence_a_large_one():
    random = np.random.default_rng(1)
    sure = random.uniform(0.3, 1, 20_000)
    right = random.uniform(size=20_000) < sure
    assert expected_calibration_error(sure, right) < 0.02
    assert expected_calibration_error(np.full(1000, 0.99), np.arange(1000) < 500) == pytest.approx(0.49)


def test_a_confidence_that_ranks_well_has_a_smaller_area_than_one_that_does_not():
    right = np.array([1] * 70 + [0] * 30)
    assert risk_coverage(np.linspace(1, 0, 100), right).area < 0.1 < risk_coverage(np.linspace(0, 1, 100), right).area


def test_the_human_share_keeps_the_error_rate_on_examples_that_took_no_part():
    random = np.random.default_rng(2)
    sure = random.uniform(0, 1, 4000)
    right = random.uniform(size=4000) < sure
    chosen = choose_human_share(sure, right, target_error=0.1, seed=3)
    assert chosen.share == pytest.approx(0.8, abs=0.08)  # above 0.8 the mean error is 0.1
    assert chosen.checked_share == pytest.approx(chosen.share, abs=0.05)
    assert chosen.checked_error == pytest.approx(0.1, abs=0.05)
    assert chosen.n_checked == pytest.approx(2000 * (1 - chosen.checked_share))


def test_the_human_share_is_0_where_everything_is_right_and_none_where_nothing_is():
    assert choose_human_share([0.5, 0.7, 0.9, 0.2], [1, 1, 1, 1], 0.05, seed=0).share == 0.0
    nothing = choose_human_share([0.5, 0.7, 0.9, 0.2], [0, 0, 0, 0], 0.05, seed=0)
    assert (nothing.share, nothing.checked_error) == (None, None)
    assert choose_human_share([0.5], [1], 0.05, seed=0).share is None


def test_the_same_seed_gives_the_same_choice():
    sure, right = np.linspace(0, 1, 99), np.arange(99) % 3 > 0
    assert choose_human_share(sure, right, 0.3, seed=5) == choose_human_share(sure, right, 0.3, seed=5)


@pytest.mark.parametrize("measure", [expected_calibration_error, risk_coverage])
@pytest.mark.parametrize(
    ("sure", "right", "message"),
    [
        ([], [], "not empty"),
        ([0.5], [1, 0], "equally long"),
        ([1.5], [1], "confidence holds 1.5"),
        ([float("nan")], [1], "confidence holds nan"),
        ([0.5], [2], "correct holds 2"),
    ],
)
def test_wrong_input_is_named(measure, sure, right, message):
    with pytest.raises(ValueError, match=message):
        measure(sure, right)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="n_bins is 0"):
        expected_calibration_error([0.5], [1], n_bins=0)
    with pytest.raises(ValueError, match="target_error is 5"):
        choose_human_share([0.5, 0.6], [1, 1], 5, seed=0)
