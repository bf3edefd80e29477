"""Scores of single weights: how much each is worth moving. One signature for all, so that they can be compared at an equal budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tunescope.errors import UserError, did_you_mean
from tunescope.models import block_index
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


def layer_map(weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context) -> Scores:
    """Gives every weight the score of its block in the layer map.

    Bands give 1 above the shared band and 0 in it; that this is where to tune is a hypothesis, which `random` tests. All weights of a
    block are equal; which of them come first is said in `masks`.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: not used.
        context: its `layer_map`.

    Returns:
        Name -> float32, one number in a whole matrix.

    Raises:
        UserError: no layer map, no band was found, or a block has no score.
    """
    found = context.layer_map
    if isinstance(found, Bands):
        if not found.found:
            raise UserError(f"no transition band was found ({found.why}); choose with another selector, such as fisher")
        return _spread(dict.fromkeys(found.layers, 1.0) | dict.fromkeys(found.shared, 0.0), weights, "layer_map")
    return _spread(_by_block(found, "layer_map"), weights, "layer_map")


def causal(weights: Mapping[str, torch.Tensor], statistics: GradientStatistics | None, context: Context) -> Scores:
    """Gives every weight the rise of the loss when its block is put back to the base weights.

    Args:
        weights: canonical matrix name -> (d_out, d_in).
        statistics: not used.
        context: its `causal`.

    Returns:
        Name -> float32, one number in a whole matrix; may be negative.

    Raises:
        UserError: no causal check, or a block has no score.

    Source:
        The check is after arXiv 2506.00382; choosing by it is ours.
    """
    return _spread(_by_block(context.causal, "causal"), weights, "causal")


SELECTORS: dict[str, Selector] = {
    "random": random,
    "magnitude": magnitude,
    "gradient": gradient,
    "fisher": fisher,
    "snip": snip,
    "low_rank_magnitude": low_rank_magnitude,
    "layer_map": layer_map,
    "causal": causal,
}


def score(
    selector: str | Selector,
    weights: Mapping[str, torch.Tensor],
    statistics: GradientStatistics | None = None,
    *,
    context: Context | None = None,
) -> dict[str, torch.Tensor]:
    """Runs a selector, by name or your own function, and checks what it gives.

    Args:
        selector: a name in `SELECTORS`, or a function of weights, statistics and context.
        weights: canonical matrix name -> (d_out, d_in), from `weight_matrices`.
        statistics: from `collect`; needed by gradient, fisher and snip.
        context: what else the selector needs; default `Context()`.

    Returns:
        Name -> scores of the same shape, float32; high scores are chosen.

    Raises:
        UserError: an unknown name; something that the selector needs is missing; scores with other names or shapes than the weights, or
            that are not finite.

    Example:
        >>> weights = {"block.0.q": torch.tensor([[1.0, -3.0]])}
        >>> score("magnitude", weights)["block.0.q"].tolist()
        [[1.0, 3.0]]
        >>> score(lambda weights, statistics, context: {n: w**2 for n, w in weights.items()}, weights)["block.0.q"].tolist()
        [[1.0, 9.0]]
    """
    if not weights:
        raise UserError("there are no weights to score; offer at least one matrix, as weight_matrices gives them")
    if isinstance(selector, str):
        if selector not in SELECTORS:
            raise UserError(
                f"selector {selector!r} is not known{did_you_mean(selector, list(SELECTORS))}; allowed: {', '.join(SELECTORS)}, "
                "or a function of your own"
            )
        name, chosen = selector, SELECTORS[selector]
    else:
        name, chosen = getattr(selector, "__name__", "of your own"), selector
    return _checked(name, chosen(weights, statistics, context or Context()), weights)


def _checked(name: str, found: Scores, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not isinstance(found, Mapping):
        raise UserError(
            f"selector {name}: gave {type(found).__name__}; it must give a mapping from matrix names to scores"
        )
    problems = [f"selector {name}: gave no scores for {matrix}" for matrix in weights if matrix not in found]
    problems += [
        f"selector {name}: gave scores for {matrix}, which was not offered{did_you_mean(str(matrix), list(weights))}"
        for matrix in found
        if matrix not in weights
    ]
    for matrix in set(weights) & set(found):
        scores, shape = found[matrix], tuple(weights[matrix].shape)
        if not isinstance(scores, torch.Tensor):
            problems.append(
                f"selector {name}: the scores of {matrix} are a {type(scores).__name__}; allowed is a torch.Tensor"
            )
        elif tuple(scores.shape) != shape:
            problems.append(
                f"selector {name}: the scores of {matrix} have shape {tuple(scores.shape)}; the weights have {shape}"
            )
        elif scores.is_complex() or not torch.isfinite(scores.float()).all():
            problems.append(f"selector {name}: the scores of {matrix} are not all finite real numbers (in float32)")
    if problems:
        raise UserError(sorted(problems))
    return {matrix: found[matrix].detach().to("cpu", torch.float32) for matrix in weights}


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


def _by_block(scores: LayerScores | None, selector: str) -> dict[str, float]:
    if scores is None:
        raise UserError(f"selector {selector} needs scores of the blocks, got none; run the layer map first")
    return dict(zip(scores.layers, scores.values, strict=True))


def _spread(values: Mapping[str, float], weights: Mapping[str, torch.Tensor], selector: str) -> Scores:
    scores = {}
    for name, weight in weights.items():
        block = name.rpartition(".")[0]
        if block not in values:
            raise UserError(
                f"selector {selector}: {block} has no score; scored are {min(values, key=block_index)} to {max(values, key=block_index)}; "
                "the map belongs to another model"
            )
        scores[name] = torch.full(tuple(weight.shape), values[block], dtype=torch.float32)
    return scores
