"""The gates of a verdict, and the rules that read a single comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunescope.metrics.bootstrap import Difference
from tunescope.runs.records import Forecast
from tunescope.verdict.evidence import CONTROL, Evidence

SMALLEST_GAIN_WORTH_KNOWING = 0.02
"""Where no gain is asked for: with an interval that ends below this, looking on for a gain is not worth it."""
MOST_EXAMPLES = 10_000


@dataclass(frozen=True)
class Gates:
    """What must hold before a verdict says `tune`; the fields are those of the section ``gate`` of a config.

    Attributes:
        min_gain: smallest in-domain gain worth having, as a difference of scores.
        max_guard_loss: largest acceptable rise of the guard loss, in nats per token.
        min_test_examples: in-domain test examples below which nothing is decided.
        fail: whether the program ends with exit code 3 when the verdict is not `tune`; no rule reads it.
    """

    min_gain: float
    max_guard_loss: float
    min_test_examples: int
    fail: bool

    @property
    def worth(self) -> float:
        """The gain that would be worth having."""
        return max(self.min_gain, SMALLEST_GAIN_WORTH_KNOWING)


def is_gain(difference: Difference, gates: Gates) -> bool:
    """Says whether the arm is better by more than the smallest gain worth having, beyond the noise."""
    return difference.low > gates.min_gain and difference.decides


def is_open(difference: Difference, gates: Gates) -> bool:
    """Says whether the arm may, or may not, have a gain worth having: more test examples would tell."""
    return not is_gain(difference, gates) and difference.high > gates.worth


def examples_needed(difference: Difference, gates: Gates) -> int:
    """Estimates how many test examples would settle a comparison, if it stays where it is.

    The noise shrinks with the square root of the examples, so ``n * (noise / distance) ** 2`` are needed, where the
    distance is to the nearer verdict: `value - min_gain` for a gain, `worth - value` for none worth having.

    Args:
        difference: the comparison so far.
        gates: the gates.

    Returns:
        At least the gate's number, rounded up to tens, at most 10,000 ("more than is sensible").

    Example:
        >>> examples_needed(Difference(0.05, -0.05, 0.15, 0.10, 0.8, 100), Gates(0.0, 0.1, 30, False))
        400
    """
    distance = max(difference.value - gates.min_gain, gates.worth - difference.value)
    needed = difference.n * (difference.noise_floor / distance) ** 2 if distance > 0 else math.inf
    tens = math.ceil(min(max(needed, gates.min_test_examples), MOST_EXAMPLES) / 10 - 1e-9) * 10
    return min(tens, MOST_EXAMPLES)


def choose(
    gaining: Sequence[str], sound: Sequence[str], evidence: Evidence, costs: Mapping[str, Forecast]
) -> tuple[str | None, tuple[str, ...]]:
    """Chooses among the arms that gain: the cheapest of those that nobody can tell from the best.

    Args:
        gaining: arms with a gain beyond the noise.
        sound: all tuned arms that pass the guard, the gaining ones included.
        evidence: the comparisons.
        costs: arm -> costs; fewer tuning seconds are cheaper, then fewer trainable parameters.

    Returns:
        The arm and all arms equal to it, itself included; None and nothing where only the random control gains without
        being better than every other tuned arm: a control is no recommendation.
    """
    rivals = [arm for arm in sound if arm != CONTROL]
    if not all(evidence.differences[CONTROL, arm].low > 0 for arm in rivals if CONTROL in gaining):
        gaining = [arm for arm in gaining if arm != CONTROL]
    if not gaining:
        return None, ()

    def cost(arm: str) -> tuple[float, int, str]:
        return costs[arm].tuning_seconds, costs[arm].trainable_parameters, arm

    best = min(gaining, key=lambda arm: (-evidence.scores[arm].value, cost(arm)))
    equals = [arm for arm in gaining if arm == best or not evidence.differences[best, arm].decides]
    return min(equals, key=cost), tuple(equals)
