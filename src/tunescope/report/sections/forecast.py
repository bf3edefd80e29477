"""Forecast against fact: was the cost that was announced before the run right?"""

from __future__ import annotations

from collections.abc import Callable

from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words

KEY = "forecast"


def section(run: RunSource, words: Words) -> Section:
    """Returns forecast and measured cost of each arm."""
    arms = [arm for arm in run.arms if arm in run.forecast and arm in run.actual]
    if not arms:
        return absent(KEY, words, "costs.json")
    body = []
    for arm in arms:
        before, after = run.forecast[arm], run.actual[arm]
        times = _pair(before.tuning_seconds, after.tuning_seconds, words.duration, words)
        checks = _pair(before.evaluation_seconds, after.evaluation_seconds, words.duration, words)
        memory = _pair(before.peak_memory_bytes, after.peak_memory_bytes, words.size, words)
        body.append([Cell(arm), *times, *checks, *memory])
    parts = [words("forecast.tuning"), words("forecast.evaluation"), words("forecast.memory")]
    head = [words("forecast.arm")] + [
        words("forecast.head", what=part, kind=words(f"forecast.{kind}"))
        for part in parts
        for kind in ("before", "after")
    ]
    ratios = [
        run.actual[arm].tuning_seconds / run.forecast[arm].tuning_seconds
        for arm in arms
        if run.forecast[arm].tuning_seconds > 0
    ]
    total = run.totals.get("total_seconds")
    peak = run.totals.get("peak_memory_bytes")
    content = {
        "meaning": _meaning(ratios, words),
        "table": Table(words("forecast.caption"), head, body),
        "total": words("forecast.total", time=words.duration(total), memory=words.size(peak)) if total else "",
    }
    facts = {arm: {"forecast": run.forecast[arm].to_dict(), "actual": run.actual[arm].to_dict()} for arm in arms}
    return Section(KEY, words("forecast.title"), content, facts={"arms": facts, "totals": dict(run.totals)})


def _pair(before: float, after: float, write: Callable[[object], str], words: Words) -> list[Cell]:
    """Two cells: what was expected, and what it was with the ratio."""
    if not before and not after:
        return [number(NONE), number(NONE)]
    ratio = words("forecast.ratio", ratio=words.number(after / before, 2)) if before and after else ""
    return [number(write(before) if before else NONE), number(write(after) if after else NONE, ratio)]


def _meaning(ratios: list[float], words: Words) -> str:
    if not ratios:
        return words("forecast.no_meaning")
    low, high = min(ratios), max(ratios)
    if words.number(low, 2) == words.number(high, 2):
        return words("forecast.meaning_one", ratio=words.number(low, 2))
    return words("forecast.meaning", low=words.number(low, 2), high=words.number(high, 2))
