"""Records of questions and probes, what they refuse, and demonstrations."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tunescope.errors import DataError
from tunescope.knowledge import (
    Probe,
    Question,
    accuracy,
    check_demonstrations,
    check_fit,
    check_probes,
    check_questions,
    draw_demonstrations,
    paired,
    probe,
)
from tunescope.knowledge.questions import overlaps

GOOD = Question("q", "it", "Which port has SSH?", ("22", "80", "443"), 0)


def questions(n: int, domain: str = "it") -> list[Question]:
    return [Question(f"{domain}{i}", domain, f"What is {domain} {i}?", ("a", "b"), i % 2) for i in range(n)]


def test_records_come_back_from_json_as_they_were() -> None:
    for record in (GOOD, probe(GOOD, [0.5, 0.3, 0.2])):
        assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_numpy_values_become_plain_ones_that_json_takes() -> None:
    made = probe(GOOD, np.array([0.5, 0.25, 0.25], dtype=np.float32))
    assert made.probabilities == (0.5, 0.25, 0.25)
    assert Probe("1", "it", ("a", "b"), 0, np.float32([0.5, 0.5])).to_dict()["probabilities"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ("22",)}, "has 1 choice: at least 2"),
        ({"choices": ()}, "has 0 choices: at least 2"),
        ({"choices": ("22", " 22 ", "80")}, "has the choice '22' more than once"),
        ({"choices": ("e\u0301", "\u00e9")}, "more than once"),
        ({"choices": ("22", " ")}, "empty choice"),
        ({"choices": ("22", 80)}, "give a list of texts"),
        ({"choices": "ab"}, "give a list of texts"),
        ({"gold": None}, "no right choice"),
        ({"gold": 3}, "gold 3 and 3 choices: .* use 0 to 2"),
        ({"gold": -1}, "gold -1"),
        ({"gold": "A"}, "gold 'A'"),
        ({"gold": True}, "gold True"),
        ({"gold": 1.0}, "gold 1.0"),
        ({"domain": " "}, "no domain"),
        ({"text": "\u3000"}, "no text"),
    ],
)
def test_a_question_that_cannot_be_scored_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        check_questions([replace(GOOD, **change)])
    assert len(refused.value.problems) == 1
    assert "'q'" in refused.value.problems[0]


def test_choices_that_differ_in_case_or_in_a_superscript_are_different_answers() -> None:
    check_questions([Question("1", "biology", "Which is it?", ("AA", "Aa", "aa"), 1)])
    check_questions([Question("1", "algebra", "Which is it?", ("x2", "x²"), 1)])
    check_questions([Question("1", "生物", "どれですか", ("はい", "いいえ"), 1)])


def test_all_problems_are_told_at_once_and_no_questions_are_one() -> None:
    bad = [replace(GOOD, gold=9), replace(GOOD, choices=("a", "a"), gold=None), replace(GOOD, id="fine")]
    with pytest.raises(DataError) as refused:
        check_questions(bad)
    assert len(refused.value.problems) == 4  # the repeated id is one too
    with pytest.raises(DataError, match="got no questions"):
        check_questions([])


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ((0.5, 0.5), "2 probabilities and 3 choices"),
        ((0.5, 0.5, 0.5), "sum to 1.5"),
        ((0.5, 0.6, -0.1), "the probability -0.1"),
        ((math.nan, 0.5, 0.5), "the probability nan"),
        ((math.inf, 0.0, 0.0), "the probability inf"),
        ((0.5, 0.5, None), "the probability None"),
        ((0.0, 0.0, 0.0), "sum to 0"),
        ((), "0 probabilities"),
    ],
)
def test_numbers_that_are_no_probabilities_are_refused(probabilities: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        check_probes([Probe("q", "it", GOOD.choices, 0, probabilities)])
    assert len(refused.value.problems) == 1


def test_a_probe_of_a_question_without_gold_is_refused() -> None:
    with pytest.raises(DataError, match="no right choice"):
        probe(replace(GOOD, gold=None), [0.5, 0.3, 0.2])
    with pytest.raises(DataError, match="got no probes"):
        check_probes([])


def test_a_tie_at_the_top_is_no_answer_wherever_the_right_choice_stands() -> None:
    for gold in range(3):
        flat = Probe("1", "it", ("a", "b", "c"), gold, (1 / 3, 1 / 3, 1 / 3))
        assert flat.answer is None
        assert not flat.correct
    tie_below = Probe("1", "it", ("a", "b", "c"), 1, (0.2, 0.6, 0.2))
    assert (tie_below.answer, tie_below.correct, tie_below.confidence) == (1, True, 0.6)


def test_accuracy_counts_single_most_likely_choices() -> None:
    rows = [(0.9, 0.1), (0.1, 0.9), (0.5, 0.5), (0.6, 0.4)]
    assert accuracy([Probe(str(i), "it", ("a", "b"), 0, row) for i, row in enumerate(rows)]) == 0.5


def test_pairs_follow_the_first_model_whatever_the_order_of_the_second() -> None:
    base = [probe(q, [0.6, 0.4]) for q in questions(5)]
    tuned = [probe(q, [0.3, 0.7]) for q in reversed(questions(5))]
    assert [(a.id, b.id) for a, b in paired(base, tuned)] == [(p.id, p.id) for p in base]


def test_different_questions_are_no_pair() -> None:
    base = [probe(q, [0.6, 0.4]) for q in questions(8)]
    with pytest.raises(DataError, match=r"7 only the first \(it1, it2, it3, it4, it5, \.\.\.\), 0 only the second"):
        paired(base, base[:1])
    with pytest.raises(DataError, match=r"1 only the second \(it7\)"):
        paired(base[:7], base)
    for change in ({"gold": 1}, {"domain": "law"}, {"choices": ("b", "a")}):
        with pytest.raises(DataError, match="'it0' differs in domain, choices or gold"):
            paired(base, [replace(base[0], **change), *base[1:]])


# Demonstrations


@pytest.mark.parametrize(
    "shown",
    [
        replace(GOOD, id="d"),
        replace(GOOD, id="d", text="  which PORT has\nSSH? "),
        replace(GOOD, id="d", choices=("80", "443", "22"), gold=2),
        replace(GOOD, id="d", choices=("22", "21"), gold=0),  # other wrong answers, same right one
        replace(GOOD, id="d", gold=1),  # the same choices, another right one
        replace(GOOD, id="d", text="Which port has ＳＳＨ?"),
    ],
)
def test_a_demonstration_that_is_asked_is_leakage(shown: Question) -> None:
    with pytest.raises(DataError, match=r"demonstration 'd' is test question 'q' \(leakage\)"):
        check_demonstrations([shown], [replace(GOOD, id="other", text="Another?"), GOOD])


def test_the_same_stem_about_something_else_is_no_leakage() -> None:
    stem = "Which of these is true?"
    shown = Question("d", "it", stem, ("Ports are numbers", "Ports are words"), 0)
    asked = Question("q", "it", stem, ("Cables are wires", "Cables are pipes"), 0)
    check_demonstrations([shown], [asked])
    assert overlaps([shown], [asked]) == []
    check_demonstrations([replace(asked, text="Another?")], [asked])  # an id may repeat between two files
    check_demonstrations([], [asked])


def test_more_demonstrations_than_fit_are_refused_with_how_many_do() -> None:
    check_fit([100] * 5, 500, context_tokens=1000)
    with pytest.raises(
        DataError, match=r"5 demonstrations \(500 tokens\) .* = 1001 tokens.* holds 1000: use at most 4"
    ):
        check_fit([100] * 5, 501, context_tokens=1000)
    with pytest.raises(DataError, match="use at most 5"):  # five fill the context exactly
        check_fit([100] * 6, 500, context_tokens=1000)
    with pytest.raises(DataError, match="use at most 1"):  # in the order in which they are added
        check_fit([10, 995, 1], 5, context_tokens=1000)
    with pytest.raises(DataError, match="the longest question has 1001 tokens"):
        check_fit([100], 1001, context_tokens=1000)
    check_fit([], 1000, context_tokens=1000)


def test_demonstrations_are_drawn_per_domain_by_the_seed_and_not_by_the_order() -> None:
    pool = questions(20) + questions(20, "law")
    drawn = draw_demonstrations(pool, count=5, seed=1)
    assert {domain: len({q.id for q in each}) for domain, each in drawn.items()} == {"it": 5, "law": 5}
    assert all(q.domain == domain for domain, each in drawn.items() for q in each)
    assert drawn == draw_demonstrations(pool[::-1], count=5, seed=1)
    assert drawn != draw_demonstrations(pool, count=5, seed=2)
    more = draw_demonstrations(pool, count=6, seed=1)
    assert all(more[domain][:5] == each for domain, each in drawn.items())
    assert draw_demonstrations(pool, count=0, seed=1) == {"it": (), "law": ()}


def test_a_domain_too_small_for_its_demonstrations_is_named() -> None:
    with pytest.raises(DataError, match="domain 'law' has 3 questions for 5 demonstrations"):
        draw_demonstrations(questions(20) + questions(3, "law"), count=5, seed=0)
    with pytest.raises(DataError, match="asked for -1"):
        draw_demonstrations(questions(3), count=-1, seed=0)
