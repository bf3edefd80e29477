"""Which rows should share their beginning, so that it is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_MIN_PREFIX = 16  # tokens; below, a second group in the attention costs as much as it saves
_MOST_SHARING = 64  # rows of one group that are looked for at most: the search is quadratic in it


def sharing(rows: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Finds which rows should share their beginning, so that as few tokens as possible are computed.

    In lexicographic order rows with a common beginning stand together; the best cut of that order into runs is found exactly, for runs
    of up to 64 rows. A beginning shorter than 16 tokens is not shared. At least one token of every row stays its own.

    Args:
        rows: token ids.

    Returns:
        (length of the common beginning, numbers of the rows) of every group; the rows that share nothing come first, as one group of
        length 0, in their order. Every number occurs once.

    Example:
        >>> start = list(range(30))
        >>> sharing([start + [1], [5, 6], start + [2, 3]])
        [(0, [1]), (30, [0, 2])]
    """
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    common = [_common(rows[i], rows[j]) for i, j in pairwise(order)]
    # best[n]: fewest tokens for the first n rows in order, with the length of the last run and its prefix
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    for n in range(1, len(order) + 1):
        length = shortest = own = len(rows[order[n - 1]])
        choice = (best[n - 1][0] + length, 1, 0)
        for size in range(2, min(n, _MOST_SHARING) + 1):
            first = n - size
            row = len(rows[order[first]])
            own += row
            shortest = min(shortest, row, common[first] + 1)
            prefix = shortest - 1
            if prefix < _MIN_PREFIX:
                break
            tokens = best[first][0] + own - (size - 1) * prefix
            if tokens < choice[0]:
                choice = (tokens, size, prefix)
        best.append(choice)
    alone: list[int] = []
    groups: list[tuple[int, list[int]]] = []
    n = len(order)
    while n:
        _, size, prefix = best[n]
        members = sorted(order[n - size : n])
        if size > 1:
            groups.append((prefix, members))
        else:
            alone += members
        n -= size
    return [*([(0, sorted(alone))] if alone else []), *reversed(groups)]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two rows share at the start."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
