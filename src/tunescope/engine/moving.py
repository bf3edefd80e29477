"""Make exactly the selected weights movable, prove that they move, and that nothing else does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tunescope.engine.adapters import fused_lora, plain_lora_layers
from tunescope.engine.fsdp import check_shardable, is_cut, local, shard_blocks_
from tunescope.engine.sparse import check_mask, merge_, module_path, sparse_layers, with_sparse, without_index_checks
from tunescope.engine.workers import ALONE, Workers
from tunescope.errors import ModelError, TunescopeError, did_you_mean
from tunescope.models import PARTS, Family, StreamedBase, bare, block_index, blocks, canonical_name, family_of
from tunescope.runs.records import Selection
from tunescope.select import Mask


@dataclass(frozen=True)
class Moving:
    """A model of which some weights may move.

    Attributes:
        model: the model, wrapped by PEFT for LoRA and sparse entries.
        selection: what moves, with its numbers filled in.
        parameters: name -> weight, in a fixed order; float32. For sparse entries (n_entries,) changes of the weights, from 0.
        dtype: number format of everything else, and of inference.
        workers: the processes that tune it together.
    """

    model: Any
    selection: Selection
    parameters: dict[str, nn.Parameter]
    dtype: torch.dtype
    workers: Workers = ALONE

    @cached_property
    def _lora_layers(self) -> list[Any]:
        return plain_lora_layers(self.model)

    def compute(self) -> contextlib.AbstractContextManager[Any]:
        """The context for forward passes in tuning: next to bfloat16 weights, the moving float32 ones multiply in bfloat16.

        PEFT would cast every input to float32 for the adapters; leaving that out made a step 1.3 times as fast. Its LoRA layers compute
        in fewer passes over memory inside.
        """
        stack = contextlib.ExitStack()
        if self.selection.method == "lora":
            stack.enter_context(fused_lora(self._lora_layers))
        if self.selection.method == "sparse":
            stack.enter_context(without_index_checks())
        if self.dtype != torch.bfloat16:
            return stack
        stack.enter_context(torch.autocast(next(iter(self.parameters.values())).device.type, dtype=torch.bfloat16))
        return stack


def prepare(
    model: Any,
    family: Family,
    selection: Selection,
    *,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    seed: int = 0,
    mask: Mask | None = None,
    workers: Workers = ALONE,
    base: StreamedBase | None = None,
) -> Moving:
    """Makes the selected weights movable.

    The seed is set before an adapter is made, so that the same seed gives the same adapter.

    Args:
        model: the base model, nothing requiring a gradient.
        family: where its parts are.
        selection: what may move.
        lora_rank: rank of the LoRA matrices.
        lora_alpha: LoRA scale.
        seed: of the adapter's initial values.
        mask: the entries that may move, for method ``sparse`` alone; the selection comes from it (`select.selection_of`).
        workers: the processes that tune together, each of which prepares the same model in the same way (`join_workers`). With sharding
            ``fsdp2`` the blocks are cut over them, and the model then runs in the engine alone.
        base: with sharding ``fsdp2``, where blocks come from that are not in memory: they are read and cut one by one, so that no process ever
            holds more than its parts, the ends, and one block. Method ``lora`` or ``weights``.

    Returns:
        The prepared model; `Moving.selection` carries the counts.

    Raises:
        ModelError: a block or a part does not exist in this model, or the mask does not fit it.
        ConfigError: the method, or `base`, and the sharding do not go together.
        IntegrityError: the mask is another one than that of the selection; or the processes do not hold the same weights.

    Example:
        >>> from tunescope.models import FAMILIES
        >>> from tunescope.testing import tiny_model
        >>> wanted = Selection("lora", ("block.1",), ("q", "v"), why="example")
        >>> moving = prepare(tiny_model(), FAMILIES[0], wanted, lora_rank=2)
        >>> moving.selection.trainable_parameters, moving.selection.lowest_layer
        (224, 1)
    """
    check_selection(selection, n_layers=len(blocks(model)))
    check_mask(model, family, selection, mask)
    check_shardable(selection.method, workers, from_files=base is not None)
    dtype = next(model.parameters()).dtype
    total = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    torch.manual_seed(seed)
    if selection.method == "lora":
        with base.stand_ins() if base is not None else contextlib.nullcontext():
            model = _with_lora(model, family, selection, lora_rank, lora_alpha)
    elif mask is not None:
        model = with_sparse(model, family, mask)
    else:
        _free_weights(model, family, selection)
    workers.check_same(
        "what is prepared", repr([(n, tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()])
    )
    workers.check_equal("the base model", {n: p for n, p in model.named_parameters() if not p.is_meta})
    if workers.sharded:
        shard_blocks_(model, workers, base)
    parameters = {canonical_name(n, family): p for n, p in model.named_parameters() if p.requires_grad}
    if mask is not None:
        # A checkpoint of another mask may have the same shapes; under these names it is refused.
        parameters = {name.replace(".default", f".{mask.sha256[:12]}"): p for name, p in parameters.items()}
    indices = [block_index(name) for name in selection.layers]
    filled = replace(
        selection,
        trainable_parameters=sum(p.numel() for p in parameters.values()),
        total_parameters=total,
        lowest_layer=-1 if selection.whole_model else min(indices),
    )
    return Moving(model, filled, parameters, dtype, workers)


def check_selection(selection: Selection, *, n_layers: int) -> None:
    """Refuses a selection that names what the model lacks.

    Raises:
        ModelError: an unknown block or part, or nothing selected.
    """
    names = [f"block.{i}" for i in range(n_layers)]
    problems = [
        f"block {name!r} is not in this model{did_you_mean(name, names)}; it has block.0 to block.{n_layers - 1}"
        for name in selection.layers
        if name not in names
    ]
    problems += [
        f"part {part!r} is not known{did_you_mean(part, PARTS)}; allowed: {', '.join(PARTS)}"
        for part in selection.modules
        if part not in PARTS
    ]
    if not selection.layers and not selection.whole_model:
        problems.append("the selection is empty: nothing would be tuned")
    occurring = {tuple(name.rpartition(".")[::2]) for name in selection.matrices}
    strange = sorted(
        ".".join(pair) for pair in occurring if pair[0] not in selection.layers or pair[1] not in selection.modules
    )
    if strange:
        problems.append(
            f"matrix {strange[0]!r} is not in the blocks and parts of the selection; name both, or leave it out"
        )
    idle = [name for name in selection.layers if occurring and name not in {block for block, _ in occurring}]
    if idle:
        problems.append(
            f"block {idle[0]!r} is selected, and none of its matrices; name one, such as {idle[0]}.q, or leave it out"
        )
    if selection.matrices and selection.method == "sparse":
        problems.append("method sparse takes its matrices from the mask; leave them out of the selection")
    if selection.method == "lora" and not selection.modules:
        problems.append("LoRA needs at least one part to adapt (q, k, v, o, gate, up, down)")
    if problems:
        raise ModelError(problems)


def describe(moving: Moving) -> str:
    """Returns what will move, one line per block: the text that is printed before tuning."""
    chosen = moving.selection
    family = family_of(bare(moving.model).config.model_type)
    layers = sparse_layers(moving.model, family) if chosen.method == "sparse" else {}
    rows: dict[str, int] = {}
    for name, parameter in moving.parameters.items():
        parts = name.split(".")
        where = f"{parts[0]}.{parts[1]} {parts[2]}" if parts[0] == "block" else name
        rows[where] = rows.get(where, 0) + parameter.numel()
    grouped: dict[str, list[str]] = {}
    for where, count in rows.items():
        block, _, part = where.partition(" ")
        layer = layers.get(f"{block}.{part}")
        size = f" of {layer.out_features * layer.in_features:,}" if layer is not None else ""
        grouped.setdefault(block, []).append(f"{part or 'weights'} {count:,}{size}")
    how = f"{chosen.method}, chosen by {chosen.granularity}" if layers else chosen.method
    head = f"{chosen.trainable_parameters:,} of {chosen.total_parameters:,} weights may move ({how})"
    return "\n".join([head, *(f"  {block}: {', '.join(parts)}" for block, parts in grouped.items())])


class Watch:
    """Proves that the planned weights moved and nothing else did.

    Args:
        moving: the prepared model, before the first step.
    """

    def __init__(self, moving: Moving) -> None:
        self._moving = moving
        self._start = {name: local(p.detach()).clone() for name, p in moving.parameters.items()}
        planned = {id(p) for p in moving.parameters.values()}
        self._frozen = [(n, p, p._version) for n, p in moving.model.named_parameters() if id(p) not in planned]

    def check(self) -> None:
        """Compares with the start; to be called after two steps, since LoRA's A moves only once B has.

        Raises:
            TunescopeError: a planned weight did not move, or a frozen one did.
        """
        found = [not torch.equal(local(p.detach()), self._start[name]) for name, p in self._moving.parameters.items()]
        moved = self._moving.workers.sum_(torch.tensor(found, dtype=torch.float32, device=self._moving.workers.device))
        still = [name for name, count in zip(self._start, moved.tolist(), strict=True) if not count]
        touched = [name for name, p, version in self._frozen if p._version != version or p.grad is not None]
        if still:
            raise TunescopeError(
                f"{len(still)} planned weights did not move, the first is {still[0]}: the plan is not what is tuned"
            )
        if touched:
            raise TunescopeError(
                f"{len(touched)} frozen weights were touched, the first is {touched[0]}: the plan is not what is tuned"
            )


@contextlib.contextmanager
def asserts_backward_stops(moving: Moving) -> Iterator[None]:
    """Raises if the input of the lowest moving block requires a gradient: then the backward pass would not end there.

    Raises:
        TunescopeError: it does.
    """
    lowest = moving.selection.lowest_layer
    if lowest < 0:
        yield
        return

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.requires_grad:
            raise TunescopeError(
                f"the input of block.{lowest} requires a gradient: the backward pass would run below the selection"
            )

    handle = blocks(moving.model)[lowest].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def to_inference(moving: Moving) -> Any:
    """Rounds what moved to the number format of inference and returns the model: what is measured is what is saved.

    LoRA matrices stay in float32, as PEFT loads them; moved weights go back to `Moving.dtype`; changes of sparse entries are added to
    the weights, which gives the same bits as adding them in every pass.

    A model whose blocks are cut over processes (sharding ``fsdp2``) stays so: its weights are rounded, and `save` makes a model of them.
    """
    if moving.selection.method == "weights":
        for parameter in moving.parameters.values():
            # Not model.to(): it would round the rotary frequencies too, which are float32 in a loaded model.
            if is_cut(parameter):
                # FSDP holds on to its tensor; a part of a model does not run, so only the values count.
                local(parameter.data).copy_(local(parameter.data).to(moving.dtype))
            else:
                parameter.data = parameter.data.to(moving.dtype)
    if moving.selection.method == "sparse":
        merge_(moving.model, family_of(bare(moving.model).config.model_type))
    moving.model.requires_grad_(False)
    moving.model.eval()
    return moving.model


def _with_lora(model: Any, family: Family, selection: Selection, rank: int, alpha: float) -> Any:
    from peft import LoraConfig, get_peft_model

    # Without blocks to choose PEFT takes names as they are: paths of single matrices, or last parts of them in every block.
    by_name = bool(selection.matrices) or len(selection.layers) == len(blocks(model))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=[module_path(name, family) for name in selection.matrices]
        or [family.parts[part].rsplit(".", 1)[-1] for part in selection.modules],
        layers_to_transform=None if by_name else [block_index(name) for name in selection.layers],
        layers_pattern=None if by_name else family.blocks.rsplit(".", 1)[-1],
    )
    wrapped = get_peft_model(model, config)
    wrapped.eval()
    return wrapped


def _free_weights(model: Any, family: Family, selection: Selection) -> None:
    if selection.whole_model:
        model.float()
        model.requires_grad_(True)
        return
    for name in selection.layers:
        block = blocks(model)[block_index(name)]
        parts = [p for p in selection.modules if not selection.matrices or f"{name}.{p}" in selection.matrices]
        modules: Sequence[nn.Module] = [block.get_submodule(family.parts[p]) for p in parts] or [block]
        for module in modules:
            module.float()
            module.requires_grad_(True)
