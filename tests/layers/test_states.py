"""Captured states: what Hugging Face's own hidden states say, whatever the batch, and nothing about the model changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from simulated_device import simulated, waits
from tunescope.errors import UserError
from tunescope.layers import capture
from tunescope.models import bare, blocks, decoder
from tunescope.testing import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text"]
PROMPTS = [list(range(40, 40 + n)) for n in (7, 3, 21, 1, 12, 7, 30)]  # 21 and 30: longer than Gemma's window of 16


def by_hand(model: Any, prompt: list[int]) -> torch.Tensor:
    """(n_layers, pos, d_model): embeddings and all blocks but the last, whose state Hugging Face gives after the final norm only."""
    output = bare(model)(input_ids=torch.tensor([prompt]), output_hidden_states=True)
    return torch.stack([h[0].float() for h in output.hidden_states[:-1]])


def wrapped(model: Any) -> Any:
    """The model with an adapter that changes something."""
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return lora.eval()


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_hidden_states_of_single_prompts(family: str, adapter: bool) -> None:
    model = tiny_model(family, n_layers=3)
    plain = capture(model, PROMPTS).last
    model = wrapped(model) if adapter else model
    states = capture(model, PROMPTS, batch_tokens=64)
    assert states.last.shape == states.mean.shape == (4, len(PROMPTS), 32)
    assert states.last.dtype == states.mean.dtype == np.float32
    for i, prompt in enumerate(PROMPTS):
        wanted = by_hand(model, prompt)
        torch.testing.assert_close(torch.from_numpy(states.last[:-1, i]), wanted[:, -1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(states.mean[:-1, i]), wanted.mean(dim=1), rtol=1e-4, atol=1e-4)
    assert np.allclose(plain[0], states.last[0])  # the embeddings know no adapter
    assert np.allclose(plain[1:], states.last[1:], atol=1e-4) is not adapter


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_place_is_the_residual_stream_before_the_final_norm(family: str) -> None:
    model = tiny_model(family)
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        wanted = decoder(model)(input_ids=ids).last_hidden_state[0, -1]
        found = decoder(model).norm(torch.from_numpy(capture(model, [PROMPTS[2]]).last[-1]))[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_does_not_matter(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, n_layers=3, dtype=dtype)
    alone = capture(model, PROMPTS, batch_tokens=1)
    rounding = 1e-5 if dtype == torch.float32 else 0.02
    for batch_tokens in (32, 4096):
        together = capture(model, PROMPTS, batch_tokens=batch_tokens)
        for one, other in ((alone.last, together.last), (alone.mean, together.mean)):
            scale = np.abs(one).max(axis=(1, 2), keepdims=True)
            assert float((np.abs(one - other) / scale).max()) <= rounding


def test_the_order_of_the_prompts_is_kept() -> None:
    model = tiny_model()
    forward, backward = capture(model, PROMPTS), capture(model, PROMPTS[::-1])
    np.testing.assert_allclose(forward.last, backward.last[:, ::-1], rtol=1e-4, atol=1e-5)


def test_every_prompt_is_read_once() -> None:
    model, read = tiny_model(), []
    seen: list[int] = []
    handle = decoder(model).register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    apart = [[200 + i, *prompt] for i, prompt in enumerate(PROMPTS)]  # nothing to share
    capture(model, apart, batch_tokens=40, done=seen.append)
    handle.remove()
    assert sum(read) == sum(map(len, apart))
    assert sum(seen) == len(PROMPTS)
    assert len(read) == len(seen) > 1


def test_the_head_is_not_used() -> None:
    model = tiny_model()
    model.get_output_embeddings().register_forward_hook(lambda *_: pytest.fail("the head ran"))
    capture(model, PROMPTS)


def test_flags_and_hooks_are_as_before_after_success_and_failure() -> None:
    model = tiny_model()
    model.train()
    blocks(model)[1].eval()
    flags = [module.training for module in model.modules()]
    capture(model, PROMPTS)
    with pytest.raises(IndexError):
        capture(model, [[1, 2], [999_999]])
    assert [module.training for module in model.modules()] == flags
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks(model))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_what_is_not_finite_stays_in_its_prompt() -> None:
    model = tiny_model(n_layers=3)
    with torch.no_grad():
        model.get_input_embeddings().weight[60] = float("nan")
    # In one pass: the other prompts, of lengths that are filled up in attention, are read before the error names the third.
    with pytest.raises(UserError, match=r"for prompt 2 \(counted from 0\), 2 of 7 prompts in all"):
        capture(model, PROMPTS)


@pytest.mark.parametrize(
    ("place", "where"), [(0, "output of block.0"), (1, "output of block.1"), (None, "input of block.0")]
)
def test_a_state_that_is_not_finite_names_block_and_prompt(place: int | None, where: str) -> None:
    model = tiny_model(n_layers=3)
    with torch.no_grad():
        if place is None:
            # Only the prompt of 21 and that of 30 tokens hold token 60.
            model.get_input_embeddings().weight[60] = float("inf")
        else:
            blocks(model)[place].mlp.down_proj.weight[:] = float("nan")
    with pytest.raises(UserError, match=f"the {where} is not finite .* for prompt {2 if place is None else 0} "):
        capture(model, PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "batch_tokens", "words"),
    [([], 10, "no prompts"), ([[1], []], 10, "prompt 1 .* is empty"), ([[1]], 0, "batch_tokens is 0")],
)
def test_bad_input_is_named(prompts: list[list[int]], batch_tokens: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        capture(tiny_model(), prompts, batch_tokens=batch_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_states_on_another_device_are_alike(family: str, dtype: torch.dtype, device: str) -> None:
    there, here = [capture(tiny_model(family, n_layers=3, dtype=dtype).to(where), PROMPTS) for where in (device, "cpu")]
    for mine, other in ((there.last, here.last), (there.mean, here.mean)):
        tolerance = 1e-5 if dtype == torch.float32 else 0.05 * float(np.abs(other).max())
        np.testing.assert_allclose(mine, other, atol=tolerance, rtol=0)


def test_during_a_pass_the_processor_does_not_wait() -> None:
    with simulated() as there:
        for n_layers in (2, 6):
            model = tiny_model(n_layers=n_layers).to(there)
            waits.clear()
            capture(model, PROMPTS)
            assert waits.total() == 2 * (n_layers + 1), waits  # two copies a place, all after the pass
