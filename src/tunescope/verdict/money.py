"""What every arm is worth over the horizon, in the user's currency.

An answer is right with the probability that the in-domain score gives (for metrics with shades, such as ROUGE-L, the
score counts as a share of a right answer)::

    benefit per request  = score * value_of_right_answer - (1 - score) * cost_of_wrong_answer
    running cost         = median latency * machine_cost_per_hour
    fixed cost (tuned)   = tuning time * machine_cost_per_hour + person_hours * person_cost_per_hour
                           + measured energy * electricity_per_kwh
    net over the horizon = requests_per_month * horizon_months * (benefit - running cost) - fixed cost

Untuned arms have no fixed cost. Running costs count only where every arm's latency was measured: charging some arms and
not others would decide by what was timed. The time that measuring took is the price of knowing, and charged to no arm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunescope.metrics.bootstrap import Interval
from tunescope.runs.records import Forecast, MoneyLine
from tunescope.verdict.evidence import UNTUNED

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Assumptions:
    """What a right and a wrong answer are worth; fields and units are those of the section ``business`` of a config.

    Attributes:
        currency: shown with every amount.
        requests_per_month: answers needed a month.
        value_of_right_answer: what a right answer saves.
        cost_of_wrong_answer: what a wrong answer costs.
        machine_cost_per_hour: price of an hour of the machine.
        person_cost_per_hour: price of an hour of the people who prepare and check.
        person_hours: hours of people that a tuned model needs once.
        horizon_months: period over which the benefit is counted.
        electricity_per_kwh: price of electricity; used only where energy was measured.
    """

    currency: str
    requests_per_month: float
    value_of_right_answer: float
    cost_of_wrong_answer: float
    machine_cost_per_hour: float
    person_cost_per_hour: float
    person_hours: float
    horizon_months: float
    electricity_per_kwh: float

    @property
    def requests(self) -> float:
        """Answers over the whole horizon."""
        return self.requests_per_month * self.horizon_months

    @property
    def stake(self) -> float:
        """What lies between a right and a wrong answer."""
        return self.value_of_right_answer + self.cost_of_wrong_answer

    def benefit(self, score: float) -> float:
        """Returns the expected value of one answer."""
        return score * self.stake - self.cost_of_wrong_answer


def money(
    scores: Mapping[str, Interval], costs: Mapping[str, Forecast], assumptions: Assumptions
) -> tuple[MoneyLine, ...]:
    """Gives one line of money per arm, in the order of `scores`.

    Args:
        scores: arm -> in-domain score in [0, 1] with its interval.
        costs: arm -> measured (or forecast) costs.
        assumptions: what answers, machines and people are worth.

    Returns:
        One line per arm; `break_even_requests` is against the untuned arm that is worth most (0 for that arm itself).

    Raises:
        ValueError: if the costs of an arm are missing.

    Example:
        >>> assumptions = Assumptions("EUR", 1000, 0.4, 0.6, 1.0, 50, 8, 12, 0.3)
        >>> score = {"nothing": Interval(0.5, 0.4, 0.6, 100), "lora-all": Interval(0.9, 0.8, 0.95, 100)}
        >>> lines = money(score, {arm: Forecast(arm) for arm in score}, assumptions)
        >>> [(line.arm, round(line.net_over_horizon), line.break_even_requests and round(line.break_even_requests))
        ...  for line in lines]
        [('nothing', -1200, 0.0), ('lora-all', 3200, 1000)]
    """
    missing = [arm for arm in scores if arm not in costs]
    if missing:
        raise ValueError(f"the costs of {missing} are missing: give a Forecast for each of {list(scores)}")
    timed = all(costs[arm].latency_p50_seconds is not None for arm in scores)
    lines = [_line(arm, score, costs[arm], assumptions, timed) for arm, score in scores.items()]
    against = best_untuned(lines, scores)
    rival = next((line for line in lines if line.arm == against), None)
    return tuple(
        dataclasses.replace(line, break_even_requests=None if rival is None else _break_even(line, rival))
        for line in lines
    )


def best_untuned(lines: Sequence[MoneyLine], scores: Mapping[str, Interval]) -> str | None:
    """Gives the untuned arm that is worth most, the higher score deciding ties, or None where there is none."""
    untuned = [line for line in lines if line.arm in UNTUNED]
    if not untuned:
        return None
    return max(untuned, key=lambda line: (line.net_over_horizon, scores[line.arm].value, -UNTUNED.index(line.arm))).arm


def _line(arm: str, score: Interval, cost: Forecast, assumptions: Assumptions, timed: bool) -> MoneyLine:
    fixed = 0.0
    if arm not in UNTUNED:
        fixed = cost.tuning_seconds / _SECONDS_PER_HOUR * assumptions.machine_cost_per_hour
        fixed += assumptions.person_hours * assumptions.person_cost_per_hour
        fixed += (cost.energy_kwh or 0.0) * assumptions.electricity_per_kwh
    latency = (cost.latency_p50_seconds or 0.0) if timed else 0.0
    running = latency / _SECONDS_PER_HOUR * assumptions.machine_cost_per_hour
    benefit, low, high = (assumptions.benefit(value) for value in (score.value, score.low, score.high))
    net, net_low, net_high = (assumptions.requests * (each - running) - fixed for each in (benefit, low, high))
    return MoneyLine(arm, benefit, low, high, fixed, running, net, net_low, net_high, None)


def _break_even(line: MoneyLine, rival: MoneyLine) -> float | None:
    """Returns the requests after which the line's arm is ahead of the rival: 0 if at once, None if never."""
    gain = (line.benefit_per_request - line.running_cost_per_request) - (
        rival.benefit_per_request - rival.running_cost_per_request
    )
    extra = line.fixed_cost - rival.fixed_cost
    if extra <= 0 and gain >= 0:
        return 0.0
    return extra / gain if gain > 0 else None
