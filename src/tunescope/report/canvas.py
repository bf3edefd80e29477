"""A drawing surface for pictures with many small parts: rectangles, lines and texts straight to SVG, each with its tooltip.

Matplotlib draws the charts of arms and curves (`svg.to_svg`); it knows no tooltips and writes a heat map of 1,800 cells several
times as large. Coordinates are CSS pixels, the origin is at the top left.
"""

from __future__ import annotations

import functools
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font, LoadFlags

from tunescope.report.svg import FONTS, INK, opening
from tunescope.report.wording import visible

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # x, y, width, height

SIZE = 12.0  # of texts, in pixels
_NO_LINE_START = "、。，．）」』】：；？！・ー～"


def clean(text: str) -> str:
    r"""Returns a text from outside on one line, with nothing hidden in it and no character that XML forbids.

    Example:
        >>> clean("a\nb\x07\ufffe")
        'a b␇[U+FFFE]'
    """
    shown = visible(" ".join(text.split()))
    return shown.replace("\ufffe", "[U+FFFE]").replace("\uffff", "[U+FFFF]")


@functools.cache
def _advance(char: str) -> float:
    """Width of a character in em: a wide one takes 1, others what they take in DejaVu Sans, broader than the fonts of most readers."""
    if unicodedata.east_asian_width(char) in "WF":
        return 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        try:
            glyph = _measure().load_char(ord(char), flags=LoadFlags.NO_HINTING)
        except RuntimeError:  # a script that the measuring font does not have; the reader's fonts do
            return 1.0
    return float(glyph.linearHoriAdvance) / 65536 / 100


@functools.cache
def _measure() -> FT2Font:
    font = FT2Font(findfont(FontProperties(family="DejaVu Sans")))
    font.set_size(100, 72)
    return font


def text_width(text: str, size: float = SIZE) -> float:
    """Returns the width of a text in pixels, in a broad font: with another it may be narrower.

    Example:
        >>> text_width("帯", 12), 20 < text_width("block", 12) < 40
        (12.0, True)
    """
    return size * sum(map(_advance, text))


def fit(text: str, width: float, size: float = SIZE) -> str:
    """Returns the text, cut with an ellipsis where it is wider than `width` pixels.

    Example:
        >>> fit("short", 100), fit("a name that is far too long", 60)
        ('short', 'a name…')
    """
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width: float, size: float = SIZE) -> list[str]:
    """Returns the text in lines of at most `width` pixels; Japanese breaks anywhere but before closing punctuation.

    Example:
        >>> wrap("one two three", 60)
        ['one two', 'three']
        >>> wrap("遷移帯は見つかりません。", 120)
        ['遷移帯は見つかりませ', 'ん。']
    """
    lines, line = [], ""
    for piece in _pieces(text):
        if line and text_width(line + piece.rstrip(), size) > width:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() else lines


def _pieces(text: str) -> list[str]:
    """What may stand at the start of a line: Latin words with their space, single wide characters with their punctuation."""
    pieces: list[str] = []
    for char in text:
        last = pieces[-1][-1] if pieces else ""
        same_word = last and not last.isspace() and not _wide(char) and not _wide(last)
        if last and (same_word or char.isspace() or char in _NO_LINE_START):
            pieces[-1] += char
        else:
            pieces.append(char)
    return pieces


def _wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def _n(value: float) -> str:
    return f"{round(value, 2):g}"


@dataclass
class Canvas:
    """Collects the parts of one picture.

    Attributes:
        name: unique within a page; letters, digits and hyphens.
        width: in pixels.
        height: in pixels.
        parts: the elements so far, as mark-up.
    """

    name: str
    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def rect(self, box: Box, fill: str, *, opacity: float = 1.0, stroke: str = "", tip: str = "") -> None:
        """Draws a rectangle; `tip` is shown when the pointer rests on it."""
        x, y, width, height = map(_n, box)
        look = f' fill-opacity="{_n(opacity)}"' if opacity != 1 else ""
        look += f' stroke="{stroke}"' if stroke else ""
        self._add(f'rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"{look}', "rect", tip)

    def line(
        self, points: Iterable[Point], *, stroke: str = INK, width: float = 1.0, dash: str = "", tip: str = ""
    ) -> None:
        """Draws a line through points."""
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        look = f' stroke-dasharray="{dash}"' if dash else ""
        self._add(f'path d="{path}" fill="none" stroke="{stroke}" stroke-width="{_n(width)}"{look}', "path", tip)

    def area(self, points: Iterable[Point], fill: str, *, opacity: float = 1.0) -> None:
        """Fills a polygon."""
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + "Z"
        self._add(f'path d="{path}" fill="{fill}" fill-opacity="{_n(opacity)}"', "path", "")

    def text(
        self,
        at: Point,
        text: str,
        *,
        size: float = SIZE,
        anchor: str = "start",
        fill: str = INK,
        bold: bool = False,
        tip: str = "",
    ) -> None:
        """Writes a line of text; `at` is on its base line, at its start, middle or end."""
        look = ' font-weight="600"' if bold else ""
        look += f' text-anchor="{anchor}"' if anchor != "start" else ""
        self.parts.append(
            f'<text x="{_n(at[0])}" y="{_n(at[1])}" font-size="{_n(size)}" fill="{fill}"{look}>'
            f"{_tip(tip)}{escape(clean(text))}</text>"
        )

    def hatch(self, boxes: Sequence[Box]) -> None:
        """Draws slanted lines over boxes, dark beside light so that they are seen on every colour."""
        if not boxes:
            return
        key = f"{self.name}-hatch"
        if not any(part.startswith("<defs><pattern") for part in self.parts):
            self.parts.append(
                f'<defs><pattern id="{key}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
                '<path d="M1 0V6" stroke="#fff" stroke-width="1.4"/><path d="M2.4 0V6" stroke="#1b2733" stroke-width="1.2"/>'
                "</pattern></defs>"
            )
        path = "".join(f"M{_n(x)} {_n(y)}h{_n(w)}v{_n(h)}h{_n(-w)}z" for x, y, w, h in boxes)
        self.parts.append(f'<path class="hatch" d="{path}" fill="url(#{key})" pointer-events="none"/>')

    def inline(self, title: str, *, min_width: int | None = None) -> Markup:
        """Returns the picture for a page.

        Args:
            title: read out by screen readers.
            min_width: narrowest width in CSS pixels at which its text is still readable; 85% of the width by default.
        """
        least = int(0.85 * self.width) if min_width is None else min_width
        head = opening(self.name, title, size=(self.width, self.height), min_width=least)
        return head + Markup("".join(self.parts)) + Markup("</svg>")

    def standalone(self, title: str, *, lang: str = "en") -> str:
        """Returns the picture as a file of its own: its fonts named, on white, nothing fetched from anywhere."""
        width, height = _n(self.width), _n(self.height)
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" xml:lang="{escape(lang)}" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="{escape(FONTS)}" stroke-linejoin="round"><title>{escape(clean(title))}</title>'
            f'<rect width="{width}" height="{height}" fill="#fff"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )

    def _add(self, element: str, tag: str, tip: str) -> None:
        self.parts.append(f"<{element}>{_tip(tip)}</{tag}>" if tip else f"<{element}/>")


def _tip(text: str) -> str:
    return f"<title>{escape(clean(text))}</title>" if text else ""
