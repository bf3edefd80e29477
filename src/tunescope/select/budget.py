"""How much may move: a share of the weights, a number of weights, or what the tuning may cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tunescope.errors import UserError
from tunescope.models import block_index


@dataclass(frozen=True)
class Budget:
    """An upper bound that a choice never exceeds: on the number of weights, on the cost of tuning, or on both.

    Attributes:
        share: of the weights that are offered, in (0, 1]; or
        weights: a number of weights, at least 1. Neither: as many as the cost allows.
        flops: floating-point operations of the whole tuning, as `training_flops` counts them; or
        seconds: of the whole tuning, at `flops_per_second`.
        flops_per_second: the rate of this machine, measured by the caller.
        tokens: tokens read in the whole tuning, padding included; needed for a cost.
        per_matrix: every matrix gets its part of the weights, so that none is left out; otherwise all compete.

    Raises:
        UserError: nothing is bounded, two numbers bound the same thing, or a number is out of its range.

    Example:
        >>> Budget(share=0.005).limit(106_168_320)
        530841
        >>> Budget(seconds=600, flops_per_second=5e10, tokens=50_000).flops_limit
        30000000000000.0
    """

    share: float | None = None
    weights: int | None = None
    flops: float | None = None
    seconds: float | None = None
    flops_per_second: float | None = None
    tokens: int | None = None
    per_matrix: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.share is not None and self.weights is not None:
            problems.append(f"budget: share {self.share} and {self.weights} weights bound the same thing; give one")
        if self.flops is not None and self.seconds is not None:
            problems.append(f"budget: {self.flops} FLOPs and {self.seconds} s bound the same thing; give one")
        if self.share is self.weights is self.flops is self.seconds is None:
            problems.append("budget: nothing is bounded; give a share, a number of weights, FLOPs or seconds")
        if self.share is not None and not 0 < self.share <= 1:
            problems.append(f"budget: share {self.share} of the weights; allowed is above 0 and at most 1")
        if self.weights is not None and self.weights < 1:
            problems.append(f"budget: {self.weights} weights; allowed is 1 or more")
        for name in ("flops", "seconds", "flops_per_second", "tokens"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                problems.append(f"budget: {name} {value}; allowed is a finite number above 0")
        if (self.flops is not None or self.seconds is not None) and self.tokens is None:
            problems.append("budget: a cost needs the number of tokens that tuning reads; give tokens")
        if self.seconds is not None and self.flops_per_second is None:
            problems.append("budget: seconds need a rate; give flops_per_second as measured on this machine")
        if problems:
            raise UserError(problems)

    def limit(self, size: int, total: int | None = None) -> int | None:
        """Returns how many weights may move.

        Args:
            size: weights of the matrix, or of all matrices together.
            total: weights of all matrices; default `size`.

        Returns:
            Rounded down, so 0 is possible for a small matrix; None where only the cost is bounded.
        """
        if self.share is not None:
            # A share of 0.29 is stored a little below 0.29; of 100 weights it means 29.
            return min(size, math.floor(round(self.share * size, 6)))
        if self.weights is not None:
            return min(size, self.weights * size // (total or size))
        return None

    @property
    def flops_limit(self) -> float | None:
        """Floating-point operations that the tuning may take, or None where only the number of weights is bounded."""
        if self.seconds is not None and self.flops_per_second is not None:
            return self.seconds * self.flops_per_second
        return self.flops


def training_flops(sizes: Mapping[str, int], touched: Collection[str], *, tokens: int) -> float:
    """Returns the floating-point operations of tuning some matrices.

    Two per weight and token for the forward pass, which always runs through all blocks; two more in every block from the lowest touched
    one upwards for the gradient of its inputs; two more in every touched matrix for the gradient of its weights, all of which is
    computed even where few entries move. Left out, since they hardly depend on the choice: head, norms, attention scores, optimiser.

    Args:
        sizes: canonical name -> number of weights, for every matrix in the blocks of the model.
        touched: names of the matrices in which something moves.
        tokens: read in the whole tuning.

    Source:
        The usual count of 2 per multiply and add (arXiv 2001.08361, section 2.1), split by where the backward pass ends.

    Example:
        >>> sizes = {"block.0.q": 10, "block.1.q": 10, "block.2.q": 10}
        >>> training_flops(sizes, ["block.2.q"], tokens=1), training_flops(sizes, ["block.0.q"], tokens=1)
        (100.0, 140.0)
    """
    forward = sum(sizes.values())
    if not touched:
        return 2.0 * forward * tokens
    lowest = min(_block(name) for name in touched)
    through = sum(size for name, size in sizes.items() if _block(name) >= lowest)
    return 2.0 * (forward + through + sum(sizes[name] for name in touched)) * tokens


def affordable(order: Sequence[tuple[str, ...]], sizes: Mapping[str, int], budget: Budget) -> list[tuple[str, ...]]:
    """Returns which groups of matrices may be touched within the cost: in the given order, each that still fits.

    Args:
        order: groups of canonical names, the most wanted first; a group is touched whole or not at all.
        sizes: canonical name -> number of weights, for every matrix in the blocks of the model.
        budget: with or without a bound on the cost; without one, everything may be touched.

    Raises:
        UserError: not even one group fits.

    Example:
        >>> sizes = {"block.0.q": 10, "block.1.q": 10}
        >>> affordable([("block.0.q",), ("block.1.q",)], sizes, Budget(flops=85, tokens=1))
        [('block.1.q',)]
    """
    limit = budget.flops_limit
    if limit is None:
        return list(order)
    assert budget.tokens is not None
    chosen: list[tuple[str, ...]] = []
    for group in order:
        if training_flops(sizes, [n for g in (*chosen, group) for n in g], tokens=budget.tokens) <= limit:
            chosen.append(group)
    if not chosen:
        least = min(training_flops(sizes, group, tokens=budget.tokens) for group in order)
        raise UserError(
            f"budget: {limit:.4g} FLOPs do not pay for tuning anything; the cheapest choice takes {least:.4g} for {budget.tokens:,} tokens"
        )
    return chosen


def _block(name: str) -> int:
    return block_index(name.rpartition(".")[0])
