"""The two controls of a choice of pieces, at its budget: drawn at random, and next to the output."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tunescope.errors import UserError
from tunescope.models import block_index
from tunescope.select.budget import Budget
from tunescope.select.choose import budget_layers
from tunescope.select.fill import masks
from tunescope.select.granularity import check_granularity, spread_units, unit_sizes
from tunescope.select.mask import Mask

_DRAWS = 100


def random_control(
    like: Mask,
    weights: Mapping[str, torch.Tensor],
    *,
    budget: Budget,
    seed: int,
    sizes: Mapping[str, int] | None = None,
) -> Mask:
    """Draws pieces of the same granularity at the same budget: what a choice has to beat.

    Every piece has the same chance of coming first, whatever its size; a score drawn for every weight would not do that, since the mean
    over a small piece varies more. With granularity ``entry`` the number of weights is exactly that of the choice; with larger pieces it
    is never more, and less by less than the smallest piece that was left out. With a bound on the cost, both keep to that bound.

    Args:
        like: the choice to be compared with.
        weights: canonical matrix name -> (d_out, d_in): what was on offer.
        budget: of the choice.
        seed: of the draw.
        sizes: for a bound on the cost, as in `masks`.

    Returns:
        A mask that differs from the choice, unless the choice is all there is.

    Raises:
        UserError: the budget leaves one choice only.

    Example:
        >>> weights = {f"block.{i}.q": torch.ones(4, 4) for i in range(4)}
        >>> chosen = masks(weights, granularity="row", budget=Budget(weights=12))
        >>> drawn = random_control(chosen, weights, budget=Budget(weights=12), seed=0)
        >>> drawn.count == chosen.count, drawn.sha256 == chosen.sha256
        (True, False)
    """
    bound = _same(budget, like)
    for draw in range(_DRAWS):
        scores = _drawn(weights, like.granularity, np.random.default_rng([seed, draw, 0xC0A75E]))
        found = masks(scores, granularity=like.granularity, budget=bound, sizes=sizes)
        if found.sha256 != like.sha256 or like.count == like.total:
            return found
    raise UserError(
        f"budget: {like.count:,} of {like.total:,} weights leave only one choice with granularity {like.granularity}, so a random one "
        "controls nothing; raise the budget, or drop the arm random"
    )


def top_third_control(
    like: Mask,
    scores: Mapping[str, torch.Tensor],
    *,
    budget: Budget,
    n_layers: int,
    sizes: Mapping[str, int] | None = None,
) -> Mask:
    """Chooses pieces next to the output by the same scores at the same budget: the rule of thumb that a choice has to beat.

    Offered are the matrices in the upper third of the blocks, or in as many more as it takes to hold the number of weights. With a bound
    on the cost, pieces are taken from the output downwards as long as it pays for them.

    Args:
        like: the choice to be compared with.
        scores: canonical matrix name -> (d_out, d_in), what the choice was made by; all equal where a person made it.
        budget: of the choice.
        n_layers: blocks of the model.
        sizes: for a bound on the cost, as in `masks`.

    Returns:
        The mask.

    Example:
        >>> scores = {f"block.{i}.q": torch.full((2, 2), 9.0 - i) for i in range(6)}
        >>> chosen = masks(scores, granularity="module", budget=Budget(weights=4))
        >>> list(chosen.entries), list(top_third_control(chosen, scores, budget=Budget(weights=4), n_layers=6).entries)
        (['block.0.q'], ['block.4.q'])
    """
    if budget.flops_limit is not None:
        places = {name: torch.full(tuple(s.shape), float(_block(name))) for name, s in scores.items()}
        return masks(places, granularity=like.granularity, budget=budget, sizes=sizes)
    n_top = budget_layers(n_layers, 1 / 3)
    while True:
        top = {name: matrix for name, matrix in scores.items() if _block(name) >= n_layers - n_top}
        if n_top == n_layers or sum(matrix.numel() for matrix in top.values()) >= like.count:
            break
        n_top += 1
    found = masks(
        top, granularity=like.granularity, budget=Budget(weights=like.count, per_matrix=budget.per_matrix), sizes=sizes
    )
    return Mask(found.entries, total=like.total, granularity=found.granularity)


def _same(budget: Budget, like: Mask) -> Budget:
    """The budget of the control: what the choice really took, where that says more than what it was allowed."""
    if budget.flops_limit is not None or budget.per_matrix:
        return budget
    return Budget(weights=like.count)


def _drawn(weights: Mapping[str, torch.Tensor], kind: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """One uniform number per piece, spread over its weights."""
    granularity = check_granularity(kind)
    per_block = {block: float(rng.random()) for block in sorted({name.rpartition(".")[0] for name in weights})}
    drawn = {}
    for name in sorted(weights):
        shape = (weights[name].shape[0], weights[name].shape[1])
        if granularity == "block":
            drawn[name] = torch.full(shape, per_block[name.rpartition(".")[0]])
        else:
            numbers = torch.from_numpy(rng.random(tuple(unit_sizes(shape, granularity).shape), dtype=np.float32))
            drawn[name] = spread_units(numbers, shape, granularity)
    return drawn


def _block(name: str) -> int:
    return block_index(name.rpartition(".")[0])
