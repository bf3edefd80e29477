"""A start that all prompts share is computed once, and nothing shows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from tunescope import layers
from tunescope.testing import tiny_model


def prompts(start: int, ends: list[int], seed: int = 0) -> list[list[int]]:
    dice = random.Random(seed)
    shared = [dice.randrange(256) for _ in range(start)]
    return [[*shared, i, *(dice.randrange(256) for _ in range(length - 1))] for i, length in enumerate(ends)]


def one_by_one(model: Any, row: list[int]) -> list[torch.Tensor]:
    """States of one prompt at the input of block 0 and the output of every block."""
    seen: list[torch.Tensor] = []

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: Any, _args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [model.model.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after) for block in model.model.layers]
    with torch.no_grad():
        model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return [states[0].float() for states in seen]


def naive(model: Any, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    states = [one_by_one(model, row) for row in rows]
    last = [[place[-1].numpy() for place in one] for one in states]
    mean = [[place.mean(dim=0).numpy() for place in one] for one in states]
    return np.array(last).swapaxes(0, 1), np.array(mean).swapaxes(0, 1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("ends", [[3, 9, 1, 20], [1, 1], [5]])
def test_states_are_those_of_each_prompt_on_its_own(family: str, ends: list[int]) -> None:
    model, rows = tiny_model(family, n_layers=3), prompts(40, ends)  # longer than gemma's window of 16
    found = layers.capture(model, rows, batch_tokens=60)
    last, mean = naive(model, rows)
    np.testing.assert_allclose(found.last, last, atol=2e-5)
    np.testing.assert_allclose(found.mean, mean, atol=2e-5)


def test_the_start_is_computed_once() -> None:
    model, rows = tiny_model(), prompts(40, [3, 4, 5, 6])
    seen: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda _m, _a, kw: seen.append(kw["input_ids"].numel()), with_kwargs=True
    )
    layers.capture(model, rows)
    assert seen == [40 + 3 + 4 + 5 + 6]  # and nothing is filled up
    seen.clear()
    layers.capture(model, rows, batch_tokens=1)
    handle.remove()
    assert sorted(seen) == [43, 44, 45, 46]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_in_bfloat16_sharing_moves_no_more_than_rounding(family: str) -> None:
    model, rows = tiny_model(family, dtype=torch.bfloat16), prompts(40, [3, 9, 2, 20, 7])
    shared, alone = (layers.capture(model, rows, batch_tokens=tokens) for tokens in (1000, 1))
    for one, other in ((shared.last, alone.last), (shared.mean, alone.mean)):
        np.testing.assert_allclose(one, other, atol=0.05, rtol=0.02)
