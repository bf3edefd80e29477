"""What a model answers: labels are scored, free text is generated greedily."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.data import ChatFormat, Example
from tunescope.errors import DataError
from tunescope.metrics import SCORERS, best_over_references, unrelated_flags
from tunescope.models import continuation_logprobs, greedy
from tunescope.runs.records import Answer


@dataclass(frozen=True)
class Answering:
    """How answers are obtained; no field but `demonstrations` and `max_new_tokens` changes an answer.

    Attributes:
        metric: name of the metric of generated answers.
        labels: the allowed answers, or None for free text.
        demonstrations: examples that stand before every question.
        other_labels: labels of other tasks, to notice a model that collapsed to them.
        max_new_tokens: longest generated answer.
        batch_tokens: tokens per forward pass.
    """

    metric: str
    labels: tuple[str, ...] | None = None
    demonstrations: tuple[Example, ...] = ()
    other_labels: Collection[str] = ()
    max_new_tokens: int = 64
    batch_tokens: int = 2048


def answer(
    model: Any,
    chat: ChatFormat,
    examples: Sequence[Example],
    how: Answering,
    *,
    done: Callable[[int], None] = lambda n: None,
) -> list[Answer]:
    """Answers every example and scores the answers.

    With labels, the answer is the label with the highest probability of being the whole answer, its end-of-turn token included;
    the probabilities are normalised over the labels. Without, the answer is generated greedily until the turn ends.

    Args:
        model: the model, PEFT-wrapped or not.
        chat: its chat format.
        examples: what to answer, with references.
        how: labels, metric, demonstrations and sizes.
        done: called with the number of examples finished.

    Returns:
        One `Answer` per example, in order. Scores are in [0, 1]; with labels 1 or 0.

    Raises:
        DataError: a demonstration is among the examples (its answer would be given away).

    Example:
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> how = Answering("accuracy", labels=("it", "hr"))
        >>> example = Example("1", "desk", "Which desk?", "No network.", ("it",))
        >>> sorted(answer(tiny_model(), ChatFormat(byte_tokenizer()), [example], how)[0].probabilities)
        ['hr', 'it']
    """
    shown = {(d.instruction, d.input) for d in how.demonstrations}
    if leaked := [e for e in examples if (e.instruction, e.input) in shown]:
        raise DataError(
            f"{leaked[0].file}:{leaked[0].line}: this example is also a demonstration, so its answer would stand in the prompt; "
            "remove it from one of the two"
        )
    prompts = [chat.encode(e, demonstrations=how.demonstrations).prompt_ids for e in examples]
    if how.labels is not None:
        return _label_answers(model, chat, examples, prompts, how, done)
    return _generated_answers(model, chat, examples, prompts, how, done)


def _label_answers(
    model: Any,
    chat: ChatFormat,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    how: Answering,
    done: Callable[[int], None],
) -> list[Answer]:
    labels = how.labels or ()
    choices = [chat.target_ids(label) for label in labels]
    logs = continuation_logprobs(model, prompts, choices, batch_tokens=how.batch_tokens, done=done)
    shares = torch.softmax(logs, dim=1)
    answers = []
    for example, row in zip(examples, shares.tolist(), strict=True):
        best = max(range(len(labels)), key=row.__getitem__)
        probabilities = {label: round(p, 6) for label, p in zip(labels, row, strict=True)}
        answers.append(Answer(labels[best], float(labels[best] in example.targets), row[best], probabilities))
    return answers


def _generated_answers(
    model: Any,
    chat: ChatFormat,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    how: Answering,
    done: Callable[[int], None],
) -> list[Answer]:
    answers: list[Answer | None] = [None] * len(examples)
    score = SCORERS[how.metric]
    batches = greedy(
        model, prompts, stop_ids=chat.stop_ids, max_new_tokens=how.max_new_tokens, batch_tokens=how.batch_tokens
    )
    for batch in batches:
        for index, generated in batch:
            example = examples[index]
            text = chat.decode(generated.ids, special=False).strip()
            flags = unrelated_flags(
                text,
                prompt=example.prompt_text,
                references=example.targets,
                other_labels=how.other_labels,
                hit_limit=generated.hit_limit,
            )
            answers[index] = Answer(text, best_over_references(score, text, example.targets), flags=flags)
        done(len(batch))
    return [a for a in answers if a is not None]
