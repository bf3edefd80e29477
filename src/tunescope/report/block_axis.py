"""The axis of blocks that all pictures of a layer map share: ticks, bands, and rows of chosen blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunescope.report.canvas import SIZE, Canvas, clean, fit, text_width
from tunescope.report.svg import INK, MUTED

SHARED, TRANSITION, REFINEMENT = "#e4e9ee", "#fbe3b5", "#cfe3f3"
MARK = "#0b5c8f"
LINE_HEIGHT = 22.0


@dataclass(frozen=True)
class BandMarks:
    """Where the bands begin.

    Attributes:
        starts: first block of the transition and of the refinement.
        n_blocks: of the model.
        labels: names of the three bands, with their blocks.
        short: the same without their blocks, for where there is little room.
        intervals: (low, high) of each boundary, or empty.
    """

    starts: tuple[int, int]
    n_blocks: int
    labels: tuple[str, str, str]
    short: tuple[str, str, str]
    intervals: tuple[tuple[int, int], ...] = ()

    @property
    def spans(self) -> list[tuple[int, int, str, str, str]]:
        """(first, one past the last, colour, label, short label) of each band."""
        ends = (0, *self.starts, self.n_blocks)
        fills = (SHARED, TRANSITION, REFINEMENT)
        return [(ends[i], ends[i + 1], fills[i], self.labels[i], self.short[i]) for i in range(3)]


@dataclass(frozen=True)
class Choice:
    """A set of blocks, shown as a row of squares.

    Attributes:
        label: before the row.
        blocks: their indices.
        colour: of the squares.
    """

    label: str
    blocks: Sequence[int]
    colour: str = MARK


def block_ticks(canvas: Canvas, n_blocks: int, *, left: float, step: float, y: float) -> None:
    """Writes the numbers of the blocks, as many as have room."""
    widest = text_width(str(n_blocks - 1), 11) + 6
    every = next((k for k in (1, 2, 5, 10, 20, 50) if k * step >= widest), 100)
    for block in range(0, n_blocks, every):
        canvas.text((left + (block + 0.5) * step, y), str(block), anchor="middle", size=11, fill=MUTED)


def band_strip(canvas: Canvas, bands: BandMarks, *, left: float, step: float, y: float) -> None:
    """Draws the bands as a strip above the blocks; a name that has no room stands in the tooltip alone."""
    for first, stop, fill, label, short in bands.spans:
        width = (stop - first) * step
        if width <= 0:
            continue
        canvas.rect((left + first * step, y, width - 0.6, 17), fill, tip=label)
        text = next((text for text in (label, short) if text_width(text, 11) <= width - 6), "")
        if text:
            canvas.text((left + first * step + width / 2, y + 12.5), text, anchor="middle", size=11)


def choice_rows(canvas: Canvas, choices: Sequence[Choice], *, left: float, step: float, y: float) -> float:
    """Draws a row of squares for each choice of blocks, its label before it.

    Returns:
        The height that the rows take.
    """
    side = max(3.0, min(12.0, step - 3))
    for row, choice in enumerate(choices):
        middle = y + LINE_HEIGHT * (row + 0.5)
        canvas.text((left - 12, middle + 4), fit(clean(choice.label), left - 16), anchor="end", tip=choice.label)
        for block in choice.blocks:
            x = left + (block + 0.5) * step
            canvas.rect((x - side / 2, middle - side / 2, side, side), choice.colour)
    return LINE_HEIGHT * len(choices)


def choice_width(choices: Sequence[Choice], *, at_least: float) -> float:
    """Returns the room that the labels of choices need left of the blocks."""
    return min(270.0, max([at_least, *(text_width(clean(choice.label)) + 26 for choice in choices)]))


def key_row(canvas: Canvas, keys: Sequence[tuple[str, str, str]], *, left: float, y: float) -> float:
    """Writes a legend: samples of colour with their meaning, in as many lines as it needs.

    Args:
        canvas: to draw on.
        keys: (kind, colour, text); kind is ``box``, ``line`` or ``dash``.
        left: where it begins.
        y: top of its first line.

    Returns:
        The height that it takes.
    """
    x, line = left, 0
    for kind, fill, text in keys:
        width = 24 + text_width(text, SIZE) + 22
        if x > left and x + width > canvas.width:
            x, line = left, line + 1
        middle = y + LINE_HEIGHT * line + 9
        if kind == "box":
            canvas.rect((x, middle - 6, 18, 12), fill)
        else:
            dash = "5 3" if kind == "dash" else ""
            canvas.line([(x, middle), (x + 18, middle)], stroke=fill, width=2.4 if kind == "line" else 1.4, dash=dash)
        canvas.text((x + 24, middle + 4), text, fill=INK)
        x += width
    return LINE_HEIGHT * (line + 1)
