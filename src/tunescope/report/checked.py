"""Builds records from what stands in a JSON file, so that a hand-edited file gives a line, not a traceback."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tunescope.errors import RunError
from tunescope.runs.records import Record

R = TypeVar("R", bound=Record)


def mapping(values: Any, path: Path) -> Mapping[str, Any]:
    """Returns an object of a file with its keys as text; empty where there is none.

    Raises:
        RunError: it is no object.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RunError(f"{path}: expected a mapping of names to values, got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def records(kind: type[R], rows: Any, path: Path) -> tuple[R, ...]:
    """Returns a list of a file as records; empty where there is none.

    Raises:
        RunError: it is no list, or a row lacks a field or holds something else in one.
    """
    if rows is None:
        return ()
    if not isinstance(rows, list):
        raise RunError(f"{path}: expected a list of {kind.__name__} rows, got {type(rows).__name__}")
    return tuple(record(kind, row, path, str(number)) for number, row in enumerate(rows, 1))


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(test: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list | tuple) and length in (None, len(value)) and all(test(item) for item in value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# Annotation of a record's field (as text, optional part cut off) -> what a value read from JSON must be.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "float": is_number,
    "int": is_number,
    "str": _is_text,
    "Role": lambda value: value in ("in_domain", "out_of_domain", "guard"),
    "tuple[float, ...]": _is_list_of(is_number),
    "tuple[int, ...]": _is_list_of(_is_index),
    "tuple[int, int]": _is_list_of(_is_index, 2),
    "tuple[float, float]": _is_list_of(is_number, 2),
    "tuple[str, ...]": _is_list_of(_is_text),
    "tuple[tuple[float, ...], ...]": _is_list_of(_is_list_of(is_number)),
    "tuple[Mapping[str, Any], ...]": _is_list_of(lambda item: isinstance(item, Mapping)),
    "Mapping[str, Any]": lambda value: isinstance(value, Mapping),
    "Mapping[str, float]": lambda value: isinstance(value, Mapping) and all(map(is_number, value.values())),
    "Mapping[str, Mapping[str, float]]": lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(inner, Mapping) and all(map(is_number, inner.values())) for inner in value.values())
    ),
}


def record(kind: type[R], row: Any, path: Path, where: str) -> R:
    """Returns one object of a file as a record, the type of its fields checked.

    Raises:
        RunError: it is no object, lacks a field, or holds something else in one.
    """
    if not isinstance(row, dict):
        raise RunError(f"{path}: {kind.__name__} {where}: expected an object, got {type(row).__name__}")
    try:
        built = kind.from_dict(row)
    except TypeError as error:
        lacking = str(error).partition("missing ")[2] or str(error)
        raise RunError(f"{path}: {kind.__name__} {where} lacks {lacking}; run the study again") from error
    for field in dataclasses.fields(built):
        value, annotation = getattr(built, field.name), str(field.type)
        optional = annotation.endswith("| None")
        check = CHECKS.get(annotation.removesuffix("| None").strip())
        if check is not None and not (optional and value is None) and not check(value):
            got = repr(str(value)[:60])
            raise RunError(
                f"{path}: {kind.__name__} {where}: {field.name} is {got}, expected {annotation}; "
                "correct it or run the study again"
            )
    return built
