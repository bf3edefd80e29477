"""How far two maps of the same blocks agree, by the order in which they put them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunescope.errors import UserError
from tunescope.runs.records import LayerScores

_N_PERMUTATIONS = 9999


@dataclass(frozen=True)
class RankAgreement:
    """How far two rankings of the blocks agree.

    Attributes:
        correlation: Spearman's, in [-1, 1], ties at their mean rank.
        p_value: two-sided, from random permutations of the blocks. Too small where both maps change slowly over the depth, since
            neighbours are then no independent observations.
        shift_p_value: share of the cyclic shifts of one map against the other that correlate at least as strongly: keeps what
            neighbours have in common, but is never below 1 / n.
        n: blocks.
    """

    correlation: float
    p_value: float
    shift_p_value: float
    n: int


def rank_agreement(
    scores_a: LayerScores | Sequence[float], scores_b: LayerScores | Sequence[float], *, seed: int = 0
) -> RankAgreement:
    """Compares a map with the causal effect (or any two maps) by the order in which they put the blocks.

    Args:
        scores_a: one number per block.
        scores_b: one number per block, the same blocks in the same order.
        seed: of the permutations.

    Returns:
        Correlation and p-values. A map in which low means "matters" (a similarity) correlates negatively.

    Raises:
        UserError: other blocks, fewer than 3, a number that is not finite, or the same number for every block.

    Source:
        Spearman (1904); permutation p as Phipson & Smyth (2010), which never is 0. The cyclic shifts are our addition.

    Example:
        >>> rank_agreement([1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 6, 5]).correlation.__round__(3)
        0.886
    """
    from scipy.stats import rankdata

    if isinstance(scores_a, LayerScores) and isinstance(scores_b, LayerScores) and scores_a.layers != scores_b.layers:
        raise UserError(
            f"scores {scores_a.name} and {scores_b.name} are of different blocks: compare maps of one model"
        )
    ranks = []
    for which, scores in (("first", scores_a), ("second", scores_b)):
        values = np.asarray(scores.values if isinstance(scores, LayerScores) else scores, dtype=np.float64)
        if values.ndim != 1 or len(values) < 3:
            raise UserError(
                f"the {which} scores have shape {values.shape}: one number per block is needed, for at least 3 blocks"
            )
        if not np.isfinite(values).all():
            raise UserError(f"the {which} scores are not finite at block.{int(np.argmin(np.isfinite(values)))}")
        if np.ptp(values) == 0:
            raise UserError(f"the {which} scores are {values[0]} in every block: they put the blocks in no order")
        centred = rankdata(values) - (len(values) + 1) / 2
        ranks.append(centred / np.linalg.norm(centred))
    a, b = ranks
    if len(a) != len(b):
        raise UserError(f"got scores of {len(a)} and of {len(b)} blocks: compare maps of one model")
    correlation = float(a @ b)
    limit = abs(correlation) - 1e-9  # equal up to the order of summation is equal
    shuffled = np.random.default_rng([seed, 0x5BEA2]).permuted(np.tile(b, (_N_PERMUTATIONS, 1)), axis=1) @ a
    shifted = np.stack([np.roll(b, shift) for shift in range(len(b))]) @ a
    return RankAgreement(
        correlation=correlation,
        p_value=float(1 + (np.abs(shuffled) >= limit).sum()) / (1 + _N_PERMUTATIONS),
        shift_p_value=float((np.abs(shifted) >= limit).mean()),
        n=len(a),
    )
