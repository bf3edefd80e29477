"""Who computes which rows of a batch, and in how many passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunescope.engine.workers import Workers
from tunescope.models import Row, passes


@dataclass(frozen=True)
class Pass:
    """Rows of one forward pass of this process.

    Attributes:
        rows: their numbers.
        idle: True if another process computes them too, and they do not count here: this one only takes part in gathering blocks.
    """

    rows: list[int]
    idle: bool = False


def shares(rows: Sequence[Row], n_workers: int) -> list[list[int]]:
    """Divides rows over processes, so that all have about as many tokens.

    The longest row that is left goes to whoever has the fewest tokens. Rows of the same tokens stay together, so that no two processes
    compute, and keep, the same states.

    Args:
        rows: encoded examples.
        n_workers: at least 1.

    Returns:
        For each process the numbers of its rows, ascending; every number once. Where there are fewer rows than processes, some get none.

    Example:
        >>> from types import SimpleNamespace
        >>> rows = [SimpleNamespace(prompt_ids=tuple(range(n)), target_ids=(0,)) for n in (3, 9, 4, 2, 9)]
        >>> shares(rows, 2), shares(rows[:1], 2)
        ([[1, 4], [0, 2, 3]], [[0], []])
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        same.setdefault((*row.prompt_ids, *row.target_ids), []).append(i)
    found: list[list[int]] = [[] for _ in range(n_workers)]
    tokens = [0] * n_workers
    for ids, members in sorted(same.items(), key=lambda item: (-len(item[0]) * len(item[1]), item[1][0])):
        least = tokens.index(min(tokens))
        found[least] += members
        tokens[least] += len(ids) * len(members)
    return [sorted(share) for share in found]


def own_passes(rows: Sequence[Row], batch_tokens: int, workers: Workers) -> list[Pass]:
    """Cuts this process's share of rows into passes (`models.passes`).

    Where the blocks are cut over the processes all of them run as many passes as the one with the most: the others take part in
    gathering, with the shortest row, which does not count.

    Args:
        rows: encoded examples of the whole batch, the same on all processes.
        batch_tokens: computed tokens per pass.
        workers: who shares them.

    Returns:
        The passes of this process.
    """
    if workers.alone:
        return [Pass(chosen) for chosen in passes(rows, batch_tokens)]
    divided = shares(rows, workers.world_size)
    ranks = range(workers.world_size) if workers.sharded else [workers.rank]
    plans = {rank: _cut(rows, divided[rank], batch_tokens) for rank in ranks}
    mine = [Pass(chosen) for chosen in plans[workers.rank]]
    shortest = min(range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + len(rows[i].target_ids))
    return mine + [Pass([shortest], idle=True)] * (max(len(plan) for plan in plans.values()) - len(mine))


def n_targets(rows: Sequence[Row]) -> int:
    """Returns how many tokens of some rows have a loss; nothing predicts a first token.

    Example:
        >>> from types import SimpleNamespace
        >>> n_targets([SimpleNamespace(prompt_ids=(1,), target_ids=(2, 3)), SimpleNamespace(prompt_ids=(), target_ids=(2, 3))])
        3
    """
    return sum(len(row.target_ids) - (not row.prompt_ids) for row in rows)


def _cut(rows: Sequence[Row], chosen: Sequence[int], batch_tokens: int) -> list[list[int]]:
    return [[chosen[i] for i in cut] for cut in passes([rows[i] for i in chosen], batch_tokens)]
