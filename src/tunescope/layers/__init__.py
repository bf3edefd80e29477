"""Where a task lives in a model, one number per transformer block."""

from tunescope.layers.agreement import RankAgreement, rank_agreement
from tunescope.layers.bands import find_bands
from tunescope.layers.causal import causal_scores, put_back, put_back_losses, put_back_rises, windows
from tunescope.layers.changed import first_changed_block
from tunescope.layers.clusters import Clusters, cluster_tasks
from tunescope.layers.gradient import gradient_norms
from tunescope.layers.probe import chance_level, separability
from tunescope.layers.profiles import Comparison, Geometry, Similarity
from tunescope.layers.similarity import cka, cka_bootstrap, permutation_null
from tunescope.layers.states import Reader, States, capture, capture_each

__all__ = [
    "Clusters",
    "Comparison",
    "Geometry",
    "RankAgreement",
    "Reader",
    "Similarity",
    "States",
    "capture",
    "capture_each",
    "causal_scores",
    "chance_level",
    "cka",
    "cka_bootstrap",
    "cluster_tasks",
    "find_bands",
    "first_changed_block",
    "gradient_norms",
    "permutation_null",
    "put_back",
    "put_back_losses",
    "put_back_rises",
    "rank_agreement",
    "separability",
    "windows",
]
