"""Tasks as the leaves of a tree: alone with its distances, and beside the rows of a heat map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from tunescope.report.canvas import Canvas, clean, fit, text_width
from tunescope.report.charts import TICKS
from tunescope.report.svg import INK, LINE, MUTED

WIDTH = 1000.0
LONGEST_NAME = 270.0  # pixels
GAP = 9.0  # between clusters


@dataclass(frozen=True)
class Leaf:
    """One task.

    Attributes:
        name: of the task.
        tip: all that is known about it, for the tooltip.
        cluster: number of its cluster.
    """

    name: str
    tip: str
    cluster: int


@dataclass(frozen=True)
class Merge:
    """Two parts of the tree that join.

    Attributes:
        parts: places of the two parts: below n_leaves a leaf, in the order drawn; from there an earlier merge.
        distance: at which they join.
    """

    parts: tuple[int, int]
    distance: float


def cluster_letter(number: int) -> str:
    """Returns the name of a cluster: A to Z, then AA, AB ...

    Example:
        >>> cluster_letter(0), cluster_letter(27)
        ('A', 'AB')
    """
    first, second = divmod(number, 26)
    return (chr(ord("A") + first - 1) if first else "") + chr(ord("A") + second)


def merges_of(linkage: Sequence[Sequence[float]], order: Sequence[int]) -> list[Merge]:
    """Returns the merges with their leaves numbered in the order they are drawn.

    Args:
        linkage: as scipy writes it.
        order: rows from top to bottom.

    Example:
        >>> merges_of([[0, 2, 0.5, 2], [1, 3, 0.9, 3]], [1, 0, 2])[0]
        Merge(parts=(1, 2), distance=0.5)
    """
    place = {row: here for here, row in enumerate(order)}

    def at(part: float) -> int:
        return place.get(int(part), int(part))

    return [Merge((at(row[0]), at(row[1])), float(row[2])) for row in linkage]


def centres(leaves: Sequence[Leaf], *, top: float, height: float) -> list[float]:
    """Returns the middle of each row, rows of different clusters a little apart."""
    found, y = [], top
    for i, leaf in enumerate(leaves):
        y += GAP if i and leaf.cluster != leaves[i - 1].cluster else 0
        found.append(y + height / 2)
        y += height
    return found


def row_height(n_leaves: int) -> float:
    """Returns the height of a row: 60 tasks fit one printed page, few are not stretched over it."""
    return max(15.0, min(24.0, 960 / max(1, n_leaves)))


def name_width(leaves: Sequence[Leaf]) -> float:
    """Returns the room for the names, in pixels."""
    return 14 + min(LONGEST_NAME, max((text_width(clean(leaf.name)) for leaf in leaves), default=0.0))


def draw_names(canvas: Canvas, leaves: Sequence[Leaf], middle: Sequence[float], *, width: float) -> None:
    """Writes the names of the rows, right-aligned before `width`; a cut name stands in full in its tooltip."""
    for leaf, y in zip(leaves, middle, strict=True):
        canvas.text((width - 8, y + 4), fit(clean(leaf.name), width - 10), anchor="end", tip=leaf.tip)


def draw_tree(canvas: Canvas, merges: Sequence[Merge], middle: Sequence[float], *, left: float, width: float) -> None:
    """Draws the tree from its leaves at `left` to its root at the right, a tooltip with the distance on every fork."""
    highest = max((merge.distance for merge in merges), default=0.0) or 1.0
    heights, levels = dict(enumerate(middle)), dict.fromkeys(range(len(middle)), 0.0)
    for number, merge in enumerate(merges, len(middle)):
        a, b = merge.parts
        x = left + width * merge.distance / highest
        ends = [(left + width * levels[part] / highest, heights[part]) for part in (a, b)]
        canvas.line(
            [ends[0], (x, heights[a]), (x, heights[b]), ends[1]], stroke=MUTED, width=1.2, tip=f"{merge.distance:.3g}"
        )
        heights[number], levels[number] = (heights[a] + heights[b]) / 2, merge.distance


def draw_clusters(canvas: Canvas, leaves: Sequence[Leaf], middle: Sequence[float], *, x: float, height: float) -> None:
    """Draws a bracket with its letter beside the rows of each cluster; nothing if there is one cluster."""
    if len({leaf.cluster for leaf in leaves}) < 2:
        return
    groups: dict[int, list[float]] = {}
    for leaf, y in zip(leaves, middle, strict=True):
        groups.setdefault(leaf.cluster, []).append(y)
    for cluster, rows in groups.items():
        low, high = rows[0] - height / 2 + 1, rows[-1] + height / 2 - 1
        canvas.line([(x, low), (x, high)], stroke=INK, width=2)
        canvas.text((x + 5, (low + high) / 2 + 4), cluster_letter(cluster), bold=True)


def dendrogram(
    leaves: Sequence[Leaf],
    merges: Sequence[Merge],
    *,
    name: str,
    x_label: str,
    number: Callable[[float], str],
) -> Canvas:
    """Draws the tree alone, with an axis of distances.

    Args:
        leaves: tasks from top to bottom.
        merges: from `merges_of`.
        name: unique within a page.
        x_label: below the axis.
        number: writes a distance.
    """
    height, top = row_height(len(leaves)), 8.0
    middle = centres(leaves, top=top, height=height)
    bottom = middle[-1] + height / 2
    names = name_width(leaves)
    letters = 30.0 if len({leaf.cluster for leaf in leaves}) > 1 else 6.0
    left, width = names + letters, WIDTH - names - letters - 24
    canvas = Canvas(name, WIDTH, bottom + 52)
    highest = max((merge.distance for merge in merges), default=0.0) or 1.0
    for tick in MaxNLocator(6, steps=TICKS).tick_values(0, highest):
        if 0 <= tick <= highest:
            x = left + width * tick / highest
            canvas.line([(x, top), (x, bottom + 6)], stroke=LINE)
            canvas.text((x, bottom + 20), number(float(tick)), anchor="middle", fill=MUTED, size=11)
    canvas.text((left + width / 2, bottom + 40), x_label, anchor="middle", fill=MUTED)
    draw_names(canvas, leaves, middle, width=names)
    draw_clusters(canvas, leaves, middle, x=names - 2, height=height)
    draw_tree(canvas, merges, middle, left=left, width=width)
    return canvas
