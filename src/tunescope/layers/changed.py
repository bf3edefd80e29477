"""Where a tuned model begins to differ from its base: below, both compute the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunescope.models import bare, blocks, decoder, family_of

_NOT_COMPUTED = frozenset(
    [
        "_name_or_path",
        "architectures",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "quantization_config",
        "use_cache",
        "tie_word_embeddings",
    ]
)
"""Settings that change nothing below the final norm, or that the weights themselves show."""


def first_changed_block(base: Any, tuned: Any) -> int:
    """Says from which block on a tuned model computes something else than its base.

    Args:
        base: the base model; adapters on it count as switched off. It may be the very model that `tuned` wraps.
        tuned: the tuned model, PEFT-wrapped or not; every adapter in it counts as a change.

    Returns:
        Number of the lowest block with an adapter or with another weight; 0 too where embeddings, settings or shapes differ or weights
        are not in memory; the number of blocks if nothing differs below the final norm.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> base, tuned = tiny_model(n_layers=3), tiny_model(n_layers=3)
        >>> _ = tuned.model.layers[1].mlp.down_proj.weight.data.mul_(2)
        >>> first_changed_block(base, tuned), first_changed_block(base, base)
        (1, 3)
    """
    mine, theirs = blocks(base), blocks(tuned)
    if len(mine) != len(theirs) or _settings(base) != _settings(tuned) or _changed(_outside(base), _outside(tuned)):
        return 0
    return next((i for i, pair in enumerate(zip(mine, theirs, strict=True)) if _changed(*pair)), len(mine))


def _settings(model: Any) -> dict[str, Any]:
    """What of a model's settings decides what it computes."""
    found: dict[str, Any] = bare(model).config.to_dict()
    return {name: value for name, value in found.items() if name not in _NOT_COMPUTED}


def _outside(model: Any) -> nn.ModuleDict:
    """What stands beside the blocks in the decoder and below them: embeddings and positions, without the final norm."""
    family = family_of(bare(model).config.model_type)
    left_out = [path.rpartition(".")[2] for path in (family.blocks, family.norm)]
    return nn.ModuleDict({name: child for name, child in decoder(model).named_children() if name not in left_out})


def _changed(base: nn.Module, tuned: nn.Module) -> bool:
    (mine, _), (theirs, wrapped) = _weights(base), _weights(tuned)
    return wrapped or mine.keys() != theirs.keys() or not all(_same(mine[name], theirs[name]) for name in mine)


def _weights(module: nn.Module) -> tuple[dict[str, torch.Tensor], bool]:
    """The weights of a module without what PEFT wrapped around parts of it, and whether there is any such."""
    for name in ("base_layer", "original_module"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return _weights(inner)[0], True
    found, wrapped = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False)), False
    for name, child in module.named_children():
        below, inside = _weights(child)
        found |= {f"{name}.{key}": tensor for key, tensor in below.items()}
        wrapped = wrapped or inside
    return found, wrapped


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one is other:
        return True
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and not one.is_meta and torch.equal(one, other)
