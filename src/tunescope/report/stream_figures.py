"""The pictures of a stream: the score matrix, the course of every task, and what each stage repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunescope.report import charts
from tunescope.report.canvas import Canvas, clean, fit, text_width
from tunescope.report.charts import BLUE, ORANGE
from tunescope.report.dendrogram import WIDTH
from tunescope.report.heat_map import colour
from tunescope.report.stream import BEFORE, Stream, StreamRow
from tunescope.report.svg import INK, MUTED
from tunescope.report.wording import Words, shorten

_ROW = 24.0
_TALLEST_HEAD = 130.0
_NUMBERS_FROM = 34.0  # pixels: in narrower cells the number stands in the tooltip alone
_LONGEST_NAME = 240.0


@dataclass(frozen=True)
class Grid:
    """Numbers by name and column.

    Attributes:
        names: of the rows.
        columns: names of the columns.
        values: a row of numbers per name; not finite = left empty.
        marked: (row, column) of cells with a frame.
    """

    names: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    marked: frozenset[tuple[int, int]] = frozenset()


def stage_name(arm: str, words: Words) -> str:
    """Returns a row of the matrix as a reader knows it: the number of its stage, or what stands before the first."""
    if arm in BEFORE:
        return words(f"stream.{arm}")
    number = arm.rpartition("-")[2]
    return words("stream.stage", number=str(int(number)) if number.isdecimal() else arm)


def score_matrix(found: Stream, words: Words) -> Markup:
    """Returns the score matrix: a row a task, a column a stage, a frame where the task was learned."""
    values = [[row.scores.get(task, math.nan) for row in found.rows] for task in found.order]
    learned = {task.name: task.stage for task in found.tasks}
    marked = frozenset(
        (i, j) for i, task in enumerate(found.order) for j, row in enumerate(found.rows) if learned.get(task) == row.arm
    )
    grid = Grid(found.order, [stage_name(row.arm, words) for row in found.rows], values, marked)
    return _grid(
        grid,
        name="stream-matrix",
        title=words("stream_matrix.chart"),
        scale=words("stream_matrix.scale"),
        number=words.score,
    )


def allocation(found: Stream, words: Words) -> Markup | None:
    """Returns how many examples each stage repeated of each task, or None where nothing was repeated."""
    stages = [stage for stage in found.stages if any(stage.replayed.values())]
    if not stages:
        return None
    names = [task for task in found.order if any(task in stage.replayed for stage in stages)]
    values = [[float(stage.replayed.get(task, math.nan)) for stage in stages] for task in names]
    grid = Grid(names, [stage_name(stage.arm, words) for stage in stages], values)
    return _grid(
        grid,
        name="stream-allocation",
        title=words("stream_allocation.chart"),
        scale=words("stream_allocation.scale"),
        number=words.count,
    )


def courses(found: Stream, words: Words) -> Markup:
    """Returns a pane per task: its score after every stage, where it was learned, and its expert."""
    places = {row.arm: float(place) for place, row in enumerate(found.rows)}
    learned = {task.name: task.stage for task in found.tasks}
    panes = []
    for task in found.order:
        rows = [row for row in found.rows if task in row.scores]
        x = [places[row.arm] for row in rows]
        lines = [charts.Curve("", x, [100 * row.scores[task] for row in rows], BLUE, marker="o")]
        there = [row for row in rows if row.arm == learned.get(task)]
        if there:
            own = [places[there[0].arm]], [100 * there[0].scores[task]]
            lines.append(charts.Curve(words("stream_curves.learned"), *own, INK, marker="D", dash=""))
        if task in found.experts:
            ends = [0.0, float(len(found.rows) - 1)]
            lines.append(
                charts.Curve(
                    words("stream_curves.expert"), ends, [100 * found.experts[task]] * 2, ORANGE, dash="--", width=1.4
                )
            )
        panes.append((shorten(task, 40), lines))
    return charts.curves(
        panes,
        name="stream-curves",
        title=words("stream_curves.chart"),
        x_label=words("stream_curves.x"),
        y_label=words("stream_curves.y"),
        x_tick=lambda value: _tick(value, found.rows, words),
        y_tick=words.number,
        pane_height=220,
    )


def _tick(value: float, rows: Sequence[StreamRow], words: Words) -> str:
    """The stage at a place of the axis; nothing between two stages."""
    place = round(value)
    if abs(value - place) > 1e-6 or not 0 <= place < len(rows):
        return ""
    arm = rows[place].arm
    number = arm.rpartition("-")[2]
    return words("stream_curves.before") if arm in BEFORE else str(int(number)) if number.isdecimal() else arm


def _grid(grid: Grid, *, name: str, title: str, scale: str, number: Callable[[object], str]) -> Markup:
    """Draws numbers as coloured cells, each with its number where there is room."""
    finite = [value for row in grid.values for value in row if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - 0.5, high + 0.5
    left = 14 + min(_LONGEST_NAME, max(text_width(clean(task)) for task in grid.names))
    step = min(76.0, (WIDTH - left - 10) / len(grid.columns))
    slanted = any(text_width(column, 11) > step - 4 for column in grid.columns)
    head = min(_TALLEST_HEAD, 14 + max(text_width(c, 11) for c in grid.columns)) if slanted else 22.0
    top = 44.0 + head
    canvas = Canvas(name, WIDTH, top + _ROW * len(grid.names) + 12)
    _scale(canvas, left, low=low, high=high, label=scale, number=number)
    for j, column in enumerate(grid.columns):
        x = left + (j + 0.5) * step
        if slanted:
            canvas.parts.append(f'<g transform="rotate(-90 {x + 4:g} {top - 8:g})">')
            canvas.text((x + 4, top - 8), fit(column, head - 12, 11), size=11, fill=MUTED, tip=column)
            canvas.parts.append("</g>")
        else:
            canvas.text((x, top - 8), column, size=11, anchor="middle", fill=MUTED)
    for i, (task, values) in enumerate(zip(grid.names, grid.values, strict=True)):
        y = top + i * _ROW
        canvas.text((left - 8, y + 16), fit(clean(task), left - 12), anchor="end", tip=task)
        for j, value in enumerate(values):
            if not math.isfinite(value):
                continue
            box = (left + j * step, y, step - 1, _ROW - 1)
            framed = (i, j) in grid.marked
            canvas.rect(box, colour(value, low, high), tip=f"{task}, {grid.columns[j]}: {number(value)}")
            if framed:
                inner = (box[0] + 1, box[1] + 1, box[2] - 2, box[3] - 2)
                canvas.rect(inner, "none", stroke=INK)
            if step >= _NUMBERS_FROM:
                dark = (value - low) / (high - low) > 0.55
                place = (box[0] + box[2] / 2, y + 16)
                canvas.text(place, number(value), size=11, anchor="middle", fill="#fff" if dark else INK)
    return canvas.inline(title)


def _scale(
    canvas: Canvas, left: float, *, low: float, high: float, label: str, number: Callable[[object], str]
) -> None:
    width, steps = 180.0, 36
    canvas.text((left, 13), label, size=12, bold=True)
    for i in range(steps):
        value = low + (high - low) * (i + 0.5) / steps
        canvas.rect((left + i * width / steps, 20, width / steps + 0.3, 10), colour(value, low, high))
    canvas.text((left + width + 8, 29), f"{number(low)} – {number(high)}", size=11, fill=MUTED)
