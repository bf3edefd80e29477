"""How many examples each earlier task gets: more for the more distant one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from tunescope.errors import UserError, did_you_mean

Allocation = Literal["distance", "similarity", "even"]
ALLOCATIONS: tuple[Allocation, ...] = ("distance", "similarity", "even")

_ROUNDING = 1e-9  # a share this little below a whole number is that number: 3.0 is not made 2 by binary fractions


def allocate(
    distances: Sequence[float],
    total: int,
    *,
    available: Sequence[int] | None = None,
    allocation: Allocation = "distance",
) -> list[int]:
    """Shares `total` examples among the earlier tasks: each gets the floor of its share, the rest goes one each to the largest.

    The share of task j is ``d_j / sum(d)``. What is left after the floors goes one each to the tasks with the largest distances, of equal
    ones to the earlier in the list. If all distances are 0, all shares are equal.

    ``similarity`` gives more to the nearer task: each distance is mirrored, ``max(d) + min(d) - d_j``, so that the shares have the
    same spread the other way round. ``even`` gives all the same. Both treat the remainder by the same rule, by their own shares.

    Args:
        distances: one per earlier task, finite and at least 0.
        total: examples to share, at least 0.
        available: examples each task has; none gets more. What is cut off goes to the tasks that have room, by the same rule, again and
            again. None: no limit.
        allocation: ``distance``, ``similarity`` or ``even``.

    Returns:
        One count per task. They sum to `total`, or to all that is available if that is less; without tasks the list is empty.

    Raises:
        UserError: a distance is negative or not finite, `total` or an available count is negative, or lengths differ.

    Source:
        Wang et al., InsCL, NAACL 2024 (arXiv 2403.11435), dynamic replay. The released code gives the remainder by looking up the
        *value* of a distance, so that of two equal tasks one gets it twice, and divides by zero when all distances are 0; ours does
        neither, and knows what a task has. Some summaries of the paper say that similar tasks are replayed more; formula
        and code say the opposite, and so do we by default.

    Example:
        >>> allocate([0.1, 0.3, 0.1], 10)
        [2, 6, 2]
        >>> allocate([0.5, 0.2, 0.3], 4), allocate([0, 0, 0], 4)
        ([3, 0, 1], [2, 1, 1])
        >>> allocate([0.1, 0.3, 0.1], 10, available=[9, 4, 9])
        [3, 4, 3]
        >>> allocate([0.1, 0.3, 0.1], 10, allocation="similarity")
        [5, 1, 4]
    """
    _check(distances, total, available, allocation)
    shares = _shares([float(d) for d in distances], allocation)
    if available is None:
        return _whole(shares, int(total))
    given = [0] * len(shares)
    left = min(int(total), sum(available))
    while left:
        room = [j for j, most in enumerate(available) if given[j] < most]
        for j, more in zip(room, _whole([shares[j] for j in room], left), strict=True):
            taken = min(more, int(available[j]) - given[j])
            given[j] += taken
            left -= taken
    return given


def _shares(distances: list[float], allocation: Allocation) -> list[float]:
    if allocation == "even":
        return [1.0] * len(distances)
    if allocation == "similarity" and distances:
        return [max(distances) + min(distances) - d for d in distances]
    return distances


def _whole(shares: list[float], total: int) -> list[int]:
    if not shares:
        return []
    largest = max(shares)
    # Divided by the largest first: sums of tiny or huge distances neither vanish nor overflow.
    parts = [share / largest for share in shares] if largest > 0 else [1.0] * len(shares)
    whole = math.fsum(parts)
    counts = [math.floor(part / whole * total + _ROUNDING) for part in parts]
    by_size = sorted(range(len(parts)), key=lambda j: (-parts[j], j))
    for j in by_size[: total - sum(counts)]:
        counts[j] += 1
    return counts


def _check(distances: Sequence[float], total: int, available: Sequence[int] | None, allocation: str) -> None:
    if allocation not in ALLOCATIONS:
        raise UserError(
            f"allocation {allocation!r}: use one of {', '.join(ALLOCATIONS)}{did_you_mean(allocation, ALLOCATIONS)}"
        )
    wrong = [(j, d) for j, d in enumerate(distances) if not (math.isfinite(d) and d >= 0)]
    if wrong:
        raise UserError(f"distance {wrong[0][1]} of task {wrong[0][0]}: distances must be finite and at least 0")
    if total != int(total) or total < 0:
        raise UserError(f"total {total}: the number of examples to share must be a whole number, at least 0")
    if available is not None:
        if len(available) != len(distances):
            raise UserError(f"{len(available)} available counts for {len(distances)} distances; give one per task")
        if any(most != int(most) or most < 0 for most in available):
            raise UserError(f"available {list(available)[:10]}: counts must be whole numbers, at least 0")
