"""Pictures of the knowledge study: shares with their chance level, stacked counts, points with two coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from tunescope.report.block_axis import key_row
from tunescope.report.canvas import Canvas, fit, text_width
from tunescope.report.charts import BLUE, GREY, ORANGE, TICKS
from tunescope.report.svg import INK, MUTED

GREEN, PURPLE, YELLOW = "#009e73", "#cc79a7", "#e69f00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, "#56b4e9", "#332288", GREY)
SHAPES = ("circle", "square", "diamond")
WIDTH = 1000.0
_ROW, _NAMES, _NUMBERS = 24.0, 260.0, 150.0


@dataclass(frozen=True)
class ShareRow:
    """A share with its interval and what guessing gives; a row without numbers is a heading.

    Attributes:
        label: name of the row.
        value: in [0, 1], or None for a heading.
        low: lower end.
        high: upper end.
        chance: share right by guessing.
        clear: whether it is beyond chance.
        text: the number as it is written beside the row.
        tip: tooltip.
    """

    label: str
    value: float | None = None
    low: float = 0.0
    high: float = 0.0
    chance: float = 0.0
    clear: bool = False
    text: str = ""
    tip: str = ""


@dataclass(frozen=True)
class ShareWords:
    """Words on the picture: what a filled dot, a pale dot and the dashed line are; how a share is written at the axis."""

    clear: str
    unclear: str
    chance: str
    tick: Callable[[float], str]


def share_rows(rows: Sequence[ShareRow], *, name: str, words: ShareWords) -> Canvas:
    """Draws a dot with its interval per row and the chance level as a dashed line beside it.

    Args:
        rows: from top to bottom.
        name: unique within a page.
        words: on the picture.
    """
    canvas = Canvas(name, WIDTH, 0)
    keys = [("box", BLUE, words.clear), ("box", GREY, words.unclear), ("dash", ORANGE, words.chance)]
    y = 6 + key_row(canvas, keys, left=14, y=2)
    right = WIDTH - _NUMBERS
    top, bottom = y, y + _ROW * len(rows)

    def at(value: float) -> float:
        return _NAMES + (right - _NAMES) * value

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line([(at(tick), top), (at(tick), bottom)], stroke="#e1e7ec", width=0.8)
        canvas.text((at(tick), bottom + 16), words.tick(tick), anchor="middle", size=11, fill=MUTED)
    for place, row in enumerate(rows):
        middle = top + _ROW * (place + 0.5)
        if row.value is None:
            canvas.text((8, middle + 4), fit(row.label, WIDTH - 20), bold=True)
            continue
        canvas.text((_NAMES - 10, middle + 4), fit(row.label, _NAMES - 18), anchor="end")
        colour = BLUE if row.clear else GREY
        canvas.line([(at(row.low), middle), (at(row.high), middle)], stroke=colour, width=3)
        mark(canvas, at(row.value), middle, colour, "circle" if row.clear else "square", tip=row.tip)
        line = [(at(row.chance), middle - _ROW / 2 + 2), (at(row.chance), middle + _ROW / 2 - 2)]
        canvas.line(line, stroke=ORANGE, width=1.6, dash="4 2")
        canvas.text((right + 12, middle + 4), row.text, size=11, fill=MUTED)
    canvas.height = bottom + 26
    return canvas


@dataclass(frozen=True)
class CountRow:
    """Counts that make up a whole.

    Attributes:
        label: name of the row.
        counts: one per kind.
        tip: tooltip.
    """

    label: str
    counts: Sequence[int]
    tip: str


def count_bars(
    rows: Sequence[CountRow], kinds: Sequence[tuple[str, str]], *, name: str, number: Callable[[int], str]
) -> Canvas:
    """Draws a bar per row, divided by its counts; every bar has the same length.

    Args:
        rows: from top to bottom.
        kinds: (name, colour) of each count, in the order of the counts.
        name: unique within a page.
        number: writes a count.
    """
    canvas = Canvas(name, WIDTH, 0)
    y = 8 + key_row(canvas, [("box", colour, text) for text, colour in kinds], left=14, y=2)
    room = WIDTH - _NAMES - 70
    for place, row in enumerate(rows):
        top, total = y + _ROW * place, sum(row.counts)
        canvas.text((_NAMES - 10, top + 15), fit(row.label, _NAMES - 18), anchor="end")
        x = _NAMES
        for count, (_, colour) in zip(row.counts, kinds, strict=True):
            width = room * count / total if total else 0.0
            if count:
                canvas.rect((x, top + 3, width - 1, _ROW - 7), colour, tip=row.tip)
                text = number(count)
                if width > text_width(text, 11) + 8:
                    fill = "#fff" if colour != PALE else INK
                    canvas.text((x + width / 2, top + 16), text, anchor="middle", size=11, fill=fill)
            x += width
        canvas.text((WIDTH - 58, top + 15), f"n = {number(total)}", size=11, fill=MUTED)
    canvas.height = y + _ROW * len(rows) + 6
    return canvas


PALE = "#c9d2da"


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        x: horizontal.
        y: vertical.
        group: decides its colour; in the legend.
        shape: one of `SHAPES`.
        tip: tooltip.
    """

    x: float
    y: float
    group: str
    shape: str
    tip: str


@dataclass(frozen=True)
class ScatterWords:
    """Words at the axes, what each shape stands for, and how numbers are written."""

    x_label: str
    y_label: str
    shapes: Sequence[tuple[str, str]]
    x_tick: Callable[[float], str]
    y_tick: Callable[[float], str]


def scatter(points: Sequence[Point], *, name: str, words: ScatterWords) -> Canvas:
    """Draws points with two axes.

    Args:
        points: at least one.
        name: unique within a page.
        words: on the picture.
    """
    canvas = Canvas(name, WIDTH, 420)
    groups = list(dict.fromkeys(point.group for point in points))
    colours = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}
    y = 4 + key_row(canvas, [("box", colours[group], group) for group in groups], left=70, y=2)
    x = 70.0
    for shape, text in words.shapes if len(words.shapes) > 1 else ():
        mark(canvas, x + 8, y + 9, MUTED, shape)
        canvas.text((x + 20, y + 13), text)
        x += 44 + text_width(text)
    top, bottom, left, right = y + 44, 370.0, 70.0, WIDTH - 20
    xs, ys = _axis([p.x for p in points]), _axis([p.y for p in points])

    def at(px: float, py: float) -> tuple[float, float]:
        return (
            left + (right - left) * (px - xs[0]) / (xs[1] - xs[0]),
            bottom - (bottom - top) * (py - ys[0]) / (ys[1] - ys[0]),
        )

    for tick in xs[2]:
        canvas.line([at(tick, ys[0]), at(tick, ys[1])], stroke="#e8edf2", width=0.8)
        canvas.text((at(tick, 0)[0], bottom + 16), words.x_tick(tick), anchor="middle", size=11, fill=MUTED)
    for tick in ys[2]:
        canvas.line([at(xs[0], tick), at(xs[1], tick)], stroke="#e8edf2", width=0.8)
        canvas.text((left - 8, at(0, tick)[1] + 4), words.y_tick(tick), anchor="end", size=11, fill=MUTED)
    canvas.text((left, top - 10), words.y_label, bold=True)
    canvas.text(((left + right) / 2, bottom + 36), words.x_label, anchor="middle", fill=MUTED)
    for point in points:
        px, py = at(point.x, point.y)
        mark(canvas, px, py, colours[point.group], point.shape, tip=point.tip)
    return canvas


def mark(canvas: Canvas, x: float, y: float, colour: str, shape: str, *, tip: str = "") -> None:
    """Draws a circle, a square or a diamond, whose tooltip covers it."""
    size = 5.5
    round_off = (
        (1.1, 0.0),
        (0.78, 0.78),
        (0.0, 1.1),
        (-0.78, 0.78),
        (-1.1, 0.0),
        (-0.78, -0.78),
        (0.0, -1.1),
        (0.78, -0.78),
    )
    corners: dict[str, tuple[tuple[float, float], ...]] = {
        "circle": round_off,
        "square": ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
        "diamond": ((0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0)),
    }
    canvas.area([(x + size * dx, y + size * dy) for dx, dy in corners[shape]], colour, opacity=0.88)
    if tip:
        canvas.rect((x - 9, y - 9, 18, 18), "#fff", opacity=0, tip=tip)


def _axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends and ticks of an axis that holds all values."""
    low, high = min(values), max(values)
    if high - low < 1e-6:
        low, high = low - 0.05, high + 0.05
    pad = 0.08 * (high - low)
    low, high = low - pad, high + pad
    ticks = [float(t) for t in MaxNLocator(6, steps=TICKS).tick_values(low, high) if low <= t <= high]
    return low, high, ticks
