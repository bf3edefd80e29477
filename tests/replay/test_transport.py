from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from tunescope.errors import UserError
from tunescope.replay import sampled_wasserstein, wasserstein


def clouds(seed: int, n: int = 6, m: int = 5, d: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)), rng.integers(1, 9, n), rng.integers(1, 9, m)


def linear_program(x, y, a, b) -> float:
    """The same problem as a plain linear program over all transport plans."""
    cost = np.array([[1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q) for q in y] for p in x])
    rows = np.kron(np.eye(len(x)), np.ones(len(y)))
    columns = np.kron(np.ones(len(x)), np.eye(len(y)))
    a, b = np.asarray(a, float), np.asarray(b, float)
    solved = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a / a.sum(), b / b.sum()]))
    assert solved.status == 0
    return float(solved.fun)


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_linear_program(seed):
    x, y, a, b = clouds(seed)
    assert wasserstein(x, y, a, b) == pytest.approx(linear_program(x, y, a, b), abs=1e-9)
    assert wasserstein(x, y) == pytest.approx(linear_program(x, y, np.ones(6), np.ones(5)), abs=1e-9)


def test_equals_the_best_assignment_of_as_many():
    x, y, _, _ = clouds(1, 40, 40, 7)
    cost = 1 - (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
    assert wasserstein(x, y) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), abs=1e-12)


def test_equals_numbers_worked_out_by_hand():
    up, right, left = [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]
    assert wasserstein([right], [up]) == 1.0
    assert wasserstein([right], [left]) == 2.0
    assert wasserstein([right, up], [left, up], [3, 1], [1, 1]) == pytest.approx(0.5 * 2 + 0.25 * 1, abs=1e-15)
    diagonal = wasserstein([right], [[1.0, 1.0]])
    assert diagonal == pytest.approx(1 - np.sqrt(0.5), abs=1e-15)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 7), m=st.integers(1, 7), d=st.integers(1, 5))
def test_only_directions_and_proportions_count(seed, n, m, d):
    x, y, a, b = clouds(seed, n, m, d)
    rng = np.random.default_rng(seed)
    value = wasserstein(x, y, a, b)
    assert 0 <= value <= 2
    turned = np.linalg.qr(rng.normal(size=(d, d)))[0]
    order = rng.permutation(n)
    for same in (
        wasserstein(y, x, b, a),
        wasserstein(x * rng.uniform(0.1, 9, (n, 1)), y, a, b * 7.5),
        wasserstein(x @ turned, y @ turned, a, b),
        wasserstein(x[order], y, a[order], b),
        wasserstein(np.repeat(x, 2, axis=0), y, np.repeat(a / 2, 2), b),  # a frequency of 2 is two equal rows
        wasserstein(np.vstack([x, y[:1]]), y, [*a, 0], b),  # what has no weight is not there
    ):
        assert same == pytest.approx(value, abs=1e-9)


@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 30), d=st.integers(1, 600), kind=st.sampled_from(["f2", "f4", "f8"])
)
def test_equal_sets_are_exactly_zero_apart(seed, n, d, kind):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(kind)
    order = rng.permutation(n)
    weights = rng.integers(1, 50, n)
    assert wasserstein(x, x.copy()) == 0.0
    assert wasserstein(x, x[order], weights, weights[order] / 7) == 0.0
    assert wasserstein(np.vstack([x, x]), x, np.concatenate([weights, weights])) >= 0.0


def test_rows_of_any_size_have_directions():
    x = np.array([[1e-300, 0.0], [0.0, 1e300]])
    assert wasserstein(x, np.eye(2)) == 0.0
    assert wasserstein(x, np.eye(2), [1e-320, 1e300], [0, 1]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.0, 0.0]], [[1.0, 0.0]]), "x row 0: a zero vector"),
        (([[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]), "y row 1: a zero vector"),
        (([[1.0, np.nan]], [[1.0, 0.0]]), "x row 0: not finite"),
        (([[1.0, np.inf]], [[1.0, 0.0]]), "x row 0: not finite"),
        (([], [[1.0]]), r"x has shape \(0,\)"),
        ((np.zeros((0, 2)), [[1.0, 0.0]]), r"x has shape \(0, 2\)"),
        (([1.0, 2.0], [[1.0]]), r"x has shape \(2,\)"),
        (([[1.0]], [[1.0, 0.0]]), "x has 1 columns and y has 2"),
        (([[1.0]], [[1.0]], [1, 2]), r"weights_x have shape \(2,\)"),
        (([[1.0]], [[1.0]], None, [-1]), "weights_y"),
        (([[1.0]], [[1.0]], [0.0]), "weights_x"),
        (([[1.0]], [[1.0]], [np.nan]), "weights_x"),
    ],
)
def test_what_has_no_distance_is_refused(arguments, message):
    for measure in (wasserstein, lambda *given: sampled_wasserstein(*given, seed=0)):
        with pytest.raises(UserError, match=message):
            measure(*arguments)


def test_a_refused_row_is_named_as_it_was_given():
    with pytest.raises(UserError, match="x row 2: a zero vector"):
        wasserstein([[1.0], [0.0], [0.0]], [[1.0]], [1, 0, 1])  # row 1 has no weight


def test_what_would_not_fit_into_memory_is_refused_and_can_be_sampled():
    rows = np.ones((10_001, 1), dtype=np.float32)
    with pytest.raises(
        UserError, match="10001 against 10001 vectors do not fit into memory exactly; use sampled_wasserstein"
    ):
        wasserstein(rows, rows)
    assert sampled_wasserstein(rows, -rows, seed=0, limit=10).value == pytest.approx(2.0, abs=1e-12)


# Sampled


def test_up_to_the_limit_it_is_exact():
    x, y, a, b = clouds(3, 30, 20)
    found = sampled_wasserstein(x, y, a, b, seed=0, limit=30)
    assert (found.exact, found.standard_error, found.n_subsamples) == (True, 0.0, 0)
    assert found.value == wasserstein(x, y, a, b)
    assert not sampled_wasserstein(x, y, a, b, seed=0, limit=29).exact


def test_equal_sets_above_the_limit_are_zero_apart_in_any_order():
    x, _, a, _ = clouds(4, 300, 1)
    order = np.random.default_rng(0).permutation(300)
    found = sampled_wasserstein(x, x[order], a, a[order], seed=0, limit=50)
    assert (found.value, found.exact) == (0.0, True)
    doubled = sampled_wasserstein(x, np.vstack([x, x]), a, np.concatenate([a, a]), seed=0, limit=50)
    assert (doubled.value, doubled.exact) == (0.0, True)
    assert sampled_wasserstein(x, x, a, a[::-1], seed=0, limit=50).value > 0


def test_the_estimate_is_near_and_too_high_and_its_error_is_that_of_repeats():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(900, 3)), rng.normal([1.0, 0, 0], size=(900, 3))
    exact = wasserstein(x, y)
    found = [sampled_wasserstein(x, y, seed=seed, limit=300, n_subsamples=4) for seed in range(30)]
    values = np.array([one.value for one in found])
    assert exact < values.mean() < 1.1 * exact
    stated = np.sqrt(np.mean([one.standard_error**2 for one in found]))
    assert 0.7 < stated / values.std(ddof=1) < 1.4


def test_heavy_rows_keep_their_weight():
    rng = np.random.default_rng(6)
    x = np.vstack([[[1.0, 0.0, 0.0]], rng.normal(size=(999, 3)) * 0.1 + [0.0, 1.0, 0.0]])
    y = np.array([[1.0, 0.0, 0.0]])
    weights = np.array([999.0] + [1.0] * 999)  # half of everything
    exact = wasserstein(x, y, weights)
    for seed in range(5):
        assert sampled_wasserstein(x, y, weights, seed=seed, limit=100).value == pytest.approx(exact, abs=0.02)


def test_the_same_seed_gives_the_same_and_another_gives_another():
    x, y, a, b = clouds(7, 200, 200)
    one, same, other = (sampled_wasserstein(x, y, a, b, seed=seed, limit=50) for seed in (1, 1, 2))
    assert one == same
    assert one.value != other.value


def test_a_side_within_the_limit_is_taken_whole():
    x, y, _, _ = clouds(8, 500, 2)
    y[:] = [[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]
    found = sampled_wasserstein(x, y, seed=0, limit=400)
    assert found.value == pytest.approx(wasserstein(x, y), abs=0.02)


def test_a_memory_map_is_read_as_an_array(tmp_path: Path):
    x, y, _, _ = clouds(9, 100, 100)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert sampled_wasserstein(mapped, y, seed=0, limit=20) == sampled_wasserstein(x, y, seed=0, limit=20)


@pytest.mark.parametrize(("limit", "n_subsamples"), [(1, 4), (5, 1)])
def test_settings_without_an_error_bar_are_refused(limit, n_subsamples):
    with pytest.raises(UserError, match="at least 2"):
        sampled_wasserstein([[1.0]], [[1.0]], seed=0, limit=limit, n_subsamples=n_subsamples)
