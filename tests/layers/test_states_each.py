"""Several models that read the same prompts: each as if it read alone, and what they have in common once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tunescope import engine
from tunescope.errors import UserError
from tunescope.layers import Reader, States, capture, capture_each, first_changed_block
from tunescope.models import bare, blocks
from tunescope.testing import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text"]
N_LAYERS = 4
START = list(range(100, 140))
PROMPTS = [[*START, *range(40, 40 + n)] for n in (7, 3, 21, 1)] + [[5, 6], [9]]


def changed_from(base: Any, block: int) -> Any:
    """A copy of the base with other weights in one block, the lowest that differs, and in the last."""
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for i in {block, N_LAYERS - 1}:
            blocks(tuned)[i].mlp.down_proj.weight.mul_(1.5)
    return tuned


def adapted(model: Any, *numbers: int, where: str = "q_proj") -> Any:
    config = LoraConfig(r=2, target_modules=[where], layers_to_transform=list(numbers), task_type="CAUSAL_LM")
    lora = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return lora.eval()


def assert_equal(found: States, wanted: States) -> None:
    np.testing.assert_array_equal(found.last, wanted.last)
    np.testing.assert_array_equal(found.mean, wanted.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_tokens", [30, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_reads_the_same_bits_as_alone(family: str, batch_tokens: int, dtype: torch.dtype) -> None:
    base = tiny_model(family, n_layers=N_LAYERS, dtype=dtype)
    tuned = {block: changed_from(base, block) for block in range(N_LAYERS)}
    readers = [Reader(base), *(Reader(model, first_changed_block(base, model)) for model in tuned.values())]
    assert [one.first for one in readers[1:]] == list(tuned)
    found = capture_each([*readers, Reader(base, N_LAYERS)], PROMPTS, batch_tokens=batch_tokens)
    for states, model in zip(found, (base, *tuned.values(), base), strict=True):
        assert_equal(states, capture(model, PROMPTS, batch_tokens=batch_tokens))


def test_an_adapter_and_its_base_are_one_model() -> None:
    base = tiny_model(n_layers=N_LAYERS)
    alone = capture(base, PROMPTS)
    lora = adapted(base, 2, 3)
    first = first_changed_block(lora, lora)
    assert first == first_changed_block(base, lora) == 2
    found = capture_each([Reader(lora, inside=lora.disable_adapter), Reader(lora, first)], PROMPTS, batch_tokens=50)
    np.testing.assert_allclose(found[0].last, alone.last, atol=1e-5)
    assert_equal(found[1], capture(lora, PROMPTS, batch_tokens=50))
    assert not np.allclose(found[1].last[3:], alone.last[3:], atol=1e-3)


def test_blocks_in_common_run_once() -> None:
    base = tiny_model(n_layers=N_LAYERS)
    tuned = changed_from(base, 3)
    run: list[int] = []
    for model in (base, tuned):
        for i, block in enumerate(blocks(model)):
            block.register_forward_hook(lambda *_, i=i: run.append(i))
    seen: list[int] = []
    capture_each([Reader(base), Reader(tuned, 3)], PROMPTS, done=seen.append)
    assert run == [0, 1, 2, 3, 3]
    assert seen == [len(PROMPTS)] * 2


def test_the_first_changed_block_of_weights_and_adapters() -> None:
    base = tiny_model(n_layers=N_LAYERS)
    assert first_changed_block(base, base) == first_changed_block(base, copy.deepcopy(base)) == N_LAYERS
    assert first_changed_block(base, adapted(copy.deepcopy(base), 1)) == 1
    other = copy.deepcopy(base)
    with torch.no_grad():
        bare(other).model.norm.weight.mul_(2)  # the states end before the final norm
    assert first_changed_block(base, other) == N_LAYERS
    with torch.no_grad():
        blocks(other)[0].input_layernorm.weight[0] += 1e-3
    assert first_changed_block(base, other) == 0


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("what", ["embeddings", "settings", "dtype", "adapter on embeddings", "depth", "not there"])
def test_what_differs_below_all_blocks_gives_0(what: str) -> None:
    base = tiny_model(n_layers=N_LAYERS)
    other = copy.deepcopy(base)
    if what == "embeddings":
        with torch.no_grad():
            other.get_input_embeddings().weight[3, 3] += 1
    elif what == "settings":
        other.config.rms_norm_eps = 0.1
    elif what == "dtype":
        other = other.to(torch.bfloat16)
    elif what == "adapter on embeddings":
        other = get_peft_model(other, LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    elif what == "depth":
        other = tiny_model(n_layers=N_LAYERS + 1)
    else:
        other = other.to("meta")
    assert first_changed_block(base, other) == 0


def test_a_base_that_something_is_wrapped_around_is_still_the_base() -> None:
    base, tuned = tiny_model(n_layers=N_LAYERS), tiny_model(n_layers=N_LAYERS)
    with torch.no_grad():
        blocks(tuned)[2].mlp.down_proj.weight.mul_(2)
    wrapped = adapted(base, *range(N_LAYERS))
    assert first_changed_block(wrapped, tuned) == 2
    readers = [Reader(wrapped, inside=wrapped.disable_adapter), Reader(tuned, 2), Reader(wrapped)]
    found = capture_each(readers, PROMPTS)
    assert_equal(found[1], capture(tuned, PROMPTS))
    assert_equal(found[2], capture(wrapped, PROMPTS))


def test_a_selection_of_ours_begins_where_it_says() -> None:
    from tunescope.models import family_of
    from tunescope.runs.records import Selection

    base = tiny_model(n_layers=N_LAYERS)
    chosen = Selection("lora", ("block.1", "block.3"), ("q", "down"), why="test")
    moving = engine.prepare(copy.deepcopy(base), family_of("llama"), chosen, lora_rank=2, lora_alpha=4)
    assert first_changed_block(base, moving.model) == 1


def test_the_message_names_the_reader() -> None:
    base = tiny_model(n_layers=N_LAYERS)
    tuned = changed_from(base, 2)
    with torch.no_grad():
        blocks(tuned)[2].mlp.down_proj.weight[:] = float("nan")
    with pytest.raises(UserError, match=r"^tuned model: the output of block\.2 is not finite"):
        capture_each([Reader(base, name="base model"), Reader(tuned, 2, "tuned model")], PROMPTS)
