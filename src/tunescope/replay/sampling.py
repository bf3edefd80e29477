"""Which examples of one task are kept: more of the instructions with more information, at least one of each if there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from tunescope.errors import UserError

Step = Literal["top_information", "information_share", "top_up"]

_ROUNDING = 1e-9


def sample_examples(instruction_of: npt.ArrayLike, information: Sequence[float], quota: int, *, seed: int) -> list[int]:
    """Chooses `quota` examples of one task by the information of their instructions.

    With fewer examples wanted than there are distinct instructions, the instructions with most information give one random example each (of equal
    ones the earlier in the list). Otherwise instruction k gives ``max(1, floor(r_k * quota))`` random examples, r_k being its share of all
    information (the same for all, if all are 0), never more than it has; then examples are added or taken away at random until there are
    exactly `quota`. The last example of an instruction is never taken away.

    Args:
        instruction_of: for each example the index of its instruction, shape (n,).
        information: one number per instruction, shape (k,), finite and at least 0.
        quota: examples wanted; all are returned if there are no more.
        seed: of the draws.

    Returns:
        Ascending indices of the chosen examples, ``min(quota, n)`` of them.

    Raises:
        UserError: an index or a number is out of range.

    Source:
        Wang et al., InsCL, NAACL 2024 (arXiv 2403.11435), sampling guided by InsInfo. In the released code an instruction with
        fewer examples than its share is an error, and so is a task whose information is 0 throughout; ours handles both.

    Example:
        >>> sample_examples([0, 0, 0, 1, 2], [0.1, 2.0, 1.0], 2, seed=0)
        [3, 4]
        >>> sample_examples([0, 0, 0, 1, 2], [0.1, 2.0, 1.0], 5, seed=0)
        [0, 1, 2, 3, 4]
    """
    return [position for position, _ in sample_with_steps(instruction_of, information, quota, seed=seed)]


def sample_with_steps(
    instruction_of: npt.ArrayLike, information: Sequence[float], quota: int, *, seed: int
) -> list[tuple[int, Step]]:
    """Returns what `sample_examples` returns, with the step of the rule that chose each example.

    Steps are ``top_information`` (fewer wanted than instructions), ``information_share`` and ``top_up`` (added at random).

    Raises:
        UserError: see `sample_examples`.

    Example:
        >>> sample_with_steps([0, 0, 1], [1.0, 1.0], 1, seed=0)[0][1]
        'top_information'
    """
    of, info = _checked(instruction_of, information, quota)
    if not len(of):
        return []
    present, counts = np.unique(of, return_counts=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(of))
    # The examples of each instruction in random order: `taken` of the first ones are chosen.
    by_instruction = _split(of, order)
    if quota < len(present):
        top = sorted(present.tolist(), key=lambda k: (-info[k], k))[:quota]
        return sorted((int(by_instruction[k][0]), "top_information") for k in top)
    quota = min(quota, len(of))
    shares = info[present] / info[present].max() if info[present].any() else np.ones(len(present))
    shares = shares / math.fsum(shares)
    wanted = np.minimum(np.maximum(1, np.floor(shares * quota + _ROUNDING).astype(np.int64)), counts)
    chosen = np.zeros(len(of), dtype=bool)
    for k, n in zip(present.tolist(), wanted.tolist(), strict=True):
        chosen[by_instruction[k][:n]] = True
    shared = chosen.copy()
    _fit(chosen, of, quota, rng)
    return [(int(p), "information_share" if shared[p] else "top_up") for p in np.flatnonzero(chosen)]


def _split(of: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.int64]]:
    grouped = order[np.argsort(of[order], kind="stable")]
    present, starts = np.unique(of[grouped], return_index=True)
    return dict(zip(present.tolist(), np.split(grouped, starts[1:]), strict=True))


def _fit(chosen: npt.NDArray[np.bool_], of: npt.NDArray[np.int64], quota: int, rng: np.random.Generator) -> None:
    """Adds or takes away at random until exactly `quota` are chosen, and leaves every instruction one."""
    short = quota - int(chosen.sum())
    if short > 0:
        chosen[rng.choice(np.flatnonzero(~chosen), size=short, replace=False)] = True
    left = np.bincount(of[chosen])
    for position in rng.permutation(np.flatnonzero(chosen)):
        if short >= 0:
            break
        if left[of[position]] > 1:
            chosen[position] = False
            left[of[position]] -= 1
            short += 1


def _checked(
    instruction_of: npt.ArrayLike, information: Sequence[float], quota: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    of, info = np.asarray(instruction_of), np.asarray(information, dtype=np.float64)
    if of.size == 0:
        of = of.astype(np.int64)
    if of.ndim != 1 or info.ndim != 1 or not np.issubdtype(of.dtype, np.integer):
        raise UserError(
            f"instruction_of has shape {of.shape} and type {of.dtype}, information {info.shape}; one whole number per example and one number "
            "per instruction are needed"
        )
    if of.size and not (of.min() >= 0 and of.max() < len(info)):
        raise UserError(
            f"instruction_of holds {of.min()} to {of.max()}, but there are {len(info)} instructions, counted from 0"
        )
    if not (np.isfinite(info).all() and (info >= 0).all()):
        raise UserError("information: a number is negative or not finite; it is a sum of logarithms of at least 1")
    if quota != int(quota) or quota < 0:
        raise UserError(f"quota {quota}: the number of examples to choose must be a whole number, at least 0")
    return of.astype(np.int64), info
