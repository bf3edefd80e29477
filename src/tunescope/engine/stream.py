"""Tune and score with a base that does not fit in memory: it is read once, block by block, and then only its last blocks are needed.

While the cache fills, one block at a time is in memory, and all rows go through it before the next one comes. Afterwards
`load_tail` holds the blocks from the lowest moving one on, and tuning reads the states at its input. The numbers are those of the
whole model, bit by bit in passes of the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.engine.activations import ActivationCache
from tunescope.engine.entries import name_of
from tunescope.errors import ConfigError, DataError, ModelError, RunError
from tunescope.models.loss import mean_losses
from tunescope.models.packed import Packed, Row, pack, passes
from tunescope.models.streamed import StreamedBase, load_tail, lowest_block
from tunescope.models.tail import KeptStates, run_blocks
from tunescope.runs.records import Selection

__all__ = [
    "Choice",
    "Filled",
    "StreamedBase",
    "StreamedStates",
    "check_tail",
    "choice_logprobs",
    "choice_rows",
    "fill",
    "load_tail",
    "pass_states",
    "states_of",
]


@dataclass(frozen=True)
class Filled:
    """What filling took.

    Attributes:
        n_rows: rows whose states were computed; the others were there.
        n_tokens: tokens of them.
        rounds: how often the base was read.
        bytes_read: bytes of weights read.
        seconds: wall time.
    """

    n_rows: int
    n_tokens: int
    rounds: int
    bytes_read: int
    seconds: float


@torch.no_grad()
def pass_states(
    base: StreamedBase,
    rows: Sequence[Row],
    k: int,
    *,
    batch_tokens: int = 2048,
    state_bytes: int = 1 << 30,
    done: Callable[[float], None] = lambda fraction: None,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Computes states at the input of a block, with one block of the base in memory at a time.

    As many passes as fit in `state_bytes` go through the blocks together; then the base is read again for the next ones.

    Args:
        base: the base.
        rows: encoded examples.
        k: the block, up to the number of blocks (then after the last one, before the final norm).
        batch_tokens: tokens per pass.
        state_bytes: for the states of rows that are under way; at least one pass is.
        done: called with the share of the work that is done, in (0, 1].

    Yields:
        For each pass the numbers of its rows, and (sum of their tokens, d_model) on the CPU, one row behind the other.

    Raises:
        ModelError: there is no such block, or a weight cannot be read.
    """
    n_layers = len(base.sizes.blocks)
    if not 0 <= k <= n_layers:
        raise ModelError(f"states at the input of block {k}: this model has block.0 to block.{n_layers - 1}")
    plan = passes(rows, batch_tokens)
    token_bytes = base.model.config.hidden_size * base.dtype.itemsize
    total = sum(_tokens(rows[i] for i in members) for members in plan) * (k + 1)
    finished = 0
    for chunk in _chunks(plan, [_tokens(rows[i] for i in members) * token_bytes for members in plan], state_bytes):
        packed = [pack([rows[i] for i in members]) for members in chunk]
        under_way: list[torch.Tensor | None] = [None] * len(chunk)
        for stop in range(k + 1):  # 0: the embeddings alone
            with base.block(stop - 1) if stop else base.embedding():
                for place, one in enumerate(packed):
                    under_way[place] = _advance(base, one, stop, under_way[place])
                    finished += len(one.places)
                    done(finished / total)
        for place, (members, one) in enumerate(zip(chunk, packed, strict=True)):
            states, under_way[place] = under_way[place], None
            assert states is not None
            yield members, states[one.places]


def states_of(
    base: StreamedBase, rows: Sequence[Row], k: int, *, batch_tokens: int = 2048, state_bytes: int = 1 << 30
) -> torch.Tensor:
    """Returns the states of rows at the input of a block, computed with one block of the base in memory at a time.

    It is what `ActivationCache.states` takes to compute what was lost.

    Args:
        base: the base.
        rows: encoded examples.
        k: the block.
        batch_tokens: tokens per pass.
        state_bytes: as for `pass_states`.

    Returns:
        (sum of tokens, d_model) on the CPU, the rows one behind the other.

    Raises:
        ModelError: there is no such block, or a weight cannot be read.
    """
    parts: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for members, states in pass_states(base, rows, k, batch_tokens=batch_tokens, state_bytes=state_bytes):
        for i, part in zip(members, states.split([_tokens([rows[i]]) for i in members]), strict=True):
            parts[i] = part
    return torch.cat(parts) if parts else torch.empty((0, base.model.config.hidden_size), dtype=base.dtype)


def fill(
    base: StreamedBase,
    rows: Sequence[Row],
    k: int,
    cache: ActivationCache,
    *,
    batch_tokens: int = 2048,
    state_bytes: int = 1 << 30,
    done: Callable[[float], None] = lambda fraction: None,
) -> Filled:
    """Puts the states of rows into the cache, without ever holding the base.

    Interrupted at any moment it goes on with the rows that are not in the cache yet; a round that was not finished is repeated.

    Args:
        base: the base; opened with the device and number format of the cache.
        rows: encoded examples; one that occurs twice is computed once.
        k: the states are those at the input of this block.
        cache: where they go.
        batch_tokens: tokens per pass.
        state_bytes: for the states of rows that are under way; the base is read once for as many rows as fit.
        done: called with the share of the work that is done, in (0, 1].

    Returns:
        What it took.

    Raises:
        ConfigError: the states do not fit in the cache's budget.
        RunError: the cache cannot be written. A base that does not fit in memory cannot be tuned without it.
        ModelError: there is no such block, or a weight cannot be read.
    """
    started, before = time.perf_counter(), base.bytes_read
    different = list({name_of(row): row for row in rows}.values())
    needed = _tokens(different) * base.model.config.hidden_size * base.dtype.itemsize
    if needed > cache.budget_bytes:
        raise ConfigError(
            f"the states of {len(different)} examples take {needed / 1e9:.3g} GB, and engine.cache_bytes allows {cache.budget_bytes / 1e9:.3g}; "
            "a base that is read block by block cannot be tuned without them: raise it, use fewer examples, or hold the base in memory"
        )
    absent = [different[i] for i in cache.missing(different, k)]
    if absent and not cache.make_room(absent, k):
        raise _cannot_keep(cache)
    for members, states in pass_states(base, absent, k, batch_tokens=batch_tokens, state_bytes=state_bytes, done=done):
        cache.write([absent[i] for i in members], k, states)
        if cache.stopped is not None:
            raise _cannot_keep(cache)
    read = base.bytes_read - before
    below = base.sizes.embedding + sum(base.sizes.blocks[:k])
    return Filled(len(absent), _tokens(absent), read // below if below else 0, read, time.perf_counter() - started)


class StreamedStates:
    """The cache of a streamed base: states that are not there are computed by reading the base again.

    It stands wherever kept states are taken (`models.mean_losses`, `Tuner`), so that tuning and scoring need no block below the cut.

    Args:
        base: the base.
        cache: where the states are.
        batch_tokens: tokens per pass when something has to be computed.
        state_bytes: as for `fill`.

    Attributes:
        refilled_tokens: tokens that had to be computed outside `fill`; if it grows, `fill` was not called for all rows, or the cache loses
            them.
    """

    def __init__(
        self, base: StreamedBase, cache: ActivationCache, *, batch_tokens: int = 2048, state_bytes: int = 1 << 30
    ) -> None:
        self.base = base
        self.cache = cache
        self.refilled_tokens = 0
        self._batch_tokens = batch_tokens
        self._state_bytes = state_bytes

    def read(self, rows: Sequence[Row], k: int) -> torch.Tensor:
        """Returns the states at the input of block `k`, (sum of tokens, d_model), the rows one behind the other.

        Raises:
            ModelError: there is no such block, or a weight cannot be read.
        """
        if (found := self.cache.read(rows, k)) is not None:
            return found

        def compute(absent: Sequence[Row]) -> torch.Tensor:
            self.refilled_tokens += _tokens(absent)
            return states_of(self.base, absent, k, batch_tokens=self._batch_tokens, state_bytes=self._state_bytes)

        return self.cache.states(rows, k, compute)

    def write(self, rows: Sequence[Row], k: int, states: torch.Tensor) -> None:
        """Keeps the states of rows that are not there yet."""
        self.cache.write(rows, k, states)


@dataclass(frozen=True)
class Choice:
    """A prompt with one of the answers that are possible; a `Row`.

    Attributes:
        prompt_ids: tokens of the prompt, not empty.
        target_ids: tokens of the answer, end-of-turn token included, so that one being the start of another is no issue.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


def choice_rows(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Choice]:
    """Returns every prompt with every continuation, for `fill` and `choice_logprobs`.

    Example:
        >>> [row.prompt_ids + row.target_ids for row in choice_rows([[1], [2]], [[8], [9]])]
        [(1, 8), (1, 9), (2, 8), (2, 9)]
    """
    return [Choice(tuple(prompt), tuple(choice)) for prompt in prompts for choice in continuations]


def choice_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    cut: int,
    kept: KeptStates,
    batch_tokens: int = 2048,
) -> torch.Tensor:
    """Returns the log-probability of every continuation after every prompt, computed from the states at a cut.

    As `models.continuation_logprobs`, which needs the whole model; a prompt is computed once for all its continuations that share a pass.

    Args:
        model: the model, or its blocks from the cut on; PEFT-wrapped or not.
        prompts: token ids, none empty.
        continuations: token ids of each choice, none empty.
        cut: number of the lowest block that runs.
        kept: states at the cut, best filled with `choice_rows` before.
        batch_tokens: tokens per pass.

    Returns:
        (n_prompts, n_continuations) float64: the sum over the continuation's tokens, in nats.

    Raises:
        DataError: a prompt or a continuation is empty.
    """
    if not all(map(len, prompts)) or not all(map(len, continuations)):
        raise DataError("a prompt or a choice without a token has no probability; give each at least one")
    rows = choice_rows(prompts, continuations)
    means = torch.from_numpy(mean_losses(model, rows, batch_tokens=batch_tokens, cut=cut, kept=kept))
    lengths = torch.tensor([len(choice) for choice in continuations], dtype=torch.float64)
    return -means.view(len(prompts), len(continuations)) * lengths


def check_tail(model: Any, selection: Selection) -> None:
    """Refuses to tune blocks that are not in memory; to be called before `prepare`.

    Args:
        model: the model, as `load_tail` or `load_located` gave it.
        selection: what may move.

    Raises:
        ModelError: the selection names a block below those in memory, or the whole model.
    """
    lowest = lowest_block(model)
    absent = [name for name in selection.layers if int(name.removeprefix("block.")) < lowest]
    if lowest and (absent or selection.whole_model):
        what = "the whole model" if selection.whole_model else absent[0]
        raise ModelError(
            f"{what} is to move, and this base is in memory from block.{lowest} on; load the tail from the lowest block that moves, or the "
            "whole base"
        )


def _cannot_keep(cache: ActivationCache) -> RunError:
    return RunError(
        f"{cache.root}: the states of the examples cannot be kept ({cache.stopped}), and a base that is read block by block cannot be tuned "
        "without them; free some space or set engine.cache to another folder, then run the same command with --resume"
    )


def _advance(base: StreamedBase, packed: Packed, stop: int, states: torch.Tensor | None) -> torch.Tensor:
    """One pass through the embeddings (`stop` 0) or through the block before `stop`."""
    if states is None:
        return run_blocks(base.model, packed, stop=0).cpu()
    return run_blocks(base.model, packed, first=stop - 1, stop=stop, states=states.to(base.device)).cpu()


def _chunks(plan: Sequence[list[int]], sizes: Sequence[int], limit: int) -> Iterator[list[list[int]]]:
    """Consecutive passes whose states fit in the limit together; at least one."""
    chunk: list[list[int]] = []
    held = 0
    for members, size in zip(plan, sizes, strict=True):
        if chunk and held + size > limit:
            yield chunk
            chunk, held = [], 0
        chunk.append(members)
        held += size
    if chunk:
        yield chunk


def _tokens(rows: Any) -> int:
    return sum(len(row.prompt_ids) + len(row.target_ids) for row in rows)
