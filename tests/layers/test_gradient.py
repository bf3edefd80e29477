"""The gradient norm of a block: what autograd says by hand, and nothing about the model changes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from tunescope.data import ChatFormat, Encoded, Example
from tunescope.errors import UserError
from tunescope.layers import gradient_norms
from tunescope.models import blocks
from tunescope.runs.records import LayerScores
from tunescope.testing import byte_tokenizer, tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text"]
PAIRS = [("Which desk? The door is stuck.", "facility"), ("Say hi", "hi"), ("何時ですか", "三時です"), ("Sum 2+2", "4")]


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    chat = ChatFormat(byte_tokenizer())
    return [chat.encode(Example(str(i), "t", question, "", (answer,))) for i, (question, answer) in enumerate(PAIRS)]


def by_hand(model: Any, row: Encoded) -> list[float]:
    """The norm per block from the model's own logits and a plain backward pass through everything."""
    model.requires_grad_(True)
    ids = torch.tensor([row.prompt_ids + row.target_ids])
    n_prompt = len(row.prompt_ids)
    logits = model(input_ids=ids).logits[0, n_prompt - 1 : -1].float()
    loss = functional.nll_loss(functional.log_softmax(logits, dim=-1), ids[0, n_prompt:])
    loss.backward()
    norms = [
        sum(float(p.grad.double().square().sum()) for p in block.parameters() if p.ndim == 2) ** 0.5
        for block in blocks(model)
    ]
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # weights; the norm itself is never rounded to them
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_autograd_by_hand(family: str, dtype: torch.dtype, rows: list[Encoded]) -> None:
    model = tiny_model(family, n_layers=3, dtype=dtype)
    wanted = torch.tensor([by_hand(model, row) for row in rows]).mean(dim=0)
    found = gradient_norms(model, rows)
    assert found.layers == ("block.0", "block.1", "block.2")
    assert found.n == len(rows)
    torch.testing.assert_close(torch.tensor(found.values), wanted, rtol=1e-4, atol=0.0)
    assert min(found.values) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_tells_the_same_to_its_precision(family: str, rows: list[Encoded]) -> None:
    exact = gradient_norms(tiny_model(family), rows)
    rounded = gradient_norms(tiny_model(family, dtype=torch.bfloat16), rows)
    torch.testing.assert_close(torch.tensor(rounded.values), torch.tensor(exact.values), rtol=0.15, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("silent", [0, 1])
def test_a_block_whose_weights_do_not_matter_scores_zero(family: str, silent: int, rows: list[Encoded]) -> None:
    model = tiny_model(family)
    for name, parameter in blocks(model)[silent].named_parameters():
        if "bias" in name:
            parameter.zero_()
        elif "layernorm" in name:  # nothing gets into the block; Gemma multiplies by 1 + weight
            parameter.fill_(-1.0 if family == "gemma3_text" else 0.0)
    found = gradient_norms(model, rows)
    assert found.values[silent] == 0.0
    assert found.values[1 - silent] > 0.0


def test_the_score_is_the_mean_over_examples_with_its_interval(rows: list[Encoded]) -> None:
    model = tiny_model()
    single = torch.tensor([gradient_norms(model, [row]).values for row in rows], dtype=torch.float64)
    found = gradient_norms(model, rows, confidence=0.95)
    assert found.low is not None
    assert found.high is not None
    half = 1.959964 * single.std(dim=0, correction=1) / len(rows) ** 0.5
    close = {"rtol": 1e-5, "atol": 0.0}
    torch.testing.assert_close(torch.tensor(found.values, dtype=torch.float64), single.mean(dim=0), **close)
    torch.testing.assert_close(torch.tensor(found.low, dtype=torch.float64), single.mean(dim=0) - half, **close)
    torch.testing.assert_close(torch.tensor(found.high, dtype=torch.float64), single.mean(dim=0) + half, **close)


def test_a_higher_confidence_gives_a_wider_interval(rows: list[Encoded]) -> None:
    def width(scores: LayerScores) -> float:
        assert scores.low is not None
        assert scores.high is not None
        return scores.high[0] - scores.low[0]

    model = tiny_model()
    widths = [width(gradient_norms(model, rows, confidence=c)) for c in (0.6, 0.9, 0.99)]
    assert all(a < b for a, b in itertools.pairwise(widths))


def test_one_example_has_no_interval_around_it(rows: list[Encoded]) -> None:
    found = gradient_norms(tiny_model(), rows[:1])
    assert found.low == found.values == found.high


def test_the_order_of_the_examples_does_not_matter(rows: list[Encoded]) -> None:
    model = tiny_model()
    wanted = torch.tensor(gradient_norms(model, rows).values)
    for order in itertools.permutations(rows, len(rows)):
        torch.testing.assert_close(torch.tensor(gradient_norms(model, order).values), wanted, rtol=1e-6, atol=0.0)


def test_the_same_model_and_examples_give_the_same_numbers(rows: list[Encoded]) -> None:
    assert gradient_norms(tiny_model(), rows) == gradient_norms(tiny_model(), rows)


def state_of(model: Any) -> list[tuple[str, bool, torch.Tensor, torch.Tensor | None]]:
    return [
        (name, p.requires_grad, p.detach().clone(), None if p.grad is None else p.grad.clone())
        for name, p in model.named_parameters()
    ]


def marked(model: Any) -> Any:
    """Some weights require a gradient, some have one, as in the middle of somebody's training."""
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        if i % 3 == 0:
            parameter.grad = torch.full_like(parameter, 0.5)
    return model


def assert_same_state(before: list, after: list) -> None:
    for (name, flag, weight, grad), (_, flag_after, weight_after, grad_after) in zip(before, after, strict=True):
        assert flag == flag_after, name
        assert torch.equal(weight, weight_after), name
        assert (grad is None) == (grad_after is None), name
        assert grad is None or torch.equal(grad, grad_after), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(family: str, training: bool, rows: list[Encoded]) -> None:
    model = marked(tiny_model(family)).train(training)
    before = state_of(model)
    gradient_norms(model, rows)
    assert_same_state(before, state_of(model))
    assert model.training is training


def test_the_model_is_left_as_it_was_when_it_is_stopped(rows: list[Encoded]) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    model = marked(tiny_model())
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        gradient_norms(model, rows, done=stop)
    assert_same_state(before, state_of(model))


def test_progress_is_told_after_every_example(rows: list[Encoded]) -> None:
    told: list[int] = []
    gradient_norms(tiny_model(), rows, done=told.append)
    assert told == [1] * len(rows)


def test_without_examples_there_is_no_score() -> None:
    with pytest.raises(UserError, match="at least one calibration example, got none"):
        gradient_norms(tiny_model(), [])


def test_weights_that_are_no_numbers_show_up_in_the_score(rows: list[Encoded]) -> None:
    model = tiny_model()
    next(blocks(model)[0].parameters()).fill_(float("nan"))
    assert any(math.isnan(value) for value in gradient_norms(model, rows).values)  # choose_top refuses these
