"""Intervals and paired comparisons."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tunescope.metrics import bootstrap as module
from tunescope.metrics import (
    difference_of,
    interval,
    interval_of,
    macro_f1_statistic,
    paired_difference,
    resampled_means,
    wilson,
)

BINARY = st.lists(st.integers(0, 1), min_size=2, max_size=40)
SHADES = st.lists(st.floats(0, 1), min_size=2, max_size=40)


def coverage(draw, truth, n_worlds=400, level=0.9):
    """Share of simulated samples whose interval holds the truth."""
    random = np.random.default_rng(0)
    hits = 0
    for world in range(n_worlds):
        found = draw(random, level, world)
        hits += found.low <= truth <= found.high
    return hits / n_worlds


@pytest.mark.parametrize(("share", "n"), [(0.5, 40), (0.9, 40), (0.97, 60)])
def test_intervals_of_proportions_hold_the_truth_as_often_as_they_say(share, n):
    def draw(random, level, world):
        return interval(random.uniform(size=n) < share, n_bootstrap=300, confidence=level, seed=world)

    assert coverage(draw, share) >= 0.87


def test_intervals_of_shades_hold_the_truth_as_often_as_they_say_and_are_not_idle():
    def draw(random, level, world):
        return interval(random.beta(2, 3, size=60), n_bootstrap=300, confidence=level, seed=world)

    assert 0.85 <= coverage(draw, 0.4) <= 0.95


@pytest.mark.parametrize("gain", [0.0, 0.15])
def test_paired_intervals_hold_the_truth_as_often_as_they_say(gain):
    def draw(random, level, world):
        base = random.uniform(size=60)
        return paired_difference(
            base < 0.6 + gain, np.where(random.uniform(size=60) < 0.9, base, random.uniform(size=60)) < 0.6,
            n_bootstrap=300, confidence=level, seed=world,
        )  # fmt: skip

    assert 0.86 <= coverage(draw, gain) <= 0.98


def test_macro_intervals_of_unequal_tasks_hold_the_truth():
    strata = ["a"] * 20 + ["b"] * 80
    shares = np.array([0.5] * 20 + [0.9] * 80)

    def draw(random, level, world):
        right = random.uniform(size=100) < shares
        return interval(right, n_bootstrap=300, confidence=level, seed=world, strata=strata)

    assert 0.86 <= coverage(draw, 0.7) <= 0.97


def test_tasks_count_equally_however_many_examples_they_have():
    values, strata = [1.0] * 90 + [0.0] * 10, ["large"] * 90 + ["small"] * 10
    assert interval(values, strata=strata).value == pytest.approx(0.5)
    assert interval(values).value == pytest.approx(0.9)
    assert paired_difference(values, [0.0] * 100, strata=strata).value == pytest.approx(0.5)


def test_tasks_count_equally_in_every_resample_too():
    values, strata = np.array([[1.0] * 90 + [0.0] * 10]), ["large"] * 90 + ["small"] * 10
    assert resampled_means(values, strata=strata, n_bootstrap=20) == pytest.approx(0.5)


@given(SHADES)
@settings(max_examples=30)
def test_the_value_lies_in_its_interval_and_the_interval_in_0_to_1(values):
    found = interval(values, n_bootstrap=50)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(np.mean(values))


@given(BINARY)
@settings(max_examples=30)
def test_the_interval_of_a_proportion_is_at_least_wilsons(values):
    found = interval(values, n_bootstrap=50, confidence=0.9)
    low, high = wilson(float(np.mean(values)), len(values), confidence=0.9)
    assert found.low <= low + 1e-12
    assert found.high >= high - 1e-12
    assert found.high - found.low > 0


@given(st.integers(1, 200), st.data())
def test_wilson_equals_scipy(n, data):
    right = data.draw(st.integers(0, n))
    expected = binomtest(right, n).proportion_ci(confidence_level=0.9, method="wilson")
    assert wilson(right / n, n, confidence=0.9) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30)
def test_order_of_examples_changes_nothing_at_all(pairs, random):
    a, b = zip(*pairs, strict=True)
    tasks = [f"task{i % 2}" for i in range(len(pairs))]
    rows = random.sample(list(zip(a, b, tasks, strict=True)), len(pairs))
    a2, b2, tasks2 = zip(*rows, strict=True)
    assert paired_difference(a, b, n_bootstrap=40, strata=tasks) == paired_difference(
        a2, b2, n_bootstrap=40, strata=tasks2
    )
    assert interval(a, n_bootstrap=40, strata=tasks) == interval(a2, n_bootstrap=40, strata=tasks2)


def test_four_times_the_examples_halve_the_interval_and_keep_the_value():
    values = np.random.default_rng(0).beta(2, 2, 100)
    once, four_times = interval(values), interval(np.tile(values, 4))
    assert four_times.value == pytest.approx(once.value)
    assert (four_times.high - four_times.low) / (once.high - once.low) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("seed", range(10))
def test_swapping_the_arms_turns_the_difference_around(seed):
    a, b = np.random.default_rng(seed).integers(0, 2, size=(2, 80))
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.value == pytest.approx(-other.value)
    assert one.low == pytest.approx(-other.high, abs=0.04)
    assert one.share_positive == pytest.approx(1 - other.share_positive, abs=0.05)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert one.noise_floor == pytest.approx((one.high - one.low) / 2)


def test_pairing_finds_a_gain_that_separate_intervals_hide():
    base = np.tile([1.0, 0.0], 100)
    better = base.copy()
    better[1:30:2] = 1.0
    found = paired_difference(better, base)
    assert found.decides
    assert found.share_positive == 1.0
    assert interval(base).high > interval(better).low  # the intervals of the two arms overlap


def test_two_equal_arms_decide_nothing_and_have_a_noise_floor():
    found = paired_difference([1.0] * 30, [1.0] * 30)
    assert (found.value, found.decides, found.share_positive) == (0.0, False, 0.5)
    assert 0.03 < found.noise_floor < 0.1


def test_a_constant_gain_on_few_examples_keeps_a_noise_floor():
    few, many = paired_difference([0.6] * 3, [0.5] * 3), paired_difference([0.6] * 3000, [0.5] * 3000)
    assert not few.decides
    assert many.decides


def test_one_example_says_nothing():
    assert (interval([1.0]).low, interval([1.0]).high, interval([1.0]).enough) == (0.0, 1.0, False)
    alone = paired_difference([1.0], [0.0])
    assert (alone.low, alone.high, alone.decides) == (-1.0, 1.0, False)
    assert interval_of(lambda indices: np.ones(len(indices)), 1).low == 0.0
    assert interval([2.5], bounded=False).value == 2.5


def test_a_task_with_one_example_keeps_the_interval_wide():
    found = interval([1.0] * 101, strata=["large"] * 100 + ["single"])
    assert found.low < 0.65


def test_losses_are_not_held_to_0_and_1():
    found = paired_difference(np.linspace(2, 4, 50), np.linspace(1, 3.5, 50), bounded=False)
    assert found.value == pytest.approx(0.75)
    assert interval(np.linspace(2, 4, 50), bounded=False).high > 1


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same():
    values = np.random.default_rng(3).uniform(size=80)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)
    assert interval(values, seed=1).low == pytest.approx(interval(values, seed=2).low, abs=0.02)


def test_small_chunks_give_the_same_quality_of_resamples(monkeypatch):
    values = np.random.default_rng(3).uniform(size=(2, 50))
    whole = resampled_means(values, n_bootstrap=2000)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 120)
    pieces = resampled_means(values, n_bootstrap=2001)
    assert pieces.shape == (2, 2001)
    assert pieces.std(axis=1) == pytest.approx(whole.std(axis=1), rel=0.1)
    assert pieces.mean(axis=1) == pytest.approx(values.mean(axis=1), abs=0.01)


def test_resamples_keep_the_size_of_every_task():
    sizes = {"a": 3, "b": 7}
    strata = [name for name, size in sizes.items() for _ in range(size)]
    seen = []

    def statistic(indices):
        seen.append(indices)
        return np.full(len(indices), 0.5)

    interval_of(statistic, 10, n_bootstrap=50, strata=strata)
    indices = np.concatenate(seen)
    assert len(indices) == 51  # the examples themselves, then the resamples
    assert ((indices < 3).sum(axis=1) == 3).all()


def test_a_statistic_that_is_a_mean_gives_the_interval_of_the_mean():
    values = np.random.default_rng(0).beta(2, 2, 60)
    other = np.random.default_rng(1).beta(2, 2, 60)
    found = interval_of(lambda indices: values[indices].mean(axis=1), 60)
    assert (found.low, found.high) == pytest.approx((interval(values).low, interval(values).high), abs=0.01)
    direct = paired_difference(values, other)
    through = difference_of(
        lambda indices: values[indices].mean(axis=1), lambda indices: other[indices].mean(axis=1), 60
    )
    assert (through.value, through.low, through.high) == pytest.approx(
        (direct.value, direct.low, direct.high), abs=0.015
    )


def test_macro_f1_has_an_interval_and_a_comparison():
    references = ["a"] * 60 + ["b"] * 20
    good, poor = ["a"] * 58 + ["b"] * 22, ["a"] * 80
    labels = ["a", "b", "c"]
    found = interval_of(macro_f1_statistic(good, references, labels), 80)
    assert 0.85 < found.low < found.value < found.high <= 1
    gain = difference_of(macro_f1_statistic(good, references, labels), macro_f1_statistic(poor, references, labels), 80)
    assert gain.decides
    perfect = interval_of(macro_f1_statistic(references, references, labels), 80)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low < 0.96
    tie = difference_of(macro_f1_statistic(good, references, labels), macro_f1_statistic(good, references, labels), 80)
    assert (tie.value, tie.decides) == (0.0, False)
    assert tie.noise_floor > 0.01


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one"),
        ([[0.5]], {}, "shape"),
        ([float("nan")], {}, "values holds nan"),
        ([1.2, 0.1], {}, "values holds 1.2"),
        ([float("inf"), 0.1], {"bounded": False}, "values holds inf"),
        ([0.1, 0.2], {"strata": ["a"]}, "strata has 1 names for 2"),
        ([0.1, 0.2], {"confidence": 1.0}, "confidence is 1.0"),
        ([0.1, 0.2], {"n_bootstrap": 0}, "n_bootstrap is 0"),
    ],
)
def test_wrong_input_is_named(values, options, message):
    with pytest.raises(ValueError, match=message):
        interval(values, **options)


def test_a_comparison_of_different_examples_is_refused():
    with pytest.raises(ValueError, match="a has 2 numbers and b 3"):
        paired_difference([0.1, 0.2], [0.1, 0.2, 0.3])
