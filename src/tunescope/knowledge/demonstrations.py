"""Questions that are shown with their answers: never those that are asked, and no more than fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunescope.errors import DataError
from tunescope.knowledge.questions import Question, by_key, check_questions, overlaps, refuse, shuffled


def check_demonstrations(demonstrations: Sequence[Question], tests: Sequence[Question]) -> None:
    """Refuses demonstrations that are also asked: the answer would stand in the prompt.

    Two questions are the same if, after normalisation (case, width, white space), they have the same text together with the same right
    answer or the same choices in any order.

    Args:
        demonstrations: shown with their answers; may be empty.
        tests: asked.

    Raises:
        DataError: if one is in both, or either cannot be used.

    Example:
        >>> ask = Question("7", "it", "Which port has SSH?", ("22", "80"), 0)
        >>> check_demonstrations([Question("d", "it", "which port has ssh?", ("80", "22"), 1)], [ask])
        Traceback (most recent call last):
            ...
        tunescope.errors.DataError: demonstration 'd' is test question '7' (leakage): take it out of one of the two
    """
    check_questions(tests)
    if not demonstrations:
        return
    check_questions(demonstrations)
    refuse(
        [
            f"demonstration {shown.id!r} is test question {asked.id!r} (leakage): take it out of one of the two"
            for shown, asked in overlaps(demonstrations, tests)
        ]
    )


def check_fit(demonstration_tokens: Sequence[int], question_tokens: int, *, context_tokens: int) -> None:
    """Refuses more demonstrations than the context holds together with the longest question.

    Args:
        demonstration_tokens: length of each demonstration, in the order in which they are added.
        question_tokens: header, longest question and longest choice together.
        context_tokens: what the model (or the setting) allows.

    Raises:
        DataError: if they do not fit, with how many do.

    Example:
        >>> check_fit([300, 300], 500, context_tokens=1024)
        Traceback (most recent call last):
            ...
        tunescope.errors.DataError: 2 demonstrations (600 tokens) + longest question (500) = 1100 tokens, the context holds 1024: use at most 1
    """
    total = sum(demonstration_tokens) + question_tokens
    if total <= context_tokens:
        return
    if question_tokens > context_tokens:
        raise DataError(
            f"the longest question has {question_tokens} tokens, the context holds {context_tokens}: shorten it or leave it out"
        )
    room = context_tokens - question_tokens
    fitting = int(np.searchsorted(np.cumsum(demonstration_tokens), room, side="right"))
    raise DataError(
        f"{len(demonstration_tokens)} demonstrations ({total - question_tokens} tokens) + longest question ({question_tokens}) = "
        f"{total} tokens, the context holds {context_tokens}: use at most {fitting}"
    )


def draw_demonstrations(pool: Sequence[Question], *, count: int, seed: int) -> dict[str, tuple[Question, ...]]:
    """Draws the same number of demonstrations for every domain; what is left can be asked.

    Args:
        pool: questions of all domains; their order does not matter.
        count: demonstrations per domain, at least 0.
        seed: of the draw.

    Returns:
        Domain -> demonstrations, domains sorted.

    Raises:
        DataError: if a domain has fewer than `count` questions, or one cannot be used.

    Example:
        >>> pool = [Question(str(i), "it", f"What is {i}?", ("a", "b"), i % 2) for i in range(9)]
        >>> [len(each) for each in draw_demonstrations(pool, count=5, seed=0).values()]
        [5]
    """
    check_questions(pool)
    if count < 0:
        raise DataError(f"asked for {count} demonstrations: use 0 or more")
    by_domain = by_key(pool, lambda question: question.domain)
    problems = [
        f"domain {domain!r} has {len(found)} questions for {count} demonstrations: give more questions or ask for fewer"
        for domain, found in by_domain.items()
        if len(found) < count
    ]
    refuse(problems)
    return {domain: tuple(shuffled(found, seed, "demonstrations")[:count]) for domain, found in by_domain.items()}
