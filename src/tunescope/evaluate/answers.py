"""What a model answers: labels are scored, free text is generated greedily."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.data import ChatFormat, Example, prompt_key
from tunescope.errors import DataError
from tunescope.metrics import SCORERS, best_over_references, unrelated_flags
from tunescope.models import continuation_logprobs, greedy
from tunescope.runs.records import Answer

_ROWS_WORTH_A_START = 4  # fewer rows with the same demonstrations than this, on average, and larger batches save more


@dataclass(frozen=True)
class Answering:
    """How answers are obtained; no field but `demonstrations` and `max_new_tokens` changes an answer.

    Attributes:
        metric: name of the metric of generated answers.
        labels: the allowed answers, or None for free text.
        demonstrations: finished examples that stand before every question, or a function that gives those of one.
        other_labels: labels of other tasks, to notice a model that collapsed to them.
        max_new_tokens: longest generated answer.
        batch_tokens: tokens per forward pass.
    """

    metric: str
    labels: tuple[str, ...] | None = None
    demonstrations: Sequence[Example] | Callable[[Example], Sequence[Example]] = ()
    other_labels: Collection[str] = ()
    max_new_tokens: int = 64
    batch_tokens: int = 2048

    def shown(self, example: Example) -> Sequence[Example]:
        """Returns the demonstrations that stand before an example."""
        return self.demonstrations(example) if callable(self.demonstrations) else self.demonstrations


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
    shown = [how.shown(e) for e in examples]
    for example, before in zip(examples, shown, strict=True):
        if before and prompt_key(example) in map(prompt_key, before):
            raise DataError(
                f"{example.file}:{example.line}: this example is also a demonstration, so its answer would stand in the prompt; "
                "remove it from one of the two"
            )
    prompts = [chat.encode(e, demonstrations=before).prompt_ids for e, before in zip(examples, shown, strict=True)]
    answers: list[Answer | None] = [None] * len(examples)
    for part in same_start(examples, how):
        mine = [examples[i] for i in part]
        method = _label_answers if how.labels is not None else _generated_answers
        for i, given in zip(part, method(model, chat, mine, [prompts[i] for i in part], how, done), strict=True):
            answers[i] = given
    return [a for a in answers if a is not None]


def same_start(examples: Sequence[Example], how: Answering) -> list[list[int]]:
    """Groups examples that go through the model together, so that fixed demonstrations are read once.

    Args:
        examples: what is answered.
        how: gives the demonstrations of each.

    Returns:
        Indices into `examples`, every one once, groups in order of appearance: a group for each set of demonstrations; all in one where
        nearly every example has its own, since then there is nothing to share.

    Example:
        >>> rows = [Example(str(i), "t", f"question {i}", "", ("yes",)) for i in range(12)]
        >>> [len(part) for part in same_start(rows[2:], Answering("rouge_l", demonstrations=rows[:2]))]
        [10]
        >>> ten_each = Answering("rouge_l", demonstrations=lambda e: rows[:1] if int(e.id) < 7 else rows[1:2])
        >>> [len(part) for part in same_start(rows[2:], ten_each)]
        [5, 5]
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, example in enumerate(examples):
        start = tuple((e.file, e.id, e.history, e.prompt_text, e.targets[0]) for e in how.shown(example))
        groups.setdefault(start, []).append(i)
    return list(groups.values()) if len(examples) >= _ROWS_WORTH_A_START * len(groups) else [list(range(len(examples)))]


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
    logs = continuation_logprobs(model, prompts, choices, batch_tokens=how.batch_tokens, float32_head=True, done=done)
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
                shown=[shown.targets[0] for shown in how.shown(example)],
            )
            answers[index] = Answer(text, best_over_references(score, text, example.targets), flags=flags)
        done(len(batch))
    return [a for a in answers if a is not None]
