"""Whether keeping states pays, and whether a base has to be streamed."""

from __future__ import annotations

import torch


def worth_caching(
    n_tokens: int,
    num_uses: float,
    *,
    d_model: int,
    dtype: torch.dtype,
    lowest_block: int,
    budget_bytes: int,
    free_bytes: int | None = None,
    cached_tokens: int = 0,
) -> tuple[bool, str]:
    """Says whether keeping states saves anything, and why.

    Args:
        n_tokens: tokens of all different rows.
        num_uses: how often each row is read: epochs, times the arms, seeds and learning rates with the same lowest block.
        d_model: width.
        dtype: number format of the states.
        lowest_block: the lowest block that moves; -1 if the embeddings move.
        budget_bytes: that the cache may take.
        free_bytes: on the disk, beyond what has to stay free; None = not known.
        cached_tokens: of them, tokens whose states are there already.

    Returns:
        Whether, and a line for the plan or the log.

    Example:
        >>> worth_caching(10**6, 3, d_model=576, dtype=torch.bfloat16, lowest_block=20, budget_bytes=10**10)
        (True, '1.15 GB of states spare 2 of 3 passes through blocks 0 to 19')
        >>> worth_caching(10**6, 1, d_model=576, dtype=torch.bfloat16, lowest_block=20, budget_bytes=10**10)
        (False, 'every example is read once, so its states would be written and never read')
    """
    needed = n_tokens * d_model * dtype.itemsize
    new = max(0, n_tokens - cached_tokens) * d_model * dtype.itemsize
    if lowest_block <= 0:
        below = "the embeddings move" if lowest_block < 0 else "block.0 is the lowest that moves"
        return False, f"{below}, so there is nothing below whose result could be kept"
    if n_tokens == 0:
        return False, "there are no examples"
    reach = f"blocks 0 to {lowest_block - 1}" if lowest_block > 1 else "block 0"
    if new == 0:
        return True, f"the states of all examples are in the cache already, and spare every pass through {reach}"
    if num_uses <= 1 and cached_tokens == 0:
        return False, "every example is read once, so its states would be written and never read"
    if needed > budget_bytes:
        return False, f"the states take {_gigabytes(needed)}, and engine.cache_bytes allows {_gigabytes(budget_bytes)}"
    if free_bytes is not None and new > free_bytes:
        return (
            False,
            f"the states take {_gigabytes(new)} more, and the disk has {_gigabytes(max(0, free_bytes))} to spare",
        )
    spared = num_uses - new / needed
    return True, f"{_gigabytes(needed)} of states spare {spared:.3g} of {num_uses:.3g} passes through {reach}"


def must_stream(weight_bytes: int, memory_bytes: int | None) -> tuple[bool, str]:
    """Says whether a base is read block by block instead of being held in memory, and why.

    Args:
        weight_bytes: of the whole base, in the number format in which it computes.
        memory_bytes: that its weights may take; None = no limit.

    Returns:
        Whether, and a line for the plan or the log.

    Example:
        >>> must_stream(16_100_000_000, 8_000_000_000)
        (True, 'the base takes 16.1 GB, and memory_bytes allows 8 GB: it is read block by block')
        >>> must_stream(270_000_000, None)[0]
        False
    """
    if memory_bytes is None or weight_bytes <= memory_bytes:
        return False, f"the base takes {_gigabytes(weight_bytes)} and is held in memory"
    return True, (
        f"the base takes {_gigabytes(weight_bytes)}, and memory_bytes allows {_gigabytes(memory_bytes)}: it is read block by block"
    )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
