"""CKA is what its definition says, does not move under what must not move it, and its null and interval are honest."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tunescope.errors import UserError
from tunescope.layers import cka, cka_bootstrap, gram, permutation_null
from tunescope.layers import similarity as module

BOTH = pytest.mark.parametrize("estimator", ["debiased", "biased"])
SHAPES = pytest.mark.parametrize("shape", [(9, 4, 3), (9, 30, 20), (9, 3, 30), (30, 29, 29), (30, 30, 30), (30, 31, 5)])


def related(n: int, d1: int, d2: int, *, seed: int = 0, noise: float = 1.0) -> tuple[Any, Any]:
    """Two sets of states with something in common."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((n, 3))
    x = common @ random.standard_normal((3, d1)) + noise * random.standard_normal((n, d1))
    y = common @ random.standard_normal((3, d2)) + noise * random.standard_normal((n, d2))
    return x, y


def wave(n: int, d: int, phase: float) -> Any:
    i, j = np.mgrid[1 : n + 1, 1 : d + 1]
    return np.sin(i * j + phase) + 0.3 * np.cos(i * i / (j + phase)) + i / n


def hsic_by_pairs(x: Any, y: Any, estimator: str) -> float:
    """The formulas of the papers, a pair of rows at a time."""
    n = len(x)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    pairs = [(i, j) for i in range(n) for j in range(n) if estimator == "biased" or i != j]
    k, other = ({(i, j): float(z[i] @ z[j]) for i, j in pairs} for z in (x, y))
    together = math.fsum(k[pair] * other[pair] for pair in pairs)
    if estimator == "biased":
        return together / n**2
    rows, columns = ([math.fsum(g[i, j] for j in range(n) if j != i) for i in range(n)] for g in (k, other))
    sums = math.fsum(rows) * math.fsum(columns) / ((n - 1) * (n - 2))
    return (together + sums - 2 / (n - 2) * math.fsum(a * b for a, b in zip(rows, columns, strict=True))) / (
        n * (n - 3)
    )


def hsic_by_quadruples(x: Any, y: Any) -> float:
    """What the debiased estimator is: the mean over all quadruples of different rows, no formula in between."""
    k, other = x @ x.T, y @ y.T
    terms = [
        k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
        for i, j, q, r in itertools.permutations(range(len(x)), 4)
    ]
    return math.fsum(terms) / len(terms)


@BOTH
@SHAPES
def test_it_equals_a_double_loop_over_pairs(shape: tuple[int, int, int], estimator: Any) -> None:
    x, y = related(*shape)
    xy, xx, yy = (hsic_by_pairs(a, b, estimator) for a, b in ((x, y), (x, x), (y, y)))
    assert cka(x, y, estimator=estimator) == pytest.approx(xy / math.sqrt(xx * yy), abs=1e-12)


@pytest.mark.parametrize("shape", [(4, 2, 3), (7, 3, 2), (7, 20, 5)])
def test_the_debiased_one_is_the_mean_over_quadruples_of_different_rows(shape: tuple[int, int, int]) -> None:
    x, y = related(*shape)
    xy, xx, yy = (hsic_by_quadruples(a, b) for a, b in ((x, y), (x, x), (y, y)))
    assert cka(x, y) == pytest.approx(xy / math.sqrt(xx * yy), abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "debiased", "biased"),
    [  # debiased: pytorch-cka 1.1.3 and cka-pytorch 1.1.3 in float64; biased: hoggorm 0.13.3 (RV coefficient)
        ((12, 5, 30), 0.449445942844846, 0.660236069641335),
        ((40, 7, 9), 0.722702812485925, 0.771674298217801),
        ((25, 60, 60), 0.879971309262552, 0.959146472220034),
    ],
)
def test_it_says_what_other_libraries_say(shape: tuple[int, int, int], debiased: float, biased: float) -> None:
    n, d1, d2 = shape
    x, y = wave(n, d1, 0.5), wave(n, d2, 0.9)
    assert cka(x, y) == pytest.approx(debiased, abs=1e-12)
    assert cka(x, y, estimator="biased") == pytest.approx(biased, abs=1e-12)


@BOTH
@SHAPES
def test_rotating_scaling_and_shifting_change_nothing(shape: tuple[int, int, int], estimator: Any) -> None:
    x, y = related(*shape)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((shape[1], shape[1])))
    score = cka(x, y, estimator=estimator)
    for moved in (x @ turn, 1e-9 * x, 1e200 * x, -3 * x, x + 1000 * np.arange(shape[1])):
        assert cka(moved, y, estimator=estimator) == pytest.approx(score, abs=1e-11)
    assert cka(y, x, estimator=estimator) == pytest.approx(score, abs=1e-12)
    order = np.random.default_rng(2).permutation(shape[0])
    assert cka(x[order], y[order], estimator=estimator) == pytest.approx(score, abs=1e-12)
    assert 0.005 < abs(score) < 0.95


@BOTH
@SHAPES
def test_the_same_geometry_gives_one(shape: tuple[int, int, int], estimator: Any) -> None:
    x, _ = related(*shape)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((shape[1], shape[1])))
    for same in (x, x.copy(), x @ turn, 5 * x + 7, np.hstack([x, x]) if shape[1] > shape[0] else x):
        assert 1 - 1e-12 <= cka(x, same, estimator=estimator) <= 1


@BOTH
@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 64, 64)])
def test_a_huge_common_offset_loses_no_digit(shape: tuple[int, int, int], estimator: Any) -> None:
    x, y = (np.round(z * 1024) / 1024 for z in related(*shape))  # so that the shifted numbers are exact in float64
    offset = np.zeros(shape[1])
    offset[[1, 5]] = 1e4, -3e6
    assert cka(x + offset, y - offset, estimator=estimator) == pytest.approx(cka(x, y, estimator=estimator), abs=1e-12)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_a_huge_row_does_not_make_the_debiased_sums_cancel(size: float) -> None:
    x, y = related(60, 5, 4)
    x[3] *= size
    xy, xx, yy = (
        hsic_by_pairs(*(z.astype(np.longdouble) for z in pair), "debiased") for pair in ((x, y), (x, x), (y, y))
    )
    assert cka(x, y) == pytest.approx(xy / math.sqrt(xx * yy), abs=1e-8)


@BOTH
@pytest.mark.parametrize("d", [6, 40])
def test_dtype_layout_and_library_do_not_matter(d: int, estimator: Any) -> None:
    x, y = related(16, d, d)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        a, b = torch.tensor(x, dtype=dtype, requires_grad=True), torch.tensor(y, dtype=dtype)
        exact = cka(a.detach().double().numpy(), b.double().numpy(), estimator=estimator)
        assert cka(a, b, estimator=estimator) == exact
        assert cka(a.t().contiguous().t(), b.numpy() if dtype != torch.bfloat16 else b, estimator=estimator) == (
            pytest.approx(exact, abs=1e-12)
        )
        assert exact == pytest.approx(cka(x, y, estimator=estimator), abs=0.02)
    assert cka(np.repeat(x, 2, axis=0)[::2], y[:, ::-1], estimator=estimator) == pytest.approx(
        cka(x, y, estimator=estimator), abs=1e-12
    )
    assert cka(np.asfortranarray(x), y.tolist(), estimator=estimator) == pytest.approx(cka(x, y, estimator=estimator))


@BOTH
@pytest.mark.parametrize("as_torch", [False, True])
def test_the_states_stay_as_they_were(as_torch: bool, estimator: Any) -> None:
    x, y = (torch.tensor(z) if as_torch else z for z in related(12, 5, 20))
    before = x.tolist(), y.tolist()
    cka(x, y, estimator=estimator)
    permutation_null(x, y, n_permutations=3, seed=0, estimator=estimator)
    cka_bootstrap(x, y, n_bootstrap=3, seed=0, estimator=estimator)
    assert (x.tolist(), y.tolist()) == before


def test_independent_states_fool_the_biased_estimator_and_not_the_debiased_one() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 64, 256))
    assert cka(x, y, estimator="biased") == pytest.approx(0.80, abs=0.02)
    assert abs(cka(x, y)) < 0.07


def test_a_negative_score_keeps_its_sign() -> None:
    scores = [cka(*np.random.default_rng(seed).standard_normal((2, 20, 10))) for seed in range(20)]
    assert min(scores) < -0.01 < 0.01 < max(scores)


BAD: list[tuple[str, Any, Any, str]] = [
    ("three rows", np.eye(3), np.eye(3), "x has 3 rows: at least 4"),
    ("other rows", np.eye(5)[:, :3], np.eye(6)[:, :3], "x has 5 rows and y 6"),
    ("a vector", np.arange(5.0), np.eye(5), "x has shape (5,)"),
    ("three axes", np.ones((5, 2, 2)), np.eye(5), "x has shape (5, 2, 2)"),
    ("no columns", np.ones((5, 0)), np.eye(5), "x has shape (5, 0)"),
    ("constant", wave(5, 2, 0), np.full((5, 3), 0.1), "all 5 rows of y are the same"),
    ("constant torch", torch.full((5, 3), 0.1, dtype=torch.bfloat16), wave(5, 2, 0), "all 5 rows of x are the same"),
    ("zero", np.zeros((5, 3)), wave(5, 2, 0), "all 5 rows of x are the same"),
    ("text", np.array([["a", "b"]] * 5), wave(5, 2, 0), "not numbers"),
    ("complex", np.ones((5, 2)) * 1j, wave(5, 2, 0), "complex128"),
    ("complex torch", torch.ones((5, 2)) * 1j, wave(5, 2, 0), "complex"),
]


@pytest.mark.parametrize("function", ["cka", "permutation_null", "cka_bootstrap"])
@pytest.mark.parametrize(("x", "y", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_states_that_cannot_be_compared_are_refused(function: str, x: Any, y: Any, message: str) -> None:
    calls = {
        "cka": lambda: cka(x, y),
        "permutation_null": lambda: permutation_null(x, y, n_permutations=2, seed=0),
        "cka_bootstrap": lambda: cka_bootstrap(x, y, n_bootstrap=2, seed=0),
    }
    with pytest.raises(UserError) as caught:
        calls[function]()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nan_and_infinity_are_refused_with_their_place(bad: float, dtype: torch.dtype) -> None:
    x, y = (torch.tensor(z, dtype=dtype) for z in related(8, 4, 6))
    y[5, 2] = y[6, 0] = bad
    for a, b, name in ((x, y, "y"), (y, x, "x"), (x.numpy(), y.numpy(), "y")):
        with pytest.raises(UserError, match=rf"{name} holds -?(nan|inf) at row 5, column 2 \(2 such cells\)"):
            cka(a, b)


def test_an_unknown_estimator_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"'debaised'.*did you mean debiased"):
        cka(*related(8, 3, 3), estimator="debaised")  # type: ignore[arg-type]


def test_rows_at_one_distance_have_no_debiased_score() -> None:
    for x in (np.eye(6), np.eye(6)[:, :5] - 0.5):
        _, y = related(6, 2, 4)
        if x.shape[1] == 6:
            with pytest.raises(UserError, match="same distance"):
                cka(x, y)
        assert 0 <= cka(x, y, estimator="biased") <= 1


@BOTH
def test_a_null_score_is_the_score_of_permuted_rows(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = related(21, 6, 40)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 100)  # several pieces per permutation, the last one shorter
    null = permutation_null(x, y, n_permutations=20, seed=3, estimator=estimator)
    random = np.random.default_rng(3)
    expected = [cka(x, y[random.permutation(21)], estimator=estimator) for _ in range(20)]
    np.testing.assert_allclose(null, expected, atol=1e-12)
    assert len(set(null)) == 20


def test_the_null_depends_on_the_seed_alone() -> None:
    x, y = related(30, 6, 6)
    first = permutation_null(x, y, n_permutations=50, seed=1)
    np.testing.assert_array_equal(first, permutation_null(x, y, n_permutations=50, seed=1))
    np.testing.assert_array_equal(first[:10], permutation_null(x, y, n_permutations=10, seed=1))
    assert not np.allclose(first, permutation_null(x, y, n_permutations=50, seed=2))


def test_the_null_of_the_debiased_score_lies_about_zero_and_below_real_similarity() -> None:
    x, y = related(80, 100, 100)
    null = permutation_null(x, y, n_permutations=300, seed=0)
    assert abs(null.mean()) < 0.01
    assert np.quantile(null, 0.95) < 0.1 < cka(x, y)
    biased = permutation_null(x, y, n_permutations=50, seed=0, estimator="biased")
    assert biased.min() > 0.02  # its bias is in the null too


def test_chance_passes_the_null_in_one_case_of_twenty() -> None:
    passed = []
    for seed in range(200):
        x, y = np.random.default_rng(seed).standard_normal((2, 20, 30))
        passed.append(cka(x, y) > np.quantile(permutation_null(x, y, n_permutations=99, seed=seed), 0.95))
    assert 0.02 <= np.mean(passed) <= 0.09


@BOTH
@pytest.mark.parametrize("d", [5, 60])
def test_the_score_of_a_subset_is_that_of_its_rows(d: int, estimator: Any) -> None:
    x, y = related(24, d, d)
    k, other = (gram.unit_gram(gram.centred(z, "z"), estimator, "z") for z in (x, y))
    kept = np.zeros((15, 24))
    for i, row in enumerate(kept):
        row[np.random.default_rng(i).permutation(24)[:19]] = 1
    (u, of_k), (v, of_other) = (gram.subset_lengths(g, kept, estimator, "z") for g in (k, other))
    found = gram.subset_products(kept, k * other, u, v, estimator) / np.sqrt(of_k * of_other)
    expected = [cka(x[row > 0], y[row > 0], estimator=estimator) for row in kept]
    np.testing.assert_allclose(found, expected, atol=1e-10)


@BOTH
def test_resamples_lie_about_the_score_and_depend_on_the_seed_alone(estimator: Any) -> None:
    x, y = related(40, 8, 80, noise=0.5)
    first = cka_bootstrap(x, y, n_bootstrap=101, seed=1, estimator=estimator)
    assert first.shape == (101,)
    assert np.median(first) == pytest.approx(cka(x, y, estimator=estimator), abs=1e-12)
    assert first.std() > 0.01
    assert np.abs(first).max() < 1
    np.testing.assert_array_equal(first, cka_bootstrap(x, y, n_bootstrap=101, seed=1, estimator=estimator))
    assert not np.allclose(first, cka_bootstrap(x, y, n_bootstrap=101, seed=2, estimator=estimator))


def test_the_interval_of_the_same_states_is_the_point_one() -> None:
    x, _ = related(30, 8, 8)
    np.testing.assert_allclose(cka_bootstrap(x, x, n_bootstrap=50, seed=0), 1, atol=1e-12)


def test_resamples_of_two_blocks_stand_on_the_same_prompts() -> None:
    x, y = related(60, 20, 20)
    near = y + 0.05 * np.random.default_rng(1).standard_normal(y.shape)
    first, second = (cka_bootstrap(x, z, n_bootstrap=100, seed=0) for z in (y, near))
    assert np.corrcoef(first, second)[0, 1] > 0.9


@pytest.mark.parametrize("truth", [0.3, 0.8])
def test_the_interval_holds_the_truth_where_drawing_with_replacement_does_not(truth: float) -> None:
    n, d, tries = 50, 200, 40
    spread = np.arange(1, d + 1) ** -0.5
    held, held_with_copies = [], []
    for seed in range(tries):
        random = np.random.default_rng(seed)
        x, other = random.standard_normal((2, n, d))
        y = math.sqrt(truth) * x + math.sqrt(1 - truth) * other  # the CKA of all prompts there are is `truth`
        x, y = x * spread, y * spread
        low, high = np.quantile(cka_bootstrap(x, y, n_bootstrap=100, seed=seed), [0.025, 0.975])
        held.append(low <= truth <= high)
        draws = random.integers(0, n, size=(30, n))
        low, high = np.quantile([cka(x[rows], y[rows]) for rows in draws], [0.025, 0.975])
        held_with_copies.append(low <= truth <= high)
    assert np.mean(held) >= 0.85
    assert np.mean(held_with_copies) < 0.5


def test_too_few_prompts_for_an_interval_are_refused() -> None:
    with pytest.raises(UserError, match="at least 5 prompts"):
        cka_bootstrap(*related(4, 3, 3), n_bootstrap=5, seed=0)
    assert cka_bootstrap(*related(5, 3, 3), n_bootstrap=5, seed=0).shape == (5,)


@BOTH
def test_similarity_that_two_prompts_decide_has_no_interval(estimator: Any) -> None:
    x, y = related(20, 3, 3)
    x[1:] = x[0]
    x[4, 0] += 1
    x[9, 0] += 1
    with pytest.raises(UserError, match="a few prompts decide the similarity"):
        cka_bootstrap(x, y, n_bootstrap=100, seed=0, estimator=estimator)


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_draw_is_refused(count: int) -> None:
    x, y = related(8, 3, 3)
    with pytest.raises(UserError, match=f"n_permutations is {count}"):
        permutation_null(x, y, n_permutations=count, seed=0)
    with pytest.raises(UserError, match=f"n_bootstrap is {count}"):
        cka_bootstrap(x, y, n_bootstrap=count, seed=0)
