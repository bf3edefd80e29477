"""The three kinds of chart of a report: dots with intervals, bars per block, curves.

Each takes plain values and words and returns an inline SVG element. Colours can be told apart by colour-blind
readers (after Okabe and Ito, https://jfly.uni-koeln.de/color/), and no meaning hangs on colour alone.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tunescope.report.svg import INK, LINE, MUTED, drawing, to_svg
from tunescope.report.wording import shorten, visible

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a949e"
ARM_COLOURS = {
    "nothing": "#6b7681",
    "prompt": "#e69f00",
    "selected": BLUE,
    "random": "#cc79a7",
    "top-third": "#332288",
    "lora-all": "#009e73",
    "full": ORANGE,
}
SPARE_COLOURS = ("#56b4e9", "#7a5195", "#b8860b", "#4d4d4d")
TICKS = (1, 2, 2.5, 5, 10)  # a reader counts in these
MAX_POINTS = 240  # of a curve; more would swell the file without being seen


@dataclass(frozen=True)
class Dot:
    """One value with its interval.

    Attributes:
        label: name of the row.
        value: the number; not finite = left out.
        low: lower end of the interval, or None.
        high: upper end, or None.
        text: the number as it is written beside the dot.
        colour: of dot and interval.
        strong: drawn bold (the recommended arm).
        marker: matplotlib marker.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    text: str
    colour: str
    strong: bool = False
    marker: str = "o"


@dataclass(frozen=True)
class Panel:
    """One pane of dots: rows from top to bottom, `series` of dots in each row.

    Attributes:
        title: above the pane.
        rows: row -> its dots, drawn one below the other.
        zero: draw a line at 0, for differences.
        limits: of the axis, or None.
    """

    title: str
    rows: Sequence[Sequence[Dot]]
    zero: bool = False
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """One line: `x` and `y` of the same length.

    Attributes:
        label: in the legend; empty = not in the legend.
        x: positions.
        y: values; not finite = left out.
        colour: of the line.
        marker: matplotlib marker, or empty.
        dash: matplotlib line style.
        width: of the line.
        alpha: opacity.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    marker: str = ""
    dash: str = "-"
    width: float = 1.8
    alpha: float = 1.0


def arm_colour(arm: str, arms: Sequence[str]) -> str:
    """Returns the colour of an arm: fixed for the known ones, by position for others."""
    others = [name for name in arms if name not in ARM_COLOURS]
    if arm in ARM_COLOURS or arm not in others:
        return ARM_COLOURS.get(arm, GREY)
    return SPARE_COLOURS[others.index(arm) % len(SPARE_COLOURS)]


def text_width(text: str, size: float = 12) -> float:
    """Returns the width of a text in CSS pixels, estimated: a wide character is one em, others 0.58."""
    return sum(size * (1.0 if unicodedata.east_asian_width(char) in "WF" else 0.58) for char in text)


def dots(
    panels: Sequence[Panel],
    *,
    name: str,
    title: str,
    width: int = 1120,
    row_height: int = 34,
    tick: Callable[[float], str] = str,
    x_label: str = "",
) -> Markup:
    """Draws values with their intervals, one row a name, panes side by side on the same rows.

    Args:
        panels: panes; their rows carry the same labels.
        name: unique within the page.
        title: for screen readers.
        width: in CSS pixels.
        row_height: in CSS pixels.
        tick: writes a number at the axis.
        x_label: below the axis.

    Returns:
        An ``<svg>`` element.
    """
    labels = [shorten(visible(row[0].label), 28) for row in panels[0].rows]
    left = 14 + max(text_width(label) for label in labels)
    top = 34 if any(panel.title for panel in panels) else 8
    bottom = 50 if x_label else 30
    height = top + bottom + row_height * len(labels)
    # Right of each pane, for the numbers; a bold figure is a little wider.
    room = 22 + 1.1 * max(text_width(dot.text, 11) for panel in panels for row in panel.rows for dot in row)
    pane = (width - left - room * len(panels)) / len(panels)
    with drawing(name):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        for index, panel in enumerate(panels):
            start = left + index * (pane + room)
            axes = figure.add_axes((start / width, bottom / height, pane / width, 1 - (top + bottom) / height))
            _dot_pane(axes, panel, labels if index == 0 else [""] * len(labels))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
            axes.set_xlabel(x_label, labelpad=6)
        return to_svg(figure, name=name, title=title, min_width=int(0.85 * width))


def _dot_pane(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    """One pane: intervals, dots, numbers right of the pane."""
    axes.set_title(panel.title, loc="left", pad=10, color=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelsize=12, labelcolor=INK)
    axes.tick_params(axis="x", length=3)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICKS))
    if panel.limits:
        axes.set_xlim(*panel.limits)
    if panel.zero:
        axes.axvline(0, color=MUTED, linewidth=1)
    for place, row in enumerate(panel.rows):
        for number, dot in enumerate(row):
            y = place + (number - (len(row) - 1) / 2) * 0.36
            axes.text(
                1.02,
                y,
                dot.text,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=11,
                color=INK if dot.strong else MUTED,
                fontweight="bold" if dot.strong else "normal",
            )
            if not math.isfinite(dot.value):
                continue
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [y, y], color=dot.colour, linewidth=4 if dot.strong else 2.4, alpha=0.45)
            axes.plot([dot.value], [y], dot.marker, color=dot.colour, markersize=9 if dot.strong else 7)
    if labels and labels[0]:
        for text, row in zip(axes.get_yticklabels(), panel.rows, strict=True):
            text.set_fontweight("bold" if any(dot.strong for dot in row) else "normal")


def blocks(
    values: Sequence[float],
    marks: Sequence[tuple[str, Sequence[int], str]],
    *,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    intervals: tuple[Sequence[float], Sequence[float]] | None = None,
    width: int = 1120,
) -> Markup:
    """Draws one bar a block and, below the bars, a row of marks for each choice of blocks.

    Args:
        values: one number a block, block 0 first.
        marks: (label, indices of the blocks, colour) of each choice; the bars of the first are coloured.
        name: unique within the page.
        title: for screen readers.
        x_label: below.
        y_label: at the left axis.
        intervals: lower and upper ends, or None.
        width: in CSS pixels.

    Returns:
        An ``<svg>`` element.
    """
    band = 24 * len(marks)
    left = max([64.0, *(text_width(label) + 22 for label, _, _ in marks)])
    top, bottom, height = 12, 54 + band, 254 + band
    chosen = set(marks[0][1]) if marks else set()
    colour = marks[0][2] if marks else BLUE
    with drawing(name):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + 14) / width, 1 - (top + bottom) / height))
        shown = [value if math.isfinite(value) else 0.0 for value in values]
        places = range(len(shown))
        axes.bar(places, shown, width=0.72, color=[colour if i in chosen else "#c3ccd5" for i in places])
        if intervals:
            axes.vlines(places, intervals[0], intervals[1], color=INK, linewidth=1)
        axes.set_xlim(-0.7, len(shown) - 0.3)
        axes.grid(visible=False, axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=TICKS))
        axes.set_ylabel(y_label)
        axes.set_xlabel(x_label, labelpad=12 + band)
        for row, (arm, indices, shade) in enumerate(marks):
            label = visible(arm)
            y = -(34 + 24 * row) / (height - top - bottom)
            axes.plot(
                list(indices),
                [y] * len(indices),
                "s",
                color=shade,
                markersize=8,
                clip_on=False,
                transform=axes.get_xaxis_transform(),
            )
            axes.text(
                -14 / (width - left - 14),
                y,
                label,
                transform=axes.transAxes,
                ha="right",
                va="center",
                fontsize=12,
                color=INK,
            )
        return to_svg(figure, name=name, title=title, min_width=int(0.85 * width))


def curves(
    panes: Sequence[tuple[str, Sequence[Curve]]],
    *,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    x_tick: Callable[[float], str] = str,
    y_tick: Callable[[float], str] = str,
    y_from_zero: bool = True,
    same_scale: bool = False,
    width: int = 1120,
    pane_height: int = 270,
    line_at: float | None = None,
) -> Markup:
    """Draws lines in panes, side by side on a common y axis.

    Args:
        panes: (title, curves) of each pane, at most three a row.
        name: unique within the page.
        title: for screen readers.
        x_label: below each pane.
        y_label: left of the first pane of a row.
        x_tick: writes a number at the x axis.
        y_tick: writes a number at the y axis.
        y_from_zero: the y axis starts at 0.
        same_scale: both axes run from 0 to 1 with the diagonal drawn.
        width: in CSS pixels.
        pane_height: in CSS pixels.
        line_at: a horizontal line to read against, or None.

    Returns:
        An ``<svg>`` element.
    """
    columns = min(3, len(panes))
    rows = math.ceil(len(panes) / columns)
    height = pane_height * rows
    highest = max((y for _, lines in panes for line in lines for y in line.y if math.isfinite(y)), default=1.0)
    lowest = min((y for _, lines in panes for line in lines for y in line.y if math.isfinite(y)), default=0.0)
    left, right, top, bottom = 62, 14, 36, 48
    with drawing(name):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        for index, (heading, lines) in enumerate(panes):
            x = index % columns * width / columns + left
            y = height - (index // columns + 1) * pane_height + bottom
            size = ((width / columns - left - right) / width, (pane_height - top - bottom) / height)
            axes = figure.add_axes((x / width, y / height, *size))
            axes.set_title(visible(heading), loc="left", pad=12, color=INK)
            _draw_lines(axes, lines)
            axes.set_ylim(0 if y_from_zero else lowest - 0.05 * (highest - lowest), max(highest * 1.06, 1e-9))
            if same_scale:
                axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
                axes.set_xlim(0, 1.02)
                axes.set_ylim(0, 1.02)
            if line_at is not None:
                axes.axhline(line_at, color=MUTED, linewidth=1, linestyle=":")
            axes.set_xlabel(x_label)
            axes.set_ylabel(y_label if index % columns == 0 else "")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x_tick(value)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y_tick(value)))
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=TICKS))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICKS))
        return to_svg(figure, name=name, title=title, min_width=int(0.85 * width))


def _draw_lines(axes: Axes, lines: Sequence[Curve]) -> None:
    for line in lines:
        stride = max(1, math.ceil(len(line.x) / MAX_POINTS))
        keep = [i for i in range(len(line.x)) if i % stride == 0 or i == len(line.x) - 1]
        axes.plot(
            [line.x[i] for i in keep],
            [line.y[i] for i in keep],
            color=line.colour,
            marker=line.marker or None,
            linestyle=line.dash,
            linewidth=line.width,
            alpha=line.alpha,
            markersize=5,
            label=visible(line.label) or "_",
        )
    if any(line.label for line in lines):
        axes.legend(
            frameon=False, fontsize=11, loc="best", handlelength=1.6, labelcolor=INK, borderpad=0, labelspacing=0.35
        )


__all__ = [
    "ARM_COLOURS",
    "BLUE",
    "GREY",
    "LINE",
    "ORANGE",
    "Curve",
    "Dot",
    "Panel",
    "arm_colour",
    "blocks",
    "curves",
    "dots",
    "text_width",
]
