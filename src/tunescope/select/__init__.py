"""Which weights may move: from scores, at random with the same budget, or by name."""

from tunescope.select.block_scores import causal, layer_map
from tunescope.select.budget import Budget, affordable, training_flops
from tunescope.select.choose import above_shared_first, budget_layers, choose_random, choose_top, match_layers, put_last
from tunescope.select.control import random_control, top_third_control
from tunescope.select.fill import masks
from tunescope.select.granularity import GRANULARITIES, TILE, Granularity, spread_units, unit_means, unit_sizes
from tunescope.select.mask import Mask, hand_mask, selection_of
from tunescope.select.propose import BlockCosts, Proposal, propose
from tunescope.select.scores import (
    Context,
    Selector,
    fisher,
    gradient,
    low_rank_magnitude,
    magnitude,
    random,
    snip,
)
from tunescope.select.selectors import SELECTORS, score
from tunescope.select.statistics import GradientStatistics, collect, weight_matrices

__all__ = [
    "GRANULARITIES",
    "SELECTORS",
    "TILE",
    "BlockCosts",
    "Budget",
    "Context",
    "GradientStatistics",
    "Granularity",
    "Mask",
    "Proposal",
    "Selector",
    "above_shared_first",
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
    "propose",
    "put_last",
    "random",
    "random_control",
    "score",
    "selection_of",
    "snip",
    "spread_units",
    "top_third_control",
    "training_flops",
    "unit_means",
    "unit_sizes",
    "weight_matrices",
]
