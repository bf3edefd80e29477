"""What a knowledge study can and cannot say."""

from __future__ import annotations

from tunescope.report.source import RunSource
from tunescope.report.tables import Section, absent
from tunescope.report.wording import Words

KEY = "knowledge_limits"


def section(run: RunSource, words: Words) -> Section:
    """Returns both lists."""
    if run.knowledge is None:
        return absent(KEY, words, "knowledge.json")
    can = [words(f"knowledge_limits.can_{key}") for key in ("share", "moved", "collect")]
    cannot = [
        words(f"knowledge_limits.cannot_{key}")
        for key in ("form", "never", "cause", "texts" if run.knowledge.before.by_text else "letters")
    ]
    return Section(
        KEY, words("knowledge_limits.title"), {"can": can, "cannot": cannot}, facts={"can": can, "cannot": cannot}
    )
