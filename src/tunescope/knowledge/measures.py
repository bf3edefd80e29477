"""How far two models agree about the choices of the same questions, and scores of choices turned into probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from tunescope.errors import UserError
from tunescope.knowledge.questions import SUM_TOLERANCE

Floats = npt.NDArray[np.float64]
Rows = Sequence[Sequence[float]] | Sequence[Floats] | npt.NDArray[np.floating]
"""One row of numbers per question: an array (n_questions, n_choices), or a list of rows of differing length."""

_FEWEST_POINTS = 3


def rank_consistency(p: Rows, q: Rows) -> float:
    """Gives how far two models put the choices of the questions into the same order.

    Args:
        p: probabilities (or any scores of which higher is likelier) by one model (n_questions, n_choices), or rows of differing
            length.
        q: the same by the other model, same questions and choices.

    Returns:
        Mean over the questions of Pearson's correlation of the two rank vectors (rank 1 = most likely, ties share their mean rank),
        in [-1, 1]. A question in which either side finds all choices equally likely counts 0.

    Raises:
        UserError: if there are no questions, the two differ in questions or choices, a question has fewer than two choices, or a
            number is NaN.

    Source:
        Ren et al. 2024 (arXiv 2402.18243). How ties between choices count is ours.

    Example:
        >>> rank_consistency([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], [[0.5, 0.3, 0.2], [0.2, 0.1, 0.7]])
        0.75
    """
    return math.fsum(consistencies(p, q)) / len(p)


def consistencies(p: Rows, q: Rows) -> Floats:
    """Gives the terms of `rank_consistency`, one per question.

    Args:
        p: as in `rank_consistency`.
        q: as in `rank_consistency`.

    Returns:
        Correlations (n_questions,), in [-1, 1].

    Raises:
        UserError: as `rank_consistency`.

    Example:
        >>> consistencies([[0.7, 0.2, 0.1], [0.5, 0.5]], [[0.1, 0.2, 0.7], [0.9, 0.1]]).tolist()
        [-1.0, 0.0]
    """
    pairs = _row_pairs(p, q)
    return np.array([_correlation(_centred_ranks(a), _centred_ranks(b)) for a, b in pairs])


def mean_kl(p: Rows, q: Rows) -> float:
    """Gives how many nats the second model's probabilities are from the first's, on average over the questions.

    Args:
        p: probabilities by the first model (the base) (n_questions, n_choices), or rows of differing length; each sums to 1.
        q: the same by the other model (the tuned one), same questions and choices.

    Returns:
        Mean of KL(p || q) = sum of p * ln(p / q), at least 0. A choice with p = 0 adds nothing. Infinite if any choice has q = 0 and
        p > 0: keep probabilities in float64, from log-softmax, so that they do not underflow.

    Raises:
        UserError: if there are no questions, the two differ in questions or choices, a question has fewer than two choices, or a row is
            no distribution (negative, not finite, or its sum is further than 1e-4 from 1; within that it is divided by its sum).

    Source:
        Kullback & Leibler 1951, *On Information and Sufficiency*; used between base and tuned by Ren et al. 2024 (arXiv 2402.18243).

    Example:
        >>> round(mean_kl([[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.5, 0.5]]), 4)
        0.4185
    """
    return math.fsum(divergences(p, q)) / len(p)


def divergences(p: Rows, q: Rows) -> Floats:
    """Gives the terms of `mean_kl`, one per question.

    Args:
        p: as in `mean_kl`.
        q: as in `mean_kl`.

    Returns:
        KL(p || q) in nats (n_questions,), at least 0; may be infinite.

    Raises:
        UserError: as `mean_kl`.

    Example:
        >>> divergences([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [1.0, 0.0]]).tolist()
        [0.0, inf]
    """
    pairs = _row_pairs(p, q)
    found = np.empty(len(pairs))
    for number, (a, b) in enumerate(pairs):
        first, second = _distribution(a, "p", number), _distribution(b, "q", number)
        used = first > 0
        with np.errstate(divide="ignore"):
            found[number] = max(0.0, float(np.sum(first[used] * (np.log(first[used]) - np.log(second[used])))))
    return found


def partial_spearman(x: Sequence[float] | Floats, y: Sequence[float] | Floats, z: Sequence[float] | Floats) -> float:
    """Gives how far two quantities go together once a third is accounted for.

    All three are ranked (ties share their mean rank), the ranks of x and of y are each regressed on those of z with a constant, and
    the residuals are ranked again and correlated. The arithmetic up to the second ranking is exact, so that residuals that are
    equal are ties, whatever the order of the points.

    Args:
        x: n numbers, at least 3.
        y: n numbers.
        z: n numbers; where they are all equal, the result is Spearman's correlation of x and y.

    Returns:
        The correlation, in [-1, 1]; NaN where it is undefined: x or y is constant, or its ranks follow from those of z. With 3 points
        it can only be -1, 1 or NaN.

    Raises:
        UserError: if the lengths differ, there are fewer than 3 points, or a number is NaN.

    Source:
        Ren et al. 2024 (arXiv 2402.18243). The usual partial rank correlation (as in
        `pingouin.partial_corr`) takes Pearson's correlation of the same residuals; here they are ranked once more, as the paper does.

    Example:
        >>> partial_spearman([1, 2, 3, 4, 5], [1, 3, 2, 5, 4], [5, 1, 4, 2, 3]).__round__(3)
        0.9
    """
    columns = [_column(values, name) for values, name in ((x, "x"), (y, "y"), (z, "z"))]
    if len({len(column) for column in columns}) > 1 or len(columns[0]) < _FEWEST_POINTS:
        raise UserError(
            f"x, y and z have {', '.join(str(len(column)) for column in columns)} numbers: they must be equally many, at least "
            f"{_FEWEST_POINTS}"
        )
    u, v, w = (_whole_centred_ranks(column) for column in columns)
    a, b = _whole_residual_ranks(u, w), _whole_residual_ranks(v, w)
    if not a.any() or not b.any():
        return float("nan")
    return _correlation(a, b)


def choice_probabilities(
    logprobs: Sequence[float] | Floats,
    lengths: Sequence[int] | None = None,
    *,
    length_normalised: bool = False,
) -> tuple[float, ...]:
    """Turns the log-probabilities of free choices (texts, not letters) into probabilities over the choices.

    Args:
        logprobs: of each choice as a continuation of the question: the sum over its tokens, in nats; -inf is an impossible choice.
        lengths: of each choice in the unit wanted, at least 1: tokens, characters, or UTF-8 bytes. Bytes do not depend on the
            tokenizer, but a Japanese character has three; compare within a language.
        length_normalised: divide by the lengths before the softmax, so that a long choice is not unlikely for its length alone.

    Returns:
        One probability per choice; they sum to 1.

    Raises:
        UserError: if there are fewer than two choices, a log-probability is NaN or above 0, all are -inf, or lengths are missing, not
            one per choice, or below 1.

    Source:
        Brown et al. 2020 (arXiv 2005.14165), section 2.4, per token; per byte as `acc_norm` of lm-evaluation-harness. The softmax over
        the choices is ours: it changes no order, and makes choices comparable with letters.

    Example:
        >>> [round(p, 3) for p in choice_probabilities([-4.0, -6.0], [1, 3], length_normalised=True)]
        [0.119, 0.881]
    """
    scores = np.asarray(logprobs, dtype=np.float64)
    if scores.ndim != 1 or len(scores) < 2:
        raise UserError(f"logprobs have shape {scores.shape}: give one per choice, at least 2")
    if not (scores <= 0).all() or np.isneginf(scores).all():
        raise UserError(f"logprobs are {scores.tolist()}: each must be at most 0, at least one of them finite")
    if length_normalised:
        divisors = np.asarray([] if lengths is None else lengths, dtype=np.float64)
        if divisors.shape != scores.shape or not (divisors >= 1).all():
            raise UserError(f"lengths are {lengths} for {len(scores)} choices: give one of at least 1 per choice")
        scores = scores / divisors
    shares = np.exp(scores - scores.max())
    return tuple((shares / shares.sum()).tolist())


def _row_pairs(p: Rows, q: Rows) -> list[tuple[Floats, Floats]]:
    """Returns the rows of both side by side, checked for their shapes and for NaN."""
    if len(p) != len(q) or not len(p):
        raise UserError(f"p has {len(p)} questions and q {len(q)}: both need the same ones, at least one")
    pairs = []
    for number, (first, second) in enumerate(zip(p, q, strict=True)):
        a, b = _row(first, "p", number), _row(second, "q", number)
        if len(a) != len(b):
            raise UserError(f"question {number} has {len(a)} choices in p and {len(b)} in q: both need the same ones")
        pairs.append((a, b))
    return pairs


def _row(values: Sequence[float] | Floats, side: Literal["p", "q"], number: int) -> Floats:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or len(row) < 2:
        raise UserError(f"question {number} of {side} has shape {row.shape}: give one number per choice, at least 2")
    if np.isnan(row).any():
        raise UserError(f"question {number} of {side} holds NaN: leave a missing choice out of the rows of both models")
    return row


def _distribution(row: Floats, side: Literal["p", "q"], number: int) -> Floats:
    total = float(row.sum())
    if not (row >= 0).all() or not abs(total - 1) <= SUM_TOLERANCE:
        raise UserError(
            f"question {number} of {side} is {row.tolist()}, which sums to {total:.6g}: give probabilities, at least 0, summing to 1"
        )
    shares: Floats = row / total
    return shares


def _centred_ranks(row: Floats) -> Floats:
    """Returns ranks, 1 the largest, less their mean."""
    ranks: Floats = rankdata(-row) - (len(row) + 1) / 2
    return ranks


def _correlation(a: Floats, b: Floats) -> float:
    """Returns Pearson's correlation of two centred vectors, 0 if one is constant."""
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return min(1.0, max(-1.0, float(a @ b) / norm)) if norm else 0.0


def _column(values: Sequence[float] | Floats, name: str) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise UserError(f"{name} has shape {column.shape}: give one number per point")
    if np.isnan(column).any():
        raise UserError(f"{name} holds NaN: leave that point out of x, y and z")
    return column


def _whole_centred_ranks(column: Floats) -> list[int]:
    """Returns twice the ranks less their mean, which are whole numbers."""
    return [int(value) for value in 2 * rankdata(column) - (len(column) + 1)]


def _whole_residual_ranks(u: Sequence[int], w: Sequence[int]) -> Floats:
    """Returns the centred ranks of u's residuals on w, through whole numbers proportional to the residuals."""
    spread, shared = sum(b * b for b in w) or 1, sum(a * b for a, b in zip(u, w, strict=True))
    residuals = [spread * a - shared * b for a, b in zip(u, w, strict=True)]
    order = {value: place for place, value in enumerate(sorted(set(residuals)))}
    ranks: Floats = rankdata([order[value] for value in residuals])
    return ranks - (len(u) + 1) / 2
