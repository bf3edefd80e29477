"""Batches of similar length, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_POOL = 16  # batches that are sorted by length together: enough to save most padding, little enough to stay random


def epoch_batches(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Groups examples of similar length into batches, in random order.

    Every example appears exactly once. The result is a function of the arguments alone, so that a resumed run continues
    with the same batches.

    Args:
        lengths: tokens per example.
        batch_size: examples per batch; the last ones may be smaller.
        seed: of the run.
        epoch: 0 for the first pass.

    Returns:
        Lists of indices into `lengths`.

    Example:
        >>> batches = epoch_batches([5, 9, 1, 7], batch_size=2, seed=0, epoch=0)
        >>> sorted(i for batch in batches for i in batch)
        [0, 1, 2, 3]
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    pool = batch_size * _POOL
    for start in range(0, len(order), pool):
        block = sorted(order[start : start + pool].tolist(), key=lambda i: (lengths[i], i))
        batches += [block[i : i + batch_size] for i in range(0, len(block), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
