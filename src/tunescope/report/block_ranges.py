"""Sets of blocks in short form."""

from __future__ import annotations

from collections.abc import Sequence


def block_ranges(layers: Sequence[str]) -> str:
    """Returns block names in short form, runs written as ranges.

    Example:
        >>> block_ranges(("block.1", "block.4", "block.5", "block.6"))
        '1, 4–6'
    """
    numbers = [name.removeprefix("block.") for name in layers]
    if not all(text.isdigit() for text in numbers):
        return ", ".join(layers)
    runs: list[list[int]] = []
    for value in sorted(int(text) for text in numbers):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)
