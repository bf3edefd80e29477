"""The heat map of a layer map: a row a task, a column a block, the tree of the tasks at its side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from tunescope.report.block_axis import BandMarks, band_strip, block_ticks
from tunescope.report.canvas import Box, Canvas, text_width
from tunescope.report.charts import TICKS
from tunescope.report.dendrogram import (
    WIDTH,
    Leaf,
    Merge,
    centres,
    draw_clusters,
    draw_names,
    draw_tree,
    name_width,
    row_height,
)
from tunescope.report.svg import MUTED

COLOURS = colormaps["viridis"].reversed()
"""Even steps of lightness for readers with any colour vision (van der Walt & Smith 2015); dark is high, also in grey print."""
EMPTY = "#ffffff"


@dataclass(frozen=True)
class HeatRow:
    """One row of the heat map.

    Attributes:
        leaf: the task.
        values: a number per block; not finite = left white.
        tips: text of each cell's tooltip.
        by_chance: whether each cell is no higher than chance gives.
    """

    leaf: Leaf
    values: Sequence[float]
    tips: Sequence[str]
    by_chance: Sequence[bool]


@dataclass(frozen=True)
class HeatWords:
    """The words on a heat map.

    Attributes:
        scale: what the colour shows.
        by_chance: what hatched cells mean.
        x_label: below the blocks.
        distance: above the tree.
        number: writes a value.
    """

    scale: str
    by_chance: str
    x_label: str
    distance: str
    number: Callable[[float], str]


def heat_map(
    rows: Sequence[HeatRow],
    merges: Sequence[Merge],
    *,
    name: str,
    words: HeatWords,
    bands: BandMarks | None = None,
) -> Canvas:
    """Draws the heat map.

    Args:
        rows: tasks from top to bottom, clusters together.
        merges: the tree over the rows, or empty.
        name: unique within a page.
        words: on the picture.
        bands: shown above the blocks, or None.
    """
    leaves = [row.leaf for row in rows]
    height, n_blocks = row_height(len(rows)), len(rows[0].values)
    names = name_width(leaves)
    tree = 150.0 if merges else 0.0
    letters = 26.0 if len({leaf.cluster for leaf in leaves}) > 1 else 8.0
    cells = WIDTH - names - letters - tree - 6
    step = cells / n_blocks
    top = 74.0 + (26 if bands else 0)
    middle = centres(leaves, top=top, height=height)
    bottom = middle[-1] + height / 2
    canvas = Canvas(name, WIDTH, bottom + 46)

    low, high = colour_limits([value for row in rows for value in row.values], n_blocks=n_blocks)
    _legend(canvas, rows, names, low=low, high=high, words=words)
    if bands:
        band_strip(canvas, bands, left=names, step=step, y=top - 40)
    block_ticks(canvas, n_blocks, left=names, step=step, y=top - 7)
    hatched: list[Box] = []
    for row, y in zip(rows, middle, strict=True):
        for block, value in enumerate(row.values):
            box = (names + block * step, y - height / 2, step - 0.6, height - 0.6)
            canvas.rect(box, colour(value, low, high), tip=row.tips[block])
            if row.by_chance[block]:
                hatched.append(box)
    canvas.hatch(hatched)
    if bands:
        _boundaries(canvas, bands, left=names, step=step, ends=(top, bottom))
    draw_names(canvas, leaves, middle, width=names)
    draw_clusters(canvas, leaves, middle, x=names + cells + 4, height=height)
    if merges:
        left = names + cells + letters
        draw_tree(canvas, merges, middle, left=left, width=tree)
        canvas.text((left + tree / 2, bottom + 16), words.distance, anchor="middle", fill=MUTED, size=11)
    block_ticks(canvas, n_blocks, left=names, step=step, y=bottom + 16)
    canvas.text((names + cells / 2, bottom + 36), words.x_label, anchor="middle", fill=MUTED)
    return canvas


def colour_limits(values: Sequence[float], *, n_blocks: int = 50) -> tuple[float, float]:
    """Returns the values at the ends of the colour scale: the lowest and the highest, unless that would bleach nearly all cells.

    One odd block (the first, often) or a few odd tasks may lie beyond the ends; only where that gives the other cells at least a
    third more of the scale.

    Args:
        values: of all cells; those that are not finite do not count.
        n_blocks: cells of a row: about one column may be cut off at each end.

    Example:
        >>> colour_limits([0.2, 0.5, 0.9])
        (0.2, 0.9)
        >>> low, high = colour_limits([0.0] + [0.8 + i / 1000 for i in range(200)])
        >>> low >= 0.8
        True
    """
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return 0.0, 1.0
    tail = min(0.12, 1.2 / n_blocks)
    low, high = float(finite.min()), float(finite.max())
    inner = [float(end) for end in np.quantile(finite, [tail, 1 - tail])]
    if high - inner[0] < 0.75 * (high - low):
        low = inner[0]
    if inner[1] - low < 0.75 * (high - low):
        high = inner[1]
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def colour(value: float, low: float, high: float) -> str:
    """Returns the colour of a value; beyond the ends of the scale that of the end.

    Example:
        >>> colour(0.0, 0.0, 1.0) != colour(1.0, 0.0, 1.0), colour(float("nan"), 0.0, 1.0)
        (True, '#ffffff')
    """
    if not math.isfinite(value):
        return EMPTY
    return str(to_hex(COLOURS(min(1.0, max(0.0, (value - low) / (high - low))))))


def _legend(canvas: Canvas, rows: Sequence[HeatRow], left: float, *, low: float, high: float, words: HeatWords) -> None:
    """The colour scale with its numbers, and a hatched sample where some cell is hatched."""
    width, steps = 220.0, 44
    for i in range(steps):
        value = low + (high - low) * (i + 0.5) / steps
        canvas.rect((left + i * width / steps, 20, width / steps + 0.3, 12), colour(value, low, high))
    canvas.text((left, 13), words.scale, size=12, bold=True)
    finite = [value for row in rows for value in row.values if math.isfinite(value)]
    ticks = [float(t) for t in MaxNLocator(5, steps=TICKS).tick_values(low, high) if low <= t <= high]
    for tick in ticks:
        x = left + width * (tick - low) / (high - low)
        canvas.line([(x, 32), (x, 35)], stroke=MUTED)
        canvas.text((x, 46), words.number(tick), anchor="middle", size=11, fill=MUTED)
    x = left + width + 10
    if finite and min(finite) < low:  # the end of the scale stands for all that lies beyond it
        canvas.text((left - 6, 30), f"≤ {words.number(_short(low))}", anchor="end", size=11, fill=MUTED)
    if finite and max(finite) > high:
        text = f"≥ {words.number(_short(high))}"
        canvas.text((x, 30), text, size=11, fill=MUTED)
        x += text_width(text, 11)
    x += 14
    if any(any(row.by_chance) for row in rows):
        box = (x, 20.0, 18.0, 12.0)
        canvas.rect(box, colour(low, low, high))
        canvas.hatch([box])
        canvas.text((x + 24, 30), words.by_chance, size=11, fill=MUTED)


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _boundaries(canvas: Canvas, bands: BandMarks, *, left: float, step: float, ends: tuple[float, float]) -> None:
    for start in bands.starts:
        x = left + start * step - 0.3
        canvas.line([(x, ends[0]), (x, ends[1])], stroke="#fff", width=3)
        canvas.line([(x, ends[0] - 14), (x, ends[1])], stroke="#1b2733", width=1.2, dash="5 3")
