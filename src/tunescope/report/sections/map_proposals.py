"""Which blocks the map proposes to tune, and what that would cost."""

from __future__ import annotations

from tunescope.report import map_words
from tunescope.report.block_ranges import block_ranges
from tunescope.report.layer_map import LayerMap
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import Words

KEY = "map_proposals"


def section(run: RunSource, words: Words) -> Section:
    """Returns the table of proposals."""
    found = run.layer_map
    if found is None:
        return absent(KEY, words, "layers.json")
    content = {
        "meaning": map_words.best_proposal(found, words),
        "table": proposal_table(found, words) if found.proposals else None,
        "note": words("map_proposals.note" if found.proposals else "map_proposals.none"),
    }
    return Section(
        KEY, words("map_proposals.title"), content, facts={"proposals": [row.to_dict() for row in found.proposals]}
    )


def proposal_table(found: LayerMap, words: Words) -> Table:
    """Returns every proposal with its blocks, its size and its price."""
    body = []
    for row in found.proposals:
        share = words.share(len(row.layers) / len(found.blocks))
        body.append(
            [
                Cell(map_words.proposal_name(row, words)),
                Cell(block_ranges(row.layers), words("map_proposals.share_of_blocks", share=share)),
                number(words.compact(row.trainable_parameters)),
                number(words.share(row.relative_cost)),
                number(words.size(row.memory_bytes)),
                Cell(map_words.proposal_why(row, words)),
            ]
        )
    head = [words(f"map_proposals.{name}") for name in ("name", "blocks", "parameters", "cost", "memory", "why")]
    return Table(words("map_proposals.caption"), head, body)
