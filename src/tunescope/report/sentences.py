"""Words the codes of a verdict: its reasons and next steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunescope.report.wording import NONE, Words


def reason(row: Mapping[str, Any], words: Words) -> str:
    """Returns one reason of a verdict as a sentence; a code this version does not know is shown with its numbers.

    Example:
        >>> reason({"code": "thin_evidence", "n": 18, "needed": 30}, Words("en"))
        '18 test examples are too few to settle it; about 30 are needed.'
        >>> reason({"code": "moon_phase", "degree": 4.5}, Words("en"))
        'moon phase (degree: 4.5)'
    """
    return _sentence("reason", row, words)


def step(row: Mapping[str, Any], words: Words) -> str:
    """Returns one next step of a verdict as a sentence; a code this version does not know is shown with its numbers.

    Example:
        >>> step({"code": "collect_test_examples", "have": 18, "need": 30}, Words("en"))
        'Collect more test examples: 18 are there, about 30 are needed.'
    """
    return _sentence("step", row, words)


def _sentence(kind: str, row: Mapping[str, Any], words: Words) -> str:
    code = str(row.get("code", NONE))
    key = f"{kind}.{code}"
    if "low" in row and "high" in row:  # the sentences show both ends together
        row = {**row, "interval": (row["low"], row["high"])}
    if key in words:
        try:
            return words(key, **{name: _value(code, name, value, row, words) for name, value in row.items()})
        except KeyError:  # the row lacks a number of its sentence: show what there is
            pass
    numbers = words("format.comma").join(
        f"{name}: {_plain(value, words)}" for name, value in row.items() if name not in ("code", "interval")
    )
    label = code.replace("_", " ")
    return words("unknown_code", code=label, numbers=numbers) if numbers else label


def _value(code: str, name: str, value: Any, row: Mapping[str, Any], words: Words) -> str:
    """One value of a row, written in its unit."""
    if name in ("arm", "against"):
        return words.arm(value)
    if name == "equals":
        return words.listing([words.arm(arm) for arm in value]) if isinstance(value, list | tuple) else words.arm(value)
    if name in ("share", "error"):
        return words.share(value)
    if name in ("n", "needed", "have", "need", "requests"):
        return words.count(value)
    if name == "interval":
        return _interval(code, value, row, words)
    if name in ("value", "low", "high", "noise_floor", "limit"):
        if code.startswith("money"):
            currency = row.get("currency")
            return words.money_change(value, currency if isinstance(currency, str) else None)
        if code.startswith("guard"):
            return words.loss(value) if name == "limit" else words.loss_change(value)
        return words.score(value) if name in ("noise_floor", "limit") else words.points(value)
    return _plain(value, words)


def _interval(code: str, ends: tuple[Any, Any], row: Mapping[str, Any], words: Words) -> str:
    if code.startswith("money"):
        currency = row.get("currency")
        return words.money_interval(*ends, sign=True, currency=currency if isinstance(currency, str) else None)
    return words.interval(*ends, words.loss_change if code.startswith("guard") else words.points)


def _plain(value: Any, words: Words) -> str:
    """Any value, readable."""
    if isinstance(value, list | tuple):
        return words.listing([_plain(item, words) for item in value])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE if value is None else str(value)
    rounded = float(f"{value:.4g}")
    text = repr(rounded).removesuffix(".0")
    return text.replace("-", "−")
