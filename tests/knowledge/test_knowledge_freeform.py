"""Choices made from free answers: like the right one in form, never a right one, the same in any order."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import DataError, UserError
from tunescope.knowledge import FreeForm, Question, check_questions, to_choices
from tunescope.knowledge.freeform import answer_type

CITIES = ["Paris", "Lima", "Oslo", "Cairo", "Quito", "Tokyo", "Seoul", "Hanoi", "Dhaka", "Accra"]
YEARS = ["1789", "1815", "1914", "1945", "1848", "1066"]
PARTS = ["給水ポンプ", "排水弁", "温度計", "圧力計", "冷却塔", "主軸受け"]


def ask(answers: list[str], domain: str = "geo", prefix: str = "q") -> list[FreeForm]:
    return [FreeForm(f"{prefix}{i}", domain, f"{domain} question {prefix} {i}?", (a,)) for i, a in enumerate(answers)]


def gold(question: Question) -> str:
    assert question.gold is not None
    return question.choices[question.gold]


def wrong(question: Question) -> list[str]:
    return [choice for i, choice in enumerate(question.choices) if i != question.gold]


def test_the_right_answer_is_among_the_choices_and_the_questions_can_be_scored() -> None:
    made = to_choices(ask(CITIES), n_choices=4, seed=0)
    check_questions(made.questions)
    assert [gold(q) for q in made.questions] == CITIES
    assert {len(q.choices) for q in made.questions} == {4}
    assert all(set(q.choices) <= set(CITIES) for q in made.questions)
    assert made.other_type == ()


def test_neither_order_nor_spelling_of_other_questions_moves_a_choice() -> None:
    asked = ask(CITIES + YEARS)
    made = {q.id: q for q in to_choices(asked, n_choices=4, seed=1).questions}
    assert {q.id: q for q in to_choices(asked[::-1], n_choices=4, seed=1).questions} == made
    again = [*asked, *ask(["paris", "LIMA."], prefix="again")]
    spelled = {q.id: q for q in to_choices(again, n_choices=4, seed=1).questions}
    folded = {i: {c.lower().strip(".") for c in q.choices} for i, q in spelled.items()}
    assert all(folded[i] == {c.lower() for c in q.choices} for i, q in made.items())
    assert {q.id: q for q in to_choices(asked, n_choices=4, seed=2).questions} != made


def test_distractors_are_of_the_same_type_where_there_are_enough() -> None:
    made = to_choices(ask(CITIES + YEARS + PARTS), n_choices=4, seed=0)
    for question in made.questions:
        assert {answer_type(choice) for choice in wrong(question)} == {answer_type(gold(question))}


def test_they_come_from_the_same_domain_only() -> None:
    made = to_choices(ask(CITIES) + ask(["Rome", "Kyiv", "Bonn", "Riga"], "law", "l"), n_choices=4, seed=0)
    for question in made.questions:
        assert set(question.choices) <= set(CITIES if question.domain == "geo" else ["Rome", "Kyiv", "Bonn", "Riga"])


def test_they_are_the_nearest_in_length_also_without_spaces_between_words() -> None:
    short = [chr(0x4E00 + i) * 2 for i in range(20)]
    long = [chr(0x5E00 + i) * 24 for i in range(20)]
    for question in to_choices(ask(short + long), n_choices=4, seed=0).questions:
        assert {len(choice) for choice in question.choices} == {len(gold(question))}


def test_other_types_are_used_for_lack_of_the_same_and_named() -> None:
    made = to_choices(ask([*CITIES, "1789"]), n_choices=3, seed=0)
    assert made.other_type == ("q10",)
    assert len(made.questions[-1].choices) == 3


def test_texts_of_the_same_script_come_before_other_types() -> None:
    made = to_choices(ask(["Lima", *PARTS, "brass", "steel", *YEARS]), n_choices=3, seed=0)
    assert set(wrong(made.questions[0])) == {"brass", "steel"}


def test_no_other_right_answer_is_offered_in_any_spelling() -> None:
    asked = [
        FreeForm("1", "geo", "Largest city?", ("New York", "NYC")),
        FreeForm("2", "geo", "A city?", ("ＮＹＣ",)),
        FreeForm("3", "geo", "Another?", ('"new york".',)),
        FreeForm("4", "geo", "And this?", ("New York City",)),
        FreeForm("5", "geo", "More?", ("Old Town",)),
        FreeForm("6", "geo", "Most?", ("Big Bend",)),
    ]
    assert set(wrong(to_choices(asked, n_choices=3, seed=0).questions[0])) == {"Old Town", "Big Bend"}


def test_another_answer_to_the_same_question_is_no_distractor() -> None:
    asked = [
        FreeForm("1", "geo", "Name a port.", ("Genoa",)),
        FreeForm("2", "geo", "name a  PORT.", ("Trieste",)),
        FreeForm("3", "geo", "Where?", ("Bern",)),
        FreeForm("4", "geo", "Who?", ("Graz",)),
    ]
    first, second, *_ = to_choices(asked, n_choices=3, seed=0).questions
    assert set(wrong(first)) == set(wrong(second)) == {"Bern", "Graz"}


def test_numbers_that_stand_in_one_another_are_different_answers() -> None:
    made = to_choices(ask(["1", "10", "100", "7"]), n_choices=4, seed=0)
    assert all(len(q.choices) == 4 for q in made.questions)


@pytest.mark.parametrize(
    ("answer", "opposite"),
    [("yes", "no"), ("Yes", "No"), ("FALSE", "True"), ("はい", "いいえ"), ("no", "yes"), ("nein.", "ja")],
)
def test_yes_or_no_has_its_opposite_alone(answer: str, opposite: str) -> None:
    made = to_choices([*ask([answer]), *ask(CITIES, prefix="c")], n_choices=4, seed=0)
    assert wrong(made.questions[0]) == [opposite]
    assert all("yes" not in q.choices and "Yes" not in q.choices for q in made.questions[1:])


def test_no_has_the_opposite_that_its_domain_uses() -> None:
    assert wrong(to_choices(ask(["no", "sí"]), n_choices=4, seed=0).questions[0]) == ["sí"]


def test_distractors_that_came_with_the_question_are_used_first() -> None:
    asked = ask(CITIES)
    asked[0] = replace(asked[0], distractors=("Lyon", "Nice"))
    made = to_choices(asked, n_choices=4, seed=0).questions[0]
    assert {"Lyon", "Nice"} < set(wrong(made))
    assert len(made.choices) == 4
    asked[0] = replace(asked[0], distractors=("Lyon", "Nice", "Metz", "Caen"))
    assert set(wrong(to_choices(asked, n_choices=3, seed=0).questions[0])) < {"Lyon", "Nice", "Metz", "Caen"}
    alone = FreeForm("x", "solo", "Really?", ("yes",), distractors=("no", "perhaps"))
    assert set(wrong(to_choices([alone], n_choices=3, seed=0).questions[0])) == {"no", "perhaps"}


def test_the_right_answer_stands_everywhere_about_as_often() -> None:
    made = to_choices(ask([f"City{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)]), n_choices=4, seed=0)
    places = Counter(q.gold for q in made.questions)
    assert all(70 <= places[i] <= 130 for i in range(4))


def test_the_place_of_the_right_answer_does_not_follow_the_alphabet() -> None:
    places = Counter(to_choices(ask(["Aaa", *CITIES]), n_choices=4, seed=seed).questions[0].gold for seed in range(200))
    assert all(25 <= places[i] <= 75 for i in range(4))


def test_no_answer_is_offered_far_more_often_than_others() -> None:
    made = to_choices(ask([f"City{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)]), n_choices=4, seed=0)
    offered = Counter(choice for q in made.questions for choice in wrong(q))
    assert sum(offered.values()) == 1200
    assert max(offered.values()) <= 20
    assert len(offered) > 300


@given(st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=15), st.integers(2, 5))
def test_whatever_the_answers_the_result_can_be_scored_or_is_refused_in_one_line_each(
    answers: list[str], n: int
) -> None:
    try:
        made = to_choices(ask(answers), n_choices=n, seed=0)
    except DataError as refused:
        assert all(re.fullmatch(r"question 'q\d+' needs .*", line) for line in refused.problems)
        return
    check_questions(made.questions)
    assert [gold(q) for q in made.questions] == [answer.strip() for answer in answers]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ()}, "at least one, none empty"),
        ({"answers": ("Rome", " ")}, "at least one, none empty"),
        ({"answers": "Rome"}, "put answers and distractors into lists"),
        ({"distractors": "Rome"}, "put answers and distractors into lists"),
        ({"domain": ""}, "lacks a domain or its text"),
        ({"text": " "}, "lacks a domain or its text"),
        ({"id": "q1"}, "id 'q1' occurs 2 times"),
        ({"distractors": ("paris",)}, "be no right answer"),
        ({"distractors": ("Rome", "rome")}, "must be there once"),
        ({"distractors": (" ",)}, "must be there once"),
    ],
)
def test_questions_that_cannot_be_used_are_refused(change: dict[str, object], message: str) -> None:
    asked = ask(CITIES)
    with pytest.raises(DataError, match=message):
        to_choices([replace(asked[0], **change), *asked[1:]], n_choices=4, seed=0)


def test_too_few_answers_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        DataError, match=r"'q0' needs 3 wrong answers and domain 'geo' has 1 .* ask for fewer choices"
    ) as refused:
        to_choices(ask(["Paris", "Lima"]), n_choices=4, seed=0)
    assert len(refused.value.problems) == 2
    with pytest.raises(DataError, match="has 0"):
        to_choices(ask(["Paris"]), n_choices=2, seed=0)
    with pytest.raises(DataError, match="has 0"):
        to_choices(ask(["Paris"] * 5), n_choices=2, seed=0)
    with pytest.raises(UserError, match="n_choices is 1"):
        to_choices(ask(CITIES), n_choices=1, seed=0)
    with pytest.raises(DataError, match="got no questions"):
        to_choices([], n_choices=4, seed=0)


def test_context_and_source_come_along() -> None:
    asked = [replace(q, context="Peru: Lima.", source="atlas") for q in ask(CITIES)]
    assert {(q.context, q.source) for q in to_choices(asked, n_choices=2, seed=0).questions} == {
        ("Peru: Lima.", "atlas")
    }
