"""The verdict: the rules by which numbers become a recommendation.

1.  Untuned arms are ``nothing`` and ``prompt``; all others are tuned. Every tuned arm is compared with U, the untuned
    arm that is worth most in money over the horizon.
2.  Comparisons are paired: the macro mean of the in-domain scores, the same examples for both arms, by bootstrap; the
    level of the intervals is adjusted for the number of tuned arms (Bonferroni). A difference inside its noise never
    decides.
3.  Fewer in-domain test examples than `min_test_examples`: not enough evidence.
4.  A tuned arm whose mean guard loss rises by more than `max_guard_loss` over ``nothing`` is out.
5.  An arm gains if the lower end of its difference is above `min_gain`. The gaining arms that cannot be told from the
    best gaining one are equal, and the cheapest wins (tuning seconds, then trainable parameters). ``random`` is a
    control: it wins no tie, and is recommended only if it is better than all other tuned arms beyond the noise.
6.  The winner must be worth more than U over the horizon (point estimate), otherwise: do not tune.
7.  Where no arm gains, but the upper end of one is above a gain worth having (`min_gain`, at least 0.02): not enough
    evidence, with the number of test examples that would probably settle it. Otherwise: do not tune.
8.  Out-of-domain scores are reported, and choose nothing. Nor do the comparisons among ways of choosing blocks: ``selected``
    with ``random``, and both with ``top-third`` where that ran.

The recommended arm is U where the decision is ``do_not_tune``, and None where evidence is missing. Confidence is the
share of paired resamples in which the recommended arm is worth more money than U; where U is recommended, the share in
which no sound tuned arm is worth more than U (None if the guard ruled all of them out).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.runs.records import Forecast, Risk, Sensitivity, Verdict
from tunescope.verdict.case import Case, Code
from tunescope.verdict.evidence import Evidence, Floats, Scores, collect
from tunescope.verdict.money import Assumptions
from tunescope.verdict.rules import Gates

FACTORS = (0.25, 0.5, 2.0, 4.0)
VARIED = (
    "requests_per_month",
    "value_of_right_answer",
    "cost_of_wrong_answer",
    "machine_cost_per_hour",
    "person_hours",
)
_LARGE_CALIBRATION_ERROR = 0.1


def decide(
    scores: Scores,
    *,
    ood_scores: Scores,
    guard_losses: Mapping[str, Floats],
    costs: Mapping[str, Forecast],
    assumptions: Assumptions,
    gates: Gates,
    confidence: float,
    n_bootstrap: int,
    seed: int,
) -> Verdict:
    """Gives the verdict by the rules of this module, and how it changes with the assumptions.

    Args:
        scores: arm -> task -> in-domain scores in [0, 1] [n_task]; the same examples in the same order for all arms.
        ood_scores: the same out-of-domain; arms and sets may be missing, or all of it be empty.
        guard_losses: arm -> losses on the guard set [n_guard], in nats per token; empty where there is no guard set.
        costs: arm -> measured costs, for every arm.
        assumptions: what answers, machines and people are worth.
        gates: what must hold.
        confidence: level of the intervals, in (0, 1).
        n_bootstrap: resamples.
        seed: of the resampling.

    Returns:
        The verdict; all its numbers are finite and its codes are those that the report words.

    Raises:
        ValueError: if there are no arms or examples, arms differ in their examples, a score is not in [0, 1], or the
            costs of an arm are missing.

    Example:
        >>> import numpy as np
        >>> right = {"nothing": {"routing": np.tile([1.0, 0.0], 50)}, "lora-all": {"routing": np.ones(100)}}
        >>> verdict = decide(right, ood_scores={}, guard_losses={}, costs={arm: Forecast(arm) for arm in right},
        ...     assumptions=Assumptions("EUR", 2000, 0.4, 0.8, 0.5, 60, 8, 12, 0.3), gates=Gates(0.0, 0.1, 30, False),
        ...     confidence=0.95, n_bootstrap=500, seed=0)
        >>> verdict.decision, verdict.arm, verdict.reasons[0]["code"]
        ('tune', 'lora-all', 'gain')
    """
    evidence = collect(
        scores,
        ood_scores=ood_scores,
        guard_losses=guard_losses,
        confidence=confidence,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    verdict = Case(evidence, costs, assumptions, gates).verdict()
    return dataclasses.replace(verdict, sensitivity=_sensitivity(evidence, costs, assumptions, gates))


def add_risk_steps(verdict: Verdict, risks: Sequence[Risk]) -> Verdict:
    """Adds what the calibration of the recommended arm asks for: the share for people, and a look at sure mistakes.

    Args:
        verdict: from `decide`.
        risks: of all arms; only the in-domain risk of the recommended arm counts.

    Returns:
        The verdict with ``human_review`` where a share was found (its error is the checked one), and
        ``check_wrong_but_sure`` where the calibration error is above 0.1.
    """
    steps: list[Code] = []
    for risk in (risk for risk in risks if risk.arm == verdict.arm and risk.role == "in_domain"):
        if risk.human_share is not None:
            error = risk.target_error if risk.checked_error is None else risk.checked_error
            steps.append({"code": "human_review", "arm": risk.arm, "share": risk.human_share, "error": error})
        if risk.ece is not None and risk.ece > _LARGE_CALIBRATION_ERROR:
            steps.append({"code": "check_wrong_but_sure", "arm": risk.arm})
    return dataclasses.replace(verdict, next_steps=(*verdict.next_steps, *steps))


def _sensitivity(
    evidence: Evidence, costs: Mapping[str, Forecast], assumptions: Assumptions, gates: Gates
) -> tuple[Sensitivity, ...]:
    """Decides again with each assumption at each factor, on the same evidence."""
    rows = []
    for name in VARIED:
        base = float(getattr(assumptions, name))
        for factor in FACTORS:
            case = Case(evidence, costs, _with(assumptions, name, base * factor), gates)
            other = case.verdict()
            net = case.net_gain(other.arm) if other.arm is not None else 0.0
            rows.append(Sensitivity(name, base, factor, other.decision, other.arm, net))
    return tuple(rows)


def _with(assumptions: Assumptions, name: str, value: float) -> Assumptions:
    changed: dict[str, Any] = {name: value}
    return dataclasses.replace(assumptions, **changed)
