"""Files of questions: every shape that people have, and one line for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunescope.data import QuestionsRead, gold_index, read_questions

ROW = {"question": "What flies?", "choices": ["a cow", "a bee", "a fig"], "answer": 1}


def write(folder: Path, rows: list[Any], name: str = "zoo.jsonl") -> Path:
    path = folder / name
    if name.endswith(".json"):
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder: Path, rows: list[Any], **how: Any) -> QuestionsRead:
    return read_questions(write(folder, rows), shown_as="zoo.jsonl", **how)


def codes(found: QuestionsRead) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.line) for finding in found.errors]


@pytest.mark.parametrize("answer", [1, "1", "B", "b", "(B)", "B.", "B)", "a bee", " a bee ", "A BEE"])
def test_the_right_choice_may_be_given_as_number_letter_or_text(answer: object) -> None:
    assert gold_index(answer, ROW["choices"]) == 1


@pytest.mark.parametrize("answer", [3, -1, "D", "3", "a dog", "", 1.0, True, None, ["a bee"]])
def test_an_answer_that_names_no_choice_is_refused_with_what_is_allowed(answer: object) -> None:
    with pytest.raises(ValueError, match="from 0 to 2, a letter from A to C, or the text of a choice"):
        gold_index(answer, ROW["choices"])


def test_an_answer_that_could_be_two_choices_is_refused() -> None:
    with pytest.raises(ValueError, match="'2' is the text of choice A and a number counted from 0"):
        gold_index("2", ["2", "4", "8"])
    assert gold_index("1", ["0", "1", "2"]) == 1  # both readings agree
    assert gold_index("C", ["x", "y", "C"]) == 2
    assert gold_index(2, ["2", "4", "8"]) == 2  # a number in JSON is no text


def test_case_tells_choices_apart_but_an_answer_need_not_keep_it() -> None:
    assert gold_index("aa", ["Aa", "aa"]) == 1
    assert gold_index("YES", ["no", "Yes"]) == 1
    with pytest.raises(ValueError, match="the text of choice A and the text of choice B, which differ"):
        gold_index("AA", ["Aa", "aa"])


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"query": "What flies?", "choices": ROW["choices"], "gold": 1},
        {"question": "What flies?", "options": ROW["choices"], "label": "B"},
        {"question": "What flies?", "A": "a cow", "B": "a bee", "C": "a fig", "answer": "B"},
        {"question": "What flies?", "choice0": "a cow", "choice1": "a bee", "choice2": "a fig", "label": 1},
        {"question": "What flies?", "option_a": "a cow", "option_b": "a bee", "option_c": "a fig", "answer": "a bee"},
    ],
)
def test_the_usual_shapes_of_rows_say_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    found = read(
        tmp_path, [row, {**row, **{"question": "What else?"}} if "question" in row else {**row, "query": "What else?"}]
    )
    assert found.errors == ()
    first = found.questions[0]
    assert (first.question, first.choices, first.gold) == ("What flies?", tuple(ROW["choices"]), 1)
    assert (first.domain, first.id, first.line, first.file) == ("zoo", "zoo-1", 1, "zoo.jsonl")


def test_a_table_may_hold_the_choices_in_columns_or_as_a_list_and_fewer_in_some_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,A,B,C,answer\nFlies?,a cow,a bee,,B\nGrows?,a cow,a bee,a fig,2\n", encoding="utf-8")
    assert [(q.choices, q.gold) for q in read_questions(path).questions] == [
        (("a cow", "a bee"), 1),
        (("a cow", "a bee", "a fig"), 2),
    ]
    path.write_text('question,choices,answer\nFlies?,"[""a cow"", ""a bee""]",B\n', encoding="utf-8")
    assert read_questions(path).questions[0].choices == ("a cow", "a bee")


def test_json_and_jsonl_give_the_same_questions(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "question": "What hums?", "subject": "bees", "context": "Bees hum."}]
    lines = read_questions(write(tmp_path, rows)).questions
    whole = read_questions(write(tmp_path, rows, "zoo.json")).questions
    assert [(q.question, q.choices, q.gold, q.domain, q.context) for q in lines] == [
        (q.question, q.choices, q.gold, q.domain, q.context) for q in whole
    ]
    assert (lines[1].domain, lines[1].context) == ("bees", "Bees hum.")


def test_a_domain_from_the_settings_stands_for_all_rows(tmp_path: Path) -> None:
    found = read(tmp_path, [{**ROW, "domain": "farm"}, {**ROW, "question": "More?"}], domain="nature")
    assert {q.domain for q in found.questions} == {"nature"}


def test_columns_can_be_named_and_a_wrong_name_is_one_line(tmp_path: Path) -> None:
    row = {"frage": "What flies?", "wahl": ROW["choices"], "richtig": "B", "question": "not this one"}
    columns = {"question": "frage", "choices": "wahl", "answer": "richtig"}
    assert read(tmp_path, [row], columns=columns).questions[0].question == "What flies?"
    found = read(tmp_path, [row], columns={**columns, "answer": "richtg"})
    assert codes(found) == [("field_missing", None)]
    assert "did you mean richtig?" in found.errors[0].message


def test_a_row_without_choices_is_a_free_question_with_its_right_and_wrong_answers(tmp_path: Path) -> None:
    rows = [
        {"question": "Capital?", "answer": "Paris"},
        {"question": "Big?", "answer": ["NYC", "New York"], "alternatives": ["Rome"]},
    ]
    first, second = read(tmp_path, rows).questions
    assert (first.choices, first.gold, first.answers, first.alternatives) == ((), None, ("Paris",), ())
    assert (second.answers, second.alternatives) == (("NYC", "New York"), ("Rome",))


@pytest.mark.parametrize(
    ("row", "code", "said"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "field_missing", "the question is missing"),
        ({**ROW, "question": "  "}, "empty_prompt", "empty"),
        ({**ROW, "question": 7}, "type_wrong", "allowed: text"),
        ({"question": "?", "choices": ["a", "b"]}, "field_missing", "the answer is missing"),
        ({"question": "?", "choices": ["a"], "answer": 0}, "choices_unusable", "1 choices; allowed: 2 to 26"),
        ({"question": "?", "choices": [], "answer": 0}, "choices_unusable", "0 choices"),
        ({"question": "?", "choices": list(map(str, range(27))), "answer": 0}, "choices_unusable", "27 choices"),
        ({"question": "?", "choices": ["a", " "], "answer": 0}, "choices_unusable", "empty"),
        ({"question": "?", "choices": ["a yes", "a  yes "], "answer": 0}, "choices_unusable", "'a  yes' twice"),
        ({"question": "?", "choices": ["A", "B", "C"], "answer": 0}, "choices_unusable", "only the letters"),
        ({"question": "?", "choices": [1, 2], "answer": 0}, "type_wrong", "put it in quotes"),
        ({"question": "?", "choices": "a, b", "answer": 0}, "type_wrong", "a list, in CSV as JSON"),
        ({**ROW, "answer": 3}, "answer_unusable", "counted from 0"),
        ({"question": "?", "answer": 3}, "answer_unusable", "no choices"),
        ({"question": "?", "answer": ["Paris", 3]}, "answer_unusable", "no choices"),
        ({"question": "?", "answer": "Paris", "alternatives": ["Paris "]}, "choices_unusable", "twice"),
        ({**ROW, "question": "half \ud800"}, "surrogate", "half a character"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_by_its_line(tmp_path: Path, row: Any, code: str, said: str) -> None:
    found = read(tmp_path, [{**ROW, "question": "First?"}, row])
    assert codes(found) == [(code, 2)]
    assert said in found.errors[0].message and "\n" not in found.errors[0].message
    assert [q.question for q in found.questions] == ["First?"]


def test_the_same_question_with_the_same_answer_is_asked_once(tmp_path: Path) -> None:
    found = read(tmp_path, [ROW, {**ROW, "question": "what  FLIES?", "choices": ["a bee", "a dog"], "answer": 0}])
    assert [q.line for q in found.questions] == [1]
    assert [(f.code, f.severity, f.line) for f in found.findings] == [("duplicate_exact", "warning", 2)]


def test_ids_must_differ_within_a_file(tmp_path: Path) -> None:
    found = read(tmp_path, [{**ROW, "id": "q"}, {**ROW, "id": "q", "question": "Other?"}])
    assert codes(found) == [("id_duplicate", 2)]


@pytest.mark.parametrize(("first", "warned"), [(1, True), (0, False)])
def test_numbers_that_seem_to_be_counted_from_one_are_warned_of(tmp_path: Path, first: int, warned: bool) -> None:
    rows = [{**ROW, "question": f"{i}?", "answer": 1 + i % 2} for i in range(10)]
    rows[3]["answer"] = first
    assert ("answer_from_one" in [f.code for f in read(tmp_path, rows).findings]) is warned


def test_a_file_that_is_missing_or_empty_is_one_error(tmp_path: Path) -> None:
    assert [f.code for f in read_questions(tmp_path / "none.jsonl").errors] == ["file_missing"]
    (tmp_path / "e.jsonl").write_text("", encoding="utf-8")
    assert [f.code for f in read_questions(tmp_path / "e.jsonl").errors] == ["file_empty"]
    (tmp_path / "b.jsonl").write_text("\n\n", encoding="utf-8")
    assert [f.code for f in read_questions(tmp_path / "b.jsonl").errors] == ["file_empty"]
