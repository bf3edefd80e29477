"""One decision on the evidence under one set of assumptions; the rules stand in ``verdict.decision``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tunescope.metrics.bootstrap import Difference
from tunescope.runs.records import Forecast, MoneyLine, Verdict
from tunescope.verdict.evidence import CONTROL, RULE_OF_THUMB, SELECTED, Evidence, Floats
from tunescope.verdict.money import Assumptions, best_untuned, money
from tunescope.verdict.rules import Gates, choose, examples_needed, is_gain, is_open

Code = dict[str, Any]

_SURE = 0.95
_PILOT_SHARE_OF_MONTH = 0.1
_PILOT_REQUESTS = (50, 1000)


class Case:
    """One decision: the evidence under one set of assumptions."""

    def __init__(
        self, evidence: Evidence, costs: Mapping[str, Forecast], assumptions: Assumptions, gates: Gates
    ) -> None:
        self.evidence, self.costs, self.assumptions, self.gates = evidence, costs, assumptions, gates
        lines = money(evidence.scores, costs, assumptions)
        self.money: dict[str, MoneyLine] = {line.arm: line for line in lines}
        self.against = best_untuned(lines, evidence.scores) or ""
        self.broken = [arm for arm in evidence.tuned if evidence.guard_rise.get(arm, 0.0) > gates.max_guard_loss]
        self.sound = [arm for arm in evidence.tuned if arm not in self.broken]

    def verdict(self) -> Verdict:
        """Applies the rules in order."""
        if not self.evidence.tuned or not self.against:
            return self._nothing_to_compare()
        if self.evidence.n < self.gates.min_test_examples:
            return self._not_enough(thin=True)
        gaining = [arm for arm in self.sound if is_gain(self._difference(arm), self.gates)]
        arm, equals = choose(gaining, self.sound, self.evidence, self.costs)
        if arm is not None:
            return self._tune(arm, equals) if self.net_gain(arm) > 0 else self._not_worth_it(arm)
        if gaining or any(is_open(self._difference(arm), self.gates) for arm in self.sound):
            return self._not_enough(thin=False)
        return self._no_gain()

    def net_gain(self, arm: str) -> float:
        """Returns what the arm is worth more than U over the horizon."""
        return self.money[arm].net_over_horizon - self.money[self.against].net_over_horizon

    def _difference(self, arm: str) -> Difference:
        return self.evidence.differences[arm, self.against]

    def _nothing_to_compare(self) -> Verdict:
        codes: list[Code] = [] if self.evidence.tuned else [{"code": "no_tuned_arm"}]
        codes += [] if self.against else [{"code": "no_untuned_arm"}]
        return self._build("not_enough_evidence", None, None, codes, [])

    def _not_enough(self, *, thin: bool) -> Verdict:
        lead = self._lead()
        needed = examples_needed(self._difference(lead), self.gates)
        if not thin:
            needed = max(needed, math.ceil((self.evidence.n + 1) / 10) * 10)
        codes: list[Code] = [{"code": "thin_evidence", "n": self.evidence.n, "needed": needed}]
        control = self._control()
        codes += [self._comparison(lead), *self._out_of_domain(lead), *control, *self._top_third()]
        codes += self._guard(self.sound)
        codes += [self._comparison(arm) for arm in self.sound if arm != lead]
        steps: list[Code] = [{"code": "collect_test_examples", "have": self.evidence.n, "need": needed}]
        steps += [{"code": "rerun_more_seeds"}] if not thin and _has(control, "random_as_good") else []
        return self._build("not_enough_evidence", None, None, codes, steps + self._review() + self._ask_out_of_domain())

    def _no_gain(self) -> Verdict:
        lead = self._lead()
        codes = [self._comparison(lead)] if self.sound else []
        codes += [*self._guard([]), *self._out_of_domain(lead)]
        codes += [self._comparison(arm) for arm in self.sound if arm != lead]
        steps: list[Code] = [{"code": "use_untuned", "arm": self.against}, *self._review()]
        steps += [{"code": "collect_training_examples"}] if self.sound else []
        sure = self._share_untuned_ahead(self.sound) if self.sound else None
        return self._build("do_not_tune", self.against, sure, codes, steps)

    def _not_worth_it(self, arm: str) -> Verdict:
        money_negative: Code = {
            "code": "money_negative",
            "arm": arm,
            "against": self.against,
            "value": self.net_gain(arm),
            "currency": self.assumptions.currency,
        }
        codes = [money_negative, self._comparison(arm), *self._guard([arm]), *self._out_of_domain(arm)]
        steps: list[Code] = [{"code": "use_untuned", "arm": self.against}]
        return self._build("do_not_tune", self.against, self._share_untuned_ahead([arm]), codes, steps)

    def _tune(self, arm: str, equals: tuple[str, ...]) -> Verdict:
        sure = 1 - self._share_untuned_ahead([arm])
        codes = [self._comparison(arm), self._worth(arm), *self._guard([arm])]
        if len(equals) > 1:
            codes.append({"code": "cheapest_of_equals", "arm": arm, "equals": list(equals)})
        control = self._control()
        codes += [*self._out_of_domain(arm), *control, *self._top_third()]
        codes += [self._comparison(other) for other in self.sound if other != arm]
        low, high = _PILOT_REQUESTS
        requests = math.ceil(self.assumptions.requests_per_month * _PILOT_SHARE_OF_MONTH)
        steps: list[Code] = [{"code": "pilot", "arm": arm, "requests": min(max(requests, low), high)}]
        if sure < _SURE or _has(control, "random_as_good"):
            steps.append({"code": "rerun_more_seeds"})
        return self._build("tune", arm, sure, codes, steps + self._review() + self._ask_out_of_domain())

    def _build(
        self,
        decision: Literal["tune", "do_not_tune", "not_enough_evidence"],
        arm: str | None,
        confidence: float | None,
        reasons: list[Code],
        steps: list[Code],
    ) -> Verdict:
        control = self.evidence.selected_against_random
        return Verdict(
            decision=decision,
            arm=arm,
            confidence=confidence,
            reasons=tuple(reasons),
            next_steps=tuple(steps),
            money=tuple(self.money.values()),
            selected_beats_random=None if control is None else _plain(control),
            against_top_third={name: _plain(found) for name, found in self.evidence.against_top_third.items()},
        )

    def _lead(self) -> str:
        """Returns the most promising tuned arm: open or else sound if there is one, the control only if alone."""
        undecided = [arm for arm in self.sound if is_open(self._difference(arm), self.gates)]
        rivals = undecided or self.sound or list(self.evidence.tuned)
        rivals = [arm for arm in rivals if arm != CONTROL] or rivals
        return max(rivals, key=lambda arm: self.evidence.scores[arm].value)

    def _share_untuned_ahead(self, arms: Sequence[str]) -> float:
        """Returns the share of resamples in which none of the arms is worth more than U, ties counting half."""
        lead = np.max([self._resampled_net(arm) for arm in arms], axis=0) - self._resampled_net(self.against)
        return float((lead < 0).mean() + (lead == 0).mean() / 2)

    def _resampled_net(self, arm: str) -> Floats:
        line, requests = self.money[arm], self.assumptions.requests
        benefit = self.evidence.resamples[arm] * self.assumptions.stake - self.assumptions.cost_of_wrong_answer
        net: Floats = requests * (benefit - line.running_cost_per_request) - line.fixed_cost
        return net

    def _comparison(self, arm: str) -> Code:
        """Names one comparison with U: gain, within_noise (may be a gain worth having or not) or no_gain."""
        difference = self._difference(arm)
        code: Code = {"code": "no_gain", "arm": arm, "against": self.against, "value": difference.value}
        code |= {"low": difference.low, "high": difference.high}
        if is_gain(difference, self.gates):
            return code | {"code": "gain", "n": difference.n}
        if is_open(difference, self.gates):
            return code | {"code": "within_noise", "noise_floor": difference.noise_floor}
        return code

    def _worth(self, arm: str) -> Code:
        """Gives the money of the arm over U; it is linear in the score, so the paired interval carries over."""
        difference, value = self._difference(arm), self.net_gain(arm)
        per_score = self.assumptions.requests * self.assumptions.stake
        return {
            "code": "money",
            "arm": arm,
            "against": self.against,
            "value": value,
            "low": value - per_score * (difference.value - difference.low),
            "high": value + per_score * (difference.high - difference.value),
            "months": self.assumptions.horizon_months,
            "currency": self.assumptions.currency,
        }

    def _guard(self, passed: Sequence[str]) -> list[Code]:
        """Says what the guard set says about the arms that passed, and about all that did not."""
        rises, limit = self.evidence.guard_rise, self.gates.max_guard_loss
        ok = [{"code": "guard_ok", "arm": arm, "value": rises[arm], "limit": limit} for arm in passed if arm in rises]
        worse = [{"code": "guard_worse", "arm": arm, "value": rises[arm], "limit": limit} for arm in self.broken]
        return ok + worse

    def _review(self) -> list[Code]:
        """Asks for a look at arms that only the guard ruled out."""
        return [
            {"code": "review_guard", "arm": arm} for arm in self.broken if is_gain(self._difference(arm), self.gates)
        ]

    def _out_of_domain(self, arm: str) -> list[Code]:
        difference = self.evidence.out_of_domain.get((arm, self.against))
        if difference is None:
            return []
        direction = "gain" if difference.value > 0 else "loss"
        code = f"ood_{direction}" if difference.decides else "ood_unclear"
        return [{"code": code, "arm": arm, "value": difference.value, "low": difference.low, "high": difference.high}]

    def _ask_out_of_domain(self) -> list[Code]:
        return [] if self.evidence.out_of_domain else [{"code": "collect_ood_examples"}]

    def _control(self) -> list[Code]:
        """Says whether choosing the blocks was better than drawing them."""
        difference = self.evidence.selected_against_random
        if difference is None:
            return []
        numbers = {"value": difference.value, "low": difference.low, "high": difference.high}
        if difference.decides and difference.value > 0:
            return [{"code": "selected_better_than_random", **numbers}]
        return [{"code": "random_as_good", "arm": SELECTED, **numbers}]

    def _top_third(self) -> list[Code]:
        """Says of the chosen and of the drawn blocks whether they were better than those next to the output."""
        codes: list[Code] = []
        for arm, difference in self.evidence.against_top_third.items():
            side = "better" if difference.value > 0 else "worse"
            code: Code = {"code": f"top_third_{side if difference.decides else 'as_good'}", "arm": arm}
            code |= {"against": RULE_OF_THUMB, "value": difference.value}
            codes.append(code | {"low": difference.low, "high": difference.high})
        return codes


def _plain(difference: Difference) -> dict[str, float]:
    return {"difference": difference.value, "low": difference.low, "high": difference.high}


def _has(codes: Sequence[Code], name: str) -> bool:
    return any(code["code"] == name for code in codes)
