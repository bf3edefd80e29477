"""The causal check: how far the loss rises when blocks go back to the base model."""

from __future__ import annotations

from tunescope.report import map_figures
from tunescope.report.checked import is_number
from tunescope.report.layer_map import LayerMap
from tunescope.report.source import RunSource
from tunescope.report.tables import Section
from tunescope.report.wording import Words
from tunescope.runs.records import LayerScores

KEY = "map_causal"
LEVEL = 0.05  # above it, agreement is not beyond chance


def section(run: RunSource, words: Words) -> Section:
    """Returns the bars; a map without a tuned model has none."""
    found = run.layer_map
    row = found.overall("causal") if found else None
    if found is None or row is None:
        return Section(KEY, words("map_causal.title"), None, words("map_causal.absent"), {"missing": ["causal"]})
    drawn = map_figures.draw("causal", found, words)
    agreement = agreement_text(found, words)
    content = {
        "meaning": words("format.sentences").join(text for text in (_largest(row, words), agreement) if text),
        "chart": drawn.inline(map_figures.title_of("causal", found, words)) if drawn else None,
        "note": words("map_causal.note"),
    }
    return Section(KEY, words("map_causal.title"), content, facts={"agreement": found.agreement})


def _largest(row: LayerScores, words: Words) -> str:
    top = max(range(len(row.values)), key=lambda i: row.values[i])
    if not row.values[top] > 0:
        return words("map_causal.none")
    block, value = words.count(top), words.loss_change(row.values[top])
    if row.low is None or row.high is None:
        return words("map_causal.meaning_plain", block=block, value=value)
    if row.low[top] <= 0:
        return words("map_causal.none")
    ends = words.interval(row.low[top], row.high[top], words.loss_change)
    return words("map_causal.meaning", block=block, value=value, interval=ends)


def agreement_text(found: LayerMap, words: Words) -> str:
    """Returns how far map and causal check put the blocks in the same order; empty where that was not measured."""
    row = found.agreement or {}
    correlation, p, shift = (row.get(name) for name in ("correlation", "p_value", "shift_p_value"))
    if not (is_number(correlation) and is_number(p) and is_number(shift)):
        return ""
    said = words(
        "map_causal.agreement",
        correlation=words.number(correlation, 2, sign=True),
        p=words.number(p, 3) if isinstance(p, int | float) and p >= 0.0005 else words("map_causal.tiny"),
        shift=words.share(shift),
    )
    chance = isinstance(p, int | float) and isinstance(shift, int | float) and max(p, shift) > LEVEL
    against = isinstance(correlation, int | float) and correlation < 0
    last = words("map_causal.agreement_chance" if chance or against else "map_causal.agreement_holds")
    return words("format.sentences").join([said, last])
