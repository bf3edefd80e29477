"""The pictures of a layer map: from its numbers and the words of a language to canvases, and to files in ``figures``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunescope.errors import RunError
from tunescope.report.block_axis import BandMarks, Choice, band_strip, block_ticks, choice_rows, choice_width
from tunescope.report.block_charts import BandWords, BarWords, BlockPanel, Series, band_panels, block_bars
from tunescope.report.block_ranges import block_ranges
from tunescope.report.canvas import Canvas
from tunescope.report.charts import BLUE, GREY
from tunescope.report.dendrogram import Leaf, dendrogram, merges_of
from tunescope.report.heat_map import HeatRow, HeatWords, heat_map
from tunescope.report.layer_map import LayerMap, read_map
from tunescope.report.map_words import headline, listed_reasons, proposal_name
from tunescope.report.page import write_text
from tunescope.report.source import read_language
from tunescope.report.svg import MUTED
from tunescope.report.wording import Words
from tunescope.runs.records import LayerScores

FIGURES = ("heat_map", "bands", "dendrogram", "causal")
CHOICE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6b7681", "#e69f00")
MOST_CHOICES = 6
COMPARED = {"cka_tuned_specialist": "cka_base_specialist"}  # drawn into the same panel, to be held against each other


def write_map_figures(folder: Path, layers: Mapping[str, Any], *, lang: str | None = None) -> list[Path]:
    """Writes the pictures of a layer map as SVG files into ``figures`` of a run folder.

    Each file stands alone: its fonts are named, its ground is white, nothing is fetched. A picture that this map does not have is
    not written, and an older file of it is removed, since it would show another map.

    Args:
        folder: the run folder.
        layers: content of its ``layers.json``.
        lang: ``en`` or ``ja``; the config's language where it is not given.

    Returns:
        Paths of the files: ``heat_map.svg``, ``bands.svg``, ``dendrogram.svg``, ``causal.svg``, those that exist.

    Raises:
        RunError: `layers` holds no map or a broken one, or a file cannot be written.
        UserError: there is no such language.
    """
    found = read_map(layers, folder / "layers.json")
    if found is None:
        raise RunError(f"{folder / 'layers.json'}: holds no layer map; make one with tunescope map")
    words = Words(lang or read_language(folder))
    drawn = {name: draw(name, found, words) for name in FIGURES}
    paths = []
    for name, canvas in drawn.items():
        path = folder / "figures" / f"{name}.svg"
        if canvas is None:
            path.unlink(missing_ok=True)
            continue
        write_text(path, canvas.standalone(title_of(name, found, words), lang=words.lang))
        paths.append(path)
    return paths


def title_of(name: str, found: LayerMap, words: Words) -> str:
    """Returns the title of a picture, for screen readers."""
    return words(f"map_pictures.{name}", what=score_name(found.profile, words))


def draw(name: str, found: LayerMap, words: Words, *, choices: Sequence[Choice] | None = None) -> Canvas | None:
    """Returns one of the pictures, or None where the map does not have it.

    Args:
        name: one of `FIGURES`.
        found: the map.
        words: of the language.
        choices: rows of blocks below ``bands`` and ``causal``; the proposals by default.
    """
    rows = proposal_choices(found, words) if choices is None else choices
    if name == "heat_map":
        return _heat_map(found, words)
    if name == "bands":
        return _bands(found, words, rows)
    if name == "dendrogram":
        return _dendrogram(found, words)
    return _causal(found, words, rows)


def score_name(name: str, words: Words) -> str:
    """Returns the name of a score as a reader sees it."""
    if name.startswith("spread:"):
        return words("map.spread", name=score_name(name.removeprefix("spread:"), words))
    return words.get(f"score.{name}", name)


def number(value: object, words: Words) -> str:
    """Returns a score: three decimals below 10."""
    return words.number(value, 3)


def ticks(words: Words) -> Any:
    """Returns what writes a number at an axis: as many decimals as it needs, no more."""

    def write(value: float) -> str:
        if value == 0:
            return "0"
        text = f"{value:.6g}"
        decimals = len(text.partition(".")[2]) if "e" not in text else 6
        return words.number(value, min(decimals, 6))

    return write


def leaves(found: LayerMap, words: Words) -> list[Leaf]:
    """Returns the tasks in the order shown, each with its cluster and all that is known about it."""
    about = {task.name: task for task in found.tasks}
    tree = found.tree
    cluster = dict(zip(tree.names, tree.labels, strict=True)) if tree else {}
    return [
        Leaf(
            name,
            words(
                "map.task_tip",
                task=name,
                family=about[name].family or words("map.no_family"),
                count=words.count(about[name].n_prompts),
            ),
            cluster.get(name, 0),
        )
        for name in found.shown
    ]


def _tips(row: LayerScores, start: str, words: Words) -> list[str]:
    """Tooltip of each block: value, interval, chance."""
    texts = []
    for i, value in enumerate(row.values):
        text = words(
            start, what=score_name(row.name, words), task=row.task, block=words.count(i), value=number(value, words)
        )
        if row.low is not None and row.high is not None:
            ends = words.interval(row.low[i], row.high[i], lambda end: number(end, words))
            text += words("map.tip_interval", interval=ends)
        if row.null is not None:
            text += words("map.tip_chance", value=number(row.null[i], words))
        texts.append(text)
    return texts


def by_chance(row: LayerScores) -> list[bool]:
    """Returns for each block whether its number is no higher than chance gives; False where there is no null."""
    if row.null is None:
        return [False] * len(row.values)
    return [value <= chance for value, chance in zip(row.values, row.null, strict=True)]


def band_marks(found: LayerMap, words: Words) -> BandMarks | None:
    """Returns where the bands begin, in words; None where no band was found."""
    bands = found.bands
    if bands is None or not bands.found or bands.boundaries is None:
        return None
    parts = {"shared": bands.shared, "transition": bands.transition, "refinement": bands.refinement}
    labels = [words(f"map.{key}", blocks=block_ranges(part) or words("map.empty_band")) for key, part in parts.items()]
    short = [words(f"map.{key}_short") for key in parts]
    ends = tuple(zip(bands.low, bands.high, strict=True)) if bands.low and bands.high else ()
    return BandMarks(
        bands.boundaries, len(found.blocks), (labels[0], labels[1], labels[2]), (short[0], short[1], short[2]), ends
    )


def proposal_choices(found: LayerMap, words: Words) -> list[Choice]:
    """Returns the first proposals as rows of blocks."""
    return [
        Choice(proposal_name(row, words), indices(row.layers, found.blocks), CHOICE_COLOURS[i])
        for i, row in enumerate(found.proposals[:MOST_CHOICES])
    ]


def indices(layers: Sequence[str], blocks: Sequence[str]) -> list[int]:
    """Returns the places of some blocks among all."""
    return [place for place, block in enumerate(blocks) if block in set(layers)]


def _heat_map(found: LayerMap, words: Words) -> Canvas:
    scores = found.of_tasks(found.profile)
    rows = [
        HeatRow(
            leaf, scores[leaf.name].values, _tips(scores[leaf.name], "map.tip", words), by_chance(scores[leaf.name])
        )
        for leaf in leaves(found, words)
    ]
    said = HeatWords(
        score_name(found.profile, words), words("map.by_chance"), words("map.x"), words("map.distance"), ticks(words)
    )
    tree = found.tree
    merges = merges_of(tree.linkage, tree.order) if tree else []
    return heat_map(rows, merges, name="heat-map", words=said, bands=band_marks(found, words))


def _dendrogram(found: LayerMap, words: Words) -> Canvas | None:
    tree = found.tree
    if tree is None or not tree.linkage:
        return None
    merges = merges_of(tree.linkage, tree.order)
    return dendrogram(
        leaves(found, words), merges, name="dendrogram", x_label=words("map.distance_axis"), number=ticks(words)
    )


def _series(row: LayerScores, colour: str, words: Words, label: str = "") -> Series:
    return Series(label, row.values, row.low, row.high, colour, _tips(row, "map.tip_all", words))


def _pair_panel(name: str, other: str | None, title: str, found: LayerMap, words: Words) -> BlockPanel | None:
    """A panel of one score, and of the one it is held against where there is one."""
    first, second = found.overall(name), found.overall(other) if other else None
    if first is None:
        return None
    if second is None:
        return BlockPanel(title, [_series(first, BLUE, words)])
    labels = words("map_bands.base_model"), words("map_bands.tuned_model")
    return BlockPanel(title, [_series(second, GREY, words, labels[0]), _series(first, BLUE, words, labels[1])])


def _bands(found: LayerMap, words: Words, choices: Sequence[Choice]) -> Canvas | None:
    """Median, spread and g; in the modes without g, how well a probe tells the tasks apart."""
    profile, other = found.profile, COMPARED.get(found.profile)
    other = other if other is not None and found.overall(other) is not None else None
    median = (
        words("map_bands.median", name=score_name(profile, words)) if other is None else words("map_bands.median_pair")
    )
    spread = words("map_bands.spread")
    panels = [
        _pair_panel(profile, other, median, found, words),
        _pair_panel(f"spread:{profile}", f"spread:{other}" if other else None, spread, found, words),
    ]
    for name in ("gain", "separability"):
        row = found.overall(name)
        if row is not None and (name == "gain" or found.overall("gain") is None):
            key = "map_bands.tells_tasks_apart" if name == "separability" else f"score.{name}"
            panels.append(BlockPanel(words(key), [_series(row, BLUE, words)], zero=name == "gain"))
    drawn = [panel for panel in panels if panel is not None]
    if not drawn:
        return None
    bands = found.bands
    verdict = why = ""
    if bands is not None and not (bands.found and bands.boundaries):
        verdict, why = headline(found, words), words("map_bands.why", reasons=listed_reasons(bands, words))
        why = why[:1].upper() + why[1:]
    said = BandWords(words("map.x"), words("map.boundary"), words("map.boundary_interval"), verdict, why, ticks(words))
    return band_panels(drawn, name="bands", words=said, bands=band_marks(found, words), choices=choices)


def _causal(found: LayerMap, words: Words, choices: Sequence[Choice]) -> Canvas | None:
    row = found.overall("causal")
    if row is None:
        return None
    said = BarWords(words("map.x"), words("map.rise_axis"), words("map.clear"), words("map.unclear"), ticks(words))
    return block_bars(_series(row, BLUE, words), name="causal", words=said, choices=choices)


def glance(found: LayerMap, words: Words) -> Canvas | None:
    """Returns the proposals as rows of blocks under the bands, for the first screen; None where nothing is proposed."""
    choices = proposal_choices(found, words)
    if not choices:
        return None
    canvas, bands = Canvas("glance", 460, 0), band_marks(found, words)
    left = min(180.0, choice_width(choices, at_least=70))
    step = (canvas.width - left - 8) / len(found.blocks)
    y = 6.0
    if bands:
        band_strip(canvas, bands, left=left, step=step, y=y)
        y += 22
    y += choice_rows(canvas, choices, left=left, step=step, y=y)
    block_ticks(canvas, len(found.blocks), left=left, step=step, y=y + 14)
    canvas.text((left + step * len(found.blocks) / 2, y + 32), words("map.x"), anchor="middle", size=11, fill=MUTED)
    canvas.height = y + 40
    return canvas
