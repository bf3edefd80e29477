"""Ranks of tokens under another model: those of a naive loop, for any batch, ties shared."""

from __future__ import annotations

import pytest
import torch

from tunescope.evaluate import ranks as module
from tunescope.evaluate import token_ranks
from tunescope.testing import tiny_model

PROMPTS = [[65, 66, 67], [70], [72, 73, 74, 75, 76]]
ANSWERS = [[68, 69], [], [77, 78, 79]]


def naive(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> tuple[int, ...]:
    found = []
    for place, token in enumerate(answer):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer[:place]]])).logits[0, -1].tolist()
        found.append(1 + sum(value > logits[token] for value in logits))
    return tuple(found)


@pytest.mark.parametrize("batch_tokens", [1, 8, 4096])
def test_ranks_are_those_of_a_loop_over_tokens(batch_tokens: int) -> None:
    model = tiny_model()
    expected = [naive(model, p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    counted: list[int] = []
    assert token_ranks(model, PROMPTS, ANSWERS, batch_tokens=batch_tokens, done=counted.append) == expected
    assert sum(counted) == len(PROMPTS)
    assert expected[1] == ()


def test_what_a_model_would_write_itself_has_rank_one() -> None:
    model = tiny_model()
    prompt, answer = [65, 66, 67], []
    for _ in range(4):
        with torch.no_grad():
            answer.append(int(model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, -1].argmax()))
    assert token_ranks(model, [prompt], [answer]) == [(1, 1, 1, 1)]


def test_equally_likely_tokens_share_the_better_rank() -> None:
    model = tiny_model()
    model.get_output_embeddings().weight.data.zero_()
    assert token_ranks(model, [[65]], [[66, 200]]) == [(1, 1)]


def test_positions_are_taken_a_few_at_a_time_without_changing_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = token_ranks(tiny_model(), PROMPTS, ANSWERS)
    monkeypatch.setattr(module, "_LOGIT_CELLS", 260)
    assert token_ranks(tiny_model(), PROMPTS, ANSWERS) == whole
