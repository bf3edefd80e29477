"""Which tasks have alike layer profiles: the dendrogram beside the heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import pdist, squareform

from tunescope.errors import UserError
from tunescope.runs.records import Record

_N_NULL = 200
_LEVEL = 0.95


@dataclass(frozen=True)
class Clusters(Record):
    """Tasks grouped by their layer profiles.

    Attributes:
        names: the tasks, in the order of the rows of the profiles.
        linkage: the dendrogram as scipy writes it: a row per merge with the two parts (below n_tasks: a task; from there: an
            earlier merge), their distance in the unit of the profiles, and the number of tasks in it.
        order: rows from left to right, such that neighbours are as alike as the dendrogram allows.
        labels: cluster of each task, in the order of the rows; numbered from 0, left to right. All 0: one cluster.
        silhouette: mean silhouette of the best cut into at least two clusters, in [-1, 1]; None where there is none.
        null: what the best cut of profiles without clusters reaches in 95 of 100 draws; None where it was not needed.
        why: one line: why so many clusters.
    """

    names: tuple[str, ...]
    linkage: tuple[tuple[float, float, float, int], ...]
    order: tuple[int, ...]
    labels: tuple[int, ...]
    silhouette: float | None
    null: float | None
    why: str


def cluster_tasks(profiles: npt.NDArray[Any], names: Sequence[str], *, seed: int = 0) -> Clusters:
    """Groups tasks whose scores run alike over the blocks.

    Distance: the root mean square of the differences over blocks, in the unit of the scores. Not correlation, which does not exist
    for a flat profile, turns the noise of a nearly flat one into shape, and calls a task that sits 0.5 lower the same. Linkage:
    average, so that a height reads as "these groups differ by so much per block".

    Number of clusters: the cut into 2 up to n_tasks / 2 groups with the highest mean silhouette, if that is higher than the same
    maximum reaches in 95 of 100 draws of n_tasks profiles from one normal distribution with the covariance of these; else one
    cluster. A threshold on the silhouette alone would not do: neighbouring blocks go together, and tasks without any clusters
    along one such direction reach 0.5 and more.

    Args:
        profiles: a score per task and block (n_tasks, n_layers).
        names: n_tasks names.
        seed: of the draws that the silhouette is compared with.

    Returns:
        Dendrogram, order of the leaves and cluster of each task. Fewer than four tasks are one cluster.

    Raises:
        UserError: no tasks, not a matrix, another number of names, or a score that is not finite.

    Source:
        Rousseeuw (1987) for the silhouette; Bar-Joseph, Gifford & Jaakkola (2001) for the order of the leaves, both as in scipy
        and scikit-learn. The test against one normal distribution follows Liu, Hayes, Nobel & Marron (2008); ours takes the
        silhouette in place of their cluster index, and any number of clusters in place of two.

    Example:
        >>> rise, fall = np.linspace(0, 1, 8), np.linspace(1, 0, 8)
        >>> found = cluster_tasks(np.array([rise, fall, rise + 0.01, fall + 0.01, rise + 0.02, fall + 0.02]), list("abcdef"))
        >>> found.labels
        (0, 1, 0, 1, 0, 1)
    """
    table = np.asarray(profiles, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise UserError(f"profiles have shape {table.shape}: give a matrix, a row per task and a column per block")
    if len(names) != len(table):
        raise UserError(f"got {len(names)} names for {len(table)} profiles: give one per task")
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise UserError(
            f"the profile of task {names[row]!r} holds {table[row, column]} at block {column}: every score must be finite; "
            "leave the task or the block out"
        )
    if len(table) == 1:
        return Clusters(tuple(names), (), (0,), (0,), None, None, "one task is one cluster")
    distances = pdist(table / np.sqrt(table.shape[1]))
    tree = linkage(distances, method="average", optimal_ordering=True)
    order = leaves_list(tree)
    silhouette, labels = _best_cut(tree, distances)
    null, why = None, f"{len(table)} tasks are too few to tell clusters apart, give at least 4"
    if silhouette is not None:
        null = float(np.quantile(_null_silhouettes(table, seed), _LEVEL))
        compared = f"best silhouette {silhouette:.2f}, {_LEVEL:.0%} of profiles without clusters stay below {null:.2f}"
        why = f"{labels.max() + 1} clusters: {compared}" if silhouette > null else f"one cluster: {compared}"
    elif len(table) >= 4:
        why = "one cluster: all profiles are the same"
    if silhouette is None or null is None or silhouette <= null:
        labels = np.zeros_like(labels)
    left_to_right = list(dict.fromkeys(labels[order].tolist()))
    return Clusters(
        names=tuple(names),
        linkage=tuple((float(a), float(b), float(height), int(size)) for a, b, height, size in tree),
        order=tuple(order.tolist()),
        labels=tuple(left_to_right.index(label) for label in labels.tolist()),
        silhouette=silhouette,
        null=null,
        why=why,
    )


def _best_cut(tree: npt.NDArray[Any], distances: npt.NDArray[Any]) -> tuple[float | None, npt.NDArray[np.intp]]:
    """Returns the highest mean silhouette over 2 up to n / 2 clusters and the cluster of each task, from 0."""
    square = squareform(distances)
    best: tuple[float | None, npt.NDArray[np.intp]] = (None, np.zeros(len(square), dtype=np.intp))
    for n_clusters in range(2, len(square) // 2 + 1):
        labels = fcluster(tree, n_clusters, criterion="maxclust") - 1
        if labels.max() == 0:
            continue  # merges at one height cannot be told apart
        score = _mean_silhouette(square, labels)
        if best[0] is None or score > best[0]:
            best = (score, labels)
    return best


def _mean_silhouette(square: npt.NDArray[Any], labels: npt.NDArray[np.intp]) -> float:
    """Mean of (b - a) / max(a, b): a the mean distance within the cluster, b to the nearest other; 0 for a cluster of one."""
    member = np.eye(labels.max() + 1)[labels]
    counts = member.sum(axis=0)
    sums = square @ member
    own = counts[labels]
    within = (sums * member).sum(axis=1) / np.maximum(own - 1, 1)
    between = np.where(member > 0, np.inf, sums / counts).min(axis=1)
    larger = np.maximum(within, between)
    return float(np.where((own > 1) & (larger > 0), (between - within) / np.where(larger > 0, larger, 1), 0.0).mean())


def _null_silhouettes(table: npt.NDArray[Any], seed: int) -> npt.NDArray[np.float64]:
    """Draws the best silhouette of as many profiles from one normal distribution with the same covariance."""
    spread = np.linalg.svd(table - table.mean(axis=0), compute_uv=False)  # a rotation changes no distance
    random = np.random.default_rng(seed)
    found = np.empty(_N_NULL)
    for i in range(_N_NULL):
        distances = pdist(random.standard_normal((len(table), len(spread))) * spread)
        silhouette, _ = _best_cut(linkage(distances, method="average"), distances)
        found[i] = -1.0 if silhouette is None else silhouette
    return found
