"""Switch blocks of a tuned model back to the base for a while, without copying or writing a single weight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tunescope.errors import ModelError
from tunescope.models import bare, blocks

Change = tuple[Any, str, Any]  # owner, name of its attribute, the base's value

_SAME = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


def adapter_changes(tuned: Any) -> list[list[Change]]:
    """Returns per block what switches its adapters off: each wrapped module answers as the module that it wraps.

    Args:
        tuned: a PEFT model.

    Returns:
        A list of changes per block, for `replaced`; empty where a block has no adapter.

    Raises:
        ModelError: no adapters in the blocks, merged ones, or ones that tuned the base's biases.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from tunescope.testing import tiny_model
        >>> tuned = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], layers_to_transform=[1]))
        >>> [len(changes) for changes in adapter_changes(tuned)]
        [0, 1]
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    changes: list[list[Change]] = []
    for i, block in enumerate(blocks(tuned)):
        changes.append([])
        for name, module in block.named_modules():
            if isinstance(module, BaseTunerLayer):
                if module.merged:
                    raise ModelError(
                        f"the adapters of block.{i} {name} are merged into its weights and cannot be switched off: unmerge them, or "
                        "pass the base model and the merged model"
                    )
                changes[i].append((module, "forward", module.get_base_layer().forward))
            elif isinstance(module, ModulesToSaveWrapper):
                changes[i].append((module, "forward", module.original_module.forward))
    if not any(changes):
        raise ModelError("the tuned model has no adapters in its blocks: pass the base model that it was tuned from")
    config = getattr(tuned, "peft_config", {})
    biased = [name for name, settings in config.items() if getattr(settings, "bias", "none") != "none"]
    if biased:
        raise ModelError(
            f"adapter {biased[0]!r} also tuned biases of the base, which switching off leaves tuned: use bias='none'"
        )
    return changes


def weight_changes(tuned: Any, base: Any) -> list[list[Change]]:
    """Returns per block its parameters that differ from the base's, with the base's values (no copies).

    Args:
        tuned: the tuned model, without adapters.
        base: the model that it was tuned from.

    Returns:
        A list of changes per block, for `replaced`; empty where a block was not tuned.

    Raises:
        ModelError: the models differ in architecture, vocabulary, number format or device, or in no block.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> base, tuned = tiny_model(), tiny_model()
        >>> _ = tuned.model.layers[1].mlp.down_proj.weight.mul_(2)
        >>> [len(changes) for changes in weight_changes(tuned, base)]
        [0, 1]
    """
    mine, theirs = bare(tuned).config, bare(base).config
    differing = [
        f"{name} {a} and {b}"
        for name in _SAME
        if (a := getattr(mine, name, None)) != (b := getattr(theirs, name, None))
    ]
    if differing:
        raise ModelError(
            f"tuned and base model are of different architectures: {', '.join(differing)}; give the base it was tuned from"
        )
    changes: list[list[Change]] = []
    for i, (block, source) in enumerate(zip(blocks(tuned), blocks(base), strict=True)):
        values = dict(source.named_parameters())
        found = dict(block.named_parameters())
        if found.keys() != values.keys():
            name = sorted(found.keys() ^ values.keys())[0]
            raise ModelError(
                f"block.{i} {name} is in only one of the models: for a model with adapters leave the base out (None)"
            )
        for name, parameter in found.items():
            value = values[name]
            if (parameter.shape, parameter.dtype, parameter.device) != (value.shape, value.dtype, value.device):
                raise ModelError(
                    f"block.{i} {name} is {tuple(parameter.shape)} {parameter.dtype} on {parameter.device} in the tuned model and "
                    f"{tuple(value.shape)} {value.dtype} on {value.device} in the base: load both alike"
                )
        changes.append(
            [(p, "data", values[name].data) for name, p in found.items() if not torch.equal(p, values[name])]
        )
    if not any(changes):
        raise ModelError("no block of the tuned model differs from the base: was the base given twice?")
    return changes


@contextlib.contextmanager
def replaced(changes: Sequence[Change]) -> Iterator[None]:
    """Sets attributes for the time of the context.

    Tensors are exchanged, never written to: nothing can be half restored, and memory for a copy is not needed.

    Args:
        changes: owner, name of the attribute, value; each attribute at most once.
    """
    before = [(owner, name, getattr(owner, name), name in vars(owner)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value, own in before:
            if isinstance(owner, nn.Module) and not own:
                vars(owner).pop(name, None)  # the class's method shows again
            else:
                setattr(owner, name, value)


@contextlib.contextmanager
def states_at(modules: nn.ModuleList, starts: set[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Collects the input of some blocks in the passes of the context.

    Args:
        modules: the blocks.
        starts: which.

    Yields:
        Number of the block -> its input in the last pass, (batch, pos, d_model).
    """
    states: dict[int, torch.Tensor] = {}

    def collector(start: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[start] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [modules[i].register_forward_pre_hook(collector(i), with_kwargs=True) for i in sorted(starts)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def giving(state: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Returns a forward that gives this state, whatever it is asked."""
    return lambda *_args, **_kwargs: state
