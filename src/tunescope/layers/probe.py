"""How well a linear probe reads labels, or tasks, off the states of a block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunescope.errors import UserError
from tunescope.layers.gram import Floats, Matrix, as_matrix

Labels = Sequence[Any] | npt.NDArray[Any]

_PENALTIES = 10.0 ** np.arange(-4, 1.5, 0.5)
"""Ridge penalties to choose from, as shares of trace(Z Zᵀ) / n: they depend on neither scale nor width."""


def separability(states: Matrix, labels: Labels, *, n_folds: int = 5, seed: int = 0) -> float:
    """Gives the cross-validated accuracy of a linear probe.

    It says whether a block's states hold what tells the labels of a task (or the tasks) apart in a form that the next block can
    read linearly; compare it with `chance_level`. It does not say that the model uses it. States that are the same for every row
    give the accuracy of always naming the largest class.

    Args:
        states: one row per prompt (n, d_model), NumPy or torch, any floating dtype.
        labels: n labels or task names; compared as text.
        n_folds: folds of the cross-validation, 2 up to n. Each class is spread over the folds as evenly as it goes; one with fewer
            members than folds is left out of some folds' tests, never of the training of the fold that tests it.
        seed: of the folds.

    Returns:
        Share of rows whose label is predicted right by a probe that has not seen them, in [0, 1].

    Raises:
        UserError: states that are not a finite matrix, another number of labels, fewer than two classes, a class with a
            single member (its probe could never have seen it), or `n_folds` out of range.

    Source:
        Alain & Bengio (2016, arXiv 1610.01644) for linear probes. Ours is ridge regression on one-hot targets (Hoerl & Kennard
        1970), by one eigendecomposition a fold, in the dual where it has fewer rows than columns. Columns are standardised and the
        penalty is chosen (generalised cross-validation) on the training rows alone: a fixed penalty would favour the blocks
        whose spectrum it happens to suit.

    Example:
        >>> states = np.repeat([[0.0, 1.0], [1.0, 0.0]], 10, axis=0) + 0.01 * np.arange(20)[:, None]
        >>> separability(states, ["no"] * 10 + ["yes"] * 10)
        1.0
    """
    features = as_matrix(states, "states", at_least=2)
    names, codes = _codes(labels, len(features))
    if not 2 <= n_folds <= len(features):
        raise UserError(f"n_folds is {n_folds}: use 2 up to the number of rows, {len(features)}; 5 is usual")
    fold = _folds(codes, n_folds, seed)
    targets = np.eye(len(names))[codes]
    right = 0
    for k in range(n_folds):
        test = fold == k
        scores = _scores(features[~test], targets[~test], features[test])
        right += int((scores.argmax(axis=1) == codes[test]).sum())
    return right / len(features)


def chance_level(labels: Labels) -> float:
    """Gives the share of the largest class: what a probe gets that reads nothing off the states.

    Args:
        labels: labels or task names; compared as text.

    Returns:
        A share in (0, 1].

    Raises:
        UserError: no labels.

    Example:
        >>> chance_level(["yes", "no", "no", "no"])
        0.75
    """
    counts = Counter(str(label) for label in labels)
    if not counts:
        raise UserError("got no labels: the chance level needs at least one")
    return max(counts.values()) / counts.total()


def _codes(labels: Labels, n: int) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Returns the classes in alphabetical order and the class of each row."""
    if len(labels) != n:
        raise UserError(f"got {len(labels)} labels for {n} rows of states: give one per row")
    counts = Counter(str(label) for label in labels)
    if len(counts) < 2:
        raise UserError(f"all {n} labels are {next(iter(counts))!r}: a probe tells classes apart, give at least two")
    if single := sorted(name for name, count in counts.items() if count < 2):
        raise UserError(
            f"{len(single)} of {len(counts)} classes have one row ({', '.join(map(repr, single[:3]))}): a probe needs another "
            "to learn from; give at least two of each, or leave these rows out"
        )
    names = sorted(counts)
    place = {name: code for code, name in enumerate(names)}
    return names, np.array([place[str(label)] for label in labels])


def _folds(codes: npt.NDArray[np.intp], n_folds: int, seed: int) -> npt.NDArray[np.intp]:
    """Deals the shuffled rows out class by class, so that folds differ by one row at most, in all and in each class."""
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    fold = np.empty(len(codes), dtype=np.intp)
    fold[order] = np.arange(len(codes)) % n_folds
    return fold


def _scores(train: Floats, targets: Floats, test: Floats) -> Floats:
    """Returns the class scores (rows of test, classes) of a ridge probe with an intercept fitted to the training rows."""
    mean, prior = train.mean(axis=0), targets.mean(axis=0)
    centred, wanted = train - mean, targets - prior
    scale = np.sqrt((centred**2).mean(axis=0))
    scale[scale <= 8 * np.finfo(np.float64).eps * np.abs(mean)] = np.inf  # a constant column tells nothing
    z, unseen = centred / scale, (test - mean) / scale
    wide = len(z) < z.shape[1]
    values, vectors = np.linalg.eigh(z @ z.T if wide else z.T @ z)
    some = values > 1e-10 * values[-1]  # none where every column is constant
    values, vectors = values[some], vectors[:, some]
    length = np.sqrt(values)
    left, back = (vectors, z.T @ (vectors / length)) if wide else (z @ (vectors / length), vectors)
    shares = left.T @ wanted  # the targets along the principal components
    penalty = _best_penalty(values, (shares**2).sum(axis=1), float((wanted**2).sum()), len(z))
    scores: Floats = prior + unseen @ (back @ (shares * (length / (values + penalty))[:, None]))
    return scores


def _best_penalty(values: Floats, explained: Floats, total: float, n: int) -> float:
    """Returns the penalty with the least generalised cross-validation error.

    Golub, Heath & Wahba (1979): squared residuals over the square of the degrees of freedom left, one of them spent on the intercept.
    """
    best, least = 0.0, np.inf
    for penalty in _PENALTIES * values.sum() / n:
        kept = penalty / (values + penalty)
        residual = total - explained.sum() + (kept**2 * explained).sum()
        error = residual / (n - 1 - len(values) + kept.sum()) ** 2
        if error < least:
            best, least = float(penalty), error
    return best
