"""What every block holds of a prompt: the states of all blocks, pooled inside one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunescope.errors import UserError
from tunescope.models import bare, blocks, common_prefix, decoder, device_of, length_batches
from tunescope.models.slots import SlotCache, new_cache, read

_SHORTEST_PREFIX = 16  # tokens: a shorter common start costs more to copy than to compute
_SLOTS_PER_TOKEN = 4  # a copy of the start needs no computing, only memory: it counts as a quarter of its tokens

Pool = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class States:
    """Residual stream at every block, one row per prompt, in the order in which the prompts were given.

    Index 0 is the input of block 0 (the embeddings), index i + 1 the output of block i, before the final norm.

    Attributes:
        last: state of the last prompt token, float32 (n_layers + 1, n, d_model).
        mean: mean over the prompt's tokens, float32 (n_layers + 1, n, d_model).
    """

    last: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]


@torch.no_grad()
def capture(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
    done: Callable[[int], None] = lambda n: None,
) -> States:
    """Reads the states of all blocks in one forward pass over the prompts, without the head.

    Prompts of similar length share a batch, padding is on the right, and each block's output is pooled as soon as it is there: no two
    blocks' full states are held at once. Memory beyond the model and one batch: the result, 8 · (n_layers + 1) · n · d_model bytes.
    What is read of a prompt does not depend on its batch, up to rounding in the model's number format. A start that all prompts share
    (template, instruction) is computed once: of 57 Super-NaturalInstructions tasks it is three quarters of the text.

    Args:
        model: the model, PEFT-wrapped or not; an adapter that is on takes part. Its training flags are put back afterwards.
        prompts: n rows of token ids, none empty.
        batch_tokens: tokens per forward pass, padding included; a longer prompt gets a pass of its own.
        done: called with the number of prompts of each batch.

    Returns:
        The states on the CPU.

    Raises:
        UserError: no prompts, an empty one, `batch_tokens` below 1, or a state that is not finite; the message names block and prompt.

    Source:
        Zhao, Ziser & Cohen (2024, arXiv 2410.20008) read the last prompt token. Ours also gives the mean over the prompt, and pools in
        the pass where the paper's procedure writes the states of each prompt to the disk.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> states = capture(tiny_model(n_layers=2), [[5, 6, 7], [8]])
        >>> states.last.shape, bool((states.last[:, 1] == states.mean[:, 1]).all())  # a prompt of one token is its own mean
        ((3, 2, 32), True)
    """
    if not prompts:
        raise UserError("got no prompts: states need at least one")
    if empty := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
        raise UserError(f"prompt {empty[0]} (counted from 0) is empty: every prompt needs at least one token")
    if batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}: use at least 1, better 4096")
    n_layers, width = len(blocks(model)), int(bare(model).config.hidden_size)
    device = device_of(model)
    last = torch.empty((n_layers + 1, len(prompts), width), dtype=torch.float32)
    mean = torch.empty_like(last)
    with _evaluating(model):
        start = _read_start(model, prompts, n_layers, device)
        weights = [len(prompt) - start.length + start.length // _SLOTS_PER_TOKEN for prompt in prompts]
        for batch in length_batches(weights, batch_tokens=batch_tokens):
            ids, mask = (t.to(device) for t in _stack([prompts[i][start.length :] for i in batch]))
            with _pooled(model, _pooler(mask, batch, last, mean, start)):
                if start.cache is None:
                    decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False)
                else:
                    positions = start.length + torch.arange(ids.shape[1], device=device).expand(len(ids), -1)
                    read(model, ids, positions, start.cache.spread(len(ids), start.length + ids.shape[1]))
            done(len(batch))
    _refuse_not_finite(last, mean)
    return States(last.numpy(), mean.numpy())


@dataclass(frozen=True)
class _Start:
    """What all prompts begin with.

    Attributes:
        length: its tokens; 0 where it is not worth the copies.
        cache: its keys and values, or None.
        sums: its states summed over the tokens (n_layers + 1, d_model), or None.
    """

    length: int = 0
    cache: SlotCache | None = None
    sums: list[torch.Tensor] | None = None


def _read_start(model: Any, prompts: Sequence[Sequence[int]], n_layers: int, device: torch.device) -> _Start:
    """Computes the common start of the prompts, if there is one."""
    length = common_prefix(prompts) if len(prompts) > 1 else 0
    if length < _SHORTEST_PREFIX:
        return _Start()
    sums = [torch.empty(0)] * (n_layers + 1)

    def pool(place: int, hidden: torch.Tensor) -> None:
        sums[place] = hidden.sum(dim=1, dtype=torch.float32)[0]

    cache = new_cache(model, 1, length)
    with _pooled(model, pool):
        read(model, torch.as_tensor([prompts[0][:length]]).to(device), torch.arange(length, device=device)[None], cache)
    return _Start(length, cache, sums)


def _stack(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (batch, pos), padded on the right."""
    ids = torch.zeros((len(prompts), max(map(len, prompts))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.as_tensor(prompt)
        mask[i, : len(prompt)] = 1
    return ids, mask


def _pooler(mask: torch.Tensor, batch: Sequence[int], last: torch.Tensor, mean: torch.Tensor, start: _Start) -> Pool:
    """Returns what takes last token and mean out of a block's (batch, pos, d_model)."""
    lengths = mask.sum(dim=1)
    rows, ends = torch.arange(len(mask), device=mask.device), lengths - 1
    padding = None if bool(mask.all()) else (mask == 0)[:, :, None]
    where = torch.as_tensor(batch)

    def pool(place: int, hidden: torch.Tensor) -> None:
        hidden = hidden[:, : mask.shape[1]]  # `read` doubles a single token
        last[place, where] = hidden[rows, ends].float().cpu()
        kept = hidden if padding is None else hidden.masked_fill(padding, 0)
        sums = kept.sum(dim=1, dtype=torch.float32)
        if start.sums is not None:
            sums = sums + start.sums[place]
        mean[place, where] = (sums / (start.length + lengths)[:, None]).cpu()

    return pool


@contextlib.contextmanager
def _pooled(model: Any, pool: Pool) -> Iterator[None]:
    """Calls `pool` with the input of block 0 (place 0) and the output of each block i (place i + 1)."""

    def before(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pool(0, args[0] if args else kwargs["hidden_states"])

    def after(place: int) -> Callable[[Any, Any, Any], None]:
        return lambda _block, _args, output: pool(place, output[0] if isinstance(output, tuple) else output)

    found = blocks(model)
    handles = [found[0].register_forward_pre_hook(before, with_kwargs=True)]
    try:
        for i, block in enumerate(found):
            handles.append(block.register_forward_hook(after(i + 1)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout is off inside; every module's own flag is put back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _refuse_not_finite(last: torch.Tensor, mean: torch.Tensor) -> None:
    # A state that is not finite at any token makes the mean not finite, and in a causal model every later block.
    for place in range(len(last)):
        bad = ~(torch.isfinite(last[place]).all(dim=1) & torch.isfinite(mean[place]).all(dim=1))
        if bad.any():
            where = f"the output of block.{place - 1}" if place else "the input of block.0"
            raise UserError(
                f"{where} is not finite (NaN or infinity) for prompt {int(bad.nonzero()[0])} (counted from 0), {int(bad.sum())} of "
                f"{len(bad)} prompts in all; use dtype float32, or weights that are not damaged"
            )
