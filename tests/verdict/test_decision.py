"""The verdict: a table of situations, and properties that hold in all of them."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.config.models import BusinessSettings, GateSettings
from tunescope.runs.records import Forecast, Risk, Verdict
from tunescope.verdict import Assumptions, Gates, add_risk_steps, decide

ASSUMPTIONS = Assumptions(
    currency="EUR",
    requests_per_month=2000,
    value_of_right_answer=0.4,
    cost_of_wrong_answer=0.8,
    machine_cost_per_hour=0.5,
    person_cost_per_hour=60,
    person_hours=8,
    horizon_months=12,
    electricity_per_kwh=0.3,
)
GATES = Gates(min_gain=0.0, max_guard_loss=0.1, min_test_examples=30, fail=False)
REASONS = {
    "gain": {"arm", "against", "value", "low", "high", "n"},
    "no_gain": {"arm", "against", "value", "low", "high"},
    "within_noise": {"arm", "against", "value", "low", "high", "noise_floor"},
    "thin_evidence": {"n", "needed"},
    "guard_worse": {"arm", "value", "limit"},
    "guard_ok": {"arm", "value", "limit"},
    "money": {"arm", "against", "value", "low", "high", "months", "currency"},
    "money_negative": {"arm", "against", "value", "currency"},
    "cheapest_of_equals": {"arm", "equals"},
    "ood_gain": {"arm", "value", "low", "high"},
    "ood_loss": {"arm", "value", "low", "high"},
    "ood_unclear": {"arm", "value", "low", "high"},
    "random_as_good": {"arm", "value", "low", "high"},
    "selected_better_than_random": {"value", "low", "high"},
    "top_third_better": {"arm", "against", "value", "low", "high"},
    "top_third_as_good": {"arm", "against", "value", "low", "high"},
    "top_third_worse": {"arm", "against", "value", "low", "high"},
    "no_tuned_arm": set(),
    "no_untuned_arm": set(),
}
STEPS = {
    "collect_test_examples": {"have", "need"},
    "collect_ood_examples": set(),
    "collect_training_examples": set(),
    "pilot": {"arm", "requests"},
    "use_untuned": {"arm"},
    "review_guard": {"arm"},
    "human_review": {"arm", "share", "error"},
    "check_wrong_but_sure": {"arm"},
    "rerun_more_seeds": set(),
}
SECONDS = {"selected": 60.0, "random": 50.0, "lora-all": 120.0, "full": 600.0}


def answers(share, n=200, tasks=2):
    """Right answers: the first examples of every task, so that a better arm is right wherever a worse one is."""
    return {f"task{i}": (np.arange(n) < round(share * n)).astype(float) for i in range(tasks)}


def elsewhere(share, *, shift, n=200):
    """The same share of right answers, but on other examples: a noisy comparison."""
    return {task: np.roll(right, shift) for task, right in answers(share, n).items()}


def judge(shares, *, n=200, out_of_domain=None, guard=None, costs=None, gates=GATES, **assumptions):
    """Decides for arms with these shares of right answers."""
    scores = {arm: share if isinstance(share, dict) else answers(share, n) for arm, share in shares.items()}
    return decide(
        scores,
        ood_scores={arm: answers(share) for arm, share in (out_of_domain or {}).items()},
        guard_losses={arm: np.full(20, loss) for arm, loss in (guard or {}).items()},
        costs=costs or {arm: Forecast(arm, tuning_seconds=SECONDS.get(arm, 0.0)) for arm in shares},
        assumptions=dataclasses.replace(ASSUMPTIONS, **assumptions),
        gates=gates,
        confidence=0.95,
        n_bootstrap=400,
        seed=0,
    )


def codes(rows):
    return [row["code"] for row in rows]


def reason(verdict, code):
    return next(row for row in verdict.reasons if row["code"] == code)


TWO = {"nothing": 0.5, "prompt": 0.6}
SITUATIONS = {
    "clear gain": ({"shares": TWO | {"lora-all": 0.9}}, "tune", "lora-all", "gain", "pilot"),
    "clearly no gain": ({"shares": TWO | {"lora-all": 0.5}}, "do_not_tune", "prompt", "no_gain", "use_untuned"),
    "equal on very many examples": (
        {"shares": TWO | {"lora-all": 0.6}, "n": 3000},
        "do_not_tune",
        "prompt",
        "no_gain",
        "collect_training_examples",
    ),
    "within the noise": (
        {"shares": TWO | {"lora-all": 0.62}, "n": 60},
        "not_enough_evidence",
        None,
        "within_noise",
        "collect_test_examples",
    ),
    "too few examples": (
        {"shares": {"nothing": 0.0, "lora-all": 1.0}, "n": 10},
        "not_enough_evidence",
        None,
        "thin_evidence",
        "collect_test_examples",
    ),
    "guard broken": (
        {"shares": TWO | {"lora-all": 0.9}, "guard": {"nothing": 2.0, "prompt": 2.0, "lora-all": 2.2}},
        "do_not_tune",
        "prompt",
        "guard_worse",
        "review_guard",
    ),
    "guard broken for one of two": (
        {
            "shares": TWO | {"lora-all": 0.9, "full": 0.95},
            "guard": {"nothing": 2.0, "lora-all": 2.05, "full": float("nan")},
        },
        "tune",
        "lora-all",
        "guard_ok",
        "review_guard",
    ),
    "not worth the money": (
        {"shares": TWO | {"lora-all": 0.9}, "requests_per_month": 10},
        "do_not_tune",
        "prompt",
        "money_negative",
        "use_untuned",
    ),
    "random as good as selected": (
        {"shares": TWO | {"selected": 0.9, "random": 0.9}},
        "tune",
        "selected",
        "random_as_good",
        "rerun_more_seeds",
    ),
    "selected better than random": (
        {"shares": TWO | {"selected": 0.95, "random": 0.8}},
        "tune",
        "selected",
        "selected_better_than_random",
        "pilot",
    ),
    "random better than all": ({"shares": TWO | {"selected": 0.7, "random": 0.9}}, "tune", "random", "gain", "pilot"),
    "the cheapest of equals": (
        {"shares": TWO | {"selected": 0.9, "lora-all": 0.91, "full": 0.91}},
        "tune",
        "selected",
        "cheapest_of_equals",
        "pilot",
    ),
    "the best where it is better beyond noise": (
        {"shares": TWO | {"selected": 0.7, "lora-all": 0.9}},
        "tune",
        "lora-all",
        "money",
        "pilot",
    ),
    "a gain smaller than asked for": (
        {"shares": TWO | {"lora-all": 0.7}, "n": 2000, "gates": dataclasses.replace(GATES, min_gain=0.2)},
        "do_not_tune",
        "prompt",
        "no_gain",
        "use_untuned",
    ),
    "nothing tuned": ({"shares": TWO}, "not_enough_evidence", None, "no_tuned_arm", None),
    "nothing untuned": ({"shares": {"lora-all": 0.9}}, "not_enough_evidence", None, "no_untuned_arm", None),
    "out-of-domain gain": (
        {"shares": TWO | {"full": 0.9}, "out_of_domain": TWO | {"full": 0.9}},
        "tune",
        "full",
        "ood_gain",
        "pilot",
    ),
    "out-of-domain loss decides nothing": (
        {"shares": TWO | {"full": 0.9}, "out_of_domain": TWO | {"full": 0.1}},
        "tune",
        "full",
        "ood_loss",
        "pilot",
    ),
    "out-of-domain unclear": (
        {"shares": TWO | {"full": 0.9}, "out_of_domain": TWO | {"full": 0.6}},
        "tune",
        "full",
        "ood_unclear",
        "pilot",
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_gets_its_decision_reason_and_next_step(situation):
    given_, decision, arm, code, step = SITUATIONS[situation]
    verdict = judge(**given_)
    assert (verdict.decision, verdict.arm) == (decision, arm)
    assert code in codes(verdict.reasons)
    assert (step in codes(verdict.next_steps)) if step else not verdict.next_steps
    assert (verdict.confidence is None) == (decision == "not_enough_evidence" or situation == "guard broken")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_code_has_exactly_its_keys_and_the_record_is_json(situation):
    verdict = judge(**SITUATIONS[situation][0])
    for row in verdict.reasons:
        assert set(row) - {"code"} == REASONS[row["code"]]
    for row in verdict.next_steps:
        assert set(row) - {"code"} == STEPS[row["code"]]
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["decision"] == verdict.decision


def test_the_plain_records_have_the_fields_of_the_settings():
    assert [field.name for field in dataclasses.fields(Assumptions)] == list(BusinessSettings.model_fields)
    assert [field.name for field in dataclasses.fields(Gates)] == list(GateSettings.model_fields)
    assert Assumptions(**BusinessSettings().model_dump()).requests > 0
    assert Gates(**GateSettings().model_dump()).worth == 0.02


def test_the_best_untuned_arm_is_the_rival_not_the_first():
    assert reason(judge(TWO | {"full": 0.9}), "gain")["against"] == "prompt"
    assert reason(judge({"nothing": 0.6, "prompt": 0.5, "full": 0.9}), "gain")["against"] == "nothing"


def test_a_slow_prompt_is_no_rival_where_its_time_costs_more_than_it_brings():
    shares = {"nothing": 0.50, "prompt": 0.51, "full": 0.9}
    slow = {arm: Forecast(arm, latency_p50_seconds=3600.0 if arm == "prompt" else 1.0) for arm in shares}
    assert reason(judge(shares, costs=slow), "gain")["against"] == "nothing"
    untimed = slow | {"full": Forecast("full")}
    assert reason(judge(shares, costs=untimed), "gain")["against"] == "prompt"


def test_random_alone_with_a_gain_is_no_recommendation():
    verdict = judge({"nothing": 0.5, "selected": elsewhere(0.55, shift=60), "random": 0.6})
    assert verdict.decision == "not_enough_evidence"
    assert {"thin_evidence", "random_as_good"} <= set(codes(verdict.reasons))


def test_random_wins_no_tie_even_where_it_is_cheaper_and_scores_higher():
    verdict = judge(TWO | {"selected": 0.90, "random": 0.91})
    assert verdict.arm == "selected"
    assert reason(verdict, "random_as_good")["arm"] == "selected"
    assert verdict.selected_beats_random["difference"] == pytest.approx(-0.01)


@pytest.mark.parametrize(
    ("third", "of_selected", "of_random"),
    [(0.80, "better", "better"), (0.95, "worse", "worse"), (0.87, "better", "as_good"), (0.90, "as_good", "worse")],
)
def test_where_the_top_third_ran_chosen_and_drawn_blocks_are_compared_with_it(third, of_selected, of_random):
    right = {"selected": answers(0.90), "random": answers(0.86), "top-third": elsewhere(third, shift=3)}
    right["top-third"] = answers(third)
    verdict = judge(TWO | right)
    found = {row["arm"]: row for row in verdict.reasons if row["code"].startswith("top_third_")}
    assert {arm: row["code"].removeprefix("top_third_") for arm, row in found.items()} == {
        "selected": of_selected,
        "random": of_random,
    }
    for arm, row in found.items():
        assert row["against"] == "top-third"
        assert verdict.against_top_third[arm] == {"difference": row["value"], "low": row["low"], "high": row["high"]}
        assert row["value"] == pytest.approx({"selected": 0.90, "random": 0.86}[arm] - third)
        assert row["low"] <= row["value"] <= row["high"]


def test_the_comparison_with_the_top_third_needs_no_random_and_stands_where_evidence_is_thin():
    alone = judge({"nothing": 0.5, "selected": 0.9, "top-third": 0.8})
    assert list(alone.against_top_third) == ["selected"]
    thin = judge({"nothing": 0.5, "selected": elsewhere(0.55, shift=60), "top-third": 0.5})
    assert thin.decision == "not_enough_evidence"
    assert "top_third_as_good" in codes(thin.reasons)
    assert judge(TWO | {"selected": 0.9, "random": 0.8}).against_top_third == {}


def test_ties_in_time_go_to_the_arm_with_fewer_parameters():
    costs = {arm: Forecast(arm, trainable_parameters=size) for arm, size in [("nothing", 0), ("a", 9), ("b", 5)]}
    assert judge({"nothing": 0.5, "a": 0.9, "b": 0.9}, costs=costs).arm == "b"


def test_more_tuned_arms_widen_every_comparison():
    alone = reason(judge({"nothing": 0.5, "full": 0.9}), "gain")
    crowd = reason(judge({"nothing": 0.5, "full": 0.9} | {f"arm{i}": 0.5 for i in range(8)}), "gain")
    assert alone["value"] == crowd["value"]
    assert crowd["low"] < alone["low"]
    assert crowd["high"] > alone["high"]


def test_the_number_of_examples_asked_for_would_settle_it():
    first = judge({"nothing": 0.6, "full": elsewhere(0.64, n=100, shift=10)}, n=100)
    need = reason(first, "thin_evidence")["needed"]
    assert first.next_steps[0] == {"code": "collect_test_examples", "have": 200, "need": need}
    assert need > 200
    for share, decision in [(0.8, "not_enough_evidence"), (1.2, "tune")]:
        n = round(need * share / 2)  # two tasks
        assert judge({"nothing": 0.6, "full": elsewhere(0.64, n=n, shift=n // 10)}, n=n).decision == decision


def test_confidence_grows_with_the_gain():
    weak, strong = (judge({"nothing": 0.5, "full": share}, n=60, person_hours=20) for share in (0.62, 0.8))
    assert weak.decision == strong.decision == "tune"
    assert 0.5 < weak.confidence < strong.confidence <= 1


def test_a_verdict_against_tuning_says_how_sure_it_is():
    assert judge(TWO | {"full": 0.3}).confidence == 1.0
    assert judge(TWO | {"full": 0.9}, requests_per_month=10).confidence > 0.9


def test_the_money_reason_is_the_difference_of_the_lines_and_its_interval_holds_it():
    verdict = judge(TWO | {"full": 0.9})
    lines = {line.arm: line for line in verdict.money}
    row = reason(verdict, "money")
    assert row["value"] == pytest.approx(lines["full"].net_over_horizon - lines["prompt"].net_over_horizon)
    assert row["low"] < row["value"] < row["high"]
    gain = reason(verdict, "gain")
    assert row["high"] - row["low"] == pytest.approx(2000 * 12 * 1.2 * (gain["high"] - gain["low"]))


def test_sensitivity_covers_every_assumption_and_factor_and_finds_where_it_turns():
    verdict = judge(TWO | {"full": 0.9}, requests_per_month=200)
    rows = {(row.assumption, row.factor): row for row in verdict.sensitivity}
    assert len(rows) == len(verdict.sensitivity) == 5 * 4
    assert verdict.decision == "tune"
    assert rows["requests_per_month", 0.25].decision == "do_not_tune"
    assert rows["requests_per_month", 0.25].arm == "prompt"
    assert rows["requests_per_month", 0.25].net_over_horizon == 0.0
    assert rows["person_hours", 4.0].decision == "do_not_tune"
    assert rows["requests_per_month", 4.0].net_over_horizon > reason(verdict, "money")["value"]


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("name", ["requests_per_month", "value_of_right_answer", "person_hours"])
def test_a_row_of_sensitivity_is_the_verdict_under_that_assumption(name, factor):
    shares = TWO | {"selected": 0.75, "full": 0.9}
    row = next(r for r in judge(shares).sensitivity if (r.assumption, r.factor) == (name, factor))
    direct = judge(shares, **{name: getattr(ASSUMPTIONS, name) * factor})
    assert (row.decision, row.arm) == (direct.decision, direct.arm)
    assert row.net_over_horizon == pytest.approx(reason(direct, "money")["value"])


def test_the_order_of_examples_changes_nothing():
    random = np.random.default_rng(0)
    scores = {arm: {"a": random.uniform(size=50), "b": random.uniform(size=30)} for arm in ("nothing", "full")}
    order = {"a": random.permutation(50), "b": random.permutation(30)}
    again = {arm: {task: values[order[task]] for task, values in rows.items()} for arm, rows in scores.items()}
    assert judge(scores) == judge(again)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 4), min_size=1, max_size=60), st.floats(0, 0.3), st.integers(0, 5000))
def test_any_scores_give_a_consistent_verdict(rows, min_gain, requests):
    arms = ("nothing", "prompt", "selected", "random")
    scores = {
        arm: {"task": np.array(column, dtype=float)} for arm, column in zip(arms, zip(*rows, strict=True), strict=True)
    }
    verdict = judge(scores, gates=dataclasses.replace(GATES, min_gain=min_gain), requests_per_month=requests)
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert len(verdict.money) == 4
    if len(rows) < GATES.min_test_examples:
        assert verdict.decision == "not_enough_evidence"
    if verdict.decision == "tune":
        assert verdict.arm in ("selected", "random")
        assert reason(verdict, "gain")["low"] > min_gain
        assert reason(verdict, "money")["value"] > 0
    elif verdict.decision == "do_not_tune":
        assert verdict.arm in ("nothing", "prompt")


def test_pure_noise_says_tune_less_often_than_the_level_allows():
    wrong = 0
    for seed in range(80):
        random = np.random.default_rng(seed)
        draw = {arm: {"task": (random.uniform(size=80) < 0.6) * 1.0} for arm in ("nothing", "a", "b", "c")}
        wrong += judge(draw).decision == "tune"
    assert wrong <= 6


def _risk(**changes):
    plain = Risk("full", "in_domain", 100, 0.2, (1.0,), (0.1,), 0.1, 0.3, 0.05, 0.04, None, None)
    return dataclasses.replace(plain, **changes)


def test_risk_adds_the_share_for_people_and_a_look_at_sure_mistakes():
    verdict = judge(TWO | {"full": 0.9})
    more = add_risk_steps(verdict, [_risk(), _risk(arm="prompt"), _risk(role="out_of_domain")])
    added = more.next_steps[len(verdict.next_steps) :]
    assert added == (
        {"code": "human_review", "arm": "full", "share": 0.3, "error": 0.04},
        {"code": "check_wrong_but_sure", "arm": "full"},
    )
    assert add_risk_steps(verdict, [_risk(human_share=None, ece=0.05)]) == verdict


BAD = {
    "no arms": ({}, "no arms"),
    "no task": ({"nothing": {}}, "every task needs at least one"),
    "empty task": ({"nothing": {"a": np.array([])}}, "every task needs at least one"),
    "other tasks": ({"nothing": answers(0.5), "full": {"task0": np.ones(200)}}, "all arms need the same examples"),
    "other lengths": ({"nothing": answers(0.5), "full": answers(0.5, 100)}, "all arms need the same examples"),
    "not a number": ({"nothing": answers(0.5), "full": {t: v * np.nan for t, v in answers(1).items()}}, "score of nan"),
    "too large": ({"nothing": answers(0.5), "full": {t: v * 3 for t, v in answers(1).items()}}, "score of 3.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_scores_are_named(case):
    scores, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        judge(scores)


def test_missing_costs_and_unequal_guard_sets_are_named():
    with pytest.raises(ValueError, match=r"costs of \['full'\] are missing"):
        judge(TWO | {"full": 0.9}, costs={arm: Forecast(arm) for arm in TWO})
    with pytest.raises(ValueError, match="19 guard losses"):
        decide(
            {"nothing": answers(0.5), "full": answers(0.9)},
            ood_scores={},
            guard_losses={"nothing": np.ones(20), "full": np.ones(19)},
            costs={"nothing": Forecast("nothing"), "full": Forecast("full")},
            assumptions=ASSUMPTIONS,
            gates=GATES,
            confidence=0.95,
            n_bootstrap=200,
            seed=0,
        )


def test_a_verdict_can_be_read_back():
    verdict = judge(TWO | {"full": 0.9})
    assert Verdict.from_dict(verdict.to_dict()).reasons == list(verdict.reasons)


def test_a_verdict_against_tuning_is_only_as_sure_as_the_best_tuned_arm_lets_it_be():
    shares = TWO | {"worse": 0.3, "same": 0.6}
    assert judge(shares, n=3000, person_hours=0, machine_cost_per_hour=0).confidence == 0.5
