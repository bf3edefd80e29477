"""Grouped attention is transformers' eager attention, forward and backward."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.models.llama import modeling_llama

from tunescope.models.attention import grouped_attention
from tunescope.testing import tiny_model

LENGTH = 11


def causal(window=None, padding=0):
    """Additive mask (2, 1, pos, pos); the second row ends with padding."""
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    allowed = (distance >= 0) & (distance < (window or LENGTH))
    allowed = allowed.expand(2, 1, -1, -1).clone()
    if padding:
        allowed[1, :, :, -padding:] &= torch.eye(LENGTH, dtype=torch.bool)[:, -padding:]
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


MASKS = {"none": None, "causal": causal(), "window": causal(window=3), "padding": causal(padding=4)}


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
def test_values_and_gradients_equal_eager_attention(heads, key_heads, mask, softcap):
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, h, LENGTH, 8) for h in (heads, key_heads, key_heads)]
    ours = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    module = SimpleNamespace(num_key_value_groups=heads // key_heads, training=False, head_dim=8)
    mixed, weights = grouped_attention(module, *ours, mask, scaling=0.3, softcap=softcap)
    wanted, _ = eager_attention_forward(module, *theirs, mask, scaling=0.3, softcap=softcap)
    assert weights is None
    torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-6)
    direction = torch.randn(mixed.shape, generator=generator)
    mixed.backward(direction)
    wanted.backward(direction)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.grad.abs().max() > 0.1
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=2e-6)


def test_bfloat16_equals_eager_attention_to_rounding():
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn((2, h, LENGTH, 8), generator=generator).bfloat16() for h in (4, 2, 2)]
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    mixed, _ = grouped_attention(module, *inputs, causal().bfloat16(), scaling=8**-0.5)
    wanted, _ = modeling_llama.eager_attention_forward(module, *inputs, causal().bfloat16(), scaling=8**-0.5)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), wanted.float(), rtol=0.02, atol=0.01)


def test_the_scale_is_the_usual_one_unless_given_and_extra_mask_columns_are_ignored():
    inputs = [torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    module = SimpleNamespace(training=False)
    usual, _ = grouped_attention(module, *inputs, None)
    given, _ = grouped_attention(module, *inputs, torch.zeros(1, 1, 5, 9), scaling=0.25)
    other, _ = grouped_attention(module, *inputs, None, scaling=0.5)
    assert torch.equal(usual, given)
    assert not torch.allclose(usual, other)


def test_dropout_acts_in_training_only():
    inputs = [torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    evaluated, _ = grouped_attention(nn.Module().eval(), *inputs, None, dropout=0.5)
    plain, _ = grouped_attention(nn.Module().eval(), *inputs, None)
    trained, _ = grouped_attention(nn.Module().train(), *inputs, None, dropout=0.5)
    assert torch.equal(evaluated, plain)
    assert not torch.allclose(trained, plain)


@pytest.mark.parametrize("window", [4, 64])
def test_a_whole_model_gives_the_logits_and_gradients_of_eager_attention(model, reference, family, window):
    """With right padding, and for gemma with a window shorter or longer than the text."""
    ids = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    for each in (model, reference):
        each.config.sliding_window = window if family == "gemma3_text" else None
        each.requires_grad_(True)
    ours = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    theirs = reference(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for (name, mine), (_, other) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert other.grad.abs().max() > 0, name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_window_of_the_tiny_model_matters():
    ids = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(0))
    narrow, wide = tiny_model("gemma3_text"), tiny_model("gemma3_text")
    narrow.config.sliding_window, wide.config.sliding_window = 4, 64
    assert not torch.allclose(narrow(ids).logits[0, -1], wide(ids).logits[0, -1], atol=1e-2)
    assert torch.equal(narrow(ids).logits[0, :4], wide(ids).logits[0, :4])
