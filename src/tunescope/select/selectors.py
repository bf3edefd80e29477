"""Selectors by name, or a user's own: run one, and check what it gives before anything is chosen by it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tunescope.errors import UserError, did_you_mean
from tunescope.select.block_scores import causal, layer_map
from tunescope.select.scores import (
    Context,
    Scores,
    Selector,
    fisher,
    gradient,
    low_rank_magnitude,
    magnitude,
    random,
    snip,
)
from tunescope.select.statistics import GradientStatistics

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
