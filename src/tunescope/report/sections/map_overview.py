"""The first screen of a map's page: what the map says in two sentences, the proposed blocks and their price."""

from __future__ import annotations

from tunescope.report import map_figures, map_words
from tunescope.report.block_ranges import block_ranges
from tunescope.report.layer_map import LayerMap
from tunescope.report.sections.overview import alarm
from tunescope.report.source import RunSource
from tunescope.report.tables import Section, absent
from tunescope.report.wording import Words

KEY = "map"
MOST_CARDS = 4


def section(run: RunSource, words: Words) -> Section:
    """Returns the first screen; without a map it says what the run lacks."""
    found = run.layer_map
    if found is None:
        return absent(KEY, words, "layers.json")
    head, lead = map_words.headline(found, words), map_words.lead(found, words)
    drawn = map_figures.glance(found, words)
    cards = _cards(found, words)
    content = {
        "headline": head,
        "lead": lead,
        "alarm": alarm(run, words),
        "cards": cards,
        "more": words("map.more", count=words.count(len(found.proposals))) if len(found.proposals) > MOST_CARDS else "",
        "chart": drawn.inline(map_figures.title_of("glance", found, words)) if drawn else None,
    }
    facts = {**found.raw, "headline": head, "lead": lead, "scores": [row.to_dict() for row in run.scores]}
    return Section(KEY, words("map.title"), content, facts=facts)


def _cards(found: LayerMap, words: Words) -> list[dict[str, str]]:
    cards = []
    for row in found.proposals[:MOST_CARDS]:
        counts = {"count": words.count(len(row.layers)), "total": words.count(len(found.blocks))}
        priced = row.trainable_parameters is not None and row.memory_bytes is not None
        size = {"parameters": words.compact(row.trainable_parameters), "memory": words.size(row.memory_bytes)}
        cost = words.share(row.relative_cost)
        cards.append(
            {
                "title": map_words.proposal_name(row, words),
                "value": block_ranges(row.layers),
                "label": words("map.cost_label", cost=cost) if row.relative_cost is not None else "",
                "text": words("map.card", **counts, **size) if priced else words("map.card_short", **counts),
            }
        )
    return cards
