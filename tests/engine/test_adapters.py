"""LoRA layers in fewer passes over memory compute what PEFT computes."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_runs import DTYPES, make_moving, make_rows

from tunescope.engine.adapters import fused_lora, plain_lora_layers
from tunescope.models import pad_right, token_losses
from tunescope.testing import tiny_model


def adapted(family, dtype=torch.float32, **settings):
    """Adapters on every linear layer, not at their start."""
    config = LoraConfig(
        **{"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    )
    model = get_peft_model(tiny_model(family, dtype=dtype), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if "bias" in name:  # those of qwen2 begin at 0
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def results(model, layers, dtype=torch.float32):
    model.zero_grad()
    with fused_lora(layers), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses, _ = token_losses(model, *pad_right(make_rows(5)))
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("whole", [False, True], ids=["adapters alone", "base weights too"])
def test_losses_and_gradients_are_those_of_peft(family, whole):
    model = adapted(family)
    if whole:
        model.requires_grad_(True)
    layers = plain_lora_layers(model)
    assert len(layers) == 14  # seven in each of two blocks
    (losses, gradients), (wanted, plain) = results(model, layers), results(model, [])
    torch.testing.assert_close(losses, wanted, rtol=0, atol=1e-5)
    assert gradients.keys() == plain.keys() and len(gradients) >= 28
    for name, gradient in gradients.items():
        assert plain[name].abs().max() > 0, name
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6, msg=name)


def test_beside_bfloat16_weights_it_is_at_least_as_near_to_float32_as_peft(family):
    model = adapted(family, torch.bfloat16)
    exact = copy.deepcopy(model).float()
    wanted = results(exact, [])
    for_all = torch.cat([g.flatten() for g in wanted[1].values()])
    apart = {}
    for name, layers in (("fused", plain_lora_layers(model)), ("peft", [])):
        found = torch.cat([g.float().flatten() for g in results(model, layers, torch.bfloat16)[1].values()])
        apart[name] = float((found - for_all).norm() / for_all.norm())
    assert apart["fused"] < 1.1 * apart["peft"] < 0.2
    assert all(g.dtype == torch.float32 for g in results(model, plain_lora_layers(model), torch.bfloat16)[1].values())


def test_adapters_that_are_off_or_merged_stay_so():
    model = adapted("llama")
    layers = plain_lora_layers(model)
    base = results(tiny_model("llama").requires_grad_(True), [])[0]
    model.requires_grad_(True)
    with model.disable_adapter():
        torch.testing.assert_close(results(model, layers)[0], base)
    on = results(model, layers)[0]
    assert not torch.allclose(on, base, atol=0.1)
    model.merge_adapter()
    torch.testing.assert_close(results(model, layers)[0], on, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True, "target_modules": ["q_proj"]}],
    ids=["dora", "dropout", "bias"],
)
def test_layers_of_another_kind_are_left_to_peft(settings):
    assert plain_lora_layers(adapted("qwen2", **settings)) == []


def test_the_layers_get_their_own_forward_back_even_after_an_error():
    model = adapted("llama")
    layers = plain_lora_layers(model)
    with pytest.raises(ZeroDivisionError), fused_lora(layers), fused_lora(layers):
        assert all("forward" in vars(layer) for layer in layers)
        1 / 0  # noqa: B018
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tuning_computes_with_them(dtype, monkeypatch):
    moving = make_moving("lora on some blocks", dtype=dtype)
    seen = []
    monkeypatch.setattr(
        "tunescope.engine.moving.fused_lora", lambda layers: seen.append(len(layers)) or fused_lora(layers)
    )
    with moving.compute():
        token_losses(moving.model, *pad_right(make_rows(2)))
    assert seen == [6]  # q, v and down of two blocks
