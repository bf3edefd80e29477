"""How far apart two tasks are: exact 1-Wasserstein distance of their instructions, sampled where they are too many."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tunescope.errors import TunescopeError, UserError
from tunescope.runs.records import Record

Floats = npt.NDArray[np.floating[Any]]

_MAX_ITERATIONS = 100_000_000
_MOST_COSTS = 100_000_000  # 0.8 GB of costs, and the solver needs as much again


@dataclasses.dataclass(frozen=True)
class Distance(Record):
    """A distance and how it was got.

    Attributes:
        value: 1-Wasserstein distance with ground cost 1 - cosine, in [0, 2].
        standard_error: of `value` as the mean over repeated subsamples; 0 where it is exact.
        exact: whether all instructions took part.
        n_x: distinct instructions on one side.
        n_y: on the other side.
        n_subsamples: how often it was sampled; 0 where it is exact.
    """

    value: float
    standard_error: float
    exact: bool
    n_x: int
    n_y: int
    n_subsamples: int = 0


def wasserstein(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    weights_x: npt.ArrayLike | None = None,
    weights_y: npt.ArrayLike | None = None,
) -> float:
    """Returns the exact 1-Wasserstein distance of two weighted sets of vectors, ground cost 1 - cosine.

    It says how much it costs to turn the one set into the other, each vector moved in shares. Only directions count: scaling a row changes
    nothing. 1 - cosine is no metric, so neither is the distance: the triangle inequality may fail.

    Args:
        x: one vector per row, shape (n, d).
        y: the same for the other set, shape (m, d).
        weights_x: frequency of each row of `x`, shape (n,), at least 0; only proportions count. None: all the same.
        weights_y: the same for `y`, shape (m,).

    Returns:
        A number in [0, 2]; 0 for equal sets, and for a difference below the rounding error of the costs (8 d times the double precision
        epsilon, about 1e-12 for d = 576).

    Raises:
        UserError: a set is empty, not two-dimensional or not finite, a row is zero (it has no direction), the numbers of
            columns differ, weights do not fit, are negative, not finite or all zero, or there are more than 10^8 pairs of rows.
        TunescopeError: the solver did not finish.

    Source:
        Wang et al., InsCL, NAACL 2024 (arXiv 2403.11435), dynamic replay; solved with POT's network simplex (`ot.emd2`). The released code
        stops after 100,000 iterations and uses the value it has then; ours goes on, and an unfinished one is an error.

    Example:
        >>> wasserstein([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]])
        0.5
        >>> wasserstein([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], weights_x=[3, 1])
        0.25
    """
    left, a = _checked("x", x, weights_x)
    right, b = _checked("y", y, weights_y)
    _check_columns(left, right)
    if len(left) * len(right) > _MOST_COSTS:
        raise UserError(
            f"{len(left)} against {len(right)} vectors do not fit into memory exactly; use sampled_wasserstein"
        )
    return _transport(*_directions("x", left, a), *_directions("y", right, b))


def sampled_wasserstein(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    weights_x: npt.ArrayLike | None = None,
    weights_y: npt.ArrayLike | None = None,
    *,
    seed: int,
    limit: int = 2000,
    n_subsamples: int = 4,
) -> Distance:
    """Returns the distance of `wasserstein`, sampled where a side has more than `limit` rows, with its standard error.

    A side that is too large is replaced by `limit` draws by systematic resampling: a row of weight w is drawn floor(w * limit) or one
    more times, with the right expectation. So heavy rows keep their weight, equal weights mean each row at most once, and time and memory
    per pair are bounded whatever the sizes. Equal sets are recognised before any sampling and have distance 0.

    The standard error is that of the mean over `n_subsamples` independent subsamples. It does not show the bias: fewer vectors are
    further apart than the whole sets, so a sampled distance is too high on average.

    Args:
        x: see `wasserstein`.
        y: see `wasserstein`.
        weights_x: see `wasserstein`.
        weights_y: see `wasserstein`.
        seed: of the draws.
        limit: most rows per side that are transported at once, at least 2.
        n_subsamples: independent subsamples, at least 2.

    Raises:
        UserError: see `wasserstein`; or `limit` or `n_subsamples` is below 2.
        TunescopeError: the solver did not finish.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> sampled_wasserstein(x, x + 1, seed=0).exact
        True
        >>> d = sampled_wasserstein(x, x + 1, seed=0, limit=20)
        >>> d.exact, d.n_subsamples, 0 < d.standard_error < 0.2
        (False, 4, True)
    """
    if limit < 2 or n_subsamples < 2:
        raise UserError(f"limit {limit} and n_subsamples {n_subsamples}: both must be at least 2")
    left, a = _checked("x", x, weights_x)
    right, b = _checked("y", y, weights_y)
    _check_columns(left, right)
    n, m = len(left), len(right)
    if max(n, m) <= limit:
        return Distance(wasserstein(x, y, weights_x, weights_y), 0.0, True, n, m)
    if _same_measure(left, right, a, b):
        return Distance(0.0, 0.0, True, n, m)
    values = []
    for repeat in range(n_subsamples):
        rng = np.random.default_rng([seed, repeat])
        i, drawn_i = _resample(a, limit, rng)
        j, drawn_j = _resample(b, limit, rng)
        values.append(wasserstein(left[i], right[j], drawn_i, drawn_j))  # only these rows are read from a memory map
    error = float(np.std(values, ddof=1) / np.sqrt(n_subsamples))
    return Distance(float(np.mean(values)), error, False, n, m, n_subsamples)


def _checked(side: str, rows: npt.ArrayLike, weights: npt.ArrayLike | None) -> tuple[Floats, Floats]:
    """Returns the rows as they are and their weights, which sum to 1."""
    vectors = np.asanyarray(rows)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(
            f"{side} has shape {vectors.shape}; a set of vectors needs shape (rows, columns), at least one of each"
        )
    share = np.full(len(vectors), 1.0) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(vectors),):
        raise UserError(
            f"weights_{side} have shape {share.shape}; {(len(vectors),)} is needed, one weight per row of {side}"
        )
    if not np.isfinite(share).all() or (share < 0).any() or not share.any():
        raise UserError(
            f"weights_{side}: a weight is negative or not finite, or all are 0; give frequencies, at least one above 0"
        )
    share = share / share.max()  # first, so that the sum does not overflow
    return vectors, share / share.sum()


def _directions(side: str, rows: Floats, share: Floats) -> tuple[Floats, Floats]:
    """Returns unit rows of weight above 0, and these weights."""
    weighty = share > 0
    vectors = np.asarray(rows if weighty.all() else rows[weighty], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    if not (
        (squares > 1e-200) & (squares < 1e200)
    ).all():  # squares vanish or overflow, or there is no direction at all
        largest = np.abs(vectors).max(axis=1)
        for wrong, why in (
            (~np.isfinite(largest), "not finite"),
            (largest == 0, "a zero vector, which has no direction"),
        ):
            if wrong.any():
                row = int(np.flatnonzero(weighty)[np.argmax(wrong)])
                raise UserError(f"{side} row {row}: {why}; check how it was embedded")
        vectors = vectors / largest[:, None]
        squares = np.einsum("ij,ij->i", vectors, vectors)
    return vectors / np.sqrt(squares)[:, None], share[weighty]


def _check_columns(x: Floats, y: Floats) -> None:
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"x has {x.shape[1]} columns and y has {y.shape[1]}; both sets must be embedded by the same model"
        )


def _transport(x: Floats, a: Floats, y: Floats, b: Floats) -> float:
    cost = np.clip(1.0 - x @ y.T, 0.0, 2.0)
    if 1 in cost.shape:  # only one plan
        value = float(a @ cost @ b)
    else:
        import ot  # imports torch where it is installed, so only when it is needed

        solved, log = ot.emd2(a, b / b.sum() * a.sum(), cost, numItermax=_MAX_ITERATIONS, log=True)
        if log["warning"] is not None:
            raise TunescopeError(
                f"optimal transport of {len(x)} against {len(y)} vectors was not solved: {log['warning']}"
            )
        value = float(solved)
    return 0.0 if value <= 8 * x.shape[1] * np.finfo(np.float64).eps else min(value, 2.0)


def _same_measure(x: Floats, y: Floats, a: Floats, b: Floats) -> bool:
    """Whether both sides hold the same rows with the same weights, in any order and however often a row is repeated."""

    def grouped(rows: Floats, share: Floats) -> dict[bytes, float]:
        total: dict[bytes, float] = {}
        for start in range(0, len(rows), 4096):
            chunk = np.ascontiguousarray(rows[start : start + 4096], dtype=np.float64) + 0.0  # -0.0 becomes 0.0
            for row, weight in zip(chunk, share[start : start + 4096].tolist(), strict=True):
                key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
                total[key] = total.get(key, 0.0) + weight
        return {key: weight for key, weight in total.items() if weight > 0}

    left, right = grouped(x, a), grouped(y, b)
    return left.keys() == right.keys() and all(
        math.isclose(weight, right[key], rel_tol=1e-9) for key, weight in left.items()
    )


def _resample(share: Floats, limit: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], Floats]:
    """Returns rows and weights of `limit` systematic draws, or everything if there is no more than that."""
    if len(share) <= limit:
        return np.arange(len(share)), share
    order = rng.permutation(len(share))
    ends = np.cumsum(share[order])
    points = (rng.random() + np.arange(limit)) / limit * ends[-1]
    drawn = order[np.minimum(np.searchsorted(ends, points, side="right"), len(share) - 1)]
    rows, counts = np.unique(drawn, return_counts=True)
    return rows, counts / limit
