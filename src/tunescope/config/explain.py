"""What pydantic found wrong with the settings, as lines that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from tunescope.config.models import Config
from tunescope.config.plain import Location
from tunescope.errors import did_you_mean

_NEEDS = {
    "model_type": "`key: value` lines",
    "dict_type": "`key: value` lines",
    "tuple_type": "a list: [first, second]",
    "path_type": "a path",
    "string_type": "text; put a number or true in quotes if it is meant as text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def explain(error: ValidationError, source: str, lines: Mapping[Location, int | str]) -> list[str]:
    """Returns one line per problem: where, which setting, what was got, what is allowed.

    Args:
        error: from validating `Config`.
        source: name shown in front of a problem.
        lines: where each location stands: a line number, or the text of an override.
    """
    problems: dict[Location, str] = {}
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(
            i["loc"][: len(item["loc"])] == item["loc"] and i is not item for i in items
        ):
            continue  # the list is only "too short" because its entries, named elsewhere, are wrong
        location = _location(item)
        if location in problems:  # a union of types reports once per branch; only the allowed words add something
            if item["type"] == "literal_error":
                problems[location] += f", or {item['ctx']['expected']}"
            continue
        name = ".".join(_printable(part) for part in location) or "settings"
        problems[location] = f"{_place(location, source, lines)}: {_one_problem(item, name, location)}"
    return list(problems.values())


def _location(item: Any) -> Location:
    """Where a problem stands, without what pydantic adds for the branch of a union or for a key."""
    location: Location = item["loc"]
    last = str(location[-1]) if location else ""
    added = last in ("[key]", "float") or last.startswith(("literal[", "constrained-", "function-"))
    return location[:-1] if added and item["type"] != "extra_forbidden" else location


def _printable(part: object) -> str:
    """A key as it was written; one with line breaks or control characters as Python writes it, so that a problem stays one line."""
    text = str(part)
    return text if text.isprintable() else repr(text)


def _place(location: Location, source: str, lines: Mapping[Location, int | str]) -> str:
    for end in range(len(location), -1, -1):
        found = lines.get(location[:end])
        if isinstance(found, str):
            return found
        if found is not None:
            return f"{source}:{found}"
    return source


def _one_problem(item: Any, name: str, location: Location) -> str:
    kind, got = item["type"], item.get("input")
    shown = _shown(got)
    if kind == "extra_forbidden":
        allowed = _field_names(location[:-1])
        return f"unknown setting {name!r}{did_you_mean(str(location[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return f"{name} is missing; see `tunescope config schema` or docs/configuration.md"
    if kind == "value_error":
        return f"{name}: {item['ctx']['error']}"
    if kind in ("enum", "literal_error"):
        allowed_values = [text.strip("' ") for text in re.split(r",|\bor\b", item["ctx"]["expected"])]
        return f"{name}: got {shown}{did_you_mean(str(got), allowed_values)}; allowed: {', '.join(allowed_values)}"
    if kind == "too_short":
        return f"{name}: got {item['ctx']['actual_length']} entries, needs at least {item['ctx']['min_length']}"
    if kind in _NEEDS:
        return f"{name}: got {shown}, needs {_NEEDS[kind]}"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{name}: got {shown}, {message.replace('input ', 'it ', 1)}"


def _shown(value: Any) -> str:
    """A value as the user would write it, or what kind of thing it is."""
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _field_names(location: Location) -> list[str]:
    """Names of the settings that exist at a location."""
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
