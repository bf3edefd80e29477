"""Some of a model's blocks alone: those below a cut, whose output never changes in tuning, or those from it on.

What stands at a cut is the input of a block, so ``first=k`` goes on where ``stop=k`` ended. Both run the model's own decoder, in which
the blocks that are left out are replaced by ones that pass on what they get; so each block keeps its number, its layer type, its
rotary frequencies and its adapters, whatever the family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tunescope.errors import ModelError
from tunescope.models.family import Family, bare, blocks, decoder, device_of, family_of
from tunescope.models.packed import Packed, Row, pack
from tunescope.models.packed_attention import packed_only

Context = Callable[[], contextlib.AbstractContextManager[Any]]


def run_blocks(
    model: Any,
    packed: Packed,
    *,
    first: int = 0,
    stop: int | None = None,
    states: torch.Tensor | None = None,
    only_targets: bool = False,
    checkpointing: Context | None = None,
) -> torch.Tensor:
    """Runs a packed row through the blocks from `first` up to, and not with, `stop`; differentiable.

    Args:
        model: the model, PEFT-wrapped or not, in evaluation mode.
        packed: the rows.
        first: number of the first block that runs; with 0 the embeddings run too.
        stop: one past the last block that runs; None = to the end, the final norm included.
        states: (n_tokens, d_model) at the input of block `first`; None only for block 0.
        only_targets: the last block leaves out its attention's output and its MLP for tokens whose state predicts no target. Their
            numbers in the result then mean nothing.
        checkpointing: None, or what the computation runs in, such as autocast: then the blocks from the lowest that needs a gradient on
            keep their input alone, and are computed again, in such a context, for the backward pass.

    Returns:
        (n_tokens, d_model) at the input of block `stop`, or after the final norm.

    Raises:
        ModelError: blocks that do not exist, or states of another shape.

    Example:
        >>> from types import SimpleNamespace
        >>> from tunescope.models.packed import pack
        >>> from tunescope.testing import tiny_model
        >>> model, rows = tiny_model(), pack([SimpleNamespace(prompt_ids=(5, 6), target_ids=(7,))])
        >>> at_1 = run_blocks(model, rows, stop=1)
        >>> torch.equal(run_blocks(model, rows, first=1, states=at_1), run_blocks(model, rows))
        True
    """
    found = list(blocks(model))
    end = len(found) if stop is None else stop
    _check(packed, len(found), first, end, states)
    there = packed.on(device_of(model))
    contexts: list[Context] = [lambda: packed_only(model)]
    if stop is None and only_targets:
        contexts.append(lambda: _only(model, found[-1], there.needed))
    layers: list[nn.Module] = [block if first <= i < end else _Passing() for i, block in enumerate(found)]
    if checkpointing is not None and torch.is_grad_enabled():
        lowest = _lowest(found[first:end], states) + first
        inside = _together([checkpointing, *contexts])
        layers[lowest:end] = [_Checkpointed(block, inside) for block in found[lowest:end]]
    given = {"input_ids": there.input_ids} if states is None else {"inputs_embeds": states.to(device_of(model))}
    with (
        _together(contexts)(),
        _with(model, _family(model).blocks, nn.ModuleList(layers)),
        contextlib.ExitStack() as stack,
    ):
        if stop is not None:
            stack.enter_context(_with(model, _family(model).norm, _Passing()))
        hidden: torch.Tensor = decoder(model)(
            **{name: tensor[None] for name, tensor in given.items()},
            position_ids=there.positions[None],
            use_cache=False,
            layout=packed.layout,
        ).last_hidden_state
    return hidden[0]


class KeptStates(Protocol):
    """Where states at a cut are kept from one pass to the next, such as a cache on disk."""

    def read(self, rows: Sequence[Any], k: int) -> torch.Tensor | None:
        """Returns the states at the input of block `k`, (sum of the rows' lengths, d_model), row after row; None if one row is missing."""

    def write(self, rows: Sequence[Any], k: int, states: torch.Tensor) -> None:
        """Keeps what `read` is to return for these rows."""


def predicting_states(
    model: Any,
    rows: Sequence[Row],
    *,
    cut: int = 0,
    kept: KeptStates | None = None,
    checkpointing: Context | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the last hidden state from which every target token is predicted; differentiable.

    Args:
        model: the model, PEFT-wrapped or not, in evaluation mode.
        rows: encoded examples, all of one pass.
        cut: number of the lowest block that may have changed since `kept` was filled, or below which nothing has a gradient.
        kept: states at the cut: the blocks below it run only for rows that are not there, and then fill it.
        checkpointing: as for `run_blocks`.

    Returns:
        (n_targets, d_model) states after the final norm, (n_targets,) target tokens, both on the model's device, and (n_targets,) the row
        each belongs to, on the CPU; row after row.

    Raises:
        ModelError: the blocks below the cut are needed and their weights are not in memory.
    """
    packed = pack(rows)
    states = None if kept is None or cut < 1 else _at_cut(model, rows, packed, cut, kept)
    hidden = run_blocks(
        model,
        packed,
        first=0 if states is None else cut,
        states=states,
        only_targets=True,
        checkpointing=checkpointing,
    )
    there = packed.on(hidden.device)
    return hidden.index_select(0, there.predictors), there.targets, packed.owners


@torch.no_grad()
def _at_cut(model: Any, rows: Sequence[Row], packed: Packed, cut: int, kept: KeptStates) -> torch.Tensor:
    device = device_of(model)
    found = kept.read(rows, cut)
    if found is not None:
        return found.to(device).index_select(0, packed.on(device).sources)
    if any(p.is_meta for block in blocks(model)[:cut] for p in block.parameters()):
        raise ModelError(
            f"blocks below block.{cut} are not in memory, and {len(rows)} rows are not in the cache of their output; fill it for all rows first"
        )
    # Not in what the rest runs in, so that what is kept depends on the base model alone and not on what is tuned above it.
    with torch.autocast(device.type, enabled=False):
        states = run_blocks(model, packed, stop=cut)
    kept.write(rows, cut, states.index_select(0, packed.on(device).places))
    return states


class _Passing(nn.Module):
    """Stands where a block or a norm is left out."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return hidden_states


class _Checkpointed(nn.Module):
    """A block that keeps its input alone for the backward pass.

    transformers' own checkpointing would make the embeddings require a gradient, and the backward pass would run through every block.
    """

    def __init__(self, block: nn.Module, inside: Context) -> None:
        super().__init__()
        self.run = block
        self.inside = inside

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        found: torch.Tensor = checkpoint(
            self.run,
            hidden_states,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn: the model is in evaluation mode
            context_fn=lambda: (contextlib.nullcontext(), self.inside()),
            **arguments,
        )
        return found


def _check(packed: Packed, n_layers: int, first: int, end: int, states: torch.Tensor | None) -> None:
    if not 0 <= first <= end <= n_layers:
        raise ModelError(f"blocks {first} to {end}: wanted 0 <= first <= stop <= {n_layers}, the blocks of this model")
    if states is None and first:
        raise ModelError(f"block.{first} cannot start without states; give those at its input, or start with block 0")
    if states is not None and (states.ndim != 2 or len(states) != packed.layout.n_tokens):
        raise ModelError(
            f"states of shape {tuple(states.shape)}, wanted: one row for each of {packed.layout.n_tokens} tokens of the packed row"
        )


def _lowest(run: Sequence[nn.Module], states: torch.Tensor | None) -> int:
    """How many of the blocks that run lie below the first that keeps anything for a backward pass."""
    if states is not None and states.requires_grad:
        return 0
    return next((i for i, block in enumerate(run) if any(p.requires_grad for p in block.parameters())), len(run))


def _family(model: Any) -> Family:
    return family_of(bare(model).config.model_type)


def _together(contexts: Sequence[Context]) -> Context:
    """One context that enters several."""

    @contextlib.contextmanager
    def inside() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            yield

    return inside


@contextlib.contextmanager
def _with(model: Any, path: str, module: nn.Module) -> Iterator[None]:
    """Puts another module in the place of one."""
    inner = bare(model)
    before = inner.get_submodule(path)
    inner.set_submodule(path, module)
    try:
        yield
    finally:
        inner.set_submodule(path, before)


@contextlib.contextmanager
def _only(model: Any, block: nn.Module, needed: torch.Tensor) -> Iterator[None]:
    """Makes a block's queries, attention output and MLP run on some tokens alone; the others get zeros from them.

    Keys and values are computed for all. In the last block most of the work is for states that nothing reads.
    """
    parts = _family(model).parts
    modules = [block.get_submodule(path) for path in (parts["q"], parts["o"], parts["gate"].rpartition(".")[0])]
    before = [(module, vars(module).get("forward")) for module in modules]
    try:
        for module in modules:
            module.forward = _narrowed(module.forward, needed)
        yield
    finally:
        for module, forward in before:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _narrowed(forward: Callable[..., torch.Tensor], needed: torch.Tensor) -> Callable[..., torch.Tensor]:
    def narrowed(hidden: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        found = forward(hidden.index_select(1, needed), *arguments, **named)
        whole = found.new_zeros((hidden.shape[0], hidden.shape[1], found.shape[2]))
        return whole.index_copy(1, needed, found)

    return narrowed
