"""Knowledge in the report of a proof of concept: already known, learned, lost, and the advice."""

from __future__ import annotations

from tunescope.report import knowledge_parts as parts
from tunescope.report.source import RunSource
from tunescope.report.tables import Section
from tunescope.report.wording import Words

KEY = "knowledge"


def section(run: RunSource, words: Words) -> Section:
    """Returns the probe before and after, each with its picture; a run without questions says how to get them."""
    found = run.knowledge
    if found is None:
        return Section(KEY, words("knowledge.title"), None, words("knowledge.absent"), {"missing": ["knowledge.json"]})
    after = found.after
    content = {
        "meaning": parts.probe_meaning(found.before, words),
        "chart": parts.accuracy_chart(found.before, words),
        "note": words("knowledge_probe.note", count=words.count(found.before.demonstrations)),
        "after_meaning": parts.transition_meaning(after, words) if after else "",
        "decision": words.get(f"knowledge_decision.{after.decision}", after.decision.replace("_", " "))
        if after
        else "",
        "after_chart": parts.transition_chart(after, words) if after else None,
        "table": parts.transition_table(after, words) if after else parts.probe_table(found.before, words),
        "lines": parts.advice(found.before, words),
    }
    facts = {"advice": list(map(dict, found.before.advice)), "after": dict(after.raw) if after else None}
    return Section(KEY, words("knowledge.title"), content, facts=facts)
