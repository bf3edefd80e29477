"""What data to collect."""

from __future__ import annotations

from tunescope.report import knowledge_parts as parts
from tunescope.report.source import RunSource
from tunescope.report.tables import Section, absent
from tunescope.report.wording import Words

KEY = "knowledge_advice"


def section(run: RunSource, words: Words) -> Section:
    """Returns the advice, a sentence a line."""
    found = run.knowledge
    if found is None:
        return absent(KEY, words, "knowledge.json")
    lines = parts.advice(found.before, words)
    more = len(found.before.advice) - len(lines)
    content = {
        "meaning": words("knowledge_advice.meaning"),
        "lines": lines,
        "more": words("knowledge_advice.more", count=words.count(more)) if more > 0 else "",
    }
    return Section(
        KEY, words("knowledge_advice.title"), content, facts={"advice": list(map(dict, found.before.advice))}
    )
