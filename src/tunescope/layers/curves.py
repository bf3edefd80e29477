"""Curves over the blocks, with breaks and without: the best of each family for several signals together, and which is worth its price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tunescope.layers.signals import Floats, standardised

SHORTEST_BAND = 2  # blocks: a single block that differs is an outlier, not a band
_BREAK_COST = 2  # parameters: a place that was searched for costs more than one number (Zhang & Siegmund 2007)
_WITHOUT_G = 2  # signals where there is no tuned model: median and spread
_NARROWEST_BUMP = (
    0.5  # blocks, a standard deviation: two blocks that stand out are such a bump, three or more need not be one
)
_WIDEST_BUMP = 0.15  # of the depth: anything wider is a smooth curve


@dataclass(frozen=True)
class Shape:
    """A family of curves over the blocks, with every place its breaks can take.

    Attributes:
        name: in words.
        n_breaks: 0, 1 or 2; of a bump, its place and its width, which are searched for as breaks are.
        basis: orthonormal columns (n_places, n_blocks, n_coefficients).
    """

    name: str
    n_breaks: int
    basis: Floats


@dataclass(frozen=True)
class Fit:
    """The best shape with two breaks for each of several sets of signals.

    Attributes:
        margin: (batch,) criterion of the best simpler shape minus its own: above 0, the two breaks are worth their price.
        cuts: (batch, 2) first transition block, first refinement block.
        shape: (batch,) 0 for levels, 1 for slopes, 2 for a plateau.
        curves: (batch, n_blocks, n_signals) fitted, in the signals' units.
        rival: name of the best simpler shape of the first set.
    """

    margin: Floats
    cuts: NDArray[np.intp]
    shape: NDArray[np.intp]
    curves: Floats
    rival: str


@lru_cache(maxsize=16)
def shapes_of(n_blocks: int, max_degree: int) -> tuple[NDArray[np.intp], list[Shape], list[Shape]]:
    """Returns all pairs of breaks, the simpler shapes, and the three shapes with two breaks.

    Args:
        n_blocks: at least 3 * SHORTEST_BAND.
        max_degree: of the smooth curves among the simpler shapes.

    Returns:
        Pairs (n_places, 2): first block of the second and of the third band; shapes with fewer breaks, and bumps, which have none;
        levels, slopes and a plateau, their places in the order of the pairs.

    Example:
        >>> pairs, simple, banded = shapes_of(6, 2)
        >>> pairs.tolist(), [shape.name for shape in banded]
        ([[2, 4]], ['levels', 'slopes', 'plateau'])
    """
    shortest, x = SHORTEST_BAND, np.arange(n_blocks, dtype=float)

    def basis(*columns: Floats) -> Floats:
        return np.asarray(np.linalg.qr(np.stack([np.ones(n_blocks), *columns], axis=1))[0])

    def bend(at: int) -> Floats:
        return np.asarray(np.maximum(x - at, 0.0))

    pairs = [(i, j) for i in range(shortest, n_blocks) for j in range(i + shortest, n_blocks - shortest + 1)]
    single = range(shortest, n_blocks - shortest + 1)
    smooth = np.linalg.qr(np.vander(np.linspace(-1, 1, n_blocks), max_degree + 1, increasing=True))[0]
    names = ("a constant", "a straight line", *(f"a smooth curve of degree {d}" for d in range(2, max_degree + 1)))
    simple = [Shape(name, 0, smooth[None, :, : degree + 1]) for degree, name in enumerate(names)]
    simple.append(Shape("one break in level", 1, np.stack([basis((x >= i).astype(float)) for i in single])))
    simple.append(Shape("one break in slope", 1, np.stack([basis(x, bend(i)) for i in single])))
    bumps = _bumps(n_blocks)
    simple.append(Shape("a bump", 2, np.stack([basis(bump) for bump in bumps])))
    simple.append(Shape("a bump on a straight line", 2, np.stack([basis(x, bump) for bump in bumps])))
    # A slope leaves the last shared block and arrives at the first refinement block: both still lie on their own course.
    levels = np.stack([basis((x >= i).astype(float), (x >= j).astype(float)) for i, j in pairs])
    slopes = np.stack([basis(x, bend(i - 1), bend(j)) for i, j in pairs])
    # A plateau leaves one level and comes back to it; charged for three levels it would lose against a bump, which is not.
    plateau = np.stack([basis(((x >= i) & (x < j)).astype(float)) for i, j in pairs])
    return (
        np.array(pairs),
        simple,
        [Shape("levels", 2, levels), Shape("slopes", 2, slopes), Shape("plateau", 2, plateau)],
    )


def _bumps(n_blocks: int) -> Floats:
    """Bell-shaped bumps (n_bumps, n_blocks) at every half block, of widths in steps of the square root of 2."""
    x, at = np.arange(n_blocks, dtype=float), np.arange(0, n_blocks - 0.75, 0.5)
    steps = 1 + int(2 * np.log2(max(1.0, _WIDEST_BUMP * n_blocks / _NARROWEST_BUMP)))
    widths = _NARROWEST_BUMP * 2 ** (np.arange(steps) / 2)
    return np.exp(-0.5 * ((x - at[:, None]) / widths[:, None, None]) ** 2).reshape(-1, n_blocks)


def criterion(z: Floats, shapes: Sequence[Shape]) -> tuple[Floats, NDArray[np.intp]]:
    """Returns the criterion (lower is better) and the best place of each shape. Exact: every place is tried.

    Args:
        z: standardised signals (batch, n_blocks, n_signals).
        shapes: what is fitted by least squares.

    Returns:
        Both (n_shapes, batch).

    Source:
        Schwarz (1978), with the price of a break after Zhang & Siegmund (2007); a break is shared by all signals and pays once.
    """
    n_blocks, n_signals = z.shape[-2:]
    n = n_blocks * n_signals
    total = (z**2).sum(axis=(-2, -1))[:, None]
    scores, places = [], []
    for shape in shapes:
        parts = np.tensordot(z, shape.basis, axes=([1], [1]))  # (batch, n_signals, n_places, n_coefficients)
        left = total - (parts**2).sum(axis=(1, 3))
        left = np.maximum(left, 1e-9 * total + 1e-300)  # a perfect fit has a logarithm too
        best = left.argmin(axis=1)
        price = (shape.basis.shape[2] * n_signals + _BREAK_COST * shape.n_breaks) * np.log(n)
        scores.append(n * np.log(np.take_along_axis(left, best[:, None], axis=1)[:, 0] / n) + price)
        places.append(best)
    return np.stack(scores), np.stack(places)


def fit_two_breaks(signals: Floats, max_degree: int) -> Fit:
    """Fits the best shape with two breaks to every set of signals.

    Args:
        signals: (batch, n_blocks, n_signals).
        max_degree: of the smooth curves that the two breaks have to beat.

    Example:
        >>> fit_two_breaks(np.repeat([[0.9], [0.5], [0.8]], 4, axis=0)[None], 3).cuts.tolist()
        [[4, 8]]
    """
    pairs, simple, banded = shapes_of(signals.shape[1], max_degree)
    z = standardised(signals)
    simple_scores, _ = criterion(z, simple)
    scores, shape, place = _two_breaks(z, banded)
    curves = np.empty_like(signals)
    for i, which in enumerate(banded):
        mine = shape == i
        basis = which.basis[place[mine]]
        curves[mine] = basis @ (basis.swapaxes(1, 2) @ signals[mine])
    margin = simple_scores.min(axis=0) - scores
    return Fit(margin, pairs[place], shape, curves, simple[int(simple_scores[:, 0].argmin())].name)


def best_cuts(signals: Floats, max_degree: int) -> NDArray[np.intp]:
    """Returns where `fit_two_breaks` puts the breaks, without holding them against simpler shapes: several times as fast.

    Args:
        signals: (batch, n_blocks, n_signals).
        max_degree: as in `fit_two_breaks`.

    Returns:
        (batch, 2): first transition block, first refinement block.

    Example:
        >>> best_cuts(np.repeat([[0.9], [0.5], [0.8]], 4, axis=0)[None], 3).tolist()
        [[4, 8]]
    """
    pairs, _, banded = shapes_of(signals.shape[1], max_degree)
    _, _, place = _two_breaks(standardised(signals), banded)
    return pairs[place]


def _two_breaks(z: Floats, banded: Sequence[Shape]) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    """Criterion, shape and place of the best of the shapes with two breaks, each (batch,)."""
    if z.shape[-1] > _WITHOUT_G:
        banded = banded[:2]  # what comes back to where it was is no transition by the published signs
    scores, places = criterion(z, banded)
    shape = scores.argmin(axis=0)
    return scores.min(axis=0), shape, np.take_along_axis(places, shape[None], axis=0)[0]
