"""From answers to risk: calibration, the share of answers for people, and output that has nothing to do with the instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunescope.evaluate.results import Scored
from tunescope.metrics import (
    HumanShare,
    check_threshold,
    choose_threshold,
    expected_calibration_error,
    halves,
    risk_coverage,
    wilson,
)
from tunescope.runs.records import Answer, Risk, Role

Floats = NDArray[np.float64]
_ROLES: tuple[Role, ...] = ("in_domain", "out_of_domain")


@dataclass(frozen=True)
class _Rule:
    """Where the rule for people comes from.

    Attributes:
        threshold: lowest confidence that stays automatic, or None.
        chosen_on: validation, half, or empty where nothing could be chosen.
        n: examples that it was chosen on.
        checked_on: in-domain test examples left to check it.
    """

    threshold: float | None
    chosen_on: str
    n: int
    checked_on: NDArray[np.intp]


def risks(
    scored: Sequence[Scored],
    *,
    seed: int,
    target_error: float = 0.05,
    held_out: Mapping[str, Sequence[Answer]] | None = None,
    confidence: float = 0.95,
) -> list[Risk]:
    """Returns calibration and risk–coverage per arm and role over the label tasks, and the rates of unrelated output over the others.

    The threshold below which an answer goes to a person is chosen once per arm: on the held-out examples, where there are at least
    ``1 / target_error`` of them (fewer cannot show such an error rate), else on a random half of the in-domain test examples. It is
    checked on the other in-domain test examples and on all out-of-domain ones, which choose nothing.

    Args:
        scored: the answers.
        seed: of the split into halves.
        target_error: wanted error rate of the automatic answers, in (0, 1].
        held_out: arm -> answers to held-out examples of the label tasks, or None.
        confidence: level of the interval of the checked error.

    Returns:
        One per arm and role with test examples.

    Raises:
        ValueError: if `target_error` is outside (0, 1].
    """
    if not 0 < target_error <= 1:
        raise ValueError(f"target_error is {target_error}: it is a share above 0, use a number in (0, 1]")
    items = {role: [item for item in scored if item.role == role] for role in _ROLES}
    arms = list(dict.fromkeys(arm for role in _ROLES for item in items[role] for arm in item.answers))
    rules = {
        arm: _rule(_labelled(items["in_domain"], arm), (held_out or {}).get(arm, ()), target_error, seed)
        for arm in arms
    }
    return [
        _risk(items[role], arm, role, rules[arm], target_error, confidence)
        for role in _ROLES
        for arm in arms
        if items[role] and arm in items[role][0].answers
    ]


def collapse_rate(answers: Sequence[Answer]) -> float | None:
    """Returns the share of generated answers that are a label of another task, or None without answers."""
    return sum("label_of_other_task" in a.flags for a in answers) / len(answers) if answers else None


def unrelated_rate(answers: Sequence[Answer]) -> float | None:
    """Returns the share of generated answers that have nothing to do with the instruction by any rule, or None without answers."""
    return sum(bool(a.flags) for a in answers) / len(answers) if answers else None


def _labelled(items: Sequence[Scored], arm: str) -> list[Answer]:
    return [a for item in items if item.labels is not None for a in item.answers[arm]]


def _arrays(answers: Sequence[Answer]) -> tuple[Floats, Floats]:
    return (
        np.array([a.confidence for a in answers], dtype=np.float64),
        np.array([a.score for a in answers], dtype=np.float64),
    )


def _rule(in_domain: Sequence[Answer], held_out: Sequence[Answer], target_error: float, seed: int) -> _Rule:
    everything = np.arange(len(in_domain))
    if len(held_out) * target_error >= 1:
        return _Rule(choose_threshold(*_arrays(held_out), target_error), "validation", len(held_out), everything)
    if len(in_domain) < 2:
        return _Rule(None, "", 0, everything)
    chosen_on, checked_on = halves(len(in_domain), seed)
    sure, right = _arrays(in_domain)
    return _Rule(choose_threshold(sure[chosen_on], right[chosen_on], target_error), "half", len(chosen_on), checked_on)


def _risk(items: Sequence[Scored], arm: str, role: Role, rule: _Rule, target_error: float, confidence: float) -> Risk:
    free = [a for item in items if item.labels is None for a in item.answers[arm]]
    collapse, unrelated = collapse_rate(free), unrelated_rate(free)
    labelled = _labelled(items, arm)
    n = len(labelled)
    if n < 2:
        return Risk(arm, role, n, None, (), (), None, None, target_error, None, collapse, unrelated)
    sure, right = _arrays(labelled)
    curve = risk_coverage(sure, right)
    found = HumanShare(None, None, None, None, 0)
    if rule.threshold is not None:
        part = rule.checked_on if role == "in_domain" else np.arange(n)
        found = check_threshold(sure[part], right[part], rule.threshold)
    low, high = None, None
    if found.checked_error is not None:
        low, high = wilson(found.checked_error, found.n_checked, confidence=confidence)
    return Risk(
        arm=arm,
        role=role,
        n=n,
        ece=expected_calibration_error(sure, right),
        coverage=curve.coverage,
        risk=curve.risk,
        area=curve.area,
        human_share=found.share,
        target_error=target_error,
        checked_error=found.checked_error,
        collapse_rate=collapse,
        unrelated_rate=unrelated,
        threshold=rule.threshold,
        chosen_on=rule.chosen_on,
        n_chosen=rule.n,
        n_checked=found.n_checked,
        checked_low=low,
        checked_high=high,
    )
