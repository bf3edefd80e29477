"""Plain attention that does not copy keys and values for grouped queries.

Several query heads share one key/value head. The usual plain implementation repeats keys and values for each of them, which in
generation is most of the memory traffic; here the queries of a group are stacked instead. The arithmetic is the same.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "tunescope_grouped"


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax attention with additive mask; the softmax is in float32.

    Args:
        module: the attention module; its ``training`` flag switches the dropout.
        query: (batch, n_heads, pos, d_head).
        key: (batch, n_key_heads, key_pos, d_head); n_heads is a multiple of n_key_heads.
        value: the same shape as `key`.
        attention_mask: (batch, 1, pos, key_pos), 0 where allowed and very negative where not, or None.
        scaling: of the scores; default d_head ** -0.5.
        dropout: of the attention weights, in training.
        softcap: scores are bent to stay within ± this value (Gemma 2), or None.

    Returns:
        (batch, pos, n_heads, d_head), and None in the place of the weights.
    """
    batch, heads, length, width = query.shape
    key_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    stacked = query.reshape(batch, key_heads, -1, width)
    scores = (torch.matmul(stacked, key.transpose(2, 3)) * scale).view(batch, heads, length, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    mixed = torch.matmul(weights.view(batch, key_heads, -1, key.shape[2]), value)
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def register() -> str:
    """Makes transformers know the function; returns the name for ``attn_implementation``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME
