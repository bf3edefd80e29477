"""Tasks and blocks: the heat map, and which tasks run alike."""

from __future__ import annotations

import math

from tunescope.report import map_figures
from tunescope.report.dendrogram import cluster_letter
from tunescope.report.layer_map import LayerMap
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words

KEY = "map_tasks"


def section(run: RunSource, words: Words) -> Section:
    """Returns the heat map with its tree, the clusters as a table, the tree alone."""
    found = run.layer_map
    if found is None:
        return absent(KEY, words, "layers.json")
    tree = map_figures.draw("dendrogram", found, words)
    shaded = any(any(map_figures.by_chance(row)) for row in found.of_tasks(found.profile).values())
    content = {
        "meaning": words("format.sentences").join(
            text for text in (_ends(found, words), _clusters(found, words)) if text
        ),
        "chart": heat_map(found, words),
        "note": _note(found, words),
        "by_chance": words("map_tasks.by_chance") if shaded else "",
        "table": _table(found, words),
        "tree": tree.inline(map_figures.title_of("dendrogram", found, words)) if tree else None,
        "left_out": words("map_tasks.left_out", tasks=words.listing(found.left_out)) if found.left_out else "",
    }
    return Section(KEY, words("map_tasks.title"), content, facts={"order": list(found.shown)})


def heat_map(found: LayerMap, words: Words) -> object:
    """Returns the heat map as a picture for a page."""
    drawn = map_figures.draw("heat_map", found, words)
    return drawn.inline(map_figures.title_of("heat_map", found, words)) if drawn else None


def _first_block_differs(found: LayerMap) -> bool:
    """Whether the number of block 0 is of another kind than those of the others: its input at one token is an embedding."""
    return found.profile == "cka_in_out" and found.states == "last"


def _note(found: LayerMap, words: Words) -> str:
    parts = [words("map_tasks.note" if found.tree else "map_tasks.note_flat")]
    if _first_block_differs(found):
        parts.append(words("map_tasks.first_block"))
    return words("format.sentences").join(parts)


def _ends(found: LayerMap, words: Words) -> str:
    """Where the median over tasks is lowest and highest, among numbers of one kind."""
    row = found.overall(found.profile)
    first = 1 if _first_block_differs(found) else 0
    places = [i for i, value in enumerate(row.values) if math.isfinite(value) and i >= first] if row else []
    if row is None or not places:
        return ""
    low, high = min(places, key=lambda i: row.values[i]), max(places, key=lambda i: row.values[i])
    return words(
        "map_tasks.meaning_ends",
        low=words.count(low),
        low_value=map_figures.number(row.values[low], words),
        high=words.count(high),
        high_value=map_figures.number(row.values[high], words),
    )


def _clusters(found: LayerMap, words: Words) -> str:
    if found.tree is None:
        return ""
    count = len(set(found.tree.labels))
    if count < 2:
        return words("map_tasks.meaning_one")
    return words("map_tasks.meaning_clusters", count=words.count(count), last=cluster_letter(max(found.tree.labels)))


def _table(found: LayerMap, words: Words) -> Table | None:
    """Cluster, number of its tasks, their families and names; nothing where there is one cluster."""
    if found.tree is None or len(set(found.tree.labels)) < 2:
        return None
    families = {task.name: task.family for task in found.tasks}
    body = []
    for label in sorted(set(found.tree.labels)):
        names = [leaf.name for leaf in map_figures.leaves(found, words) if leaf.cluster == label]
        kinds = [families[name] for name in names if families[name]]
        counted = sorted({kind: kinds.count(kind) for kind in kinds}.items(), key=lambda item: (-item[1], item[0]))
        text = words("format.comma").join(f"{kind} {words.count(count)}" for kind, count in counted)
        members = words("format.comma").join(names)
        body.append([Cell(cluster_letter(label)), number(words.count(len(names))), Cell(text or NONE), Cell(members)])
    head = [words(f"map_tasks.{name}") for name in ("cluster", "count", "families", "names")]
    return Table(words("map_tasks.clusters"), head, body)
