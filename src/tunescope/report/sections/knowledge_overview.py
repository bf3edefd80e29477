"""The first screen of a knowledge study: how much is known, what tuning did, and what to do next."""

from __future__ import annotations

from tunescope.report import knowledge_parts as parts
from tunescope.report.knowledge import ALL, Knowledge
from tunescope.report.sections.overview import alarm
from tunescope.report.source import RunSource
from tunescope.report.tables import Section, absent
from tunescope.report.wording import Words

KEY = "knowledge_overview"


def section(run: RunSource, words: Words) -> Section:
    """Returns the first screen; without a probe it says what the run lacks."""
    found = run.knowledge
    if found is None:
        return absent(KEY, words, "knowledge.json")
    headline, lead = _headline(found, words), parts.probe_meaning(found.before, words)
    content = {"headline": headline, "lead": lead, "alarm": alarm(run, words), "cards": _cards(found, words)}
    return Section(KEY, words("knowledge_overview.title"), content, facts={"headline": headline, "lead": lead})


def _headline(found: Knowledge, words: Words) -> str:
    if found.after is not None:
        return words.get(f"knowledge_decision.{found.after.decision}", found.after.decision.replace("_", " "))
    row = found.before.overall
    return words(f"knowledge_overview.{row.state}", share=words.share(row.accuracy), chance=words.share(row.chance))


def _cards(found: Knowledge, words: Words) -> list[dict[str, str]]:
    row = found.before.overall
    group = found.before.groups[ALL][-1]
    cards = [
        _card(
            "known",
            words.share(row.accuracy),
            words("knowledge.p_chance", chance=words.share(row.chance)),
            words,
            n=words.count(row.n),
        ),
        _card(
            "wrong",
            words.count(group.incompatible),
            "",
            words,
            harmonious=words.count(group.harmonious),
            unsure=words.count(group.unsure),
        ),
    ]
    if found.after is not None:
        change = found.after.overall.change
        ends = words.interval(change.get("low"), change.get("high"), words.points)
        values = {"learned": words.count(found.after.overall.learned), "lost": words.count(found.after.overall.lost)}
        cards.append(_card("change", words.points(change.get("value")), ends, words, **values))
    elif found.intervention is not None and (gap := found.intervention.against("self_aligning", "incompatible")):
        ends = words.interval(gap.low, gap.high, words.points)
        cards.append(_card("self", words.points(gap.value), ends, words))
    advice = parts.advice(found.before, words)
    if advice:
        cards.append({"title": words("knowledge_card.next"), "value": "", "label": "", "text": advice[0]})
    return cards


def _card(key: str, value: str, label: str, words: Words, **values: str) -> dict[str, str]:
    return {
        "title": words(f"knowledge_card.{key}"),
        "value": value,
        "label": label,
        "text": words(f"knowledge_card.{key}_text", **values),
    }
