"""What every arm is worth."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.metrics import Difference, Interval
from tunescope.runs.records import Forecast
from tunescope.verdict import Assumptions, Gates, best_untuned, money
from tunescope.verdict.rules import examples_needed, is_gain, is_open

ASSUMPTIONS = Assumptions("EUR", 1000, 0.4, 0.6, 2.0, 50, 8, 12, 0.25)
GATES = Gates(0.0, 0.1, 30, False)


def score(value):
    return Interval(value, max(0.0, value - 0.1), min(1.0, value + 0.1), 100)


def lines_of(scores, costs=None, assumptions=ASSUMPTIONS):
    costs = {arm: Forecast(arm) for arm in scores} | (costs or {})
    return {line.arm: line for line in money({arm: score(v) for arm, v in scores.items()}, costs, assumptions)}


def test_a_tuned_arm_by_hand():
    costs = {
        "nothing": Forecast("nothing", latency_p50_seconds=1.8),
        "full": Forecast("full", tuning_seconds=7200, latency_p50_seconds=3.6, energy_kwh=2.0),
    }
    line = lines_of({"nothing": 0.5, "full": 0.9}, costs)["full"]
    assert line.benefit_per_request == pytest.approx(0.9 * 0.4 - 0.1 * 0.6)
    assert (line.benefit_low, line.benefit_high) == pytest.approx((0.8 * 0.4 - 0.2 * 0.6, 0.4))
    assert line.fixed_cost == pytest.approx(2 * 2.0 + 8 * 50 + 2 * 0.25)
    assert line.running_cost_per_request == pytest.approx(3.6 / 3600 * 2.0)
    assert line.net_over_horizon == pytest.approx(12_000 * (0.3 - 0.002) - 404.5)
    assert line.net_low == pytest.approx(12_000 * (0.2 - 0.002) - 404.5)
    assert line.break_even_requests == pytest.approx(404.5 / ((0.3 - 0.002) - (-0.1 - 0.001)))


def test_untuned_arms_have_no_fixed_cost():
    lines = lines_of({"nothing": 0.5, "prompt": 0.6}, {"prompt": Forecast("prompt", tuning_seconds=99, energy_kwh=9)})
    assert [line.fixed_cost for line in lines.values()] == [0.0, 0.0]


def test_break_even_is_0_at_once_and_none_if_never():
    lines = lines_of({"nothing": 0.5, "prompt": 0.6, "worse": 0.6, "free": 0.7}, assumptions=ASSUMPTIONS)
    assert lines["prompt"].break_even_requests == 0.0  # the rival itself
    assert lines["nothing"].break_even_requests is None
    assert lines["worse"].break_even_requests is None
    without_people = dataclasses.replace(ASSUMPTIONS, person_hours=0.0)
    assert lines_of({"prompt": 0.6, "free": 0.7}, assumptions=without_people)["free"].break_even_requests == 0.0


@given(st.floats(0.51, 1.0), st.floats(0.1, 40))
def test_at_the_break_even_volume_both_arms_are_worth_the_same(value, hours):
    assumptions = dataclasses.replace(ASSUMPTIONS, person_hours=hours)
    at = lines_of({"nothing": 0.5, "full": value}, assumptions=assumptions)["full"].break_even_requests
    there = dataclasses.replace(assumptions, requests_per_month=at / 12)
    lines = lines_of({"nothing": 0.5, "full": value}, assumptions=there)
    assert lines["full"].net_over_horizon == pytest.approx(lines["nothing"].net_over_horizon, abs=1e-4)


def test_running_costs_count_only_where_every_arm_was_timed():
    costs = {"nothing": Forecast("nothing", latency_p50_seconds=10.0)}
    assert all(line.running_cost_per_request == 0 for line in lines_of({"nothing": 0.5, "full": 0.9}, costs).values())


def test_the_best_untuned_arm_is_worth_most_and_a_tie_goes_to_the_higher_score():
    scores = {"nothing": score(0.5), "prompt": score(0.6), "full": score(0.9)}
    costs = {arm: Forecast(arm) for arm in scores}
    assert best_untuned(money(scores, costs, ASSUMPTIONS), scores) == "prompt"
    idle = dataclasses.replace(ASSUMPTIONS, requests_per_month=0)
    assert best_untuned(money(scores, costs, idle), scores) == "prompt"
    only = {"full": score(0.9)}
    assert best_untuned(money(only, costs, ASSUMPTIONS), only) is None
    assert money(only, costs, ASSUMPTIONS)[0].break_even_requests is None


def test_missing_costs_are_named():
    with pytest.raises(ValueError, match=r"costs of \['full'\] are missing"):
        money({"full": score(0.5)}, {}, ASSUMPTIONS)


def difference(value, noise, n=100):
    return Difference(value, value - noise, value + noise, noise, 0.5, n)


@pytest.mark.parametrize(
    ("found", "min_gain", "gain", "still_open"),
    [
        (difference(0.2, 0.1), 0.0, True, False),
        (difference(0.2, 0.1), 0.1, False, True),
        (difference(0.05, 0.1), 0.0, False, True),
        (difference(0.0, 0.015), 0.0, False, False),
        (difference(-0.2, 0.1), 0.0, False, False),
        (difference(0.1, 0.05), 0.2, False, False),
    ],
)
def test_a_comparison_is_a_gain_or_open_or_settled(found, min_gain, gain, still_open):
    gates = dataclasses.replace(GATES, min_gain=min_gain)
    assert (is_gain(found, gates), is_open(found, gates)) == (gain, still_open)


def test_the_examples_needed_grow_with_the_square_of_the_noise_and_are_capped():
    assert examples_needed(difference(0.05, 0.1), GATES) == 400
    assert examples_needed(difference(0.05, 0.2), GATES) == 1600
    assert examples_needed(difference(0.011, 0.9), GATES) == 10_000
    assert examples_needed(difference(0.9, 0.1), GATES) == 30
