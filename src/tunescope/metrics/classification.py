"""Scores of predicted labels.

`macro_f1` is the mean F1 over the labels that stand in the predictions or in the references. A label of the task that
stands in neither is left out (counting it as 0 would punish every arm for a test file that lacks it); one that is only
predicted counts as 0. This is scikit-learn's ``f1_score(average="macro", zero_division=0)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def correctness(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """Says per example whether the label is right: the array that intervals and comparisons stand on.

    Args:
        predictions: n predicted labels.
        references: n right labels.

    Returns:
        Array [n] of 0.0 and 1.0.

    Raises:
        ValueError: if the lengths differ or are 0.

    Example:
        >>> correctness(["it", "hr"], ["it", "it"]).tolist()
        [1.0, 0.0]
    """
    _check(predictions, references)
    return np.array([p == r for p, r in zip(predictions, references, strict=True)], dtype=np.float64)


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Gives the share of right labels.

    Args:
        predictions: n predicted labels.
        references: n right labels.

    Returns:
        Share in [0, 1].

    Raises:
        ValueError: if the lengths differ or are 0.

    Example:
        >>> accuracy(["it", "hr"], ["it", "it"])
        0.5
    """
    return float(correctness(predictions, references).mean())


def macro_f1(predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> float:
    """Gives the mean F1 over labels, so that a rare label counts as much as a frequent one.

    Args:
        predictions: n predicted labels; one that is not in `labels` is wrong and has no F1 of its own.
        references: n right labels.
        labels: the allowed labels; those absent from predictions and references are left out (see the module).

    Returns:
        Mean F1 in [0, 1].

    Raises:
        ValueError: if the lengths differ or are 0, or a reference is not in `labels`.

    Source:
        Opitz & Burst (2019), "Macro F1 and Macro F1": the mean of F1 scores, not the F1 of the means.

    Example:
        >>> macro_f1(["a", "a", "b"], ["a", "b", "b"], ["a", "b", "c"])
        0.6666666666666666
    """
    statistic = macro_f1_statistic(predictions, references, labels)
    return float(statistic(np.arange(len(references))[None])[0])


def macro_f1_contributions(predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> Floats:
    """Says what each example adds to `macro_f1`: the numbers sum to it, wrong answers add 0.

    For showing which examples carry the score; an interval needs `macro_f1_statistic`, since the weights change with
    the sample.

    Args:
        predictions: n predicted labels.
        references: n right labels.
        labels: the allowed labels.

    Returns:
        Array [n], each at least 0.

    Raises:
        ValueError: as `macro_f1`.

    Example:
        >>> macro_f1_contributions(["a", "a", "b"], ["a", "b", "b"], ["a", "b"]).round(3).tolist()
        [0.333, 0.0, 0.333]
    """
    right, given, n_labels = _encode(predictions, references, labels)
    sizes = (np.bincount(right, minlength=n_labels + 1) + np.bincount(given, minlength=n_labels + 1))[:n_labels]
    weights = np.append(2 / np.maximum(sizes, 1) / np.count_nonzero(sizes), 0.0)
    contributions: Floats = np.where(right == given, weights[right], 0.0)
    return contributions


def macro_f1_statistic(
    predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]
) -> Callable[[Indices], Floats]:
    """Gives `macro_f1` as a function of resampled examples, for `bootstrap.interval_of` and `bootstrap.difference_of`.

    Args:
        predictions: n predicted labels.
        references: n right labels.
        labels: the allowed labels.

    Returns:
        A function from indices [rows, n] to macro-F1 [rows].

    Raises:
        ValueError: as `macro_f1`.
    """
    right, given, n_labels = _encode(predictions, references, labels)

    def statistic(indices: Indices) -> Floats:
        width = n_labels + 1  # the last column holds predictions outside the labels
        shift = np.arange(len(indices))[:, None] * width
        actual, chosen = right[indices], given[indices]

        def count(codes: Indices) -> Indices:
            return np.bincount((codes + shift).ravel(), minlength=len(indices) * width).reshape(-1, width)[:, :n_labels]

        hits = count(np.where(actual == chosen, actual, n_labels))
        sizes = count(actual) + count(chosen)
        f1 = 2 * hits / np.maximum(sizes, 1)
        means: Floats = f1.sum(axis=1) / np.maximum((sizes > 0).sum(axis=1), 1)
        return means

    return statistic


def _encode(
    predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]
) -> tuple[Indices, Indices, int]:
    """Returns references and predictions as label numbers (unknown ones get the last), and how many there are."""
    _check(predictions, references)
    codes = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    unknown = sorted(set(references) - set(codes))
    if unknown:
        raise ValueError(
            f"references {unknown[:5]} are not among the labels {list(codes)}: add them or correct the data"
        )
    right = np.array([codes[label] for label in references], dtype=np.intp)
    given = np.array([codes.get(label, len(codes)) for label in predictions], dtype=np.intp)
    return right, given, len(codes)


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise ValueError(
            f"got {len(predictions)} predictions for {len(references)} references: there must be one for each"
        )
    if not len(references):
        raise ValueError("got no examples: a score needs at least one")
