"""Turns a matplotlib figure into SVG that can stand inside a page together with others.

Text stays text, identifiers carry the chart's name, nothing in it depends on the time or the machine.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

FONTS = (
    "'Segoe UI', system-ui, -apple-system, 'Helvetica Neue', Arial, 'Noto Sans', 'Hiragino Sans', 'Yu Gothic', "
    "Meiryo, 'Noto Sans JP', 'Noto Sans CJK JP', sans-serif"
)
INK, MUTED, LINE = "#1b2733", "#566371", "#d5dce4"


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Sets matplotlib up for one chart; the settings before are restored afterwards."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": ["DejaVu Sans"],  # ships with matplotlib; only used to measure, `to_svg` names the real fonts
        "font.size": 12,
        "text.parse_math": False,  # a dollar sign in a task's name is a dollar sign
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "#e8edf2",
        "grid.linewidth": 0.8,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "axes.labelsize": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "lines.solid_capstyle": "round",
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The measuring font has no Japanese; the reader's fonts do.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def to_svg(figure: Figure, *, name: str, title: str, min_width: int) -> Markup:
    """Returns the figure as an inline ``<svg>`` element.

    Args:
        figure: what to draw; call inside `drawing`.
        name: unique within the page; letters, digits and hyphens.
        title: read out by screen readers, shown as tooltip.
        min_width: narrowest width in CSS pixels at which its text is still readable.

    Returns:
        The element; without ids that another chart could share.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue().decode("utf-8")
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # matplotlib styles `*`, which would reach the whole page; the root element below carries the same two properties.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = _own_ids(body, name).replace("xlink:href", "href")
    body = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, body)
    body = re.sub(r">\s+<", "><", body)
    width, height = (float(size) * 72 for size in figure.get_size_inches())
    head = opening(name, title, size=(width, height), min_width=min_width)
    # matplotlib escapes its texts, so the body is mark-up.
    return head + Markup(body.strip()) + Markup("</svg>")


def opening(name: str, title: str, *, size: tuple[float, float], min_width: int) -> Markup:
    """Returns the start tag of an inline picture with its title.

    Args:
        name: unique within the page; letters, digits and hyphens.
        title: read out by screen readers, shown as tooltip.
        size: width and height in CSS pixels.
        min_width: narrowest width in CSS pixels at which its text is still readable.
    """
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        'role="img" aria-labelledby="{name}-title" font-family="{fonts}" stroke-linejoin="round" stroke-linecap="butt" '
        'style="min-width:{least}px"><title id="{name}-title">{title}</title>'
    ).format(w=f"{size[0]:g}", h=f"{size[1]:g}", name=name, fonts=FONTS, least=min_width, title=title)


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"


def _own_ids(body: str, name: str) -> str:
    """Prefixes the ids that are referred to with the chart's name and drops all others."""
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda match: f' id="{escape(name)}-{match[1]}"' if match[1] in used else "", body)
    return re.sub(r"(href=\"#|url\(#)", lambda match: f"{match[1]}{name}-", body)
