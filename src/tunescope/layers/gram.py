"""Centred Gram matrices: what every similarity is computed from, for all prompts and for resamples of them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from tunescope.errors import UserError

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[Any] | torch.Tensor
Estimator = Literal["debiased", "biased"]

_CONSTANT = 1e-10
"""Of the length before centring, or of a unit Gram matrix: below it only rounding is left."""


def as_matrix(states: Matrix, name: str, *, at_least: int) -> Floats:
    """Returns states (n, d) as float64, or says what is wrong with them.

    Args:
        states: NumPy or torch, on any device.
        name: what the message calls them.
        at_least: rows needed.

    Returns:
        A matrix (n, d), which may share its memory with the states.

    Raises:
        UserError: not a matrix of real numbers, too few rows, no columns, NaN or infinity.
    """
    if isinstance(states, torch.Tensor):
        array: npt.NDArray[Any] = (
            states.detach().cpu().to(torch.complex128 if states.is_complex() else torch.float64).numpy()
        )
    else:
        array = np.asarray(states)
    if array.ndim != 2 or not array.shape[1]:
        raise UserError(
            f"{name} has shape {array.shape}: give a matrix (n, d), a row per prompt and a column per feature"
        )
    if len(array) < at_least:
        raise UserError(f"{name} has {len(array)} rows: at least {at_least} prompts are needed, give more")
    if np.iscomplexobj(array):
        raise UserError(f"{name} holds {array.dtype} numbers: give real ones")
    try:
        array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} holds {array.dtype}, which are not numbers: give states in a floating dtype"
        ) from error
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        count = int((~np.isfinite(array)).sum())
        raise UserError(
            f"{name} holds {array[row, column]} at row {row}, column {column} ({count} such cells): every state must be finite; "
            "check the model's precision (float16 overflows) or leave the prompt out"
        )
    return array


def at_least_one(count: int, name: str) -> None:
    """Refuses to draw nothing.

    Raises:
        UserError: the count is below 1.
    """
    if count < 1:
        raise UserError(f"{name} is {count}: use at least 1, better 200")


def centred(states: Floats, name: str) -> Floats:
    """Returns states (n, d) with centred columns and the largest entry between 1/2 and 1, so that no product overflows.

    Raises:
        UserError: all rows are the same.
    """
    scaled: Floats = np.ldexp(states, -_exponent(states))
    moved = scaled - scaled.mean(axis=0)
    moved -= moved.mean(axis=0)  # what rounding left of a large offset
    noise = 4 * np.finfo(np.float64).eps * np.abs(scaled).max(axis=0)
    if (np.abs(moved) <= noise).all():
        raise UserError(
            f"all {len(states)} rows of {name} are the same: similarity needs states that differ between prompts; "
            "read them at another block or token, or give other prompts"
        )
    scaled = np.ldexp(moved, -_exponent(moved))
    return scaled


def _exponent(array: Floats) -> int:
    return int(np.frexp(np.abs(array).max())[1])


def unit_gram(states: Floats, estimator: str, name: str) -> Floats:
    """Returns the centred Gram matrix (n, n) of length 1; the cosine of two of them is CKA.

    Args:
        states: from `centred` (n, d).
        estimator: ``debiased`` (U-centred, diagonal 0) or ``biased``.
        name: what the message calls the states.

    Raises:
        UserError: debiased, and all rows at the same distance from each other.
    """
    gram: Floats = states @ states.T
    before = np.linalg.norm(gram)
    if estimator == "debiased":
        n = len(gram)
        np.fill_diagonal(gram, 0)
        rows = gram.sum(axis=0)
        gram -= (rows[:, None] + rows) / (n - 2) - rows.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(gram, 0)
    length = np.linalg.norm(gram)
    if length <= _CONSTANT * before:
        raise UserError(
            f"all {len(gram)} rows of {name} lie at the same distance from each other: the debiased estimator does not exist; "
            "give more prompts, or use estimator='biased'"
        )
    gram /= length
    return gram


def subsets(n: int, count: int, *, seed: int) -> Floats:
    """Draws four fifths of the prompts, none twice, again and again.

    Args:
        n: prompts, at least 5.
        count: number of draws.
        seed: of the draws.

    Returns:
        (count, n), 1 for a prompt that was drawn and 0 for one left out.

    Example:
        >>> subsets(10, 3, seed=0).sum(axis=1).tolist()
        [8.0, 8.0, 8.0]
    """
    kept = np.zeros((count, n))
    chosen = np.random.default_rng(seed).random((count, n)).argsort(axis=1)[:, : min(n - 1, max(4, round(0.8 * n)))]
    np.put_along_axis(kept, chosen, 1.0, axis=1)
    return kept


def subset_products(kept: Floats, products: Floats, sums: Floats, others: Floats, estimator: str) -> Floats:
    """Returns inner products of the Gram matrices of resamples, re-centred on sums, without a matrix for each resample.

    Args:
        kept: from `subsets` (count, n).
        products: the two Gram matrices multiplied cell by cell (n, n).
        sums: per resample and prompt in it, the sum of its row of the first matrix over the resample (count, n); 0 for the others.
        others: the same of the second matrix.
        estimator: ``debiased`` or ``biased``.

    Returns:
        (count,)
    """
    m = kept[0].sum()
    whole, rows = (1 / ((m - 1) * (m - 2)), 2 / (m - 2)) if estimator == "debiased" else (1 / m**2, 2 / m)
    cells = (kept * (kept @ products)).sum(axis=1)
    inner: Floats = cells + whole * sums.sum(axis=1) * others.sum(axis=1) - rows * (sums * others).sum(axis=1)
    return inner


def subset_lengths(gram: Floats, kept: Floats, estimator: str, name: str) -> tuple[Floats, Floats]:
    """Returns what `subset_products` needs of a Gram matrix, and the squared length of it in every resample.

    Args:
        gram: centred, of length 1 (n, n).
        kept: from `subsets` (count, n).
        estimator: ``debiased`` or ``biased``.
        name: what the message calls the states.

    Returns:
        Sums (count, n) and lengths (count,).

    Raises:
        UserError: without some of the prompts nothing differs any more.
    """
    sums = kept * (kept @ gram)
    lengths = subset_products(kept, gram**2, sums, sums, estimator)
    if lengths.min() <= _CONSTANT:
        raise UserError(
            f"without some of the prompts the other {kept[0].sum():.0f} rows of {name} are all the same, or all at one distance: a few "
            "prompts decide the similarity and no interval can be given; look at these prompts, or give more"
        )
    return sums, lengths


def as_wide_as_all(score: float, of_subsets: Floats, kept: Floats) -> Floats:
    """Spreads the scores of subsets, which vary too little, about the score of all prompts as far as that varies.

    Args:
        score: of all n prompts.
        of_subsets: scores of the resamples (count,).
        kept: from `subsets` (count, n).

    Returns:
        (count,), in [-1, 1], with the score as their median.
    """
    n, m = kept.shape[1], kept[0].sum()
    some = _arctanh(of_subsets)
    scores: Floats = np.tanh(_arctanh(score) + np.sqrt(m / (n - m)) * (some - np.median(some)))
    return scores


def _arctanh(scores: npt.ArrayLike) -> Floats:
    limit = 1 - 1e-15  # beyond it rounding alone decides
    transformed: Floats = np.arctanh(np.clip(scores, -limit, limit))
    return transformed
