"""Numbers per block: lines with their intervals in aligned panels with the bands, and bars with whiskers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from tunescope.report.block_axis import (
    BandMarks,
    Choice,
    block_ticks,
    choice_rows,
    choice_width,
    key_row,
)
from tunescope.report.canvas import Canvas, text_width, wrap
from tunescope.report.charts import BLUE, TICKS
from tunescope.report.dendrogram import WIDTH
from tunescope.report.svg import INK, LINE, MUTED

PALE = "#9fb3c4"  # a bar that may be nothing
PANEL, HEAD, PAD = 118.0, 26.0, 12.0


@dataclass(frozen=True)
class Series:
    """A number per block.

    Attributes:
        label: in the legend of its panel; empty = the only one.
        values: one number a block; not finite = left out.
        low: lower ends of the intervals, or None.
        high: upper ends, or None.
        colour: of line and ribbon.
        tips: text of each block's tooltip.
    """

    label: str
    values: Sequence[float]
    low: Sequence[float] | None
    high: Sequence[float] | None
    colour: str
    tips: Sequence[str]


@dataclass(frozen=True)
class BlockPanel:
    """One pane over the blocks.

    Attributes:
        title: above it.
        series: lines in it.
        zero: whether 0 belongs on the axis.
    """

    title: str
    series: Sequence[Series]
    zero: bool = False


@dataclass(frozen=True)
class BandWords:
    """Words of the bands' picture.

    Attributes:
        x_label: below the blocks.
        boundary: what the dashed lines are.
        interval: what the shade around them is.
        verdict: above the panels, where no band was found; else empty.
        why: below the verdict.
        number: writes a value at an axis.
    """

    x_label: str
    boundary: str
    interval: str
    verdict: str
    why: str
    number: Callable[[float], str]


def band_panels(
    panels: Sequence[BlockPanel],
    *,
    name: str,
    words: BandWords,
    bands: BandMarks | None = None,
    choices: Sequence[Choice] = (),
) -> Canvas:
    """Draws panels one below the other over the same blocks, the bands behind them.

    Args:
        panels: from top to bottom; at least one with a series.
        name: unique within a page.
        words: on the picture.
        bands: or None.
        choices: rows of chosen blocks below the panels.
    """
    n_blocks = len(panels[0].series[0].values)
    canvas = Canvas(name, WIDTH, 0)
    left = choice_width(choices, at_least=70)
    step = (WIDTH - left - 12) / n_blocks
    y = 4 + _verdict(canvas, words.verdict, words.why)
    if bands:
        keys = [("box", fill, label) for first, stop, fill, label, _ in bands.spans if stop > first]
        keys.append(("dash", INK, words.boundary))
        keys += [("box", "#b9c2cb", words.interval)] if bands.intervals else []
        y += key_row(canvas, keys, left=14, y=y)
    for panel in panels:
        _panel(canvas, panel, bands, left=left, step=step, y=y, words=words)
        y += HEAD + PANEL + PAD
    block_ticks(canvas, n_blocks, left=left, step=step, y=y + 6)
    y += 10 + choice_rows(canvas, choices, left=left, step=step, y=y + 12)
    canvas.text((left + step * n_blocks / 2, y + 20), words.x_label, anchor="middle", fill=MUTED)
    canvas.height = y + 30
    return canvas


def _verdict(canvas: Canvas, verdict: str, why: str) -> float:
    """The sentences above the panels; returns their height."""
    if not verdict:
        return 0.0
    lines = [verdict, *wrap(why, WIDTH - 60, 12.5)]
    height = 18.0 * len(lines) + 14
    canvas.rect((6, 4, WIDTH - 12, height), "#fff4e5", stroke="#e0a458")
    for i, line in enumerate(lines):
        canvas.text((20, 24 + 18 * i), line, size=13 if i == 0 else 12.5, bold=i == 0)
    return height + 12


def _range(panel: BlockPanel) -> tuple[float, float, list[float]]:
    """Lower end, upper end and ticks of an axis that holds all values and intervals."""
    rows = [row for series in panel.series for row in (series.values, series.low, series.high) if row is not None]
    finite = [value for row in rows for value in row if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    low, high = (min(0.0, low), max(0.0, high)) if panel.zero else (low, high)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    pad = 0.06 * (high - low)
    low, high = low - (0 if panel.zero and low == 0 else pad), high + pad
    ticks = [float(t) for t in MaxNLocator(4, steps=TICKS).tick_values(low, high) if low <= t <= high]
    return low, high, ticks


def _panel(
    canvas: Canvas,
    panel: BlockPanel,
    bands: BandMarks | None,
    *,
    left: float,
    step: float,
    y: float,
    words: BandWords,
) -> None:
    """One pane: title, bands, axis, ribbons, lines, tooltips."""
    low, high, ticks = _range(panel)
    top, n_blocks = y + HEAD, len(panel.series[0].values)
    right = left + step * n_blocks

    def at(value: float) -> float:
        return top + PANEL * (high - value) / (high - low)

    canvas.text((left, y + 17), panel.title, bold=True)
    _labels(canvas, panel, after=left + text_width(panel.title) * 1.12 + 24, y=y + 17)
    if bands:
        for first, stop, fill, _, _ in bands.spans:
            canvas.rect((left + first * step, top, (stop - first) * step, PANEL), fill, opacity=0.55)
        for first, last in bands.intervals:  # a boundary lies before its block
            x = left + first * step - 0.5 * step
            canvas.rect((x, top, (last - first + 1) * step, PANEL), "#7d8a97", opacity=0.22)
    for tick in ticks:
        canvas.line([(left, at(tick)), (right, at(tick))], stroke="#ccd4dc", width=0.8)
        canvas.text((left - 8, at(tick) + 4), words.number(tick), anchor="end", size=11, fill=MUTED)
    if panel.zero and low < 0:
        canvas.line([(left, at(0)), (right, at(0))], stroke=MUTED, width=1.2)
    for start in bands.starts if bands else ():
        x = left + start * step
        canvas.line([(x, top), (x, top + PANEL)], stroke=INK, width=1.4, dash="5 3")
    for series in panel.series:
        _series(canvas, series, at, left=left, step=step)
    for block in range(n_blocks):
        tip = "; ".join(series.tips[block] for series in panel.series)
        canvas.rect((left + block * step, top, step, PANEL), "#fff", opacity=0, tip=tip)
    canvas.line([(left, top + PANEL), (right, top + PANEL)], stroke=LINE)


def _labels(canvas: Canvas, panel: BlockPanel, *, after: float, y: float) -> None:
    """Names of the lines beside the title, where there is more than one."""
    x = after
    for series in panel.series:
        if series.label:
            canvas.line([(x, y - 4), (x + 18, y - 4)], stroke=series.colour, width=2.4)
            canvas.text((x + 24, y), series.label, size=11, fill=MUTED)
            x += 24 + text_width(series.label, 11) + 20


def _series(canvas: Canvas, series: Series, at: Callable[[float], float], *, left: float, step: float) -> None:
    """Ribbon and line of one series; a number that is not finite interrupts both."""
    low, high = series.low, series.high
    runs: list[list[int]] = [[]]
    for block, value in enumerate(series.values):
        if math.isfinite(value):
            runs[-1].append(block)
        elif runs[-1]:
            runs.append([])
    for run in runs:
        xs = [left + (block + 0.5) * step for block in run]
        if low is not None and high is not None and len(run) > 1:
            upper = [(x, at(high[block])) for x, block in zip(xs, run, strict=True)]
            lower = [(x, at(low[block])) for x, block in zip(xs, run, strict=True)]
            canvas.area([*upper, *reversed(lower)], series.colour, opacity=0.22)
        if run:
            canvas.line(
                [(x, at(series.values[block])) for x, block in zip(xs, run, strict=True)], stroke=series.colour, width=2
            )


@dataclass(frozen=True)
class BarWords:
    """Words of the bars.

    Attributes:
        x_label: below the blocks.
        y_label: above the axis.
        clear: bars whose interval leaves 0 out.
        unclear: bars whose interval holds 0.
        number: writes a value at the axis.
    """

    x_label: str
    y_label: str
    clear: str
    unclear: str
    number: Callable[[float], str]


def block_bars(series: Series, *, name: str, words: BarWords, choices: Sequence[Choice] = ()) -> Canvas:
    """Draws a bar a block with its interval, and rows of chosen blocks below.

    Args:
        series: the numbers; without intervals all bars look alike.
        name: unique within a page.
        words: on the picture.
        choices: rows of chosen blocks below the bars.
    """
    n_blocks = len(series.values)
    left = choice_width(choices, at_least=70)
    step = (WIDTH - left - 12) / n_blocks
    panel = BlockPanel("", [series], zero=True)
    low, high, ticks = _range(panel)
    canvas = Canvas(name, WIDTH, 0)
    sure = [_is_clear(series, block) for block in range(n_blocks)]
    keys = [("box", BLUE, words.clear)] if any(sure) and series.low is not None else []
    keys += [("box", PALE, words.unclear)] if not all(sure) else []
    y = 4 + (key_row(canvas, keys, left=14, y=4) if keys else 0)
    top, tall = y + HEAD, 200.0

    def at(value: float) -> float:
        return top + tall * (high - value) / (high - low)

    canvas.text((left, y + 17), words.y_label, bold=True)
    for tick in ticks:
        canvas.line([(left, at(tick)), (left + step * n_blocks, at(tick))], stroke="#e8edf2", width=0.8)
        canvas.text((left - 8, at(tick) + 4), words.number(tick), anchor="end", size=11, fill=MUTED)
    for block, value in enumerate(series.values):
        x = left + (block + 0.5) * step
        if math.isfinite(value):
            ends = sorted((at(value), at(0)))
            box = (x - 0.36 * step, ends[0], 0.72 * step, ends[1] - ends[0])
            canvas.rect(box, BLUE if sure[block] else PALE)
        if series.low is not None and series.high is not None and math.isfinite(value):
            canvas.line([(x, at(series.low[block])), (x, at(series.high[block]))], stroke=INK, width=1.2)
        canvas.rect((x - step / 2, top, step, tall), "#fff", opacity=0, tip=series.tips[block])
    canvas.line([(left, at(0)), (left + step * n_blocks, at(0))], stroke=MUTED, width=1.2)
    block_ticks(canvas, n_blocks, left=left, step=step, y=top + tall + 18)
    y = top + tall + 24
    y += choice_rows(canvas, choices, left=left, step=step, y=y + 2)
    canvas.text((left + step * n_blocks / 2, y + 20), words.x_label, anchor="middle", fill=MUTED)
    canvas.height = y + 30
    return canvas


def _is_clear(series: Series, block: int) -> bool:
    """Whether the interval of a block leaves 0 out; without intervals nothing is unclear."""
    if series.low is None or series.high is None:
        return True
    return series.low[block] > 0 or series.high[block] < 0
