"""Scores of whole blocks, spread over their weights: where the layer map, or its causal check, says that tuning belongs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tunescope.errors import UserError
from tunescope.models import block_index
from tunescope.runs.records import Bands, LayerScores
from tunescope.select.scores import Context, Scores
from tunescope.select.statistics import GradientStatistics


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

    Example:
        >>> weights = {f"block.{i}.q": torch.zeros(1, 2) for i in range(3)}
        >>> bands = Bands(True, "example", ("block.0", "block.1", "block.2"), boundaries=(1, 2))
        >>> [scores.tolist() for scores in layer_map(weights, None, Context(layer_map=bands)).values()]
        [[[0.0, 0.0]], [[1.0, 1.0]], [[1.0, 1.0]]]
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

    Example:
        >>> weights = {f"block.{i}.q": torch.zeros(1, 2) for i in range(3)}
        >>> rises = LayerScores("causal", "nats", ("block.0", "block.1", "block.2"), (0.1, 0.0, 0.5), n=8, higher_means="matters")
        >>> causal(weights, None, Context(causal=rises))["block.2.q"].tolist()
        [[0.5, 0.5]]
    """
    return _spread(_by_block(context.causal, "causal"), weights, "causal")


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
