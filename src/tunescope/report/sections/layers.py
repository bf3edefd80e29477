"""Where the knowledge sits: the score of every block, and the blocks that each arm may move."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from tunescope.report import charts, map_figures, map_words
from tunescope.report.block_axis import Choice
from tunescope.report.block_ranges import block_ranges
from tunescope.report.layer_map import LayerMap
from tunescope.report.sections.map_bands import number_table
from tunescope.report.sections.map_causal import agreement_text
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words
from tunescope.runs.records import LayerScores, Selection

KEY = "layers"
SHOWN = ("selected", "random")  # the two choices that are compared; the other arms move every block


def section(run: RunSource, words: Words) -> Section:
    """Returns the layer map with the chosen blocks marked; without a map, the bar chart of block scores."""
    if not run.scores and not run.selections:
        return absent(KEY, words, "layers.json")
    if run.layer_map is not None:
        return _map_section(run.layer_map, run, words)
    scores = next((row for row in run.scores if row.task == "*"), run.scores[0] if run.scores else None)
    content: dict[str, object] = {
        "pictures": [],
        "meaning": _meaning(scores, run, words),
        "limits": words("layers.limits")
        if scores is not None and scores.name == "gradient_norm"
        else words("layers.limits_other"),
        "chart": _chart(scores, run, words) if scores else None,
        "table": _score_table(scores, run, words) if scores else None,
        "choices": _choices(run, words),
    }
    facts = {
        "scores": [row.to_dict() for row in run.scores],
        "selections": {arm: row.to_dict() for arm, row in run.selections.items()},
    }
    return Section(KEY, words("layers.title"), content, facts=facts)


def _map_section(found: LayerMap, run: RunSource, words: Words) -> Section:
    """The pictures of the map that chose the blocks, with the blocks of the arms below them."""
    arms = [(arm, run.selections[arm]) for arm in (*SHOWN, *run.selections) if arm in run.selections]
    chosen = {
        arm: Choice(arm, map_figures.indices(row.layers, found.blocks), charts.arm_colour(arm, run.arms))
        for arm, row in arms
        if not row.whole_model and (arm in SHOWN or len(row.layers) < len(found.blocks))
    }
    drawn = {
        name: map_figures.draw(name, found, words, choices=list(chosen.values()))
        for name in ("heat_map", "bands", "causal")
    }
    marked = found.bands is not None and found.bands.found  # where none was found, the picture says why
    said = [
        map_words.headline(found, words),
        map_words.meaning(found, words) if marked else "",
        agreement_text(found, words),
    ]
    content = {
        "meaning": words("format.sentences").join(text for text in said if text),
        "limits": words("layers.limits_map", mode=found.mode),
        "chart": None,
        "pictures": [
            canvas.inline(map_figures.title_of(name, found, words))
            for name, canvas in drawn.items()
            if canvas is not None
        ],
        "table": number_table(found, words),
        "choices": _choices(run, words),
    }
    facts = {
        "map": dict(found.raw),
        "scores": [row.to_dict() for row in run.scores],
        "selections": {arm: row.to_dict() for arm, row in run.selections.items()},
    }
    return Section(KEY, words("layers.title"), content, facts=facts)


def _chosen(run: RunSource, scores: LayerScores) -> list[tuple[str, list[int], str]]:
    """(arm, indices of its blocks, colour) of the arms that move only some blocks."""
    marks = []
    for arm in (*SHOWN, *(arm for arm in run.selections if arm not in SHOWN)):
        selection = run.selections.get(arm)
        if (
            selection is None
            or selection.whole_model
            or (arm not in SHOWN and len(selection.layers) >= len(scores.layers))
        ):
            continue
        places = [scores.layers.index(layer) for layer in selection.layers if layer in scores.layers]
        marks.append((arm, places, charts.arm_colour(arm, run.arms)))
    return marks


def _chart(scores: LayerScores, run: RunSource, words: Words) -> Markup:
    ends = (scores.low, scores.high) if scores.low and scores.high else None
    return charts.blocks(
        scores.values,
        _chosen(run, scores),
        name="layers",
        title=words("layers.chart_title"),
        x_label=words("layers.x"),
        y_label=words.get(f"score.{scores.name}", scores.name),
        intervals=ends,
    )


def _meaning(scores: LayerScores | None, run: RunSource, words: Words) -> str:
    if scores is None or not scores.values:
        return words("layers.no_scores")
    top = max(range(len(scores.values)), key=lambda i: scores.values[i])
    parts = [words("layers.top", layer=scores.layers[top], n=words.count(scores.n))]
    selection, total = run.selections.get("selected"), sum(scores.values)
    if selection is not None and total > 0:
        held = sum(
            value for layer, value in zip(scores.layers, scores.values, strict=False) if layer in selection.layers
        )
        share = len(selection.layers) / len(scores.layers)
        parts.append(words("layers.held", held=words.share(held / total), share=words.share(share)))
    return words("format.sentences").join(parts)


def _score_table(scores: LayerScores, run: RunSource, words: Words) -> Table:
    marks = _chosen(run, scores)
    body = []
    for i, layer in enumerate(scores.layers):
        ends = words.interval(scores.low[i], scores.high[i], _small(words)) if scores.low and scores.high else NONE
        chosen = [Cell("●" if i in places else "", css="c") for _, places, _ in marks]
        body.append([Cell(layer), number(_small(words)(scores.values[i])), number(ends), *chosen])
    head = [
        words("layers.block"),
        words.get(f"score.{scores.name}", scores.name),
        words("layers.interval"),
        *(arm for arm, _, _ in marks),
    ]
    return Table(words("layers.caption", unit=scores.unit), head, body)


def _small(words: Words) -> Callable[[object], str]:
    return lambda value: words.number(value, 4)


def _choices(run: RunSource, words: Words) -> Table | None:
    if not run.selections:
        return None
    head = [words(f"layers.{name}") for name in ("arm", "moves", "parts", "parameters", "why")]
    body = [
        [
            Cell(arm),
            Cell(_moves(row, words)),
            Cell(words("format.comma").join(row.modules) if row.modules else words("layers.all_parts")),
            number(words.compact(row.trainable_parameters), _share(row, words)),
            Cell(row.why),
        ]
        for arm, row in run.selections.items()
    ]
    return Table(words("layers.choices"), head, body)


def _share(row: Selection, words: Words) -> str:
    return (
        words("arms.part_of_model", share=words.share(row.trainable_parameters / row.total_parameters))
        if row.total_parameters
        else ""
    )


def _moves(row: Selection, words: Words) -> str:
    return (
        words("layers.whole_model")
        if row.whole_model
        else words("layers.n_blocks", n=words.count(len(row.layers)), list=block_ranges(row.layers))
    )
