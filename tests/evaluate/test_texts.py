"""Questions answered by text: the probability of each whole answer, as a naive pass gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunescope.data import ChatFormat
from tunescope.errors import DataError
from tunescope.evaluate import FewShot, by_text, zero_shot_by_text
from tunescope.knowledge import Probe, Question
from tunescope.testing import byte_tokenizer, tiny_model

ASKED = [
    Question("1", "zoo", "What flies?", ("a bee", "a bee or so"), 0),  # one is the start of the other
    Question("2", "zoo", "What swims far out at sea?", ("a hen", "a cod", "an ox", "an ant"), 1),
    Question("3", "zoo", "What hums?", ("a fly", "a log", "a pan"), 0, context="Wings hum."),
]
SHOWN = (Question("d", "zoo", "What barks?", ("a dog", "a fish"), 0),)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def log_probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Token after token, by bare passes."""
    total, ids = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            total += float(model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
        ids.append(token)
    return total


def close(found: Probe, sums: list[float]) -> None:
    assert found.probabilities == pytest.approx(torch.tensor(sums).softmax(0).tolist(), abs=1e-5)


@pytest.mark.parametrize("per_byte", [False, True])
def test_a_choice_has_the_probability_of_being_the_whole_answer(model: Any, per_byte: bool) -> None:
    tokenizer = byte_tokenizer()
    start = "Zoo.\n\nWhat barks?\nAnswer: a dog\n\n"
    found = by_text(model, tokenizer, ASKED, FewShot("Zoo.", SHOWN), per_byte=per_byte)
    for question, probe in zip(ASKED, found, strict=True):
        prompt = tokenizer(f"{start}{question.text}\nAnswer:")["input_ids"]
        sums = [log_probability(model, prompt, tokenizer(f" {c}\n")["input_ids"]) for c in question.choices]
        close(probe, [s / len(c) if per_byte else s for s, c in zip(sums, question.choices, strict=True)])


@pytest.mark.parametrize("context", [False, True])
def test_in_the_chat_format_the_end_of_the_turn_belongs_to_the_answer(model: Any, context: bool) -> None:
    chat = ChatFormat(byte_tokenizer())
    found = zero_shot_by_text(model, chat, ASKED, ["Answer."] * 3, context=context)
    for question, probe in zip(ASKED, found, strict=True):
        background = f"{question.context}\n\n" if context and question.context else ""
        text = f"Answer.\n\n{background}{question.text}"
        prompt = chat.prompt_ids([{"role": "user", "content": text}])
        close(probe, [log_probability(model, prompt, chat.target_ids(c)) for c in question.choices])


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_no_probability_depends_on_the_batch_or_the_order(model: Any, batch_tokens: int) -> None:
    chat, headers = ChatFormat(byte_tokenizer()), ["Answer."] * 3
    told: list[int] = []
    expected = {p.id: p for p in zero_shot_by_text(model, chat, ASKED, headers)}
    turned = ASKED[::-1]
    for probe in zero_shot_by_text(model, chat, turned, headers, batch_tokens=batch_tokens, done=told.append):
        assert probe.probabilities == pytest.approx(expected[probe.id].probabilities, abs=1e-6)
    assert sum(told) == 3 and min(told) >= 0


def test_without_questions_nothing_is_asked(model: Any) -> None:
    chat = ChatFormat(byte_tokenizer())
    assert zero_shot_by_text(model, chat, [], []) == by_text(model, byte_tokenizer(), [], FewShot("Zoo.")) == []


def test_what_is_longer_than_the_model_reads_is_refused(model: Any) -> None:
    long = Question("9", "zoo", "far " * 2000, ("a", "b"), 0)
    with pytest.raises(DataError, match=r"question '9' has \d+ tokens with its answer"):
        zero_shot_by_text(model, ChatFormat(byte_tokenizer()), [long], ["Answer."])
    with pytest.raises(DataError, match="the context holds"):
        by_text(model, byte_tokenizer(), [long], FewShot("Zoo."))
