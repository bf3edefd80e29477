"""Canonical names and places mean the same in every family."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tunescope.errors import ModelError
from tunescope.models import (
    FAMILIES,
    PARTS,
    bare,
    block_index,
    block_names,
    blocks,
    canonical_name,
    decoder,
    family_of,
    head_logits,
)
from tunescope.testing import tiny_model

IDS = torch.arange(40).view(2, 20)


def with_adapter(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def test_every_supported_model_type_has_its_parts_where_its_family_says():
    for entry in FAMILIES:
        for model_type in entry.model_types:
            settings = {
                "vocab_size": 260,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "pad_token_id": 0,
            }
            settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
            assert len(blocks(model)) == 2
            names = {canonical_name(name, entry) for name, _ in model.named_parameters()}
            assert {f"block.{i}.{part}.weight" for i in range(2) for part in PARTS} <= names
            assert isinstance(decoder(model), torch.nn.Module)


def test_no_two_weights_share_a_canonical_name(model, family):
    names = [name for name, _ in model.named_parameters()]
    canonical = {canonical_name(name, family_of(family)) for name in names}
    assert len(canonical) == len(names)


def test_a_place_is_the_residual_stream_after_its_block(model):
    seen = []
    hooks = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks(model)
    ]
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    for i, name in enumerate(block_names(3)[:-1]):  # transformers gives the last one after the final norm
        assert block_index(name) == i
        assert torch.equal(seen[i], states[i + 1])
    assert torch.equal(decoder(model)(input_ids=IDS).last_hidden_state, states[-1])
    assert not torch.equal(states[0], states[1])


def test_decoder_and_head_together_are_the_model(model, reference):
    logits = head_logits(model, decoder(model)(input_ids=IDS).last_hidden_state)
    torch.testing.assert_close(logits, reference(input_ids=IDS).logits, rtol=0, atol=1e-5)


def test_the_head_bends_logits_where_the_family_does():
    model = tiny_model("gemma3_text")
    model.config.final_logit_softcapping = 1.5
    wanted = model(input_ids=IDS).logits
    assert wanted.abs().max() <= 1.5
    torch.testing.assert_close(head_logits(model, decoder(model)(input_ids=IDS).last_hidden_state), wanted)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 asks for it
def test_an_adapter_changes_neither_names_nor_places(model, family):
    plain = {canonical_name(name, family_of(family)) for name, _ in model.named_parameters()}
    inner_blocks, inner_decoder = blocks(model), decoder(model)
    wrapped = with_adapter(model)
    assert bare(wrapped) is model
    assert blocks(wrapped) is inner_blocks
    assert decoder(wrapped) is inner_decoder
    named = {canonical_name(name, family_of(family)) for name, _ in wrapped.named_parameters()}
    adapters = {name for name in named if ".lora_" in name}
    assert adapters == {f"block.{i}.q.lora_{m}.default.weight" for i in range(3) for m in "AB"}
    assert {name.replace(".base_layer", "") for name in named - adapters} == plain


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3", ""])
def test_an_unknown_family_is_an_error_that_says_what_to_add(model_type):
    with pytest.raises(
        ModelError, match=r"supported: llama, mistral, qwen2, .*Family entry of tunescope/models/family\.py"
    ):
        family_of(model_type)
