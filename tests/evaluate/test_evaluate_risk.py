"""The rule for people: chosen on held-out examples, checked on the test, and never chosen out of domain."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tunescope.evaluate import Scored, risks
from tunescope.metrics import check_threshold, choose_threshold, halves, wilson
from tunescope.runs.records import Answer


def answers(n: int, *, right_above: float, seed: int = 0, flip: float = 0.0) -> list[Answer]:
    """Answers that are right where the confidence is above a value, some of them flipped."""
    dice = random.Random(seed)
    found = []
    for _ in range(n):
        sure = dice.uniform(0.34, 1.0)
        right = (sure > right_above) != (dice.random() < flip)
        found.append(Answer("a", float(right), sure, {"a": sure}))
    return found


def item(given: dict[str, list[Answer]], role: Any = "in_domain") -> Scored:
    n = len(next(iter(given.values())))
    return Scored("desk", role, f"desk.{role}", "accuracy", ("a", "b"), ("a",) * n, given, "v")


def test_the_rule_comes_from_the_held_out_examples_and_is_checked_on_all_others() -> None:
    held, inside, outside = (
        answers(60, right_above=0.7),
        answers(80, right_above=0.7, seed=1),
        answers(50, right_above=0.9, seed=2),
    )
    found = risks([item({"full": inside}), item({"full": outside}, "out_of_domain")], seed=0, held_out={"full": held})
    expected = choose_threshold([a.confidence for a in held], [a.score for a in held], 0.05)  # type: ignore[misc]
    for risk, checked in zip(found, (inside, outside), strict=True):
        assert (risk.threshold, risk.chosen_on, risk.n_chosen) == (expected, "validation", 60)
        automatic = [a for a in checked if (a.confidence or 0) >= (expected or 0)]
        assert risk.n_checked == len(automatic)
        assert risk.human_share == pytest.approx(1 - len(automatic) / len(checked))
        assert risk.checked_error == pytest.approx(1 - sum(a.score for a in automatic) / len(automatic))
        assert (risk.checked_low, risk.checked_high) == wilson(risk.checked_error, len(automatic))
    assert found[1].checked_error > 0.05 > found[0].checked_error  # type: ignore[operator]


def test_too_few_held_out_examples_to_show_the_rate_leave_it_to_half_of_the_in_domain_test() -> None:
    inside = answers(80, right_above=0.7, seed=1)
    few = {"full": answers(19, right_above=0.7)}
    found = risks([item({"full": inside})], seed=3, held_out=few, target_error=0.05)[0]
    chosen_on, checked_on = halves(80, 3)
    sure, right = [a.confidence for a in inside], [a.score for a in inside]
    expected = choose_threshold([sure[i] for i in chosen_on], [right[i] for i in chosen_on], 0.05)  # type: ignore[misc]
    assert (found.threshold, found.chosen_on, found.n_chosen) == (expected, "half", 40)
    checked = check_threshold([sure[i] for i in checked_on], [right[i] for i in checked_on], expected)  # type: ignore[misc, arg-type]
    assert (found.checked_error, found.n_checked) == (checked.checked_error, checked.n_checked)
    assert risks([item({"full": inside})], seed=3, held_out=few, target_error=0.1)[0].chosen_on == "validation"


@pytest.mark.parametrize("held", [None, {"full": answers(60, right_above=0.7)}])
def test_out_of_domain_examples_choose_nothing(held: Any) -> None:
    inside = item({"full": answers(80, right_above=0.7, seed=1)})
    rules = set()
    for seed in range(4):
        outside = item({"full": answers(40 + seed, right_above=0.4 + seed / 10, seed=seed)}, "out_of_domain")
        rules.add(risks([inside, outside], seed=0, held_out=held)[1].threshold)
    assert len(rules) == 1
    alone = risks([item({"full": answers(40, right_above=0.5)}, "out_of_domain")], seed=0)
    assert alone[0].threshold is None and alone[0].human_share is None and alone[0].chosen_on == ""


def test_where_even_the_surest_are_wrong_there_is_no_rule() -> None:
    wrong = [Answer("a", 0.0, 0.9, {})] * 40
    found = risks([item({"full": wrong})], seed=0, held_out={"full": wrong})[0]
    assert found.threshold is None and found.human_share is None and found.checked_error is None
    assert found.chosen_on == "validation" and found.n_checked == 0 and found.checked_low is None


def test_all_right_and_equally_sure_stays_automatic_but_not_surer_than_the_examples_allow() -> None:
    right = [Answer("a", 1.0, 0.9, {})] * 40
    found = risks([item({"full": right})], seed=0, held_out={"full": right})[0]
    assert found.human_share == 0 and found.checked_error == 0 and found.checked_high > 0.05  # type: ignore[operator]


def test_no_answer_above_the_rule_has_no_checked_error() -> None:
    held, unsure = [Answer("a", 1.0, 0.95, {})] * 40, [Answer("a", 1.0, 0.5, {})] * 10
    found = risks([item({"full": unsure})], seed=0, held_out={"full": held})[0]
    assert found.human_share == 1 and found.checked_error is None and found.n_checked == 0


def test_neither_the_order_of_the_test_nor_of_the_held_out_examples_matters_with_held_out_ones() -> None:
    held, inside = answers(60, right_above=0.7, flip=0.1), answers(80, right_above=0.7, seed=1, flip=0.1)
    one = risks([item({"full": inside})], seed=0, held_out={"full": held})
    assert risks([item({"full": inside[::-1]})], seed=0, held_out={"full": held[::-1]}) == one


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="target_error"):
        risks([], seed=0, target_error=rate)


def test_thresholds_at_ties_and_ends() -> None:
    assert choose_threshold([0.9, 0.9, 0.5], [1, 0, 1], 0.05) is None
    assert choose_threshold([0.9, 0.8], [1, 1], 0.0) == 0.8
    assert choose_threshold([0.9], [0], 1.0) == 0.9
    with pytest.raises(ValueError, match="not empty"):
        choose_threshold([], [], 0.05)
    with pytest.raises(ValueError, match="not empty"):
        check_threshold([], [], 0.5)
    assert check_threshold([0.4], [1], 0.5).checked_error is None
