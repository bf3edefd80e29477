"""What a model answers: labels are scored, free text is generated greedily."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.data import ChatFormat, Example, prompt_key
from tunescope.errors import DataError
from tunescope.evaluate.stopping import cut, ends_at
from tunescope.metrics import SCORERS, best_over_references, unrelated_flags
from tunescope.models import continuation_batches, greedy
from tunescope.runs.records import Answer

Batch = list[tuple[int, Answer]]
"""Answers that came together, each with the index of its example."""
_ROWS_WORTH_A_START = 4  # fewer rows with the same demonstrations than this, on average, and larger batches save more


@dataclass(frozen=True)
class Answering:
    """How answers are obtained; how many go through the model at once changes none.

    Attributes:
        metric: name of the metric of generated answers.
        labels: the allowed answers, or None for free text.
        demonstrations: finished examples that stand before every question, or a function that gives those of one.
        other_labels: labels of other tasks, to notice a model that collapsed to them.
        max_new_tokens: longest generated answer.
        batch_tokens: tokens per forward pass.
        stop: texts that end a generated answer, which is cut before them.
    """

    metric: str
    labels: tuple[str, ...] | None = None
    demonstrations: Sequence[Example] | Callable[[Example], Sequence[Example]] = ()
    other_labels: Collection[str] = ()
    max_new_tokens: int = 64
    batch_tokens: int = 2048
    stop: tuple[str, ...] = ()

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
    the probabilities are normalised over the labels. Without, the answer is generated greedily until the turn ends or a stop string is
    complete.

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
    found: dict[int, Answer] = {}
    for batch in answer_batches(model, chat, examples, how):
        found |= dict(batch)
        done(len(batch))
    return [found[i] for i in range(len(examples))]


def answer_batches(
    model: Any, chat: ChatFormat, examples: Sequence[Example], how: Answering, *, known: Collection[int] = ()
) -> Iterator[Batch]:
    """Answers as `answer` does, a batch at a time, so that a caller can keep what is there.

    Args:
        model: the model, PEFT-wrapped or not.
        chat: its chat format.
        examples: what to answer, with references.
        how: labels, metric, demonstrations and sizes.
        known: indices of examples whose answers the caller has. They are not answered again, and the others come out with the same bits as
            if nothing were known.

    Yields:
        Answers with the index of their example, as they come; together every index once, those of `known` left out.

    Raises:
        DataError: a demonstration is among the examples (its answer would be given away).
    """
    prompts = prompts_of(chat, examples, how)
    method = _label_answers if how.labels is not None else _generated_answers
    for part in same_start(examples, how):
        mine = [examples[i] for i in part]
        have = {place for place, i in enumerate(part) if i in known}
        for batch in method(model, chat, mine, [prompts[i] for i in part], how, have):
            yield [(part[place], given) for place, given in batch if place not in have]


def prompts_of(chat: ChatFormat, examples: Sequence[Example], how: Answering) -> list[tuple[int, ...]]:
    """Returns the token ids that stand before every answer.

    Raises:
        DataError: a demonstration is among the examples, or a text holds a control token of the model.
    """
    shown = [how.shown(e) for e in examples]
    for example, before in zip(examples, shown, strict=True):
        if before and prompt_key(example) in map(prompt_key, before):
            raise DataError(
                f"{example.file}:{example.line}: this example is also a demonstration, so its answer would stand in the prompt; "
                "remove it from one of the two"
            )
    return [chat.encode(e, demonstrations=before).prompt_ids for e, before in zip(examples, shown, strict=True)]


def scored(example: Example, how: Answering, text: str, *, hit_limit: bool, answered_by: str | None = None) -> Answer:
    """Returns a generated answer, cut at its stop string and scored.

    Args:
        example: what was asked, with references.
        how: metric, stop strings and demonstrations.
        text: what was generated, with or without the stop string.
        hit_limit: the generation ended because of `max_new_tokens`.
        answered_by: who generated it, if it was not the model here.
    """
    answer_text = cut(text, how.stop).strip()
    flags = unrelated_flags(
        answer_text,
        prompt=example.prompt_text,
        references=example.targets,
        other_labels=how.other_labels,
        hit_limit=hit_limit,
        shown=[shown.targets[0] for shown in how.shown(example)],
    )
    score = best_over_references(SCORERS[how.metric], answer_text, example.targets)
    return Answer(answer_text, score, flags=flags, answered_by=answered_by)


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
    known: Collection[int],
) -> Iterator[Batch]:
    labels = how.labels or ()
    choices = [chat.target_ids(label) for label in labels]
    batches = continuation_batches(
        model, prompts, choices, batch_tokens=how.batch_tokens, float32_head=True, known=known
    )
    for indices, logs in batches:
        answers: Batch = []
        for index, row in zip(indices, torch.softmax(logs, dim=1).tolist(), strict=True):
            best = max(range(len(labels)), key=row.__getitem__)
            probabilities = {label: round(p, 6) for label, p in zip(labels, row, strict=True)}
            right = float(labels[best] in examples[index].targets)
            answers.append((index, Answer(labels[best], right, row[best], probabilities)))
        yield answers


def _generated_answers(
    model: Any,
    chat: ChatFormat,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    how: Answering,
    known: Collection[int],
) -> Iterator[Batch]:
    def decode(ids: Sequence[int]) -> str:
        return chat.decode(ids, special=False)

    over = ends_at(decode, how.stop, hidden=chat.hidden_ids)
    for batch in greedy(
        model,
        prompts,
        stop_ids=chat.stop_ids,
        max_new_tokens=how.max_new_tokens,
        batch_tokens=how.batch_tokens,
        ended=lambda _index, ids: over(ids),
        known=known,
    ):
        yield [(i, scored(examples[i], how, decode(row.ids), hit_limit=row.hit_limit)) for i, row in batch]
