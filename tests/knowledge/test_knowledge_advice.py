"""Advice: which code in which case, with its numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tunescope.errors import DataError, UserError
from tunescope.knowledge import Probe, Question, advise, wilson
from tunescope.knowledge.advice import questions_needed

RIGHT, WRONG, UNSURE = (0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.4, 0.35, 0.25)


def material(rows: dict[str, list[tuple[float, ...]]], with_context: int = 0) -> tuple[list[Question], list[Probe]]:
    """Domain -> probabilities; the last `with_context` questions of every domain have a context."""
    questions, probes = [], []
    for domain, found in rows.items():
        for i, row in enumerate(found):
            context = "It says so." if i >= len(found) - with_context else ""
            questions.append(Question(f"{domain}{i}", domain, f"What is {domain} {i}?", tuple("abc"), 0, context))
            probes.append(Probe(f"{domain}{i}", domain, tuple("abc"), 0, row))
    return questions, probes


def advice(rows: dict[str, list[tuple[float, ...]]], with_context: int = 0, wanted: int = 100) -> list[dict[str, Any]]:
    return list(advise(*material(rows, with_context), threshold=0.5, behaviour_examples=wanted))


def names(codes: list[dict[str, Any]]) -> list[str]:
    return [code["code"] for code in codes]


def test_a_known_domain_needs_examples_of_the_behaviour_only() -> None:
    codes = advice({"it": [RIGHT] * 35 + [WRONG] * 5})
    assert names(codes) == ["behaviour_examples", "known"]
    assert codes[0] == {"code": "behaviour_examples", "wanted": 100, "have": 35, "need": 65}
    assert (codes[1]["domain"], codes[1]["n"], codes[1]["share"]) == ("it", 40, 0.875)
    assert codes[1]["low"] == pytest.approx(wilson(35, 40).low)


def test_enough_examples_need_no_more() -> None:
    assert advice({"it": [RIGHT] * 40}, wanted=40)[0]["need"] == 0
    assert advice({"it": [RIGHT] * 40}, wanted=0)[0]["need"] == 0


@pytest.mark.parametrize(
    ("with_context", "code"), [(0, "collect_facts"), (29, "collect_facts"), (30, "use_context"), (80, "use_context")]
)
def test_an_unknown_domain_needs_its_facts_from_somewhere(with_context: int, code: str) -> None:
    rows = {"art": [RIGHT] * 60, "law": [RIGHT] * 20 + [WRONG] * 60}
    found = next(c for c in advice(rows, with_context) if c["code"] == code)
    assert (found["domain"], found["unknown"], found["with_context"]) == ("law", 60, min(with_context, 60))
    assert found["high"] < 0.5


def test_an_undecided_domain_says_how_many_questions_would_tell() -> None:
    codes = advice({"it": [RIGHT] * 22 + [WRONG] * 18})
    assert names(codes) == ["behaviour_examples", "unclear"]
    assert codes[-1]["needed"] == questions_needed(0.55)
    assert codes[-1]["needed"] > 40


def test_that_many_questions_would_indeed_tell() -> None:
    for share in (0.3, 0.45, 0.55, 0.7):
        n = questions_needed(share)
        assert (wilson(round(share * n), n).low > 0.5) == (share > 0.5)
        assert (wilson(round(share * n), n).high < 0.5) == (share < 0.5)
    with pytest.raises(UserError, match=r"share is 1\.5"):
        questions_needed(1.5)


def test_no_claim_on_a_base_that_guesses() -> None:
    codes = advice({"it": [RIGHT] * 20 + [WRONG] * 40})
    assert names(codes) == ["base_not_above_chance", "behaviour_examples", "domain_not_above_chance", "collect_facts"]
    assert (codes[0]["n"], codes[0]["correct"]) == (60, 20)
    assert codes[0]["chance"] == pytest.approx(1 / 3)


def test_below_chance_points_to_the_answers_or_the_prompt() -> None:
    codes = advice({"it": [WRONG] * 40, "law": [RIGHT] * 40})
    assert names(codes) == ["behaviour_examples", "below_chance", "collect_facts", "known"]
    assert codes[1]["accuracy"] == 0


def test_a_domain_that_is_mostly_unsure_is_named() -> None:
    codes = advice({"it": [UNSURE] * 40})
    assert names(codes) == ["behaviour_examples", "known", "unsure"]
    assert codes[-1] == {"code": "unsure", "domain": "it", "n": 40, "unsure": 40}
    assert codes[0]["have"] == 0


def test_a_few_more_unsure_than_sure_may_be_noise() -> None:
    assert "unsure" not in names(advice({"it": [UNSURE] * 22 + [RIGHT] * 18}))


def test_one_question_is_unclear() -> None:
    codes = advice({"it": [RIGHT]})
    assert names(codes) == ["base_not_above_chance", "behaviour_examples", "domain_not_above_chance", "unclear"]
    assert codes[-1]["needed"] == 2


def test_codes_are_plain_and_the_order_of_the_questions_does_not_matter() -> None:
    questions, probes = material({"it": [RIGHT] * 30 + [UNSURE] * 10, "law": [WRONG] * 25 + [RIGHT] * 5}, 3)
    codes = advise(questions, probes, threshold=0.5, behaviour_examples=9)
    assert advise(questions[::-1], probes[::-1], threshold=0.5, behaviour_examples=9) == codes
    assert json.loads(json.dumps(codes, allow_nan=False)) == list(codes)


def test_probes_without_their_questions_are_refused() -> None:
    questions, probes = material({"it": [RIGHT] * 3})
    with pytest.raises(DataError, match="1 probes have no question, the first is 'x'"):
        advise(questions, [*probes, replace(probes[0], id="x")], threshold=0.5, behaviour_examples=9)
    with pytest.raises(UserError, match="behaviour_examples is -1"):
        advise(questions, probes, threshold=0.5, behaviour_examples=-1)
