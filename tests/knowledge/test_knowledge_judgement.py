"""The judgement: each rule on made-up models whose doing is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tunescope.errors import DataError, UserError
from tunescope.knowledge import Judgement, Probe, judge, mean_kl, rank_consistency

HOW = {"n_bootstrap": 300, "seed": 0}
RIGHT = (0.7, 0.1, 0.15, 0.05)
OWN = (0.1, 0.6, 0.25, 0.05)  # wrong, and the right one third


def probes(rows: list[tuple[float, ...]], domains: int = 2) -> list[Probe]:
    return [Probe(str(i), f"d{i % domains}", tuple("abcd"), 0, tuple(row)) for i, row in enumerate(rows)]


def base_of(n_right: int = 60, n_wrong: int = 60) -> list[Probe]:
    return probes([RIGHT] * n_right + [OWN] * n_wrong)


def sharpened(row: tuple[float, ...], power: float = 4.0) -> tuple[float, ...]:
    values = np.array(row) ** power
    return tuple(values / values.sum())


def codes(found: Judgement) -> list[str]:
    return [reason["code"] for reason in found.reasons]


def test_a_model_that_only_became_surer_is_self_aligning_whatever_its_kl() -> None:
    base = base_of()
    tuned = probes([sharpened(p.probabilities) for p in base])
    found = judge(base, tuned, **HOW)
    assert found.decision == "mostly_self_aligning"
    assert found.consistency.value == pytest.approx(1.0)
    assert found.kl.value == pytest.approx(mean_kl([p.probabilities for p in base], [p.probabilities for p in tuned]))
    assert found.kl.value > 0.2
    assert (found.kept.value, found.newly_right.value, found.balance.value) == (1.0, 0.0, 1.0)
    assert codes(found) == ["kept", "consistency", "newly_right", "transitions", "kl"]


def test_a_model_that_answers_what_the_base_got_wrong_has_learned() -> None:
    found = judge(base_of(), probes([RIGHT] * 120), **HOW)
    assert found.decision == "mostly_learning"
    # every changed answer, drawn from the base's other choices, would be right with 0.1 / 0.4
    assert found.expected == pytest.approx(0.25)
    assert found.newly_right.value == pytest.approx(0.75)
    assert found.balance.value == pytest.approx(-0.75)
    assert codes(found)[:2] == ["newly_right", "transitions"]
    assert found.reasons[0]["p_value"] == pytest.approx(0.25**60)


def test_changing_at_random_is_not_learning() -> None:
    """Every wrong answer changes to another of the base's choices, as likely as the base holds it."""
    random = np.random.default_rng(0)
    rows = [RIGHT] * 200
    for _ in range(200):
        row = [0.05] * 4
        row[random.choice(4, p=[0.25, 0.0, 0.625, 0.125])] = 0.85
        rows.append(tuple(row))
    found = judge(base_of(200, 200), probes(rows), **HOW)
    assert found.decision != "mostly_learning"
    assert found.newly_right.low < 0 < found.newly_right.high
    learned = next(reason for reason in found.reasons if reason["code"] == "transitions")
    assert learned["learned"] > 30  # although many are now right


def test_moving_to_the_second_choice_is_what_the_base_had() -> None:
    near = (0.44, 0.46, 0.05, 0.05)
    base = probes([RIGHT] * 60 + [near] * 60)
    found = judge(base, probes([RIGHT] * 120), **HOW)
    assert found.expected == pytest.approx(0.44 / 0.54)
    assert found.newly_right.value == pytest.approx(1 - 0.44 / 0.54)


def test_learning_that_costs_as_much_as_it_brings_is_mixed() -> None:
    base = base_of(60, 60)
    tuned = probes([(0.1, 0.7, 0.1, 0.1)] * 60 + [RIGHT] * 60)
    assert judge(base, tuned, **HOW).decision == "mixed"


def test_learning_that_costs_more_than_it_brings_is_not_called_learning() -> None:
    base = base_of(200, 60)
    found = judge(base, probes([(0.1, 0.7, 0.1, 0.1)] * 100 + [RIGHT] * 160), **HOW)
    assert found.balance.high < 0
    counts = next(reason for reason in found.reasons if reason["code"] == "transitions")
    assert (counts["lost"], counts["learned"]) == (100, 60)
    assert counts["p_value"] < 0.05
    assert found.decision == "mixed"


def test_a_model_that_says_one_letter_to_everything_is_not_self_aligning() -> None:
    random = np.random.default_rng(1)
    base, tuned = [], []
    for i in range(200):
        gold = int(random.integers(4))
        top = gold if i < 100 else (gold + 1) % 4
        row = np.full(4, 0.1)
        row[top] = 0.7
        base.append(Probe(str(i), "d", tuple("abcd"), gold, tuple(row)))
        tuned.append(Probe(str(i), "d", tuple("abcd"), gold, (0.7, 0.15, 0.1, 0.05)))
    found = judge(base, tuned, **HOW)
    assert found.consistency.high < 0.5
    assert found.decision in ("mixed", "not_enough_evidence")


def test_no_claim_is_built_on_a_base_that_guesses() -> None:
    found = judge(base_of(30, 90), base_of(30, 90), **HOW)
    assert found.decision == "not_enough_evidence"
    assert found.reasons[0]["code"] == "base_not_above_chance"
    assert (found.reasons[0]["n"], found.reasons[0]["correct"], found.reasons[0]["chance"]) == (120, 30, 0.25)
    flat = probes([(0.25,) * 4] * 100)
    assert judge(flat, flat, **HOW).reasons[0]["code"] == "base_not_above_chance"


@pytest.mark.parametrize(
    ("n_wrong", "decision"), [(0, "not_enough_evidence"), (29, "not_enough_evidence"), (30, "mostly_self_aligning")]
)
def test_a_base_that_knew_nearly_all_leaves_nothing_to_judge(n_wrong: int, decision: str) -> None:
    found = judge(base_of(60, n_wrong), base_of(60, n_wrong), **HOW)
    assert found.decision == decision
    if n_wrong < 30:
        assert found.reasons[0] == {"code": "few_wrong_answers", "n": n_wrong, "needed": 30}
    if n_wrong == 0:
        assert found.balance.value is None
        assert found.expected is None
        assert "kept" not in codes(found)


def test_an_even_balance_of_few_questions_says_how_many_would_do() -> None:
    rows = [RIGHT] * 60 + [OWN] * 13 + [RIGHT] * 17 + [(0.05, 0.1, 0.8, 0.05)] * 4
    found = judge(base_of(60, 34), probes(rows), **(HOW | {"max_noise": 0.1}))
    assert found.decision == "not_enough_evidence"
    reason = found.reasons[0]
    assert (reason["code"], reason["n"]) == ("wide_interval", 34)
    assert reason["half_width"] == pytest.approx((found.balance.high - found.balance.low) / 2)
    assert reason["needed"] == math.ceil(34 * (reason["half_width"] / 0.1) ** 2)
    assert judge(base_of(60, 34), probes(rows), **(HOW | {"max_noise": 1.0})).decision == "mixed"


def test_ties_of_the_base_are_no_answer_to_keep() -> None:
    base = base_of(60, 30) + [Probe(f"t{i}", "d0", tuple("abcd"), 0, (0.4, 0.4, 0.1, 0.1)) for i in range(50)]
    found = judge(base, base, **HOW)
    assert found.kept.n == found.balance.n == 30
    assert found.consistency.n == 140


def test_an_undecided_tuned_model_has_neither_kept_nor_learned() -> None:
    found = judge(base_of(60, 60), probes([RIGHT] * 60 + [(0.1, 0.4, 0.4, 0.1)] * 60), **HOW)
    assert (found.kept.value, found.newly_right.value, found.expected) == (0.0, 0.0, 0.0)


def test_a_base_without_any_doubt_gives_its_other_choices_an_even_draw() -> None:
    base = probes([RIGHT] * 60 + [(0.0, 1.0, 0.0, 0.0)] * 60)
    assert judge(base, probes([RIGHT] * 120), **HOW).expected == pytest.approx(1 / 3)


def test_an_infinite_kl_is_none_and_the_rest_still_told() -> None:
    base = base_of()
    found = judge(
        base, [replace(p, probabilities=(0.0, 1.0, 0.0, 0.0)) if i >= 60 else p for i, p in enumerate(base)], **HOW
    )
    assert found.kl.value is None
    assert found.decision == "mostly_self_aligning"
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_measures_are_those_of_their_functions_and_the_order_does_not_matter() -> None:
    random = np.random.default_rng(2)
    base, tuned = (probes([tuple(row) for row in random.dirichlet([3, 1, 1, 1], 80)]) for _ in range(2))
    found = judge(base, tuned, **HOW)
    rows = [p.probabilities for p in base], [p.probabilities for p in tuned]
    assert found.consistency.value == pytest.approx(rank_consistency(*rows))
    assert found.kl.value == pytest.approx(mean_kl(*rows))
    assert judge(base[::-1], tuned, **HOW) == found


def test_settings_and_probes_that_cannot_be_used_are_refused() -> None:
    for wrong in (
        {"min_consistency": 2},
        {"min_wrong": 0},
        {"max_noise": 0},
        {"max_noise": math.nan},
        {"confidence": 0},
    ):
        with pytest.raises(UserError, match="use"):
            judge(base_of(), base_of(), **(HOW | wrong))
    with pytest.raises(DataError, match="answered different questions"):
        judge(base_of(), base_of(10, 10), **HOW)
