"""What the base knows: accuracy per domain against chance, how sure it is, and what to collect."""

from __future__ import annotations

from tunescope.report import knowledge_parts as parts
from tunescope.report.knowledge import ALL
from tunescope.report.source import RunSource
from tunescope.report.tables import Section, absent
from tunescope.report.wording import Words

KEY = "knowledge_probe"


def section(run: RunSource, words: Words) -> Section:
    """Returns the picture with chance and intervals, and its numbers."""
    found = run.knowledge
    if found is None:
        return absent(KEY, words, "knowledge.json")
    before = found.before
    content = {
        "meaning": parts.probe_meaning(before, words),
        "chart": parts.accuracy_chart(before, words),
        "note": words("knowledge_probe.note", count=words.count(before.demonstrations)),
        "table": parts.probe_table(before, words),
        "groups": words("knowledge_probe.groups", threshold=words.share(before.threshold)),
        "calibration": words("knowledge_probe.calibration", ece=words.points(before.calibration[ALL].ece).lstrip("+")),
    }
    facts = {"chance": {role: [row.to_dict() for row in rows] for role, rows in before.chance.items()}}
    return Section(KEY, words("knowledge_probe.title"), content, facts=facts)
