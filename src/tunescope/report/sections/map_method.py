"""How the map was made: what was read, what was compared, how long it took, where the method comes from."""

from __future__ import annotations

from tunescope.report.layer_map import LayerMap
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent
from tunescope.report.wording import Words

KEY = "map_method"


def section(run: RunSource, words: Words) -> Section:
    """Returns the facts as a table, and the footnotes."""
    found = run.layer_map
    if found is None:
        return absent(KEY, words, "layers.json")
    notes = ["note_cka", "note_bands", *(["note_clusters"] if found.tree else [])]
    notes += ["note_causal"] if found.overall("causal") else []
    content = {
        "table": _table(found, words),
        "footnotes": [words(f"map_method.{key}") for key in notes],
    }
    return Section(KEY, words("map_method.title"), content, facts={"seconds": dict(found.seconds)})


def _table(found: LayerMap, words: Words) -> Table:
    mode = "mossa_base" if found.mode == "mossa" and not found.with_signs else found.mode
    counts = [task.n_prompts for task in found.tasks]
    low, high = words.count(min(counts)), words.count(max(counts))
    rows = [
        ("mode", words(f"map_method.mode_{mode}")),
        ("tasks", words.count(len(found.tasks))),
        ("prompts", low if low == high else words("map_method.prompts_range", low=low, high=high)),
        ("blocks", words.count(len(found.blocks))),
        ("states", words.get(f"map_method.states_{found.states}", found.states)),
        ("width", words.count(found.d_model)),
        ("estimator", words.get(f"map_method.{found.estimator}", found.estimator)),
    ]
    body = [[Cell(words(f"map_method.{key}")), Cell(value)] for key, value in rows]
    for part, seconds in found.seconds.items():
        what = words.get(f"map_method.{part}", part)
        body.append([Cell(words("map_method.time", what=what)), Cell(words.duration(seconds))])
    return Table(words("map_method.caption"), [words("map_method.what"), words("map_method.value")], body)
