"""What tuning did: known, lost, learned, unknown; how near both models are; the judgement."""

from __future__ import annotations

from tunescope.report import knowledge_parts as parts
from tunescope.report.knowledge import After
from tunescope.report.source import RunSource
from tunescope.report.tables import Section
from tunescope.report.wording import Words

KEY = "knowledge_change"


def section(run: RunSource, words: Words) -> Section:
    """Returns the bars, the judgement with its evidence, and consistency against accuracy."""
    found = run.knowledge.after if run.knowledge else None
    if found is None:
        return Section(
            KEY, words("knowledge_change.title"), None, words("knowledge_change.absent"), {"missing": ["after"]}
        )
    content = {
        "meaning": parts.transition_meaning(found, words),
        "chart": parts.transition_chart(found, words),
        "note": words("knowledge_change.note"),
        "table": parts.transition_table(found, words),
        "decision": words.get(f"knowledge_decision.{found.decision}", found.decision.replace("_", " ")),
        "reasons": parts.reasons(found, words),
        "agreement": parts.agreement_chart(found, words),
        "agreement_meaning": _agreement(found, words),
    }
    return Section(KEY, words("knowledge_change.title"), content, facts=dict(found.raw))


def _agreement(found: After, words: Words) -> str:
    text = words("knowledge_change.agreement", consistency=words.number(found.agreed.consistency, 2))
    if found.partial is None:
        return text
    more = words("knowledge_change.partial", value=words.number(found.partial, 2))
    return words("format.sentences").join([text, more])
