"""The row formats: which one a parsed row has, and how it becomes an `Example`.

Every format is one function ``(row, instruction) -> _Parts`` in the table `_PARTS`; a file reader only ever sees
`detect_format` and `example_from_row`. What is wrong with a row is returned, not raised, so that the rest of the
file is still read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunescope.data.example import Example
from tunescope.data.findings import shown
from tunescope.errors import did_you_mean
from tunescope.runs.records import Severity

Format = Literal["alpaca", "messages", "prompt_completion", "sharegpt", "super_ni", "columns"]

ALLOWED_SHAPES = (
    "allowed: instruction/input/output (alpaca), messages, prompt/completion, conversations (sharegpt), "
    "Definition/Instances (Super-NaturalInstructions, .json), or a column mapping under columns"
)
_KEYS: dict[str, frozenset[str]] = {
    "alpaca": frozenset({"instruction", "input", "output", "id", "system"}),
    "prompt_completion": frozenset({"prompt", "completion", "id", "system"}),
    "messages": frozenset({"messages", "id"}),
    "sharegpt": frozenset({"conversations", "id", "system"}),
}
_SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_OPENAI_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
# C0 and C1 controls other than tab and line ends, and the marks that reorder text on screen.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class RowProblem:
    """What is wrong with one row.

    Attributes:
        code: kind of finding, see ``docs/formats.md``.
        severity: with an ``error`` there is no example.
        message: one line.
    """

    code: str
    severity: Severity
    message: str


@dataclass(frozen=True)
class RowRead:
    """One row after reading: the example, or None, and what was found."""

    example: Example | None
    problems: tuple[RowProblem, ...] = ()


@dataclass(frozen=True)
class _Parts:
    instruction: str
    input: str
    targets: tuple[str, ...]
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    problems: tuple[RowProblem, ...] = field(default=())


class _RowError(Exception):
    """One row cannot become an example; caught in `example_from_row`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.problem = RowProblem(code, "error", message)


def detect_format(row: Mapping[str, object], columns: Mapping[str, str] | None = None) -> Format | None:
    """Returns the format of a row by its keys, or None if it has none of them.

    A column mapping decides first; then ``messages``, ``conversations``, ``Definition`` with ``Instances``,
    prompt/completion, and any key of alpaca.

    Example:
        >>> detect_format({"prompt": "2+2=", "completion": "4"})
        'prompt_completion'
        >>> detect_format({"question": "?"}) is None
        True
    """
    if columns:
        return "columns"
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "Definition" in row and "Instances" in row:
        return "super_ni"
    if "completion" in row or ("prompt" in row and "output" not in row):
        return "prompt_completion"
    if row.keys() & {"instruction", "input", "output"}:
        return "alpaca"
    return None


def unused_keys(
    row: Mapping[str, object], row_format: Format, columns: Mapping[str, str] | None, attributes: Sequence[str]
) -> dict[str, str]:
    """Returns the keys of a row that nothing reads, each with a ``did you mean`` where a readable key is missing.

    Example:
        >>> unused_keys({"instruction": "a", "inputs": "b", "output": "c"}, "alpaca", None, ())
        {'inputs': ' (did you mean input?)'}
    """
    if row_format == "super_ni":  # its files carry many descriptive keys by definition
        return {}
    known = set((columns or {}).values()) if row_format == "columns" else set(_KEYS[row_format])
    absent = [] if row_format == "columns" else sorted(known - row.keys())
    return {key: did_you_mean(key, absent, limit=1) for key in row if key not in known and key not in attributes}


def example_from_row(
    row: Mapping[str, object],
    row_format: Format,
    *,
    task: str,
    file: str,
    line: int,
    default_id: str,
    instruction: str | None = None,
    columns: Mapping[str, str] | None = None,
    attributes: Sequence[str] = (),
) -> RowRead:
    """Turns one parsed row into an example.

    Args:
        row: the row; values are JSON values.
        row_format: from `detect_format`.
        task: name of the task.
        file: path as shown to the user.
        line: 1-based line or row number.
        default_id: id of a row that has none.
        instruction: for rows without one of their own.
        columns: field -> column, for the format ``columns``.
        attributes: keys to keep with the example.

    Returns:
        The example and its warnings; or no example and the error.

    Example:
        >>> read = example_from_row({"prompt": "2+2=", "completion": "4"}, "prompt_completion", task="sums",
        ...                         file="a.jsonl", line=1, default_id="a-1")
        >>> read.example.instruction, read.example.targets
        ('2+2=', ('4',))
    """
    try:
        source = _mapped(row, columns) if row_format == "columns" and columns else row
        parts = _PARTS[row_format](source, instruction)
        _refuse_empty(parts)
        example = Example(
            _identifier(source.get("id"), default_id),
            task,
            parts.instruction,
            parts.input,
            parts.targets,
            parts.system,
            parts.history,
            _attributes(row, attributes),
            file,
            line,
        )
        return RowRead(example, (*parts.problems, *_text_problems(example, attributes)))
    except _RowError as error:
        return RowRead(None, (error.problem,))


def _mapped(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    for name, column in columns.items():
        if column not in row:
            have = ", ".join(shown(key) for key in list(row)[:20])
            near = did_you_mean(column, list(row))
            raise _RowError("field_missing", f"column {shown(column)} ({name}) is missing{near}; the row has {have}")
    return {name: row[column] for name, column in columns.items()}


def _alpaca(row: Mapping[str, object], instruction: str | None) -> _Parts:
    own = _text(row, "instruction")
    return _Parts(own or instruction or "", _text(row, "input"), _targets(row, "output"), _system(row))


def _prompt_completion(row: Mapping[str, object], instruction: str | None) -> _Parts:
    prompt = _text(row, "prompt")
    targets = _targets(row, "completion")
    if instruction:
        return _Parts(instruction, prompt, targets, _system(row))
    return _Parts(prompt, "", targets, _system(row))


def _messages(row: Mapping[str, object], instruction: str | None) -> _Parts:
    return _chat(_turns(row["messages"], "messages", "role", "content", _OPENAI_ROLES), None)


def _sharegpt(row: Mapping[str, object], instruction: str | None) -> _Parts:
    return _chat(_turns(row["conversations"], "conversations", "from", "value", _SHAREGPT_ROLES), _system(row))


_PARTS: dict[Format, Callable[[Mapping[str, object], str | None], _Parts]] = {
    "alpaca": _alpaca,
    "columns": _alpaca,
    "super_ni": _alpaca,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
}


def _turns(value: object, name: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the turns as (role, text) with our role names."""
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else shown(value)
        raise _RowError("type_wrong", f"{name} is {got}; allowed: a list of {{{role_key}, {text_key}}}")
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise _RowError("type_wrong", f"turn {number} of {name} is {shown(turn)}; allowed: an object")
        role, text = turn.get(role_key), turn.get(text_key)
        if not isinstance(role, str) or role not in roles:
            near = did_you_mean(role, list(roles)) if isinstance(role, str) else ""
            allowed = ", ".join(roles)
            raise _RowError(
                "role_unknown",
                f"turn {number}: {role_key} is {shown(role)}{near}; allowed: {allowed}; rename or remove it",
            )
        if not isinstance(text, str):
            raise _RowError("type_wrong", f"turn {number}: {text_key} is {shown(text)}; allowed: text")
        turns.append((roles[role], text))
    return turns


def _chat(turns: list[tuple[str, str]], system: str | None) -> _Parts:
    """The last assistant turn is the target, the user turn before it the prompt, the rest is history."""
    if turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=-1)
    if last < 0:
        raise _RowError("empty_target", "no assistant turn: nothing to learn or to compare with; add the answer")
    for number, (role, _) in enumerate(turns[: last + 1]):
        wanted = "user" if number % 2 == 0 else "assistant"
        if role != wanted:
            what = "the system turn must be the first" if role == "system" else f"turn {number + 1} must be {wanted}"
            raise _RowError(
                "turn_order",
                f"got {role} where {what} (system not counted): user and assistant take turns; merge or remove it",
            )
    after = len(turns) - last - 1
    problems: tuple[RowProblem, ...] = ()
    if after:
        note = f"{after} turn(s) after the last assistant turn are left out: nothing answers them"
        problems = (RowProblem("turn_unanswered", "warning", note),)
    return _Parts(turns[last - 1][1], "", (turns[last][1],), system or None, tuple(turns[: last - 1]), problems)


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _RowError("type_wrong", f"{key} is {shown(value)}; allowed: text; put it in quotes")
    return value


def _system(row: Mapping[str, object]) -> str | None:
    return _text(row, "system") or None


def _targets(row: Mapping[str, object], key: str) -> tuple[str, ...]:
    if key not in row:
        near = did_you_mean(key, list(row))
        raise _RowError("field_missing", f"{key} is missing{near}; it holds the right answer: add it")
    value = row[key]
    targets = value if isinstance(value, list) else [value]
    if value is None or not targets:
        raise _RowError(
            "empty_target", f"{key} is {'null' if value is None else 'an empty list'}; add the right answer"
        )
    for target in targets:
        if not isinstance(target, str):
            raise _RowError(
                "type_wrong", f"{key} holds {shown(target)}; allowed: text or a list of texts; put it in quotes"
            )
    return tuple(targets)


def _refuse_empty(parts: _Parts) -> None:
    if any(not target.strip() for target in parts.targets):
        raise _RowError("empty_target", "an answer is empty; write the right answer or remove the row")
    if not parts.instruction.strip() and not parts.input.strip():
        raise _RowError("empty_prompt", "instruction and input are both empty; write what is asked or remove the row")


def _identifier(value: object, default: str) -> str:
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _RowError("type_wrong", f"id is {shown(value)}; allowed: text or a whole number")
    return str(value)


def _attributes(row: Mapping[str, object], names: Sequence[str]) -> dict[str, str]:
    kept = {}
    for name in names:
        value = row.get(name)
        if isinstance(value, list | dict | bytes):
            raise _RowError("type_wrong", f"attribute {name} is {shown(value)}; allowed: text, a number, true or false")
        if value is not None:
            kept[name] = str(value)
    return kept


def _text_problems(example: Example, attributes: Sequence[str]) -> list[RowProblem]:
    texts = {
        "id": example.id,
        "instruction": example.instruction,
        "input": example.input,
        "system": example.system or "",
        **{f"answer {number}": text for number, text in enumerate(example.targets, 1)},
        **{f"turn {number}": text for number, (_, text) in enumerate(example.history, 1)},
        **{f"attribute {name}": text for name, text in example.attributes.items()},
    }
    problems = [
        RowProblem(
            "attribute_missing", "warning", f"attribute {name} is missing or null; add it or take it out of attributes"
        )
        for name in attributes
        if name not in example.attributes
    ]
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            message = (
                f"{name} holds half a character (lone surrogate U+{code:04X}) at {error.start}; write the text anew"
            )
            raise _RowError("surrogate", message) from None
        if hit := _CONTROL.search(text):
            message = (
                f"{name} holds the control character U+{ord(hit.group()):04X} at {hit.start()}; remove it if not wanted"
            )
            problems.append(RowProblem("control_character", "warning", message))
        if "\ufffd" in text:
            message = (
                f"{name} holds U+FFFD: the text was once read with the wrong encoding; take it from its source again"
            )
            problems.append(RowProblem("replacement_character", "warning", message))
    return problems
