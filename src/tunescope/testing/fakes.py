"""A byte tokenizer with a chat template, and small random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
_CONTROLS = ("<end>", "<system>", "<user>", "<assistant>")


def byte_tokenizer() -> Any:
    """Returns a tokenizer with one token per UTF-8 byte and four control tokens; pad is the end-of-turn token, as in many models.

    Example:
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer.decode(tokenizer("héllo")["input_ids"])
        'héllo'
        >>> len(tokenizer)
        260
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<end>", additional_special_tokens=list(_CONTROLS[1:])
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_model(
    family: str = "llama", *, n_layers: int = 2, d_model: int = 32, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Any:
    """Returns a small random model for `byte_tokenizer`, in evaluation mode.

    Args:
        family: ``llama``, ``qwen2``, ``qwen3`` or ``gemma3_text`` (with a sliding window of 16).
        n_layers: transformer blocks.
        d_model: width, a multiple of 16.
        seed: of the weights.
        dtype: number format.

    Raises:
        ValueError: unknown family.

    Example:
        >>> tiny_model().config.num_hidden_layers
        2
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunescope.models.attention import register

    common: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": d_model // 4,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "pad_token_id": 256,
        "eos_token_id": 256,
        "bos_token_id": None,
    }
    if family not in ("llama", "qwen2", "qwen3", "gemma3_text"):
        raise ValueError(f"family {family!r} is not known; allowed: llama, qwen2, qwen3, gemma3_text")
    if family == "gemma3_text":
        common |= {"sliding_window": 16, "query_pre_attn_scalar": d_model // 4}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **common)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=register())
    for parameter in model.parameters():  # not model.to(): a model loaded in bfloat16 has float32 rotary frequencies
        parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval()


def save_tiny(folder: Path, **settings: Any) -> Path:
    """Writes a `tiny_model` and its tokenizer to a folder that `tunescope.models.load` reads.

    Args:
        folder: made if missing.
        **settings: as for `tiny_model`.

    Returns:
        The folder.
    """
    tiny_model(**settings).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
