"""Out of memory: halve what is computed at once and try again, and say so; the numbers then differ by rounding alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from tunescope.errors import RunError

Result = TypeVar("Result")

_SAID = (
    "can't allocate memory",
    "defaultcpuallocator",
    "out of memory",
    "bad allocation",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, for its scratch pad
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says that memory was short: torch has a class of its own for GPUs, and for the CPU words alone.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
        True
        >>> is_out_of_memory(RuntimeError("shapes do not match"))
        False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _SAID)


def halving(
    compute: Callable[[int], Result],
    batch_tokens: int,
    *,
    tokens: int,
    undo: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Result, int]:
    """Computes with at most `batch_tokens` tokens at once, and with half as many whenever memory is short.

    Args:
        compute: gets the number of tokens.
        batch_tokens: to begin with.
        tokens: of the longest example, which cannot be cut; where a pass is no longer than that, less is no use.
        undo: called before another try, to forget what was done by halves.
        note: called with one line, once, after the try that succeeded.

    Returns:
        What `compute` returned, and the tokens with which it did.

    Raises:
        RunError: memory is short even for a single example.

    Example:
        >>> def compute(n):
        ...     if n > 300:
        ...         raise MemoryError
        ...     return "done"
        >>> halving(compute, 1024, tokens=50, note=print)
        memory is short: from here on 256 tokens a pass, not 1,024; the numbers change by rounding alone
        ('done', 256)
    """
    first = batch_tokens
    while True:
        try:
            found = compute(batch_tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            short = str(error).strip().splitlines()
        else:
            if batch_tokens < first:
                note(
                    f"memory is short: from here on {batch_tokens:,} tokens a pass, not {first:,}; the numbers change by rounding alone"
                )
            return found, batch_tokens
        # Outside the handler: the traceback would keep the tensors of the try alive.
        undo()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch_tokens <= tokens:
            raise RunError(
                f"memory is short even for one example of {tokens:,} tokens ({(short or ['out of memory'])[0][:160]}); use checkpointing, "
                "fewer blocks, shorter examples or a smaller model"
            )
        batch_tokens = max(1, batch_tokens // 2)
