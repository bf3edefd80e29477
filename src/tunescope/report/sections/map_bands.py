"""Shared, transition, refinement: median, spread and g over the blocks, with the boundaries."""

from __future__ import annotations

from tunescope.report import map_figures, map_words
from tunescope.report.layer_map import LayerMap
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words

KEY = "map_bands"


def section(run: RunSource, words: Words) -> Section:
    """Returns the panels with the bands, and their numbers."""
    found = run.layer_map
    if found is None:
        return absent(KEY, words, "layers.json")
    drawn = map_figures.draw("bands", found, words)
    marked = map_figures.band_marks(found, words) is not None
    content = {
        "meaning": _meaning(found, words),
        "chart": drawn.inline(map_figures.title_of("bands", found, words)) if drawn else None,
        "note": words("map_bands.note" if marked else "map_bands.note_none"),
        "table": number_table(found, words),
    }
    return Section(KEY, words("map_bands.title"), content, facts=found.bands.to_dict() if found.bands else {})


def _meaning(found: LayerMap, words: Words) -> str:
    bands = found.bands
    if bands is None:
        return words("map_bands.not_looked")
    if not bands.found:
        return words("format.sentences").join([words("map.not_found"), words("map_bands.meaning_none")])
    parts = [map_words.meaning(found, words)]
    parts.append(words("map_bands.meaning_mossa" if found.with_signs else "map_bands.meaning_other"))
    if bands.stability:
        first, second = (words.share(share) for share in bands.stability)
        parts.append(words("map_bands.stability", first=first, second=second))
    return words("format.sentences").join(parts)


def number_table(found: LayerMap, words: Words) -> Table:
    """Returns every score over all tasks, a column each, with its interval and what chance gives."""
    rows = [found.scores[key] for key in found.scores if key[1] == "*"]
    body = []
    for i, block in enumerate(found.blocks):
        cells = [Cell(block.removeprefix("block."))]
        for row in rows:
            ends = ""
            if row.low is not None and row.high is not None:
                ends = words.interval(row.low[i], row.high[i], lambda end: map_figures.number(end, words))
            cells.append(number(map_figures.number(row.values[i], words), ends))
        body.append(cells)
    names = [map_figures.score_name(row.name, words) for row in rows]
    return Table(words("map_bands.caption"), [words("map.block"), *names], body or [[Cell(NONE)]])
