"""The generalisation matrix as a picture: models down, test sets across, coloured by the difference to the untuned model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.colors import to_hex

from tunescope.report.canvas import Canvas, fit, text_width
from tunescope.report.svg import INK, MUTED

WIDTH = 1120.0
COLOURS = colormaps["RdBu"]
"""Red to blue through white: told apart with any colour vision, and direction is in the marks too."""
NEUTRAL = "#eef1f4"
MISSING = "#ffffff"
BETTER, WORSE, COLLAPSED = "▲", "▼", "●"
_ROW = 34.0
_NARROWEST_TEXT = 40.0
_HALF_SCALE = 0.6  # of the colour map: its ends are too dark to read black text on


@dataclass(frozen=True)
class Square:
    """One cell.

    Attributes:
        score: in [0, 1]; not finite = not measured.
        difference: to the untuned model, or None where there is none.
        beyond_noise: whether the difference is outside its noise.
        own: whether the model was tuned on this task.
        collapsed: share of answers that are labels of another task, or None.
        tip: text of the tooltip.
    """

    score: float
    difference: float | None = None
    beyond_noise: bool = False
    own: bool = False
    collapsed: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Column:
    """One test set.

    Attributes:
        title: name of its task.
        under: its role or file, in small letters.
    """

    title: str
    under: str


@dataclass(frozen=True)
class MatrixWords:
    """The words on the picture.

    Attributes:
        scale: what the colour shows.
        better: what the upward mark means.
        worse: what the downward mark means.
        own: what the frame means.
        collapsed: what the dot means.
        score: writes a score.
        points: writes a difference of scores.
    """

    scale: str
    better: str
    worse: str
    own: str
    collapsed: str
    score: Callable[[float], str]
    points: Callable[[float], str]


def matrix_picture(
    rows: Sequence[tuple[str, Sequence[Square]]],
    columns: Sequence[Column],
    *,
    name: str,
    words: MatrixWords,
    collapsed_from: float = 0.1,
) -> Canvas:
    """Draws the matrix.

    Args:
        rows: (name of the model, a square per column), at least one.
        columns: test sets, at least one.
        name: unique within a page.
        words: on the picture.
        collapsed_from: share of collapsed answers from which a cell gets the dot.

    Returns:
        The picture; every cell carries its score, colour and mark, and its numbers as a tooltip.
    """
    left = 16 + min(300.0, max(text_width(fit(title, 284), 12) for title, _ in rows))
    step = min(150.0, (WIDTH - left - 4) / len(columns))
    top = 118.0
    canvas = Canvas(name, WIDTH, top + _ROW * len(rows) + 10)
    most = max(
        (
            abs(s.difference)
            for _, squares in rows
            for s in squares
            if s.difference is not None and math.isfinite(s.difference)
        ),
        default=0.0,
    )
    limit = max(0.05, most)
    _legend(canvas, rows, limit, words, collapsed_from)
    for place, column in enumerate(columns):
        x = left + (place + 0.5) * step
        canvas.text(
            (x, top - 24), fit(column.title, step - 6, 12), anchor="middle", size=12, bold=True, tip=column.title
        )
        canvas.text(
            (x, top - 9), fit(column.under, step - 6, 11), anchor="middle", size=11, fill=MUTED, tip=column.under
        )
    for number, (title, squares) in enumerate(rows):
        y = top + number * _ROW
        canvas.text((left - 8, y + _ROW / 2 + 4), fit(title, left - 16), anchor="end", tip=title)
        for place, square in enumerate(squares):
            _square(canvas, square, (left + place * step, y), step, limit, words, collapsed_from)
    return canvas


def difference_colour(difference: float | None, limit: float) -> str:
    """Returns the colour of a difference: blue is better, red is worse, the stronger the larger; grey without one.

    Args:
        difference: of scores, or None.
        limit: difference at which the colour is strongest, above 0.

    Example:
        >>> difference_colour(None, 0.2), difference_colour(0.0, 0.2) != difference_colour(0.2, 0.2)
        ('#eef1f4', True)
    """
    if difference is None or not math.isfinite(difference):
        return NEUTRAL
    return str(to_hex(COLOURS(0.5 + _HALF_SCALE * 0.5 * max(-1.0, min(1.0, difference / limit)))))


def _square(
    canvas: Canvas,
    square: Square,
    at: tuple[float, float],
    step: float,
    limit: float,
    words: MatrixWords,
    collapsed_from: float,
) -> None:
    x, y = at
    if not math.isfinite(square.score):
        canvas.rect((x + 1, y + 1, step - 2, _ROW - 2), MISSING, stroke="#d5dce3", tip=square.tip)
        return
    stroke = INK if square.own else ""
    canvas.rect(
        (x + 1, y + 1, step - 2, _ROW - 2), difference_colour(square.difference, limit), stroke=stroke, tip=square.tip
    )
    mark = ""
    if square.beyond_noise and square.difference is not None:
        mark = BETTER if square.difference > 0 else WORSE
    if square.collapsed is not None and square.collapsed >= collapsed_from:
        mark += COLLAPSED
    middle = x + step / 2
    if step >= _NARROWEST_TEXT:
        text = words.score(square.score)
        canvas.text((middle - (6 if mark else 0), y + _ROW / 2 + 4), text, anchor="middle", size=12, tip=square.tip)
        middle += text_width(text, 12) / 2 + 2
    if mark:
        canvas.text((middle, y + _ROW / 2 + 4), mark, size=9, anchor="start" if step >= _NARROWEST_TEXT else "middle")


def _legend(
    canvas: Canvas,
    rows: Sequence[tuple[str, Sequence[Square]]],
    limit: float,
    words: MatrixWords,
    collapsed_from: float,
) -> None:
    canvas.text((4, 13), words.scale, size=12, bold=True)
    width, steps = 220.0, 44
    for i in range(steps):
        value = limit * (2 * (i + 0.5) / steps - 1)
        canvas.rect((4 + i * width / steps, 20, width / steps + 0.3, 12), difference_colour(value, limit))
    for value, x in ((-limit, 4.0), (0.0, 4 + width / 2), (limit, 4 + width)):
        anchor = "start" if value < 0 else "end" if value > 0 else "middle"
        canvas.text((x, 46), words.points(value), size=11, fill=MUTED, anchor=anchor)
    squares = [square for _, found in rows for square in found]
    beyond = [s.difference for s in squares if s.beyond_noise and s.difference is not None]
    entries = [f"{BETTER} {words.better}"] if any(gap > 0 for gap in beyond) else []
    entries += [f"{WORSE} {words.worse}"] if any(gap < 0 for gap in beyond) else []
    if any(s.collapsed is not None and s.collapsed >= collapsed_from for s in squares):
        entries.append(f"{COLLAPSED} {words.collapsed}")
    x = width + 36
    for entry in entries:
        canvas.text((x, 30), entry, size=11, fill=MUTED)
        x += text_width(entry, 11) + 20
    if any(s.own for s in squares):
        canvas.rect((width + 36, 38, 16, 12), MISSING, stroke=INK)
        canvas.text((width + 58, 48), words.own, size=11, fill=MUTED)
