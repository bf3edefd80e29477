"""What is chosen as one piece: single entries, rows, columns, tiles, whole matrices or whole blocks."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from tunescope.errors import UserError, did_you_mean

Granularity = Literal["entry", "row", "column", "tile", "module", "block"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
TILE = 256


def check_granularity(name: str) -> Granularity:
    """Returns the granularity of that name.

    Raises:
        UserError: there is none.

    Example:
        >>> check_granularity("row")
        'row'
    """
    for known in GRANULARITIES:
        if name == known:
            return known
    raise UserError(
        f"granularity {name!r} is not known{did_you_mean(name, GRANULARITIES)}; allowed: {', '.join(GRANULARITIES)}"
    )


def unit_shape(shape: tuple[int, int], granularity: Granularity) -> tuple[int, int]:
    """Returns height and width of one piece in a matrix; pieces at the lower and right edge may be smaller.

    A row holds the weights of one output, a column those of one input. For `block` it is the part of the block in this matrix.

    Args:
        shape: (d_out, d_in) of the matrix.
        granularity: what is one piece.

    Example:
        >>> unit_shape((576, 1536), "row"), unit_shape((576, 1536), "tile")
        ((1, 1536), (256, 256))
    """
    height, width = shape
    return {
        "entry": (1, 1),
        "row": (1, width),
        "column": (height, 1),
        "tile": (min(TILE, height), min(TILE, width)),
        "module": shape,
        "block": shape,
    }[granularity]


def unit_sizes(shape: tuple[int, int], granularity: Granularity) -> torch.Tensor:
    """Returns the number of weights in every piece of a matrix.

    Args:
        shape: (d_out, d_in) of the matrix.
        granularity: what is one piece.

    Returns:
        (pieces down, pieces across), int64; the sum is the size of the matrix.

    Example:
        >>> unit_sizes((300, 256), "tile").tolist()
        [[65536], [11264]]
    """
    height, width = unit_shape(shape, granularity)
    down = torch.tensor([min(height, shape[0] - start) for start in range(0, shape[0], height)])
    across = torch.tensor([min(width, shape[1] - start) for start in range(0, shape[1], width)])
    return down[:, None] * across[None, :]


def unit_means(scores: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """Returns the mean score of the weights in every piece.

    The mean and not the sum: the budget is counted in weights, so what matters is the worth per weight; a sum would choose large
    pieces for their size. Not the maximum either: one outlier would buy a whole matrix.

    Args:
        scores: (d_out, d_in), finite.
        granularity: what is one piece.

    Returns:
        (pieces down, pieces across), float64.

    Example:
        >>> unit_means(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), "row").tolist()
        [[2.0], [6.0]]
    """
    shape = (scores.shape[0], scores.shape[1])
    height, width = unit_shape(shape, granularity)
    sizes = unit_sizes(shape, granularity)
    down, across = sizes.shape
    padded = torch.zeros(down * height, across * width, dtype=torch.float64)
    padded[: shape[0], : shape[1]] = scores
    return padded.view(down, height, across, width).sum(dim=(1, 3)) / sizes


def spread_units(chosen: torch.Tensor, shape: tuple[int, int], granularity: Granularity) -> torch.Tensor:
    """Returns for every weight of a matrix whether its piece was chosen.

    Args:
        chosen: (pieces down, pieces across), bool.
        shape: (d_out, d_in) of the matrix.
        granularity: what is one piece.

    Returns:
        (d_out, d_in), bool.

    Example:
        >>> spread_units(torch.tensor([[True], [False]]), (2, 3), "row").tolist()
        [[True, True, True], [False, False, False]]
    """
    height, width = unit_shape(shape, granularity)
    rows = chosen.repeat_interleave(height, dim=0)[: shape[0]]
    return rows.repeat_interleave(width, dim=1)[:, : shape[1]].contiguous()
