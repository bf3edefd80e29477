"""Tasks with alike profiles are grouped, and profiles without groups are left as one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import dendrogram, is_valid_linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import silhouette_score

from tunescope.errors import UserError
from tunescope.layers import Clusters, cluster_tasks
from tunescope.layers import clusters as module


def walks(n: int, *, seed: int = 0, n_layers: int = 20) -> Any:
    """Profiles in which neighbouring blocks go together, as those of CKA do."""
    return 0.5 + 0.02 * np.random.default_rng(seed).standard_normal((n, n_layers)).cumsum(axis=1)


def grouped(n: int, k: int, *, seed: int = 0) -> tuple[Any, Any]:
    group = np.arange(n) % k
    shapes = np.array([np.linspace(0, 1, 20), np.linspace(1, 0, 20), np.full(20, 0.2), np.full(20, 0.9)])
    return shapes[group] + 0.1 * (walks(n, seed=seed) - 0.5), group


def names(n: int) -> list[str]:
    return [f"task {i}" for i in range(n)]


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("n", [12, 40])
def test_groups_that_are_there_are_found(n: int, k: int) -> None:
    profiles, group = grouped(n, k)
    found = cluster_tasks(profiles, names(n))
    assert len(set(zip(group.tolist(), found.labels, strict=True))) == k == len(set(found.labels))
    assert found.silhouette is not None
    assert found.null is not None
    assert found.silhouette > found.null
    assert found.why.startswith(f"{k} clusters: ")


@pytest.mark.parametrize("n", [8, 30])
def test_profiles_without_groups_are_one_cluster(n: int) -> None:
    found = [cluster_tasks(walks(n, seed=seed), names(n), seed=seed) for seed in range(8)]
    assert sum(max(f.labels) > 0 for f in found) <= 2
    assert all(f.silhouette is not None and f.silhouette > 0.25 for f in found)  # a fixed threshold would be fooled
    assert "one cluster: " in "".join(f.why for f in found)


@pytest.mark.parametrize("n", [5, 25])
def test_the_silhouette_is_that_of_scikit_learn(n: int) -> None:
    profiles = walks(n)
    square = squareform(pdist(profiles))
    for k in range(2, n):
        labels = np.random.default_rng(k).permutation(np.arange(n) % k)
        assert module._mean_silhouette(square, labels) == pytest.approx(silhouette_score(profiles, labels), abs=1e-12)


def test_heights_are_mean_differences_per_block() -> None:
    flat = np.array([0.1, 0.2, 0.6, 0.7])[:, None] * np.ones(9)
    found = cluster_tasks(flat, names(4))
    assert [round(height, 9) for _, _, height, _ in found.linkage] == [0.1, 0.1, 0.5]
    assert [size for *_, size in found.linkage] == [2, 2, 4]


@pytest.mark.parametrize("n", [2, 3, 15])
def test_the_dendrogram_is_scipys_and_clusters_are_numbered_from_its_left(n: int) -> None:
    profiles, _ = grouped(n, min(n, 3))
    found = cluster_tasks(profiles, names(n))
    tree = np.array(found.linkage)
    assert is_valid_linkage(tree)
    assert dendrogram(tree, no_plot=True)["leaves"] == list(found.order)
    assert sorted(found.order) == list(range(n))
    from_left = [found.labels[i] for i in found.order]
    assert from_left == sorted(from_left)
    assert from_left[0] == 0


def test_neighbours_are_as_alike_as_the_tree_allows() -> None:
    profiles = np.linspace(0, 1, 9)[np.random.default_rng(0).permutation(9), None] * np.ones(4)
    in_order = profiles[list(cluster_tasks(profiles, names(9)).order), 0]
    assert in_order.tolist() in (sorted(in_order), sorted(in_order, reverse=True))


def test_the_order_of_the_tasks_does_not_change_the_groups() -> None:
    profiles, _ = grouped(16, 3)
    order = np.random.default_rng(0).permutation(16)
    first, second = cluster_tasks(profiles, names(16)), cluster_tasks(profiles[order], names(16))
    together = np.equal.outer(first.labels, first.labels)
    np.testing.assert_array_equal(np.equal.outer(second.labels, second.labels), together[np.ix_(order, order)])
    assert first == cluster_tasks(profiles, names(16))


def test_one_two_or_three_tasks_are_one_cluster() -> None:
    assert cluster_tasks(walks(1), ["a"]) == Clusters(("a",), (), (0,), (0,), None, None, "one task is one cluster")
    for n in (2, 3):
        found = cluster_tasks(walks(n), names(n))
        assert found.labels == (0,) * n
        assert len(found.linkage) == n - 1
        assert "at least 4" in found.why


def test_equal_profiles_are_one_cluster() -> None:
    found = cluster_tasks(np.ones((6, 4)), names(6))
    assert found.labels == (0,) * 6
    assert found.why == "one cluster: all profiles are the same"


def test_clusters_survive_json() -> None:
    found = cluster_tasks(walks(6), names(6))
    plain = json.loads(json.dumps(found.to_dict()))
    assert Clusters.from_dict(plain).to_dict() == plain
    assert plain["order"] == list(found.order)


@pytest.mark.parametrize(
    ("profiles", "task_names", "message"),
    [
        (np.ones((0, 3)), [], r"shape \(0, 3\)"),
        (np.ones((3, 0)), ["a", "b", "c"], r"shape \(3, 0\)"),
        (np.ones(3), ["a", "b", "c"], r"shape \(3,\)"),
        (np.ones((3, 2)), ["a", "b"], "got 2 names for 3 profiles"),
        (np.array([[0.1, 0.2], [0.3, np.nan]]), ["a", "b"], "task 'b' holds nan at block 1"),
        (np.array([[np.inf, 0.2], [0.3, 0.1]]), ["a", "b"], "task 'a' holds inf at block 0"),
    ],
)
def test_profiles_that_cannot_be_compared_are_refused(profiles: Any, task_names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster_tasks(profiles, task_names)
