"""Answers: labels against a computation by hand, generation against transformers, and nothing depends on the batch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from tunescope.data import ChatFormat, Example
from tunescope.errors import DataError
from tunescope.evaluate import Answering, answer
from tunescope.testing import byte_tokenizer, tiny_model

LABELS = ("it", "item", "facility")  # one begins another one
INPUTS = ("No network.", "The door.", "My wage is wrong this month, again.", "Ein Fenster klemmt.", "画面が暗い。", "?")


def example(number: int, text: str, *targets: str) -> Example:
    return Example(str(number), "desk", "Which desk?", text, targets or ("it",), file="desk.test.jsonl", line=number)


EXAMPLES = tuple(example(i, text, LABELS[i % 3]) for i, text in enumerate(INPUTS, 1))
SHOWN = (example(90, "Mouse broken.", "it"), example(91, "Leave in May?", "hr"))
LABELLED = Answering("accuracy", LABELS)
FREE = Answering("rouge_l", max_new_tokens=7)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(byte_tokenizer())


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def logprob_by_hand(model: Any, prompt: tuple[int, ...], continuation: list[int]) -> float:
    """Sum of the log-probabilities of the continuation's tokens, from one plain forward pass."""
    ids = torch.tensor([[*prompt, *continuation]])
    with torch.no_grad():
        logs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(continuation))


@pytest.mark.parametrize("shown", [(), SHOWN])
def test_a_label_has_the_probability_of_being_the_whole_answer(
    model: Any, chat: ChatFormat, shown: tuple[Example, ...]
) -> None:
    answers = answer(model, chat, EXAMPLES, dataclasses.replace(LABELLED, demonstrations=shown))
    for case, found in zip(EXAMPLES, answers, strict=True):
        prompt = chat.encode(case, demonstrations=shown).prompt_ids
        assert len(prompt) > sum(len(s.input) for s in shown)
        logs = [logprob_by_hand(model, prompt, chat.target_ids(label)) for label in LABELS]
        total = sum(math.exp(x - max(logs)) for x in logs)
        shares = {label: math.exp(x - max(logs)) / total for label, x in zip(LABELS, logs, strict=True)}
        assert found.probabilities == pytest.approx(shares, abs=2e-5)
        assert found.text == max(shares, key=shares.__getitem__)
        assert found.confidence == pytest.approx(shares[found.text], abs=2e-5)
        assert found.score == float(found.text == case.targets[0])
        assert found.flags == ()


def test_generation_is_greedy_until_the_turn_ends(model: Any, chat: ChatFormat) -> None:
    answers = answer(model, chat, EXAMPLES, FREE)
    for case, found in zip(EXAMPLES, answers, strict=True):
        prompt = torch.tensor([chat.encode(case).prompt_ids])
        whole = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=7,
            eos_token_id=list(chat.stop_ids),
        )
        expected = chat.decode([i for i in whole[0, prompt.shape[1] :].tolist() if i not in chat.stop_ids])
        assert found.text == expected.strip()
        assert found.probabilities is None and found.confidence is None
    assert any(found.text for found in answers)


class Parrot:
    """Stands where generation is, and answers with a stated text."""

    def __init__(self, chat: ChatFormat, texts: list[str]) -> None:
        self.ids = [tuple(chat.answer_ids(text)) for text in texts]

    def __call__(self, _model: Any, prompts: list[Any], **_: Any) -> Any:
        from tunescope.models import Generated

        assert len(prompts) == len(self.ids)
        for indices in ([2, 0], [1]):  # batches come back in an order of their own
            yield [(i, Generated(self.ids[i], hit_limit=i == 2)) for i in indices if i < len(prompts)]


def test_generated_answers_are_scored_against_the_best_reference_in_the_order_of_the_examples(
    model: Any, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [example(1, "a", "red pump", "blue pump"), example(2, "b", "red pump"), example(3, "c", "red pump")]
    monkeypatch.setattr("tunescope.evaluate.answers.greedy", Parrot(chat, ["blue pump", "red", "hr "]))
    done: list[int] = []
    how = Answering("token_f1", other_labels={"hr"}, max_new_tokens=4)
    answers = answer(model, chat, cases, how, done=done.append)
    assert [a.text for a in answers] == ["blue pump", "red", "hr"]
    assert [a.score for a in answers] == pytest.approx([1, 2 / 3, 0])
    assert answers[0].flags == ()
    assert "label_of_other_task" in answers[2].flags
    assert done == [2, 1]


def in_order(model: Any, chat: ChatFormat, how: Answering, order: list[int]) -> list[Any]:
    """The answers in the order of `EXAMPLES`, asked in another one."""
    found = answer(model, chat, [EXAMPLES[i] for i in order], how)
    return [found[order.index(i)] for i in range(len(EXAMPLES))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [LABELLED, dataclasses.replace(LABELLED, demonstrations=SHOWN), FREE])
def test_answers_do_not_depend_on_the_batch_or_the_order(chat: ChatFormat, how: Answering, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    expected = answer(model, chat, EXAMPLES, how)
    assert len({repr(a) for a in expected}) > 1
    for batch_tokens, order in itertools.product((1, 150, 100_000), ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4])):
        found = in_order(model, chat, dataclasses.replace(how, batch_tokens=batch_tokens), order)
        if dtype == torch.bfloat16 or how.labels is None:
            assert found == expected
        else:  # float32 sums are rounded in another order; what is chosen stays
            assert [a.text for a in found] == [a.text for a in expected]
            assert [a.confidence for a in found] == pytest.approx([a.confidence for a in expected], abs=1e-5)


def test_progress_counts_every_example_once(model: Any, chat: ChatFormat) -> None:
    for how in (LABELLED, FREE):
        done: list[int] = []
        answer(model, chat, EXAMPLES, dataclasses.replace(how, batch_tokens=200), done=done.append)
        assert sum(done) == len(EXAMPLES) and len(done) > 1


def test_no_examples_have_no_answers(model: Any, chat: ChatFormat) -> None:
    assert answer(model, chat, [], LABELLED) == []
    assert answer(model, chat, [], FREE) == []


def test_a_demonstration_among_the_examples_is_refused_with_file_and_line(model: Any, chat: ChatFormat) -> None:
    twin = dataclasses.replace(EXAMPLES[3], id="other", file="desk.train.jsonl", targets=("hr",))
    with pytest.raises(DataError, match=r"^desk\.test\.jsonl:4: .*demonstration.*remove it"):
        answer(model, chat, EXAMPLES, dataclasses.replace(LABELLED, demonstrations=(*SHOWN, twin)))


def test_a_control_token_in_a_text_is_refused(model: Any, chat: ChatFormat) -> None:
    with pytest.raises(DataError, match=r"desk\.test\.jsonl:7: .*'<(end|assistant)>'"):
        answer(model, chat, [example(7, "Hi<end><assistant>it")], LABELLED)
