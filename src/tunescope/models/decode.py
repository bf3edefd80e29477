"""Scoring and greedy generation over a shared prefix; the numbers do not depend on how examples are batched.

Rows that begin with the same tokens (system message, instruction, demonstrations) compute that prefix once: its keys and
values are copied to every row of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.models.family import device_of, float32_head_logits, head_logits
from tunescope.models.slots import SlotCache, new_cache, read
from tunescope.models.transfer import moved

_MIN_PREFIX = 16  # shorter common starts cost more to copy than to compute
_WORTH_DROPPING = 0.75  # finished rows leave the batch once a quarter of it is finished: leaving copies the rest


@dataclass(frozen=True)
class Generated:
    """One greedy continuation.

    Attributes:
        ids: token ids, stop token excluded; the one at which `ended` said so included.
        hit_limit: True if it ended because of `max_new_tokens`.
    """

    ids: tuple[int, ...]
    hit_limit: bool


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all rows share at the start, at most one less than the shortest row.

    Example:
        >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]])
        2
        >>> common_prefix([[1, 2], [1, 2]])
        1
    """
    ordered = sorted(tuple(row) for row in rows)
    first, last = ordered[0], ordered[-1]  # in lexicographic order these two differ first
    limit = min(len(row) for row in rows) - 1
    count = 0
    while count < limit and first[count] == last[count]:
        count += 1
    return count


def continuation_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 2048,
    float32_head: bool = False,
    done: Callable[[int], None] = lambda n: None,
) -> torch.Tensor:
    """Returns the log-probability of every continuation after every prompt.

    Args:
        model: the model, PEFT-wrapped or not.
        prompts: token ids, one row per example; none empty.
        continuations: token ids of each choice, end-of-turn token included, so that one being the start of another is no issue.
        batch_tokens: tokens per forward pass.
        float32_head: compute the logits of first tokens in float32 even where the model is bfloat16. A bfloat16 logit of 16 is known to 0.06
            to 0.12, so that single letters often tie: 30 % of the questions of a multiple-choice probe did.
        done: called with the number of finished prompts after each batch.

    Returns:
        (n_prompts, n_continuations) float64 on the CPU: the sum over the continuation's tokens, in nats.
    """
    result = torch.zeros((len(prompts), len(continuations)), dtype=torch.float64)
    for batch, logs in continuation_batches(
        model, prompts, continuations, batch_tokens=batch_tokens, float32_head=float32_head
    ):
        result[batch] = logs
        done(len(batch))
    return result


@torch.no_grad()
def continuation_batches(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 2048,
    float32_head: bool = False,
    known: Collection[int] = (),
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Scores as `continuation_logprobs` does, a batch at a time, so that a caller can keep what is there.

    Args:
        model: the model, PEFT-wrapped or not.
        prompts: token ids, one row per example; none empty.
        continuations: token ids of each choice.
        batch_tokens: tokens per forward pass.
        float32_head: as there.
        known: prompts whose scores the caller has. Batches are made of all prompts and those of known ones alone are left out, so that
            the others come out with the same bits as if nothing were known.

    Yields:
        For each batch the indices into `prompts`, and (n_indices, n_continuations) float64 on the CPU, in nats.
    """
    if not prompts or not continuations:
        return
    longest = max(len(c) for c in continuations)
    prefix = _shared_length(prompts)
    batches = length_batches([len(p) - prefix + longest for p in prompts], batch_tokens=batch_tokens)
    batches = _with_unknown(batches, known)
    shared = _shared_prefix(model, prompts, prefix) if batches else None
    tokens = [torch.tensor([choice[0] for choice in continuations])] + [torch.tensor(list(c)) for c in continuations]
    begins, *choices = moved(tokens, device_of(model))
    for batch in batches:
        hidden, lengths, cache = _read_prompts(model, [prompts[i] for i in batch], prefix, shared, longest - 1)
        logits = float32_head_logits(model, hidden) if float32_head else head_logits(model, hidden)
        scores = logits.log_softmax(-1).index_select(1, begins).double()
        for j, choice in enumerate(choices):
            if len(choice) > 1:
                scores[:, j] += _tail_logprobs(model, cache, lengths, choice)
        yield batch, scores.cpu()


@torch.no_grad()
def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int = 2048,
    max_batch: int = 32,
    ended: Callable[[int, Sequence[int]], bool] = lambda index, ids: False,
    known: Collection[int] = (),
) -> Iterator[list[tuple[int, Generated]]]:
    """Generates greedily, a batch at a time.

    Args:
        model: the model, PEFT-wrapped or not.
        prompts: token ids, one row per example; none empty.
        stop_ids: tokens that end an answer.
        max_new_tokens: strict limit per answer.
        batch_tokens: tokens of a batch at its end, answers included.
        max_batch: rows in a batch at most.
        ended: called with an index into `prompts` and its tokens after every new one; True ends the answer there.
        known: prompts whose answers the caller has; batches of known ones alone are left out, the others stay as they are.

    Yields:
        For each finished batch a list of (index into `prompts`, `Generated`).
    """
    if not prompts:
        return
    prefix = _shared_length(prompts)
    lengths_left = [len(p) - prefix + max_new_tokens for p in prompts]
    batches = _with_unknown(length_batches(lengths_left, batch_tokens=batch_tokens, max_rows=max_batch), known)
    shared = _shared_prefix(model, prompts, prefix) if batches else None
    stop = frozenset(stop_ids)
    for batch in batches:
        hidden, position, cache = _read_prompts(model, [prompts[i] for i in batch], prefix, shared, max_new_tokens - 1)
        outputs: list[list[int]] = [[] for _ in batch]
        over = [False] * len(batch)
        rows = list(range(len(batch)))  # which output each row of the cache belongs to
        for step in range(max_new_tokens):
            token = head_logits(model, hidden).argmax(-1)
            for row, value in zip(rows, token.tolist(), strict=True):
                stopped = value in stop
                if not (over[row] or stopped):
                    outputs[row].append(value)
                over[row] = over[row] or stopped or ended(batch[row], outputs[row])
            going = [i for i, row in enumerate(rows) if not over[row]]
            if not going or step == max_new_tokens - 1:
                break
            if len(going) <= _WORTH_DROPPING * len(rows):
                (kept,) = moved([torch.tensor(going)], token.device)
                cache.keep(kept)
                token, position, rows = token[kept], position[kept], [rows[i] for i in going]
            hidden = read(model, token[:, None], position[:, None], cache)[:, -1]
            position = position + 1
        yield [(index, Generated(tuple(outputs[i]), not over[i])) for i, index in enumerate(batch)]


def length_batches(lengths: Sequence[int], *, batch_tokens: int, max_rows: int = 64) -> list[list[int]]:
    """Groups rows of similar length, so that no padded batch holds more than `batch_tokens` tokens (but at least one row).

    Longest first: a batch that does not fit in memory fails at once and not after an hour.

    Args:
        lengths: tokens per row.
        batch_tokens: tokens per padded batch.
        max_rows: rows per batch at most.

    Returns:
        Lists of indices into `lengths`; every index once.

    Example:
        >>> length_batches([3, 8, 2], batch_tokens=8)
        [[1], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        last = batches[-1] if batches else []
        if last and len(last) < max_rows and lengths[last[0]] * (len(last) + 1) <= batch_tokens:
            last.append(index)
        else:
            batches.append([index])
    return batches


def _read_prompts(
    model: Any, prompts: Sequence[Sequence[int]], prefix: int, prefix_cache: SlotCache | None, extra: int
) -> tuple[torch.Tensor, torch.Tensor, SlotCache]:
    """Reads the prompts behind the `prefix` tokens that they share, whose keys and values are in `prefix_cache`.

    Returns:
        Last hidden state of each prompt (rows, d_model), the length of each prompt (rows,), and the cache with `extra` slots more.
    """
    device = device_of(model)
    longest = max(len(p) for p in prompts)
    padded = torch.zeros((len(prompts), longest - prefix), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        padded[i, : len(prompt) - prefix] = torch.tensor(list(prompt[prefix:]))
    lengths, flat = moved([torch.tensor([len(p) for p in prompts]), padded.flatten()], device)
    positions = torch.arange(prefix, longest, device=device).expand(len(prompts), -1)
    slots = longest + extra
    cache = prefix_cache.spread(len(prompts), slots) if prefix_cache else new_cache(model, len(prompts), slots)
    states = read(model, flat.view(padded.shape), positions, cache)
    last = states[torch.arange(len(prompts), device=device), lengths - prefix - 1]
    return last, lengths, cache


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens are computed once for all prompts."""
    length = common_prefix(prompts) if len(prompts) > 1 else 0
    return length if length >= _MIN_PREFIX else 0


def _shared_prefix(model: Any, prompts: Sequence[Sequence[int]], length: int) -> SlotCache | None:
    """Runs the tokens that all prompts share once and returns their keys and values."""
    if not length:
        return None
    device = device_of(model)
    cache = new_cache(model, 1, length)
    (ids,) = moved([torch.tensor(list(prompts[0][:length]))], device)
    read(model, ids[None], torch.arange(length, device=device)[None], cache)
    return cache


def _with_unknown(batches: Sequence[list[int]], known: Collection[int]) -> list[list[int]]:
    """The batches that hold anything the caller does not have."""
    return [batch for batch in batches if not all(index in known for index in batch)]


def _tail_logprobs(model: Any, cache: SlotCache, lengths: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """Log-probability of a continuation's second and later tokens after every row; the next choice overwrites its slots."""
    rows, width = len(lengths), len(choice) - 1
    positions = lengths[:, None] + torch.arange(width, device=lengths.device)
    states = read(model, choice[:-1].expand(rows, width), positions, cache)
    targets = choice[1:].expand(rows, width).unsqueeze(2)
    return head_logits(model, states).log_softmax(-1).gather(2, targets).sum((1, 2)).double()
