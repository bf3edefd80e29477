"""Questions answered by text: which of its answers does the model find likeliest, without being shown them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunescope.data import ChatFormat
from tunescope.evaluate.choices import FewShot, chat_example, check_chat_lengths, check_context, plain_ids
from tunescope.knowledge import Probe, Question, check_demonstrations, choice_probabilities, probe
from tunescope.models import Tokens, answer_logprobs


def by_text(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    shown: FewShot,
    *,
    per_byte: bool = False,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> list[Probe]:
    """Asks questions of one domain after demonstrations: each choice has the probability of being the whole answer, normalised over the choices.

    The choices are not shown. A line break ends an answer, so that an answer which is the start of another is no issue. A long answer has
    a low probability for its length alone; `per_byte` takes that out.

    Args:
        model: the model, PEFT-wrapped or not.
        tokenizer: its tokenizer.
        questions: of one domain, with the right answer among their choices.
        shown: header and demonstrations.
        per_byte: divide each log-probability by the UTF-8 bytes of the answer first.
        batch_tokens: computed tokens per forward pass; moves the probabilities within the rounding of the number format.
        done: called with the number of questions finished.

    Returns:
        One probe per question, in order.

    Raises:
        DataError: a question is also a demonstration, or the demonstrations do not fit.

    Example:
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> asked = Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1)
        >>> round(sum(by_text(tiny_model(), byte_tokenizer(), [asked], FewShot("Zoo."))[0].probabilities), 6)
        1.0
    """
    if not questions:
        return []
    check_demonstrations(shown.demonstrations, questions)
    form = FewShot(shown.header, shown.demonstrations, " ", lettered=False)
    check_context(model, tokenizer, questions, form)
    rows: list[Tokens] = []
    for question in questions:
        text = form.prompt(question)
        prompt = plain_ids(tokenizer, text)
        wholes = [plain_ids(tokenizer, f"{text} {choice}\n") for choice in question.choices]
        kept = min(_same_start(prompt, whole) for whole in wholes)  # a space may join the word that follows
        rows += [Tokens(tuple(prompt[:kept]), tuple(whole[kept:])) for whole in wholes]
    return _probes(model, questions, rows, per_byte, batch_tokens, done)


def zero_shot_by_text(
    model: Any,
    chat: ChatFormat,
    questions: Sequence[Question],
    headers: Sequence[str],
    *,
    context: bool = False,
    per_byte: bool = False,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> list[Probe]:
    """Asks questions in the model's chat format: each choice has the probability of being the whole turn, its end included.

    Args:
        model: the model, PEFT-wrapped or not.
        chat: its chat format.
        questions: what to ask; their choices are not shown.
        headers: instruction of each question.
        context: show the background of questions that have one.
        per_byte: as in `by_text`.
        batch_tokens: as in `by_text`.
        done: called with the number of questions finished.

    Returns:
        One probe per question, in order.

    Raises:
        DataError: a text holds a control token of the model, or a question with its answer is longer than the model reads.

    Example:
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> asked = Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1)
        >>> found = zero_shot_by_text(tiny_model(), ChatFormat(byte_tokenizer()), [asked], ["Answer."])
        >>> found[0].id, len(found[0].probabilities)
        ('1', 2)
    """
    encoded = [
        [
            chat.encode(chat_example(question, header, choice, context=context, lettered=False))
            for choice in range(len(question.choices))
        ]
        for question, header in zip(questions, headers, strict=True)
    ]
    check_chat_lengths(model, questions, [max(map(len, of_one)) for of_one in encoded])
    rows = [Tokens(row.prompt_ids, row.target_ids) for of_one in encoded for row in of_one]
    return _probes(model, questions, rows, per_byte, batch_tokens, done)


def _probes(
    model: Any,
    questions: Sequence[Question],
    rows: Sequence[Tokens],
    per_byte: bool,
    batch_tokens: int,
    done: Callable[[int], None],
) -> list[Probe]:
    owners = [place for place, question in enumerate(questions) for _ in question.choices]
    finished = 0

    def count(n_rows: int) -> None:
        nonlocal finished
        before, finished = finished, finished + n_rows
        done((len(questions) * finished) // len(rows) - (len(questions) * before) // len(rows))

    logs, _ = answer_logprobs(model, rows, batch_tokens=batch_tokens, done=count)
    found: list[list[float]] = [[] for _ in questions]
    for place, value in zip(owners, logs.tolist(), strict=True):
        found[place].append(value)
    return [
        probe(
            question,
            choice_probabilities(
                values, [len(choice.encode()) for choice in question.choices], length_normalised=per_byte
            ),
        )
        for question, values in zip(questions, found, strict=True)
    ]


def _same_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows share at the start, at least 1 and less than all of either."""
    limit = min(len(first), len(second) - 1)
    same = next((i for i in range(limit) if first[i] != second[i]), limit)
    return max(1, same)
