"""The score of an answer that must be JSON: which fields are right."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tunescope.errors import DataError
from tunescope.metrics.text import normalise

_MOST_STARTS = 100
"""Opening brackets tried when JSON stands inside other text: bounds the time on hostile output."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def json_fields(prediction: str, reference: str) -> float:
    """Gives the F1 of the fields: right fields raise it, missing, wrong and additional ones lower it.

    A field is a leaf of the JSON: its path (keys exactly as written, places in lists by position) and its value. Texts
    are compared as in `exact_match`, numbers by value (5 equals 5.0), and a text never equals a number, since a program
    that reads the answer would not accept it either. An empty object or list is a leaf.

    JSON inside other text (a sentence before it, a code fence around it) is accepted: the first object that can be read
    is taken (the first list, if the reference is a list) and nothing after it counts.

    Args:
        prediction: the answer given; what cannot be read as JSON scores 0.
        reference: the right answer, as JSON.

    Returns:
        F1 in [0, 1].

    Raises:
        DataError: if the reference is not JSON, because then every answer would be wrong.

    Example:
        >>> json_fields('{"site": "Plant B", "units": 2}', '{"site": "plant b", "units": 3}')
        0.5
        >>> json_fields('Here it is: ```json {"units": 3.0} ```', '{"units": 3}')
        1.0
    """
    try:
        right = _DECODER.decode(reference.strip().removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the reference {reference[:60]!r} is not JSON ({error}): the metric json_fields needs JSON targets, "
            "correct the target or use another metric"
        ) from None
    try:
        given = _find(prediction, "[" if isinstance(right, list) else "{")
    except LookupError:
        return 0.0
    places: dict[tuple[int, str | int], int] = {}
    expected, found = _leaves(right, places), _leaves(given, places)
    return 2 * sum((expected & found).values()) / (expected.total() + found.total())


def _find(text: str, opening: str) -> Any:
    """Reads the text as JSON, or the first value in it that begins with the bracket; LookupError if there is none."""
    try:
        return _DECODER.decode(text.strip().removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        pass
    start = -1
    for _ in range(_MOST_STARTS):
        start = text.find(opening, start + 1)
        if start < 0:
            break
        try:
            return _DECODER.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    raise LookupError("no JSON found")


def _leaves(value: Any, places: dict[tuple[int, str | int], int]) -> Counter[tuple[int, str, str]]:
    """Counts the leaves as (place, type, value); a place is a number per path, so deep nesting costs no more."""
    leaves: Counter[tuple[int, str, str]] = Counter()
    waiting: list[tuple[int, Any]] = [(0, value)]
    while waiting:
        place, node = waiting.pop()
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        if isinstance(node, dict | list) and node:
            waiting += [(places.setdefault((place, key), len(places) + 1), child) for key, child in children]
        else:
            leaves[(place, *_plain(node))] += 1
    return leaves


def _plain(leaf: Any) -> tuple[str, str]:
    """Returns type and comparable text of a leaf."""
    if isinstance(leaf, str):
        return "text", normalise(leaf)
    if isinstance(leaf, bool) or leaf is None or isinstance(leaf, dict | list):
        return "other", repr(leaf)
    whole = isinstance(leaf, float) and leaf.is_integer() and abs(leaf) < 2**53
    return "number", repr(int(leaf) if whole else leaf)
