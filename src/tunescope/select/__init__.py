"""Which weights may move: from scores, at random with the same budget, or by name."""

from tunescope.select.budget import Budget, affordable, training_flops
from tunescope.select.choose import budget_layers, choose_random, choose_top, match_layers
from tunescope.select.fill import masks
from tunescope.select.granularity import GRANULARITIES, TILE, Granularity, spread_units, unit_means, unit_sizes
from tunescope.select.mask import Mask, hand_mask, selection_of
from tunescope.select.scores import (
    SELECTORS,
    Context,
    Selector,
    causal,
    fisher,
    gradient,
    layer_map,
    low_rank_magnitude,
    magnitude,
    random,
    score,
    snip,
)
from tunescope.select.statistics import GradientStatistics, collect, weight_matrices

__all__ = [
    "GRANULARITIES",
    "SELECTORS",
    "TILE",
    "Budget",
    "Context",
    "GradientStatistics",
    "Granularity",
    "Mask",
    "Selector",
    "affordable",
    "budget_layers",
    "causal",
    "choose_random",
    "choose_top",
    "collect",
    "fisher",
    "gradient",
    "hand_mask",
    "layer_map",
    "low_rank_magnitude",
    "magnitude",
    "masks",
    "match_layers",
    "random",
    "score",
    "selection_of",
    "snip",
    "spread_units",
    "training_flops",
    "unit_means",
    "unit_sizes",
    "weight_matrices",
]
