"""What every block holds of a prompt: the states of all blocks, pooled inside one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunescope.errors import UserError
from tunescope.models import Packed, Tokens, bare, blocks, moved, pack, passes, run_blocks

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


@dataclass(frozen=True)
class Reader:
    """One of several models of the same shape that read the same prompts.

    Attributes:
        model: the model, PEFT-wrapped or not.
        first: its lowest block that differs from that of the first reader (`first_changed_block`). Below it nothing is computed again.
            Of the first reader itself it means nothing.
        name: what messages call it.
        inside: makes the context that it reads in, such as ``model.disable_adapter``.
    """

    model: Any
    first: int = 0
    name: str = ""
    inside: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


def capture(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
    done: Callable[[int], None] = lambda n: None,
) -> States:
    """Reads the states of all blocks in one forward pass over the prompts, without the head.

    Prompts stand end to end, nothing is padded, and a start that prompts share (template, instruction) is computed once in a pass: of
    57 Super-NaturalInstructions tasks it is three quarters of the text. Each block's output is pooled as soon as it is there: no two
    blocks' full states are held at once. Memory beyond the model and one pass: the result, 8 · (n_layers + 1) · n · d_model bytes.
    What is read of a prompt does not depend on the others in its pass, up to rounding in the model's number format.

    Args:
        model: the model, PEFT-wrapped or not; an adapter that is on takes part. Its training flags are put back afterwards.
        prompts: n rows of token ids, none empty.
        batch_tokens: computed tokens per forward pass; a longer prompt gets a pass of its own.
        done: called with the number of prompts of each pass.

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
    return capture_each([Reader(model)], prompts, batch_tokens=batch_tokens, done=done)[0]


@torch.no_grad()
def capture_each(
    readers: Sequence[Reader],
    prompts: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
    done: Callable[[int], None] = lambda n: None,
) -> list[States]:
    """Reads the states of several models, as `capture` does; blocks that a model has in common with the first run once for both.

    Args:
        readers: at least one, all of the same depth and width.
        prompts: as for `capture`.
        batch_tokens: as for `capture`.
        done: called with the number of prompts after each pass of each model.

    Returns:
        The states of every reader, the same bits as `capture` gives for its model.

    Raises:
        UserError: as `capture`; the message begins with the reader's name.

    Example:
        >>> from tunescope.layers.changed import first_changed_block
        >>> from tunescope.testing import tiny_model
        >>> base, tuned = tiny_model(n_layers=3), tiny_model(n_layers=3)
        >>> _ = tuned.model.layers[2].mlp.down_proj.weight.data.mul_(2)
        >>> models = [Reader(base), Reader(tuned, first_changed_block(base, tuned))]
        >>> a, b = capture_each(models, [[5, 6, 7], [8]])
        >>> [bool((a.last[place] == b.last[place]).all()) for place in range(4)]
        [True, True, True, False]
    """
    if not prompts:
        raise UserError("got no prompts: states need at least one")
    if empty := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
        raise UserError(f"prompt {empty[0]} (counted from 0) is empty: every prompt needs at least one token")
    if batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}: use at least 1, better 4096")
    rows = [Tokens(tuple(prompt), ()) for prompt in prompts]
    found: list[_Found] = []
    later = {reader.first for reader in readers[1:]}
    for chosen in passes(rows, batch_tokens):
        packed = pack([rows[i] for i in chosen])
        pooler = _Pooler(packed, [len(rows[i].prompt_ids) for i in chosen])
        shared: dict[int, torch.Tensor] = {}  # states at the blocks where other models go on from the first
        for number, reader in enumerate(readers):
            model = reader.model
            with reader.inside(), _evaluating(model):
                if number == len(found):
                    found.append(_Found.empty(model, len(rows)))
                if number and reader.first:
                    found[number].begin_as(found[0], reader.first, chosen)
                    _read(model, packed, pooler, found[number], chosen, shared, first=reader.first)
                else:
                    _read(model, packed, pooler, found[number], chosen, shared, keep=() if number else later)
            done(len(chosen))
    return [one.states(reader.name) for one, reader in zip(found, readers, strict=True)]


@dataclass(frozen=True)
class _Found:
    """What one model's blocks held so far, as in `States`."""

    last: torch.Tensor
    mean: torch.Tensor

    @classmethod
    def empty(cls, model: Any, n_prompts: int) -> _Found:
        shape = (len(blocks(model)) + 1, n_prompts, int(bare(model).config.hidden_size))
        return cls(torch.empty(shape), torch.empty(shape))

    def begin_as(self, other: _Found, first: int, chosen: Sequence[int]) -> None:
        """Takes over what another model's blocks below `first` held of some prompts."""
        where = torch.as_tensor(chosen)
        self.last[: first + 1, where] = other.last[: first + 1, where]
        self.mean[: first + 1, where] = other.mean[: first + 1, where]

    def states(self, name: str) -> States:
        _refuse_not_finite(self.last, self.mean, name)
        return States(self.last.numpy(), self.mean.numpy())


class _Pooler:
    """Takes last token and mean out of a block's (1, n_tokens, d_model)."""

    def __init__(self, packed: Packed, lengths: Sequence[int]) -> None:
        self._ends_on: dict[torch.device, torch.Tensor] = {}
        self.segments: list[int] = []
        starts: list[int] = []  # for each segment, the one that its group begins with
        for group in packed.layout.groups:
            starts += [len(self.segments)] * (1 + len(group.lengths))
            self.segments += [group.prefix_length, *group.lengths]
        self.lengths = torch.tensor(lengths)
        self.ends = packed.places[self.lengths.cumsum(0) - 1]
        self.own = torch.searchsorted(torch.tensor(self.segments).cumsum(0), self.ends, right=True)
        self.shared = torch.tensor(starts)[self.own]

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns, where it is, the state of every prompt's last token (n, d_model) and each segment's sum (segments, d_model), float32."""
        if hidden.device not in self._ends_on:
            (self._ends_on[hidden.device],) = moved([self.ends], hidden.device)
        last = hidden[0].index_select(0, self._ends_on[hidden.device]).float()
        return last, torch.stack(
            [piece.sum(dim=0, dtype=torch.float32) for piece in torch.split(hidden[0], self.segments)]
        )

    def means(self, sums: torch.Tensor) -> torch.Tensor:
        """Returns every prompt's mean, (n, d_model), from the sums over segments on the CPU."""
        return (sums[self.own] + sums[self.shared]) / self.lengths[:, None]


def _read(
    model: Any,
    packed: Packed,
    pooler: _Pooler,
    found: _Found,
    chosen: Sequence[int],
    shared: dict[int, torch.Tensor],
    *,
    first: int = 0,
    keep: Collection[int] = (),
) -> None:
    """Reads one pass with one model: from block `first` on, whose input is in `shared`, or all; then blocks in `keep` put theirs there."""
    pooled: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def pool(place: int, hidden: torch.Tensor) -> None:
        pooled[place] = pooler(hidden)
        if place in keep:
            shared[place] = hidden[0]

    if first < len(blocks(model)):
        with _pooled(model, pool):
            run_blocks(model, packed, first=first, states=shared[first] if first else None)
    where = torch.as_tensor(chosen)
    # Copied after the pass: until then the processor need not wait for the device.
    for place, (last, sums) in pooled.items():
        found.last[place, where], found.mean[place, where] = last.cpu(), pooler.means(sums.cpu())


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


def _refuse_not_finite(last: torch.Tensor, mean: torch.Tensor, name: str) -> None:
    # A state that is not finite at any token makes the mean not finite, and in a causal model every later block.
    for place in range(len(last)):
        bad = ~(torch.isfinite(last[place]).all(dim=1) & torch.isfinite(mean[place]).all(dim=1))
        if bad.any():
            where = f"the output of block.{place - 1}" if place else "the input of block.0"
            whose = f"{name}: " if name else ""
            raise UserError(
                f"{whose}{where} is not finite (NaN or infinity) for prompt {int(bad.nonzero()[0])} (counted from 0), {int(bad.sum())} of "
                f"{len(bad)} prompts in all; use dtype float32, or weights that are not damaged"
            )
