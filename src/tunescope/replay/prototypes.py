"""Rows that stand for others: nearest to the centres of k-means, or as far from each other as possible."""

from __future__ import annotations

import warnings

import numpy as np

from tunescope.errors import UserError
from tunescope.replay.pool import Floats

_FULL_BATCH_ROWS = 5000  # up to here every row takes part in every step of k-means
_SILHOUETTE_ROWS = 2000
_MOST_CLUSTERS = 10


def prototypes(rows: Floats, n: int, *, seed: int) -> list[tuple[int, float]]:
    """Chooses the `n` rows nearest to the centres of k-means with `n` centres, each row once.

    Directions are clustered (rows of length 1). With fewer than `n` different directions there are fewer centres, and every centre gives its
    next nearest row in turn, the largest cluster first. Above 5,000 rows k-means works in mini-batches.

    Args:
        rows: shape (k, d), finite, none zero.
        n: how many, at least 1 and at most k.
        seed: of k-means.

    Returns:
        Index and cosine distance to its centre, in the order of choice: largest cluster first.

    Raises:
        UserError: `n` is out of range, or a row is zero or not finite.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.0, 0.01], [1.0, -0.01], [0.0, 1.0]])
        >>> [index for index, _ in prototypes(rows, 2, seed=0)]
        [0, 3]
    """
    if not 1 <= n <= len(rows):
        raise UserError(f"n {n}: between 1 and {len(rows)} prototypes can be chosen from {len(rows)} rows")
    unit = _unit(rows)
    distinct, of = np.unique(unit, axis=0, return_inverse=True)
    of = of.reshape(-1)
    if len(distinct) <= n:
        centres, labels = distinct, of
    else:
        centres, labels = _k_means(unit, n, seed)
    cosine = 1.0 - np.einsum("ij,ij->i", unit, _unit(centres, keep_zero=True)[labels])
    queues: list[list[int]] = [[] for _ in centres]
    for row in np.lexsort((np.arange(len(unit)), cosine)).tolist():
        queues[labels[row]].append(row)
    queues.sort(key=lambda queue: (-len(queue), queue[:1]))
    chosen: list[int] = []
    turn = 0
    while len(chosen) < n:  # an empty cluster, or fewer directions than wanted: further turns
        chosen += [queue[turn] for queue in queues if turn < len(queue)][: n - len(chosen)]
        turn += 1
    return [(row, max(0.0, float(cosine[row]))) for row in chosen]


def best_clusters(rows: Floats, *, seed: int) -> int:
    """Returns the number of clusters with the best silhouette, 2 to 10; 1 where fewer than 3 directions differ.

    Args:
        rows: shape (k, d), finite, none zero. Above 2,000 rows a random 2,000 of them decide.
        seed: of k-means and the draw.

    Raises:
        UserError: a row is zero or not finite.

    Source:
        Rousseeuw 1987, silhouettes, on cosine distances.

    Example:
        >>> best_clusters(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), seed=0)
        2
    """
    from sklearn.metrics import silhouette_score

    unit = _unit(rows)
    if len(unit) > _SILHOUETTE_ROWS:
        drawn = np.random.default_rng(seed).choice(len(unit), size=_SILHOUETTE_ROWS, replace=False)
        unit = unit[np.sort(drawn)]
    n_distinct = len(np.unique(unit, axis=0))
    scores = {}
    for k in range(2, min(_MOST_CLUSTERS, n_distinct - 1) + 1):
        _, labels = _k_means(unit, k, seed)
        if 2 <= len(np.unique(labels)) < len(unit):
            scores[k] = float(silhouette_score(unit, labels, metric="cosine"))
    return max(scores, key=lambda k: (scores[k], -k), default=1)


def farthest_first(rows: Floats, others: Floats, n: int) -> list[tuple[int, float]]:
    """Chooses `n` rows one by one, each the least similar to those chosen before; the first is the least similar to `others`.

    Args:
        rows: shape (k, d), finite, none zero.
        others: shape (m, d): what the first one has to differ from, by mean cosine.
        n: how many, at most k.

    Returns:
        Index, and its largest cosine to those chosen before (for the first its mean cosine to `others`). Of equal ones the first row.

    Raises:
        UserError: `n` is out of range, a row is zero or not finite, or the numbers of columns differ.

    Example:
        >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> farthest_first(rows, np.array([[0.0, 1.0]]), 2)
        [(0, 0.0), (1, 0.0)]
    """
    if not 0 <= n <= len(rows):
        raise UserError(f"n {n}: between 0 and {len(rows)} rows can be chosen from {len(rows)}")
    if rows.shape[1] != others.shape[1]:
        raise UserError(
            f"rows have {rows.shape[1]} columns and others {others.shape[1]}; embed both with the same model"
        )
    unit = _unit(rows)
    nearness = unit @ _unit(others).mean(axis=0)
    chosen: list[tuple[int, float]] = []
    for turn in range(n):
        row = int(np.argmin(nearness))
        chosen.append((row, float(nearness[row])))
        cosine = unit @ unit[row]
        nearness = cosine if turn == 0 else np.maximum(nearness, cosine)
        nearness[[index for index, _ in chosen]] = np.inf
    return chosen


def _k_means(unit: Floats, k: int, seed: int) -> tuple[Floats, np.ndarray]:
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    state = seed % 2**32
    if len(unit) <= _FULL_BATCH_ROWS:
        model = KMeans(k, n_init=1, random_state=state)
    else:
        model = MiniBatchKMeans(k, n_init=1, random_state=state, batch_size=max(1024, 2 * k))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # nearly equal rows leave a cluster empty; `prototypes` handles that
        model.fit(unit)
    return model.cluster_centers_, model.labels_


def _unit(rows: Floats, *, keep_zero: bool = False) -> Floats:
    # Single precision where it was given: 100,000 rows should not take twice their memory.
    vectors = np.asarray(rows, dtype=np.float32 if rows.dtype in (np.float16, np.float32) else np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(length).all() or not (keep_zero or length.all()):
        row = int(np.argmin(np.isfinite(length) & (length > 0)))
        raise UserError(f"row {row}: a zero vector or not finite; check how it was embedded")
    unit: Floats = vectors / np.where(length > 0, length, 1.0)
    return unit
