"""Files of questions with a right answer, multiple choice or free-form.

The same containers as for examples (JSON, JSONL, CSV, TSV, Parquet), one question a row. What is wrong with a row is a finding with
its line; the rest of the file is still read.
"""

from __future__ import annotations

import json
import os
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.data.check import normalise
from tunescope.data.findings import FindingList, shown
from tunescope.data.lines import UnusableError
from tunescope.data.read import _sha256, _usable
from tunescope.data.rows import MAX_FILE_BYTES, READERS
from tunescope.errors import did_you_mean
from tunescope.runs.records import Finding

LETTERS = string.ascii_uppercase
MAX_CHOICES = len(LETTERS)
# Field -> the names under which it is found in a row where no column is named; the first that is there counts.
FIELDS: dict[str, tuple[str, ...]] = {
    "question": ("question", "query"),
    "choices": ("choices", "options"),
    "answer": ("answer", "gold", "label"),
    "alternatives": ("alternatives", "distractors"),
    "domain": ("domain", "subject", "category"),
    "context": ("context", "background"),
    "id": ("id",),
}
_CHOICE_COLUMN = re.compile(r"(?:(?:choice|option)[ _]?)?([A-Z])|(?:choice|option)[ _]?(\d{1,2})", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])[.)]?")
_FEWEST_NUMBERED = 10  # below that many numbers, that none of them is 0 may be chance


@dataclass(frozen=True)
class QuestionRow:
    """One question as it stands in a file.

    Attributes:
        id: unique within its file.
        domain: subject that it belongs to.
        question: what is asked.
        choices: the possible answers, from A; empty for a free-form question.
        gold: index of the right choice, from 0; None for a free-form question.
        answers: text of the right answer; of a free-form question all right answers, the one to show first.
        alternatives: wrong answers that come with a free-form question.
        context: background in which the answer can be found; may be empty.
        file: the file as the user wrote it.
        line: 1-based line, or row number.
    """

    id: str
    domain: str
    question: str
    choices: tuple[str, ...]
    gold: int | None
    answers: tuple[str, ...]
    alternatives: tuple[str, ...] = ()
    context: str = ""
    file: str = ""
    line: int | None = None


@dataclass(frozen=True)
class QuestionsRead:
    """What came out of one file of questions.

    Attributes:
        path: the file as the user wrote it.
        questions: the rows that could be read; of questions that stand there twice, the first.
        findings: everything that was found; any ``error`` means that the file must not be used as it is.
        sha256: of the bytes; empty if the file could not be read.
        n_rows: rows in the file, the unreadable ones included.
    """

    path: str
    questions: tuple[QuestionRow, ...]
    findings: tuple[Finding, ...]
    sha256: str
    n_rows: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


class _RowError(Exception):
    """One row cannot become a question; caught in `read_questions`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def read_questions(
    path: str | os.PathLike[str],
    *,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
    shown_as: str | None = None,
) -> QuestionsRead:
    r"""Reads a file of questions and says what is wrong with it.

    A row holds a question, its choices (a list; in CSV also a cell with a JSON list, or a column per choice: ``A``, ``B`` ... or
    ``choice0``, ``choice1`` ...), and the answer as `gold_index` reads it. A row without choices is a free-form question; wrong answers
    that are known may stand under ``alternatives``. Without ``domain`` in the row or here, the domain is the name of the file.

    Args:
        path: a .jsonl, .json, .csv, .tsv or .parquet file.
        domain: of all rows, whatever they say.
        columns: field (a key of `FIELDS`) -> column name, where the usual names do not fit.
        shown_as: how findings name the file; the path itself if None.

    Returns:
        Questions and findings. A file that cannot be read at all has no questions and at least one error.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "zoo.jsonl")
        >>> _ = file.write_text('{"question": "What flies?", "choices": ["a cow", "a bee"], "answer": "B"}\n{"question": "What?"}\n')
        >>> read = read_questions(file, shown_as="zoo.jsonl")
        >>> [(q.domain, q.gold) for q in read.questions], [(f.code, f.line) for f in read.errors]
        ([('zoo', 1)], [('field_missing', 2)])
    """
    name = (shown_as or os.fspath(path)).encode("utf-8", "backslashreplace").decode()
    found = FindingList(name, None)
    questions: list[QuestionRow] = []
    sha256, n_rows = "", 0
    try:
        file = _usable(Path(path), MAX_FILE_BYTES)
        sha256 = _sha256(file)
        questions, n_rows = _read_rows(file, found, domain, columns or {})
    except UnusableError as problem:
        found.add(problem.code, "error", problem.line, problem.message)
    except OSError as error:
        found.add("file_unreadable", "error", None, f"cannot be read: {error.strerror or type(error).__name__}")
    return QuestionsRead(name, tuple(questions), found.findings(), sha256, n_rows)


def gold_index(answer: object, choices: Sequence[str]) -> int:
    """Returns the index of the right choice from an index, a letter or the text of a choice.

    Args:
        answer: a whole number counted from 0, a letter (``B``, ``b``, ``(B)``, ``B.``), or the text of one of the choices.
        choices: the choices.

    Raises:
        ValueError: it names no choice, or two different ones (``2`` where the first choice reads ``2``); one line for the user.

    Example:
        >>> [gold_index(answer, ["a cow", "a bee"]) for answer in (1, "B", "a bee")]
        [1, 1, 1]
    """
    n = len(choices)
    allowed = f"allowed: a number from 0 to {n - 1}, a letter from A to {LETTERS[n - 1]}, or the text of a choice"
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise ValueError(f"the answer is {shown(answer)}; {allowed}")
    if isinstance(answer, int):
        if not 0 <= answer < n:
            raise ValueError(f"the answer is {answer} and there are {n} choices, counted from 0; {allowed}")
        return answer
    text = answer.strip()
    readings = {i: f"the text of choice {LETTERS[i]}" for i, choice in enumerate(choices) if choice.strip() == text}
    if not readings:
        alike = [i for i, choice in enumerate(choices) if normalise(choice) == normalise(text)]
        readings = {i: f"the text of choice {LETTERS[i]}" for i in alike}
    if letter := _LETTER.fullmatch(text):
        readings.setdefault(LETTERS.index(letter[1].upper()), "a letter")
    if text.isascii() and text.isdecimal():
        readings.setdefault(int(text), "a number counted from 0")
    inside = {i: how for i, how in readings.items() if i < n}
    if len(inside) > 1:
        raise ValueError(
            f"the answer {shown(text)} is {' and '.join(inside.values())}, which differ; write its number, counted from 0"
        )
    if not inside:
        raise ValueError(f"the answer is {shown(text)}, which is none of the {n} choices; {allowed}")
    return next(iter(inside))


def _read_rows(
    path: Path, found: FindingList, domain: str | None, columns: Mapping[str, str]
) -> tuple[list[QuestionRow], int]:
    questions: list[QuestionRow] = []
    n_rows = 0
    lines_by_id: dict[str, int] = {}
    lines_by_text: dict[tuple[str, ...], int] = {}
    unused: dict[str, None] = {}
    numbers: list[int] = []
    for line, row, _ in READERS[path.suffix.lower()](path, found):
        n_rows += 1
        if row is None:
            continue
        fields, rest = _fields(row, columns)
        unused |= dict.fromkeys(rest)
        try:
            question = _question(fields, row, columns, domain=domain, place=(found.file, line, path.stem))
        except _RowError as error:
            found.add(error.code, "error", line, error.message)
            continue
        texts = (question.domain, normalise(question.question), normalise(question.answers[0]))
        if (first := lines_by_id.setdefault(question.id, line)) != line:
            message = f"id {shown(question.id)} is already used in line {first}; ids must differ within a file"
            found.add("id_duplicate", "error", line, message)
        elif (first := lines_by_text.setdefault(texts, line)) != line:
            message = f"the same question with the same answer as in line {first}; this one is left out"
            found.add("duplicate_exact", "warning", line, message)
        else:
            questions.append(question)
        if question.choices and (number := _number(fields["answer"], question.choices)) is not None:
            numbers.append(number)
    if n_rows == 0 and not found.has_errors:
        found.add("file_empty", "error", None, "the file holds no rows; add questions or take it out of the config")
    if len(numbers) >= _FEWEST_NUMBERED and min(numbers) > 0:
        message = f"none of {len(numbers)} answers given as numbers is 0, and they are counted from 0; write letters if yours begin at 1"
        found.add("answer_from_one", "warning", None, message)
    if unused:
        names = ", ".join(shown(key, 30) for key in list(unused)[:20])
        found.add("key_ignored", "info", None, f"keys that are not read: {names}")
    return questions, n_rows


def _number(answer: object, choices: Sequence[str]) -> int | None:
    """The answer as a number, where it is one and not the text of a choice."""
    text = str(answer).strip()
    return int(text) if text.isascii() and text.isdecimal() and text not in choices else None


def _fields(row: Mapping[str, object], columns: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """The fields of a row by our names, and the keys that nothing reads."""
    taken: dict[str, str] = {}
    for field, usual in FIELDS.items():
        names = (columns[field],) if field in columns else usual
        name = next((name for name in names if name in row), None)
        if name is None and field in columns and field in ("question", "choices", "answer"):
            have = ", ".join(shown(key, 30) for key in list(row)[:20])
            raise UnusableError(
                "field_missing",
                f"column {shown(columns[field])} ({field}) is missing{did_you_mean(columns[field], list(row))}; the row has {have}",
            )
        if name is not None:
            taken[field] = name
    used = {*taken.values(), *(() if "choices" in taken else _choice_columns(row))}
    return {field: row[name] for field, name in taken.items()}, [key for key in row if key not in used]


def _choice_columns(row: Mapping[str, object]) -> list[str]:
    """Columns that hold one choice each, in order; empty where a row has none."""
    letters = {m[1].upper(): key for key in row if (m := _CHOICE_COLUMN.fullmatch(key.strip())) and m[1]}
    numbers = {int(m[2]): key for key in row if (m := _CHOICE_COLUMN.fullmatch(key.strip())) and m[2]}
    found = {**{i: letters[letter] for i, letter in enumerate(LETTERS) if letter in letters}} or numbers
    keys = sorted(found)
    unbroken = bool(keys) and keys == list(range(keys[0], keys[0] + len(keys))) and len(keys) > 1
    return [found[key] for key in keys] if unbroken else []


def _question(
    fields: Mapping[str, object],
    row: Mapping[str, object],
    columns: Mapping[str, str],
    *,
    domain: str | None,
    place: tuple[str, int, str],
) -> QuestionRow:
    file, line, stem = place
    if "question" not in fields or fields["question"] is None:
        keys = ", ".join(shown(key, 30) for key in list(row)[:10]) or "no keys"
        near = did_you_mean("question", list(row))
        raise _RowError("field_missing", f"the question is missing{near}; the row has {keys}")
    text = _text(fields, "question")
    if not text:
        raise _RowError("empty_prompt", "the question is empty; write what is asked or remove the row")
    choices = _choices(fields, row, columns)
    right = fields.get("answer")
    if right is None or right == "":
        near = did_you_mean("answer", list(row))
        raise _RowError("field_missing", f"the answer is missing{near}; every question needs its right answer")
    gold: int | None = None
    alternatives: tuple[str, ...] = ()
    if choices:
        try:
            gold = gold_index(right, choices)
        except ValueError as error:
            raise _RowError("answer_unusable", str(error)) from None
        answers: tuple[str, ...] = (choices[gold],)
    else:
        answers, alternatives = _free_answers(right, fields.get("alternatives"))
    identifier = fields.get("id")
    return QuestionRow(
        id=f"{stem}-{line}" if identifier is None or identifier == "" else str(identifier),
        domain=domain or _text(fields, "domain") or stem,
        question=text,
        choices=choices,
        gold=gold,
        answers=answers,
        alternatives=alternatives,
        context=_text(fields, "context"),
        file=file,
        line=line,
    )


def _free_answers(right: object, wrong: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Right and wrong answers of a row without choices."""
    listed = right if isinstance(right, list) else [right]
    if not listed or not all(isinstance(text, str) for text in listed):
        raise _RowError(
            "answer_unusable",
            f"the answer is {shown(right)} and the row has no choices; add choices, or write the answer (or a list of right ones) as text",
        )
    answers = _checked_choices(listed, "right answers", fewest=1)
    both = _checked_choices([*answers, *_list(wrong, "alternatives")], "right answers and alternatives", fewest=1)
    return answers, both[len(answers) :]


def _choices(fields: Mapping[str, object], row: Mapping[str, object], columns: Mapping[str, str]) -> tuple[str, ...]:
    """The choices of a row; none for a free-form question."""
    if "choices" in fields and fields["choices"] not in (None, ""):
        return _checked_choices(_list(fields["choices"], "choices"), "choices")
    found = () if "choices" in columns else _choice_columns(row)
    cells = [row[key] for key in found]
    while cells and cells[-1] in (None, ""):  # rows of one table may have fewer choices than its columns
        cells.pop()
    return _checked_choices(cells, "choices") if cells else ()


def _checked_choices(values: Iterable[object], what: str, *, fewest: int = 2) -> tuple[str, ...]:
    choices = []
    for value in values:
        if not isinstance(value, str):
            raise _RowError("type_wrong", f"{what} hold {shown(value)}; allowed: text; put it in quotes")
        if not value.strip():
            raise _RowError("choices_unusable", f"one of the {what} is empty; write it or remove it")
        choices.append(_whole(value.strip(), what))
    if not fewest <= len(choices) <= MAX_CHOICES:
        raise _RowError(
            "choices_unusable",
            f"{len(choices)} {what}; allowed: {fewest} to {MAX_CHOICES}; a question with one choice asks nothing",
        )
    plain = [
        unicodedata.normalize("NFC", " ".join(choice.split())) for choice in choices
    ]  # case stays: Aa and aa are two genotypes
    twice = next((choice for i, choice in enumerate(choices) if plain[i] in plain[:i]), None)
    if twice is not None:
        raise _RowError("choices_unusable", f"{what} hold {shown(twice)} twice (spaces do not count); remove one")
    if len(choices) > 1 and choices == list(LETTERS[: len(choices)]):
        raise _RowError(
            "choices_unusable",
            f"the {what} are only the letters {', '.join(choices)}; give their texts, which the question seems to hold, as a list",
        )
    return tuple(choices)


def _list(value: object, name: str) -> list[Any]:
    """A list, or the list that a cell of text holds as JSON."""
    if value in (None, ""):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _RowError(
                "type_wrong",
                f'{name} is {shown(value)}; allowed: a list, in CSV as JSON such as ["yes", "no"], or a column per choice',
            ) from None
    if not isinstance(value, list):
        raise _RowError("type_wrong", f"{name} is {shown(value)}; allowed: a list of texts")
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _RowError("type_wrong", f"{name} is {shown(value)}; allowed: text; put it in quotes")
    return _whole(value.strip(), name)


def _whole(text: str, name: str) -> str:
    """The text, if it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{name} holds half a character (a lone surrogate) at {error.start}; write the text anew"
        raise _RowError("surrogate", message) from None
    return text
