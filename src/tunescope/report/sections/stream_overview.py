"""The first screen of a stream: what was lost, in one sentence, four numbers, and what to do next with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.report.sections.overview import alarm
from tunescope.report.source import RunSource
from tunescope.report.stream import Stream, read_stream
from tunescope.report.tables import Section, absent
from tunescope.report.wording import NONE, Words

KEY = "stream"
_NAMED = 8  # tasks in one sentence


def section(run: RunSource, words: Words) -> Section:
    """Returns the first screen; without a stream it says what the run lacks."""
    found = read_stream(run.folder)
    if found is None:
        return absent(KEY, words, "stream.json")
    head = headline(found, words)
    steps = [advice(row, words) for row in found.advice]
    content = {
        "headline": head,
        "lead": lead(found, words),
        "alarm": alarm(run, words),
        "cards": _cards(found, words),
        "steps": steps,
    }
    return Section(KEY, words("stream.title"), content, facts={**found.raw, "headline": head, "steps": steps})


def headline(found: Stream, words: Words) -> str:
    """Returns what a stream lost, in one sentence."""
    change = found.overall
    if found.joint:
        return words("stream.joint", count=words.count(len(found.order)))
    if change is None:
        return words("stream.first")
    lost = sum(row.decides and row.difference < 0 for row in found.by_task)
    total = words.count(len(found.by_task))
    if lost:
        return words("stream.lost", count=words.count(lost), total=total)
    if change.decides and change.difference < 0:
        return words("stream.lost_together", total=total)
    return words("stream.nothing_lost", total=total)


def lead(found: Stream, words: Words) -> str:
    """Returns what was learned, by which policy, and the change over all earlier tasks."""
    name = words.get(f"policy.{found.policy}", found.policy)
    key = "stream.lead_onto" if found.earlier else "stream.lead"
    new = words.count(len(found.order) - len(found.earlier))
    parts = [words(key, policy=name, new=new, earlier=words.count(len(found.earlier)))]
    if found.overall is not None and not found.joint:
        change = found.overall
        interval = words.interval(change.low, change.high, words.points)
        parts.append(words("stream.change", points=words.points(change.difference), interval=interval))
    return words("format.sentences").join(parts)


def _cards(found: Stream, words: Words) -> list[dict[str, str]]:
    cards = []
    for name, writer in (("average", words.score), ("forgetting", words.points), ("forward_transfer", words.points)):
        measure = found.measure(name)
        if measure is not None:
            cards.append(_card(name, writer(measure["value"]), _interval(measure, writer, words), words))
    gain = found.last_gain
    if gain is not None:

        def percent(value: object) -> str:
            return words.number(value, 1) + "%"

        cards.insert(1, _card("relative_gain", percent(gain["value"]), _interval(gain, percent, words), words))
    if found.memory:
        kept = words("stream.kept", count=words.count(found.memory.get("examples")))
        size = words.size(found.memory.get("bytes"))
        limits = [words.count(found.memory["budget_examples"])] if found.memory.get("budget_examples") else []
        limits += [words.size(found.memory["budget_bytes"])] if found.memory.get("budget_bytes") else []
        budget = words("stream.budget", budget=limits[0]) if limits else words("stream.no_budget")
        cards.append({"key": "memory", "title": words("stream.memory"), "value": kept, "label": size, "text": budget})
    return cards


def _card(name: str, value: str, interval: str, words: Words) -> dict[str, str]:
    return {
        "key": name,
        "title": words(f"measure.{name}"),
        "value": value,
        "label": interval,
        "text": words(f"measure_why.{name}"),
    }


def _interval(measure: Mapping[str, Any], writer: Any, words: Words) -> str:
    return words.interval(measure.get("low"), measure.get("high"), writer)


def _named(tasks: Sequence[str], words: Words) -> list[str]:
    """The first tasks, and how many are left."""
    named = [words("format.quoted", text=task) for task in tasks[:_NAMED]]
    rest = len(tasks) - len(named)
    return [*named, words("stream_advice.others", count=words.count(rest))] if rest else named


def advice(row: Mapping[str, Any], words: Words) -> str:
    """Returns one piece of advice in words; an unknown code as it was recorded."""
    code = str(row.get("code", ""))
    key = f"stream_advice.{code}"
    if key not in words:
        numbers = ", ".join(f"{name} {value}" for name, value in row.items() if name != "code")
        return words("unknown_code", code=code, numbers=numbers or NONE)
    tasks = [str(task) for task in row.get("tasks") or ()]
    if code == "lost" and not tasks:
        key = "stream_advice.lost_together"
    values: dict[str, object] = {
        "tasks": words.listing(_named(tasks, words)),
        "count": words.count(len(tasks)),
        "total": words.count(row.get("n_tasks")),
        "points": words.points(row.get("difference")),
        "interval": words.interval(row.get("low"), row.get("high"), words.points),
        "needed": words.count(row.get("needed")),
        "share": words.share(row.get("share")),
        "policy": words.get(f"policy.{row.get('policy')}", str(row.get("policy"))),
        **{name: words.count(row.get(name)) for name in ("replayed", "pool", "kept", "learned")},
    }
    return words(key, **values)
