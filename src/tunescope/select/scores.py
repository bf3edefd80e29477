"""Scores of single weights: how much each is worth moving. One signature for all, so that they can be compared at an equal budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tunescope.errors import UserError
from tunescope.runs.records import Bands, LayerScores
from tunescope.select.statistics import GradientStatistics


@dataclass(frozen=True)
class Context:
    """What some selectors need beside the weights and their gradients.

    Attributes:
        seed: of `random`.
        rank: of the approximation in `low_rank_magnitude`; at least 1 and below the smaller side of every matrix.
        layer_map: the layer map, for `layer_map`: blocks with high scores are chosen, or everything above the shared band.
        causal: for `causal`: how much the loss rises when a block is put back to the base weights.
    """

    seed: int = 0
    rank: int = 32
    layer_map: LayerScores | Bands | None = None
    causal: LayerScores | None = None


Scores = Mapping[str, torch.Tensor]
Selector = Callable[[Mapping[str, torch.Tensor], GradientStatistics | None, Context], Scores]


def random(weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context) -> Scores:
    """Scores every weight by a uniform number in [0, 1): the control that every other selector has to beat at an equal budget.

    The numbers of a matrix depend on the seed and its name alone, not on which other matrices are offered.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: not used.
        context: its `seed`.

    Returns:
        Name -> float32 scores of the same shape.

    Example:
        >>> scores = random({"block.0.q": torch.zeros(2, 2)}, None, Context(seed=1))["block.0.q"]
        >>> bool(((scores >= 0) & (scores < 1)).all())
        True
    """
    return {
        name: torch.from_numpy(_generator(context.seed, name).random(tuple(weight.shape), dtype=np.float32))
        for name, weight in weights.items()
    }


def magnitude(weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context) -> Scores:
    """Scores every weight by its size, in units of weight.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: not used.
        context: not used.

    Returns:
        Name -> |w|, float32, of the same shape.

    Source:
        SHiRA-WM (arXiv 2406.13175). LIFT (arXiv 2506.00772) calls it a poor choice: measure it on your task.

    Example:
        >>> magnitude({"block.0.q": torch.tensor([[1.0, -3.0]])}, None, Context())["block.0.q"].tolist()
        [[1.0, 3.0]]
    """
    return {name: weight.float().abs() for name, weight in weights.items()}


def gradient(weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context) -> Scores:
    """Scores every weight by the size of its mean gradient: where one small step changes the loss most.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: from `collect`, over the same matrices.
        context: not used.

    Returns:
        Name -> |mean g|, float32, in nats per unit of weight.

    Raises:
        UserError: no statistics, or not for these matrices.

    Source:
        SIFT (arXiv 2312.11875). It takes the gradients of the first batches of tuning; here the calibration examples count alike.

    Example:
        >>> weights = {"block.0.q": torch.tensor([[1.0, -3.0]])}
        >>> sums = {"block.0.q": torch.tensor([[4.0, -2.0]])}
        >>> gradient(weights, GradientStatistics(sums, {}, n=2), Context())["block.0.q"].tolist()
        [[2.0, 1.0]]
    """
    known = _needed(statistics, "gradient", weights)
    return {name: known.total[name].abs() / known.n for name in weights}


def fisher(weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context) -> Scores:
    """Scores every weight by its empirical Fisher information: how strongly single examples pull at it, in either direction.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: from `collect`, over the same matrices.
        context: not used.

    Returns:
        Name -> sum over examples of g², float32, in (nats per unit of weight)².

    Raises:
        UserError: no statistics, or not for these matrices.

    Source:
        FISH mask (arXiv 2111.09839), with the labels of the data; the paper takes 1,024 examples and the top 0.5 % of all weights.

    Example:
        >>> weights = {"block.0.q": torch.tensor([[1.0, -3.0]])}
        >>> squares = {"block.0.q": torch.tensor([[9.0, 2.0]])}
        >>> fisher(weights, GradientStatistics(weights, squares, n=2), Context())["block.0.q"].tolist()
        [[9.0, 2.0]]
    """
    known = _needed(statistics, "fisher", weights)
    return {name: known.squares[name] for name in weights}


def snip(weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context) -> Scores:
    """Scores every weight by how much the loss would change if it were removed, to first order.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: from `collect`, over the same matrices.
        context: not used.

    Returns:
        Name -> |mean g · w|, float32, in nats.

    Raises:
        UserError: no statistics, or not for these matrices.

    Source:
        SHiRA-SNIP (arXiv 2406.13175), after SNIP (arXiv 1810.02340).

    Example:
        >>> weights = {"block.0.q": torch.tensor([[1.0, -3.0]])}
        >>> sums = {"block.0.q": torch.tensor([[4.0, -2.0]])}
        >>> snip(weights, GradientStatistics(sums, {}, n=2), Context())["block.0.q"].tolist()
        [[2.0, 3.0]]
    """
    known = _needed(statistics, "snip", weights)
    return {name: (known.total[name] * weight.float()).abs() / known.n for name, weight in weights.items()}


def low_rank_magnitude(
    weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context
) -> Scores:
    """Scores every weight by its size after all but the strongest directions of its matrix are removed.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: not used.
        context: its `rank`.

    Returns:
        Name -> |W_r|, float32, W_r the nearest matrix of rank r (exact singular value decomposition).

    Raises:
        UserError: the rank is below 1 or not below the smaller side of a matrix: the score would be `magnitude`.

    Source:
        LIFT (arXiv 2506.00772). It chooses again during tuning; here the choice is made once, before it.

    Example:
        >>> weights = {"block.0.q": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}
        >>> low_rank_magnitude(weights, None, Context(rank=1))["block.0.q"].round(decimals=5).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    scores = {}
    for name, weight in weights.items():
        if not 1 <= context.rank < min(weight.shape):
            raise UserError(
                f"rank {context.rank} for {name} of {weight.shape[0]} x {weight.shape[1]}: allowed are 1 to {min(weight.shape) - 1}; "
                "a full rank would be the selector magnitude"
            )
        left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
        scores[name] = ((left[:, : context.rank] * values[: context.rank]) @ right[: context.rank]).abs()
    return scores


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def _needed(
    statistics: GradientStatistics | None, selector: str, weights: Mapping[str, torch.Tensor]
) -> GradientStatistics:
    if statistics is None:
        raise UserError(f"selector {selector} needs gradient statistics, got none; make them with select.collect first")
    missing = [n for n, w in weights.items() if n not in statistics.total or statistics.total[n].shape != w.shape]
    if missing:
        raise UserError(
            f"selector {selector}: the gradient statistics do not cover {len(missing)} of {len(weights)} matrices, the first is "
            f"{missing[0]}; collect them over the same parts and blocks"
        )
    return statistics
