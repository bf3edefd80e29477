"""Differences over seeds and examples: against a plain loop, and never surer than over examples alone."""

from __future__ import annotations

import numpy as np
import pytest

from tunescope.metrics import crossed_difference, paired_difference, resample_seeds_and_examples


def scores(seed: int, n_seeds: int = 3, n: int = 40, mean: float = 0.5) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(mean, 0.2, (n_seeds, n)), 0, 1)


def test_the_value_is_the_mean_over_pairs_each_weighing_the_same():
    a = {("m", "x"): scores(1, n=10), ("m", "y"): scores(2, n=90), ("k", "x"): scores(3, n=10)}
    b = {key: scores(9, n=values.shape[1])[:1] for key, values in a.items()}
    expected = np.mean([a[key].mean() - b[key].mean() for key in a])
    found = crossed_difference(a, b, n_bootstrap=300)
    assert found.value == pytest.approx(expected) and found.low <= expected <= found.high
    assert found.n == 110


def test_resamples_are_those_of_a_plain_loop():
    gaps = {("m", "x"): scores(1), ("k", "x"): scores(2), ("m", "y"): scores(3, n=7)}
    random = np.random.default_rng([5, 0xC401CE])
    seeds = random.multinomial(3, [1 / 3] * 3, 50)
    files = {}
    for (_, file), values in gaps.items():
        if file not in files:
            n = values.shape[1]
            files[file] = random.multinomial(n, np.full(n, 1 / n), 50)
    expected = []
    for k in range(50):
        total = 0.0
        for (_, file), values in gaps.items():
            rows = np.repeat(values, seeds[k], axis=0)
            total += np.repeat(rows, files[file][k], axis=1).mean()
        expected.append(total / 3)
    assert resample_seeds_and_examples(gaps, 50, seed=5) == pytest.approx(expected)


def test_the_examples_of_a_file_are_drawn_for_all_models_together():
    """Two models that differ by the same amount on every example: their difference does not vary with the examples."""
    base = scores(4, 1)
    gap = {("a", "x"): np.repeat(base, 2, axis=0), ("b", "x"): 1 - np.repeat(base, 2, axis=0)}
    assert resample_seeds_and_examples(gap, 200, seed=0).std() < 1e-12
    apart = {("a", "x"): gap["a", "x"], ("b", "y"): gap["b", "x"]}
    assert resample_seeds_and_examples(apart, 200, seed=0).std() > 0.01


def test_seeds_that_disagree_widen_the_interval():
    steady = {("m", "x"): np.tile(scores(1, 1, mean=0.6), (3, 1))}
    moving = {("m", "x"): np.clip(steady["m", "x"] + np.array([[-0.2], [0.0], [0.2]]), 0, 1)}
    against = {("m", "x"): scores(1, 1, mean=0.6) - 0.05}
    against = {key: np.clip(values, 0, 1) for key, values in against.items()}
    widths = [(d := crossed_difference(a, against)).high - d.low for a in (steady, moving)]
    assert widths[1] > 2 * widths[0]


def test_it_is_never_surer_than_over_examples_alone():
    ones, zeros = {("m", "x"): np.ones((2, 12))}, {("m", "x"): np.zeros((1, 12))}
    found = crossed_difference(ones, zeros)
    alone = paired_difference(np.ones(12), np.zeros(12))
    assert found.value == 1 and (found.low, found.high) == (alone.low, alone.high) and found.low < 1
    same = crossed_difference(ones, ones)
    assert same.value == 0 and same.low < 0 < same.high and not same.decides


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({}, {}, "at least 1"),
        ({("m", "x"): np.ones((1, 3))}, {("m", "y"): np.ones((1, 3))}, "same pairs"),
        ({("m", "x"): np.ones((2, 3))}, {("m", "x"): np.ones((3, 3))}, "do not compare"),
        ({("m", "x"): np.ones((2, 3))}, {("m", "x"): np.ones((2, 4))}, "do not compare"),
        ({("m", "x"): np.ones(3)}, {("m", "x"): np.ones(3)}, "do not compare"),
        ({("m", "x"): np.ones((1, 0))}, {("m", "x"): np.ones((1, 0))}, "do not compare"),
        ({("m", "x"): np.full((1, 3), np.nan)}, {("m", "x"): np.ones((1, 3))}, "a holds nan"),
    ],
)
def test_what_does_not_compare_is_refused(a, b, said):
    with pytest.raises(ValueError, match=said):
        crossed_difference(a, b)
