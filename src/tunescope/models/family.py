"""Canonical layer names: one adapter per model family.

``block.{i}`` is the i-th transformer block, from 0, and as a place it means the residual stream *after* block i. Hugging Face's
``hidden_states`` starts with the embeddings, so ``block.{i}`` is ``hidden_states[i + 1]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunescope.errors import ModelError

_HEAD_ROWS = 8192  # of the head's matrix that are copied to float32 at a time
PARTS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its parts.

    Attributes:
        name: the family.
        model_types: values of ``config.model_type`` that belong to it.
        parts: canonical part -> module path inside a block.
        decoder: path of the module that maps tokens to the last hidden state.
        blocks: path of the list of blocks.
        norm: path of the norm after the last block.
    """

    name: str
    model_types: tuple[str, ...]
    parts: dict[str, str]
    decoder: str = "model"
    blocks: str = "model.layers"
    norm: str = "model.norm"


_GATED = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}

FAMILIES = (
    Family("llama", ("llama", "mistral"), _GATED),
    Family("qwen", ("qwen2", "qwen3"), _GATED),
    Family("gemma", ("gemma3_text",), _GATED),
)


def family_of(model_type: str) -> Family:
    """Returns the family of a ``config.model_type``.

    Raises:
        ModelError: no family has it; the message says what to add.

    Example:
        >>> family_of("qwen3").name
        'qwen'
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(t for family in FAMILIES for t in family.model_types)
    raise ModelError(
        f"model type {model_type!r} is not supported; supported: {known}. To add it, describe where it keeps its blocks "
        "in a Family entry of tunescope/models/family.py"
    )


def bare(model: Any) -> Any:
    """Returns the Hugging Face model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(model: Any) -> torch.device:
    """Returns where the upper end of the model lies; the weights of the lower one need not be in memory."""
    inner = bare(model)
    return next(inner.get_submodule(family_of(inner.config.model_type).norm).parameters()).device


def decoder(model: Any) -> nn.Module:
    """Returns the module that maps token ids to the last hidden state (final norm included, head excluded)."""
    inner = bare(model)
    return inner.get_submodule(family_of(inner.config.model_type).decoder)


def blocks(model: Any) -> nn.ModuleList:
    """Returns the transformer blocks, first to last."""
    inner = bare(model)
    found = inner.get_submodule(family_of(inner.config.model_type).blocks)
    assert isinstance(found, nn.ModuleList)
    return found


def block_names(n_layers: int) -> tuple[str, ...]:
    """Returns ``("block.0", ..., "block.{n_layers - 1}")``."""
    return tuple(f"block.{i}" for i in range(n_layers))


def block_index(name: str) -> int:
    """Returns the number in a canonical block name; ``block.7`` is 7."""
    return int(name.removeprefix("block."))


def head_logits(model: Any, hidden: torch.Tensor, *, head: nn.Module | None = None) -> torch.Tensor:
    """Applies the language-model head.

    Args:
        model: the model, PEFT-wrapped or not.
        hidden: last hidden states, (..., d_model), after the final norm.
        head: another head in the place of the model's own, such as a copy from before it moved.

    Returns:
        Logits in float32, (..., d_vocab), soft-capped where the family does so.
    """
    inner = bare(model)
    logits = (inner.get_output_embeddings() if head is None else head)(hidden).float()
    cap = getattr(inner.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def float32_head_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Applies the language-model head in float32, whatever the model's number format; a part of the vocabulary at a time.

    Args:
        model: the model, PEFT-wrapped or not.
        hidden: last hidden states, (..., d_model), after the final norm.

    Returns:
        Logits in float32, (..., d_vocab), soft-capped where the family does so.
    """
    inner = bare(model)
    head = inner.get_output_embeddings()
    states = hidden.float()
    parts = [states @ part.float().T for part in head.weight.split(_HEAD_ROWS)]
    logits = torch.cat(parts, dim=-1)
    if head.bias is not None:
        logits += head.bias.float()
    cap = getattr(inner.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def canonical_name(parameter: str, family: Family) -> str:
    """Returns the canonical name of a parameter: ``block.3.q.weight``; names outside the blocks stay as they are.

    Example:
        >>> canonical_name("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", FAMILIES[0])
        'block.3.q.lora_A.default.weight'
    """
    match = re.search(rf"(?:^|\.){re.escape(family.blocks)}\.(\d+)\.(.+)$", parameter)
    if not match:
        return parameter.removeprefix("base_model.model.")
    rest = match.group(2)
    for part, path in family.parts.items():
        if rest.startswith(path + "."):
            rest = part + rest[len(path) :]
            break
    return f"block.{match.group(1)}.{rest}"
