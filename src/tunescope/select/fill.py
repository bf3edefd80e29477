"""From scores to a mask: the best pieces within the budget, the same ones every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tunescope.errors import UserError
from tunescope.models import PARTS, block_index
from tunescope.select.budget import Budget, affordable
from tunescope.select.granularity import Granularity, check_granularity, spread_units, unit_means, unit_sizes
from tunescope.select.mask import Mask


def masks(
    scores: Mapping[str, torch.Tensor],
    *,
    granularity: str = "entry",
    budget: Budget,
    sizes: Mapping[str, int] | None = None,
) -> Mask:
    """Lets the pieces with the highest mean scores move, as many as the budget allows and never more.

    Pieces are taken from the highest mean score down. One that no longer fits is left out and smaller ones after it are still tried, so
    that choices of different selectors come as close to the same budget as they can; with granularity ``entry`` the number is exact.
    Equal scores: the later matrix of the model comes first, since the backward pass then ends higher, and in a matrix the lower index.
    With a bound on the cost, first it is settled which matrices may be touched: from the highest mean score down, each that still fits.

    Args:
        scores: canonical matrix name -> (d_out, d_in), from `score`; finite.
        granularity: what is chosen as one piece: entry, row, column, tile (256 x 256, smaller at the edge), module or block.
        budget: how much may move.
        sizes: for a bound on the cost: canonical name -> number of weights of every matrix in the blocks of the model; default those in
            `scores`.

    Returns:
        The mask.

    Raises:
        UserError: an unknown granularity; scores that are not finite; a budget in which not even one piece fits; a budget per matrix
            with granularity block.

    Example:
        >>> scores = {"block.0.q": torch.tensor([[4.0, 1.0], [3.0, 2.0]]), "block.1.q": torch.tensor([[2.0, 0.0], [9.0, 2.0]])}
        >>> chosen = masks(scores, budget=Budget(weights=4))
        >>> {name: entries.int().tolist() for name, entries in chosen.entries.items()}
        {'block.0.q': [[1, 0], [1, 0]], 'block.1.q': [[1, 0], [1, 0]]}
    """
    kind = check_granularity(granularity)
    ordered = _ordered(scores)
    if kind == "block" and budget.per_matrix:
        raise UserError(
            "budget per matrix with granularity block: a block is more than a matrix; use granularity module"
        )
    weights = {name: matrix.numel() for name, matrix in ordered.items()}
    total = sum(weights.values())
    groups = _groups(ordered, kind)
    if budget.flops_limit is not None:
        groups = affordable(_by_mean(groups, ordered), dict(weights if sizes is None else sizes), budget)
    names = {name for group in groups for name in group}
    offered = {name: matrix for name, matrix in ordered.items() if name in names}
    if budget.per_matrix:
        entries: dict[str, torch.Tensor] = {}
        for name, matrix in offered.items():
            entries |= _fill({name: matrix}, kind, budget.limit(weights[name], total))
    else:
        entries = _fill(offered, kind, budget.limit(total))
    if not any(bool(chosen.any()) for chosen in entries.values()):
        smallest = min(_smallest(group, offered, kind) for group in _groups(offered, kind))
        raise UserError(
            f"budget: {budget.limit(total):,} weights{' spread over all matrices' if budget.per_matrix else ''} hold not even one "
            f"{kind}; the smallest has {smallest:,}; raise the budget or choose a finer granularity"
        )
    return Mask(entries, total=total, granularity=kind)


def _fill(scores: Mapping[str, torch.Tensor], kind: Granularity, limit: int | None) -> dict[str, torch.Tensor]:
    if limit is None or limit >= sum(matrix.numel() for matrix in scores.values()):
        return {name: torch.ones(tuple(matrix.shape), dtype=torch.bool) for name, matrix in scores.items()}
    if kind == "entry":
        return _top_entries(scores, limit)
    if kind == "block":
        return _top_blocks(scores, limit)
    return _top_units(scores, kind, limit)


def _top_entries(scores: Mapping[str, torch.Tensor], limit: int) -> dict[str, torch.Tensor]:
    if limit == 0:
        return {name: torch.zeros(tuple(matrix.shape), dtype=torch.bool) for name, matrix in scores.items()}
    bound, left = _threshold(list(scores.values()), limit)
    entries = {}
    for name in reversed(list(scores)):
        keys = _sortable(scores[name])
        chosen = keys > bound
        ties = np.flatnonzero(keys == bound)[:left]
        chosen[ties] = True
        left -= len(ties)
        entries[name] = torch.from_numpy(chosen.reshape(tuple(scores[name].shape)))
    return entries


def _sortable(matrix: torch.Tensor) -> NDArray[np.uint32]:
    """Unsigned numbers in the order of the float32 scores, flat."""
    bits = (matrix.to(torch.float32) + 0.0).contiguous().view(-1).numpy().view(np.uint32)  # + 0.0: no negative zero
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _threshold(matrices: Sequence[torch.Tensor], count: int) -> tuple[int, int]:
    """The `count`-th largest key, and how many keys equal to it are among the `count` largest.

    Two histograms of 16 bits each: exact, linear in the number of weights, and never more than one matrix of keys in memory.
    """
    upper = np.zeros(1 << 16, dtype=np.int64)
    for matrix in matrices:
        upper += np.bincount(_sortable(matrix) >> 16, minlength=1 << 16)
    first, left = _from_the_top(upper, count)
    lower = np.zeros(1 << 16, dtype=np.int64)
    for matrix in matrices:
        keys = _sortable(matrix)
        lower += np.bincount(keys[(keys >> 16) == first] & 0xFFFF, minlength=1 << 16)
    second, left = _from_the_top(lower, left)
    return (first << 16) | second, left


def _from_the_top(histogram: NDArray[np.int64], count: int) -> tuple[int, int]:
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, count))
    return len(histogram) - 1 - place, count - (int(above[place - 1]) if place else 0)


def _top_units(scores: Mapping[str, torch.Tensor], kind: Granularity, limit: int) -> dict[str, torch.Tensor]:
    names = list(scores)
    shapes = {name: (scores[name].shape[0], scores[name].shape[1]) for name in names}
    sizes = {name: unit_sizes(shapes[name], kind) for name in names}
    means = np.concatenate([unit_means(scores[name], kind).flatten().numpy() for name in names])
    owner = np.concatenate([np.full(sizes[name].numel(), i) for i, name in enumerate(names)])
    index = np.concatenate([np.arange(sizes[name].numel()) for name in names])
    flat = np.concatenate([sizes[name].flatten().numpy() for name in names])
    order = np.lexsort((index, -owner, -means))
    taken = order[_that_fit(flat[order], limit)]
    entries = {}
    for i, name in enumerate(names):
        chosen = torch.zeros(sizes[name].numel(), dtype=torch.bool)
        chosen[torch.from_numpy(index[taken[owner[taken] == i]])] = True
        entries[name] = spread_units(chosen.view(sizes[name].shape), shapes[name], kind)
    return entries


def _top_blocks(scores: Mapping[str, torch.Tensor], limit: int) -> dict[str, torch.Tensor]:
    groups = _by_mean(_groups(scores, "block"), scores)
    sizes = np.array([sum(scores[name].numel() for name in group) for group in groups])
    taken = {name for i in _that_fit(sizes, limit) for name in groups[i]}
    return {name: torch.full(tuple(matrix.shape), name in taken) for name, matrix in scores.items()}


def _that_fit(sizes: NDArray[np.int64], limit: int) -> list[int]:
    """Places of the pieces that fit one after the other."""
    taken = []
    smallest = int(sizes.min())
    for place, size in enumerate(sizes.tolist()):
        if size <= limit:
            taken.append(place)
            limit -= size
        if limit < smallest:
            break
    return taken


def _ordered(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not scores:
        raise UserError("there are no scores to choose by; give at least one matrix")
    bad = [name for name, matrix in scores.items() if matrix.ndim != 2 or not torch.isfinite(matrix.float()).all()]
    if bad:
        raise UserError(f"scores of {bad[0]} ({len(bad)} of {len(scores)}): allowed are matrices of finite numbers")

    def place(name: str) -> tuple[int, int]:
        block, _, part = name.rpartition(".")
        if not block.removeprefix("block.").isdigit() or part not in PARTS:
            raise UserError(f"scores of {name!r}: not the name of a matrix; allowed are names such as block.3.q")
        return block_index(block), PARTS.index(part)

    return {name: scores[name] for name in sorted(scores, key=place)}


def _groups(names: Mapping[str, torch.Tensor], kind: Granularity) -> list[tuple[str, ...]]:
    """What is touched together: a matrix, or with granularity block all matrices of a block."""
    if kind != "block":
        return [(name,) for name in names]
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return [tuple(group) for group in found.values()]


def _by_mean(groups: Sequence[tuple[str, ...]], scores: Mapping[str, torch.Tensor]) -> list[tuple[str, ...]]:
    """From the highest mean score down; equal ones from the end of the model."""

    def mean(group: tuple[str, ...]) -> float:
        return sum(float(scores[n].double().sum()) for n in group) / sum(scores[n].numel() for n in group)

    means = [mean(group) for group in groups]
    return [groups[i] for i in sorted(range(len(groups)), key=lambda i: (-means[i], -i))]


def _smallest(group: tuple[str, ...], scores: Mapping[str, torch.Tensor], kind: Granularity) -> int:
    if kind == "block":
        return sum(scores[name].numel() for name in group)
    return int(unit_sizes((scores[group[0]].shape[0], scores[group[0]].shape[1]), kind).min())
