"""Which questions are trained, and the three tests: same source (HOMO), same field from elsewhere (ID), other fields (OOD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunescope.data.check import normalise
from tunescope.errors import DataError, UserError
from tunescope.knowledge.questions import Question, by_key, check_questions, draw_key, overlaps


@dataclass(frozen=True)
class Split:
    """Questions by role.

    Attributes:
        train: to be probed, grouped and trained.
        homo: of the same source as train, held out.
        in_domain: of the same domains from another source; may be empty.
        out_of_domain: of other domains; may be empty.
        left_out: role -> ids of test questions that also stand in the source of train (for ``homo``: in train, under another domain); they
            are in no role.
    """

    train: tuple[Question, ...]
    homo: tuple[Question, ...]
    in_domain: tuple[Question, ...]
    out_of_domain: tuple[Question, ...]
    left_out: Mapping[str, tuple[str, ...]]


def split_tests(
    source: Sequence[Question],
    *,
    in_domain: Sequence[Question] = (),
    out_of_domain: Sequence[Question] = (),
    test_fraction: float,
    seed: int,
) -> Split:
    """Splits the source into train and a held-out test, and checks the other tests against it.

    Questions with the same text stay on one side, so that no test question was trained under another id. The order of the questions
    does not matter.

    Args:
        source: what may be trained.
        in_domain: test questions of the same domains from another source.
        out_of_domain: test questions of other domains.
        test_fraction: share of every domain of the source that is only tested, in (0, 1), to the nearest whole question; less where
            questions with the same text would be torn apart.
        seed: of the split.

    Returns:
        The split. A test question that also stands in the source is left out and named in `left_out`.

    Raises:
        DataError: if questions cannot be used, an id is in two sets, the source is too small to split, or a test set is there but
            nothing of it remains, as when it is the file that is trained on.
        UserError: if `test_fraction` is out of range.

    Source:
        The roles are those of Ren et al. 2024 (arXiv 2402.18243); leaving out what repeats is ours.

    Example:
        >>> source = [Question(str(i), "it", f"What is {i}?", ("a", "b"), 0) for i in range(10)]
        >>> split = split_tests(source, test_fraction=0.3, seed=0)
        >>> len(split.train), len(split.homo)
        (7, 3)
        >>> other = [Question(f"x{q.id}", "law", q.text.upper(), q.choices, q.gold) for q in source]
        >>> split_tests(source, out_of_domain=other, test_fraction=0.3, seed=0)
        Traceback (most recent call last):
            ...
        tunescope.errors.DataError: all 10 out_of_domain questions also stand in the source of training (leakage): give questions of their own
    """
    if not 0 < test_fraction < 1:
        raise UserError(
            f"test_fraction is {test_fraction}: it is a share of the questions, use a number between 0 and 1"
        )
    tests = {"in_domain": tuple(in_domain), "out_of_domain": tuple(out_of_domain)}
    check_questions([*source, *tests["in_domain"], *tests["out_of_domain"]])
    if not source:
        raise DataError("got no questions to train on: give at least two")
    held_out = {
        question.id
        for domain in by_key(source, lambda question: question.domain).values()
        for question in _held_out(domain, test_fraction, seed)
    }
    if not held_out:
        raise DataError(
            f"{len(source)} questions in {len({q.domain for q in source})} domains leave none to hold out at test_fraction "
            f"{test_fraction}: give more, or hold out a larger share"
        )
    left_out = {}
    problems = []
    for role, questions in tests.items():
        left_out[role] = tuple(question.id for question, _ in overlaps(questions, source))
        if questions and len(left_out[role]) == len(questions):
            problems.append(
                f"all {len(questions)} {role} questions also stand in the source of training (leakage): give questions of their own"
            )
    if problems:
        raise DataError(problems)
    train = tuple(question for question in source if question.id not in held_out)
    tests["homo"] = tuple(question for question in source if question.id in held_out)
    left_out["homo"] = tuple(question.id for question, _ in overlaps(tests["homo"], train))  # in another domain
    kept = {role: tuple(q for q in questions if q.id not in set(left_out[role])) for role, questions in tests.items()}
    return Split(train, kept["homo"], kept["in_domain"], kept["out_of_domain"], left_out)


def _held_out(questions: Sequence[Question], fraction: float, seed: int) -> list[Question]:
    """Draws the questions of one domain that are only tested; equal texts together, at least one question is left."""
    texts = by_key(questions, lambda question: normalise(question.text))
    wanted = min(int(fraction * len(questions) + 0.5), len(questions) - 1)
    drawn: list[Question] = []
    for text in sorted(texts, key=lambda text: draw_key(seed, "homo", text)):
        if len(drawn) + len(texts[text]) <= wanted:
            drawn += texts[text]
    return drawn
