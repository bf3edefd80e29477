"""Write a tiny llama as a GGUF file, so that the road from a GGUF file to a loaded model is walked without a download."""

from pathlib import Path

import gguf
import numpy as np

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, model, tokenizer, *, quantised: bool = False) -> Path:
    """Writes a llama; with `quantised` its matrices are Q8_0, and the model's own weights are set to what that holds."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if quantised and values.ndim == 2:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            values[:] = gguf.dequantize(
                packed, gguf.GGMLQuantizationType.Q8_0
            )  # the parameter itself: it shares the memory
        place, heads = _place(name, config)
        if heads:  # GGUF keeps the two halves of the rotary dimensions interleaved
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if quantised and values.ndim == 2:
            packed = gguf.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(place, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(place, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _place(name, config):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", 0
    if name == "model.norm.weight":
        return "output_norm.weight", 0
    index, rest = name.removeprefix("model.layers.").split(".", 1)
    part = rest.removesuffix(".weight")
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(
        part, 0
    )
    return f"blk.{index}.{_PARTS[part]}.weight", heads


def _add_tokenizer(writer, tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    tokens[tokens.index("À")] = (
        "zq"  # a byte that UTF-8 never uses gives its place to the one merge that transformers insists on
    )
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * (len(tokens) - 256))
    writer.add_token_merges(["z q"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
