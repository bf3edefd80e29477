from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import UserError
from tunescope.replay.prototypes import best_clusters, farthest_first, prototypes


def clusters(n_clusters: int, n_each: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.vstack([np.eye(8)[i] * 20 + rng.normal(size=(n_each, 8)) for i in range(n_clusters)])


@given(n=st.integers(1, 12), of=st.integers(1, 12), distinct=st.integers(1, 12), seed=st.integers(0, 9))
def test_as_many_different_rows_as_wanted_are_chosen(n, of, distinct, seed):
    rows = np.random.default_rng(seed).normal(size=(distinct, 3))[np.arange(max(n, of)) % distinct]
    chosen = prototypes(rows, n, seed=seed)
    assert len({row for row, _ in chosen}) == len(chosen) == n
    assert all(0 <= distance <= 2 for _, distance in chosen)


def test_each_cluster_has_the_row_nearest_to_its_centre():
    rows = clusters(4, 15)
    chosen = dict(prototypes(rows, 4, seed=0))
    assert sorted(row // 15 for row in chosen) == [0, 1, 2, 3]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for row in chosen:
        own = unit[row // 15 * 15 :][:15]
        centre = own.mean(axis=0)
        assert np.argmax(own @ centre) == row % 15


def test_many_rows_are_clustered_in_batches_to_the_same_clusters():
    rows = clusters(5, 1200).astype(np.float32)
    assert sorted(row // 1200 for row, _ in prototypes(rows, 5, seed=1)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_best_number_of_clusters_is_found(k):
    assert best_clusters(clusters(k, 12), seed=0) == k


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_rows_are_one_cluster(n):
    assert best_clusters(np.eye(4)[:n], seed=0) == 1
    assert best_clusters(np.ones((9, 3)), seed=0) == 1


def test_farthest_first_equals_a_plain_search():
    rng = np.random.default_rng(2)
    rows, others = rng.normal(size=(30, 4)), rng.normal(size=(7, 4))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    away = others / np.linalg.norm(others, axis=1, keepdims=True)
    kept = [min(range(30), key=lambda r: np.mean(away @ unit[r]))]
    while len(kept) < 12:
        kept.append(min(set(range(30)) - set(kept), key=lambda r: max(unit[r] @ unit[q] for q in kept)))
    assert [row for row, _ in farthest_first(rows, others, 12)] == kept


def test_all_rows_are_chosen_once_even_if_they_are_equal():
    assert sorted(row for row, _ in farthest_first(np.ones((5, 2)), np.ones((1, 2)), 5)) == [0, 1, 2, 3, 4]
    assert farthest_first(np.ones((5, 2)), np.ones((1, 2)), 0) == []


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(UserError, match="between 1 and 2"):
        prototypes(np.eye(2), 3, seed=0)
    with pytest.raises(UserError, match="between 0 and 2"):
        farthest_first(np.eye(2), np.eye(2), 3)
    with pytest.raises(UserError, match="embed both with the same model"):
        farthest_first(np.eye(2), np.eye(3), 1)
    for rows in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(UserError, match="row 0: a zero vector or not finite"):
            prototypes(rows, 1, seed=0)
