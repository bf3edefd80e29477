"""The probe is cross-validated ridge regression, sees no test row, and refuses what it cannot judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tunescope.errors import UserError
from tunescope.layers import chance_level, separability
from tunescope.layers import probe as module


def classes(n: int, d: int, k: int, *, apart: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    """Normal classes whose means lie about 1.4 * apart standard deviations from each other."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % k
    states = random.standard_normal((n, d)) + apart * random.standard_normal((k, d))[labels] / d**0.5
    return states * np.arange(1, d + 1) ** -0.5 + 10, np.array([f"class {i}" for i in labels])


@pytest.mark.parametrize("penalty", [0.01, 1.0])
@pytest.mark.parametrize(("n", "d", "k"), [(60, 100, 2), (60, 100, 5), (90, 12, 2), (120, 20, 7), (50, 40, 3)])
def test_it_equals_scikit_learn_on_the_same_folds(
    n: int, d: int, k: int, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, labels = classes(n, d, k, apart=3)
    states[:, 3] = 2.5  # a constant column
    monkeypatch.setattr(module, "_PENALTIES", np.array([penalty]))
    _, codes = module._codes(labels, n)
    fold = module._folds(codes, 5, 0)
    right = 0.0
    for i in range(5):
        train, test = states[fold != i], states[fold == i]
        scale = StandardScaler().fit(train)
        alpha = penalty * float((scale.transform(train) ** 2).sum()) / len(train)
        reference = RidgeClassifier(alpha=alpha).fit(scale.transform(train), labels[fold != i])
        right += float((reference.predict(scale.transform(test)) == labels[fold == i]).sum())
        scores = module._scores(train, np.eye(k)[codes[fold != i]], test)
        expected = np.atleast_2d(reference.decision_function(scale.transform(test)).T).T
        np.testing.assert_allclose(2 * scores[:, -expected.shape[1] :] - 1, expected, atol=1e-8)
    assert separability(states, labels, n_folds=5, seed=0) == right / n
    assert 1 / k < right / n < 1


@pytest.mark.parametrize(("n", "d"), [(100, 200), (300, 20)])
def test_the_chosen_penalty_is_as_good_as_the_best_fixed_one(n: int, d: int) -> None:
    states, labels = classes(n, d, 4, apart=4)
    random = np.random.default_rng(1)
    states += (
        3 * random.standard_normal((n, 2)) @ random.standard_normal((2, d))
    )  # what a large penalty cannot look past
    _, codes = module._codes(labels, n)
    folds = PredefinedSplit(module._folds(codes, 5, 0))
    fixed = [
        cross_val_score(
            make_pipeline(StandardScaler(), RidgeClassifier(alpha=share * d)), states, labels, cv=folds
        ).mean()
        for share in (1e-4, 1e-2, 1.0, 100.0)
    ]
    assert separability(states, labels) > max(fixed) - 0.03
    assert max(fixed) > min(fixed) + 0.03


def test_gcv_is_what_the_hat_matrix_says() -> None:
    states, labels = classes(40, 60, 3)
    z = (states - states.mean(axis=0)) / states.std(axis=0)
    _, codes = module._codes(labels, 40)
    wanted = np.eye(3)[codes] - np.eye(3)[codes].mean(axis=0)
    errors = {}
    for penalty in module._PENALTIES * (z**2).sum() / 40:
        hat = z @ np.linalg.solve(z.T @ z + penalty * np.eye(60), z.T) + 1 / 40  # 1 / n: the intercept
        errors[penalty] = ((wanted - hat @ wanted) ** 2).sum() / (40 - np.trace(hat)) ** 2
    values, vectors = np.linalg.eigh(z @ z.T)
    explained = ((vectors.T @ wanted) ** 2).sum(axis=1)
    found = module._best_penalty(values[1:], explained[1:], float((wanted**2).sum()), 40)
    assert found == pytest.approx(min(errors, key=errors.__getitem__))


def test_no_test_row_reaches_the_training() -> None:
    random = np.random.default_rng(0)
    accuracies = [separability(random.standard_normal((60, 200)), random.integers(0, 2, 60), seed=i) for i in range(30)]
    assert 0.42 < np.mean(accuracies) < 0.58  # labels that are noise; a leak would lift it


@pytest.mark.parametrize("d", [5, 300])
def test_classes_far_apart_are_told_apart_and_shuffled_labels_are_not(d: int) -> None:
    states, labels = classes(100, d, 4, apart=20)
    assert separability(states, labels) == 1
    assert separability(states, np.random.default_rng(0).permutation(labels)) < 0.5


def test_scale_offset_and_dtype_do_not_matter() -> None:
    states, labels = classes(80, 120, 3, apart=4)
    accuracy = separability(states, labels)
    assert 0.4 < accuracy < 1
    offset = np.zeros(120)
    offset[7] = 1e5
    for other in (1e-6 * states, states * np.arange(1, 121), states + offset, torch.tensor(states)):
        assert separability(other, labels) == accuracy
    assert separability(states.astype(np.float32), list(labels)) == pytest.approx(accuracy, abs=0.03)


def test_it_depends_on_the_seed_alone_and_leaves_the_states_as_they_were() -> None:
    states, labels = classes(60, 30, 3, apart=2)
    before = states.copy()
    first = [separability(states, labels, seed=seed) for seed in range(6)]
    assert first == [separability(states, labels, seed=seed) for seed in range(6)]
    assert len(set(first)) > 1
    np.testing.assert_array_equal(states, before)


def test_constant_states_give_the_chance_level() -> None:
    labels = ["a"] * 30 + ["b"] * 15 + ["c"] * 5
    assert separability(np.full((50, 8), 0.1), labels) == chance_level(labels) == 0.6


@pytest.mark.parametrize("n_folds", [2, 5, 7])
def test_every_class_is_spread_evenly_over_the_folds(n_folds: int) -> None:
    codes = np.random.default_rng(0).choice(4, size=103, p=[0.5, 0.3, 0.15, 0.05])
    fold = module._folds(codes, n_folds, 0)
    for of_class in [fold, *(fold[codes == code] for code in range(4))]:
        sizes = np.bincount(of_class, minlength=n_folds)
        assert sizes.max() - sizes.min() <= 1


def test_a_class_with_fewer_members_than_folds_is_still_learned() -> None:
    states, labels = classes(60, 10, 2, apart=25)
    rare = [0, 2, 4]
    states[rare] += 30
    labels = labels.astype(object)
    labels[rare] = "rare"
    assert separability(states, labels, n_folds=5) == 1


@pytest.mark.parametrize(
    ("states", "labels", "n_folds", "message"),
    [
        (np.eye(6), ["a"] * 6, 2, "all 6 labels are 'a'"),
        (np.eye(6), ["a", "b"] * 2, 2, "got 4 labels for 6 rows"),
        (np.eye(6), ["a", "a", "a", "a", "b", "c"], 2, r"2 of 3 classes have one row \('b', 'c'\)"),
        (np.eye(6), ["a", "b"] * 3, 1, "n_folds is 1: use 2 up to the number of rows, 6"),
        (np.eye(6), ["a", "b"] * 3, 7, "n_folds is 7"),
        (np.ones(6), ["a", "b"] * 3, 2, r"states has shape \(6,\)"),
        (np.full((6, 2), np.nan), ["a", "b"] * 3, 2, "states holds nan at row 0, column 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(states: Any, labels: Any, n_folds: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        separability(states, labels, n_folds=n_folds)


def test_the_chance_level_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no labels"):
        chance_level([])


@pytest.mark.parametrize("kind", ["isotropic", "steep", "in small directions", "nothing there"])
@pytest.mark.parametrize(("n", "d", "k"), [(60, 300, 3), (40, 500, 2)])
def test_with_more_columns_than_rows_the_chosen_penalty_is_as_good_as_the_one_scikit_learn_chooses(
    n: int, d: int, k: int, kind: str
) -> None:
    """Neither too large nor too small: leave-one-out over a grid that is wider at both ends, on the same folds."""
    ours, theirs = [], []
    for seed in range(6):
        random = np.random.default_rng([seed, d])
        codes = np.arange(n) % k
        spread = np.ones(d) if kind in ("isotropic", "nothing there") else np.arange(1, d + 1) ** -1.0
        states = random.standard_normal((n, d)) * spread
        if kind == "isotropic":
            states += 3 * random.standard_normal((k, d))[codes] / d**0.5
        elif kind == "steep":
            states[:, :k] += 1.2 * (np.eye(k) * spread[:k])[codes]
        elif kind == "in small directions":
            states[:, 20 : 20 + k] += 4 * (np.eye(k) * spread[20 : 20 + k])[codes]
        states = states @ np.linalg.qr(random.standard_normal((d, d)))[0]
        labels = codes.astype(str)
        folds = PredefinedSplit(module._folds(module._codes(labels, n)[1], 5, seed))
        reference = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=d * 10.0 ** np.arange(-6, 4, 0.5)))
        theirs.append(cross_val_score(reference, states, labels, cv=folds).mean())
        ours.append(separability(states, labels, seed=seed))
    assert abs(np.mean(ours) - np.mean(theirs)) < 0.05
