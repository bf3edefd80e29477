"""What is asked, what a model answered, and which of it cannot be used."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tunescope.data.check import normalise
from tunescope.errors import DataError
from tunescope.runs.records import Record

SUM_TOLERANCE = 1e-4
"""How far probabilities may be from summing to 1: rounding in a file, not another meaning."""
_SHOWN = 5


@dataclass(frozen=True)
class Question(Record):
    """One question with its choices.

    Attributes:
        id: unique in the study.
        domain: field of knowledge it belongs to; tables are per domain.
        text: the question itself.
        choices: the possible answers, in the order in which they are shown.
        gold: index of the right choice, from 0; None where the file does not say (refused by `check_questions`).
        context: background text that holds the answer, or empty.
        source: name of the data set it comes from; tells tests of the same source from tests of another.
    """

    id: str
    domain: str
    text: str
    choices: tuple[str, ...]
    gold: int | None
    context: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _freeze(self, "choices")


@dataclass(frozen=True)
class Probe(Record):
    """What one model thinks of one question.

    Attributes:
        id: of the question.
        domain: of the question.
        choices: of the question.
        gold: index of the right choice, from 0.
        probabilities: of the choices, in their order; they sum to 1.
    """

    id: str
    domain: str
    choices: tuple[str, ...]
    gold: int
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        _freeze(self, "choices")
        _freeze(self, "probabilities")

    @property
    def answer(self) -> int | None:
        """Index of the single most likely choice; None where several are equally likely: then the model prefers none."""
        best = max(self.probabilities)
        return self.probabilities.index(best) if self.probabilities.count(best) == 1 else None

    @property
    def correct(self) -> bool:
        """Whether the right choice is the single most likely one."""
        return self.answer == self.gold

    @property
    def confidence(self) -> float:
        """Probability of the most likely choice, in [0, 1]."""
        return max(self.probabilities)


Item = TypeVar("Item", Question, Probe)
Thing = TypeVar("Thing")


def probe(question: Question, probabilities: Sequence[float]) -> Probe:
    """Puts a model's probabilities beside their question.

    Args:
        question: with a right choice.
        probabilities: one per choice, in the question's order; they sum to 1.

    Returns:
        The checked record.

    Raises:
        DataError: if the question or the probabilities cannot be used (see `check_questions`, `check_probes`).

    Example:
        >>> probe(Question("1", "it", "What does a router do?", ("routes", "prints"), 0), [0.8, 0.2]).correct
        True
    """
    check_questions([question])
    assert question.gold is not None
    made = Probe(question.id, question.domain, question.choices, question.gold, tuple(map(float, probabilities)))
    check_probes([made])
    return made


def check_questions(questions: Sequence[Question]) -> None:
    """Refuses questions that cannot be scored, all problems at once.

    Args:
        questions: of one study.

    Raises:
        DataError: if there are none, an id repeats, or a question has an empty domain or text, fewer than two choices, an empty
            choice, choices that are equal but for white space (case counts: ``Aa`` and ``aa`` are two genotypes), no right choice, or one
            out of range.

    Example:
        >>> check_questions([Question("7", "it", "Which port?", ("22", "22 "), 2)])
        Traceback (most recent call last):
            ...
        tunescope.errors.DataError: question '7' has the choice '22' more than once (spaces do not count): make them differ
        question '7' has gold 2 and 2 choices: it is the index of the right choice, use 0 to 1
    """
    if not questions:
        raise DataError("got no questions: give at least one")
    refuse([*_repeated_ids(questions), *(line for question in questions for line in _question_problems(question))])


def check_probes(probes: Sequence[Probe]) -> None:
    """Refuses probes whose numbers are no probabilities of their choices, all problems at once.

    Args:
        probes: of one model.

    Raises:
        DataError: if there are none, an id repeats, the right choice is out of range, there are fewer than two choices, or the
            probabilities are not one per choice, not in [0, 1], or do not sum to 1 within `SUM_TOLERANCE`.

    Example:
        >>> check_probes([Probe("7", "it", ("yes", "no"), 0, (0.7, 0.7))])
        Traceback (most recent call last):
            ...
        tunescope.errors.DataError: question '7' has probabilities that sum to 1.4: they are shares over its choices, use a softmax
    """
    if not probes:
        raise DataError("got no probes: give at least one")
    refuse([*_repeated_ids(probes), *(line for each in probes for line in _probe_problems(each))])


def paired(base: Sequence[Probe], tuned: Sequence[Probe]) -> list[tuple[Probe, Probe]]:
    """Puts the probes of two models of the same questions side by side, in the order of the first.

    Args:
        base: of one model.
        tuned: of the other, in any order.

    Returns:
        Pairs (base, tuned).

    Raises:
        DataError: if either has unusable probes, they are not of the same ids, or a question differs in domain, choices or gold.

    Example:
        >>> one = Probe("1", "it", ("a", "b"), 0, (0.9, 0.1))
        >>> two = Probe("1", "it", ("a", "b"), 0, (0.4, 0.6))
        >>> [(x.correct, y.correct) for x, y in paired([one], [two])]
        [(True, False)]
    """
    check_probes(base)
    check_probes(tuned)
    second = {each.id: each for each in tuned}
    missing = [each.id for each in base if each.id not in second]
    extra = sorted(second.keys() - {each.id for each in base})
    problems = []
    if missing or extra:
        problems.append(
            f"the two models answered different questions: {len(missing)} only the first {_listed(missing)}, {len(extra)} only "
            f"the second {_listed(extra)}; probe both with the same ones"
        )
    for each in base:
        other = second.get(each.id, each)
        if (each.domain, each.choices, each.gold) != (other.domain, other.choices, other.gold):
            problems.append(
                f"question {each.id!r} differs in domain, choices or gold between the two models: probe both with the same file"
            )
    refuse(problems)
    return [(each, second[each.id]) for each in base]


def accuracy(probes: Sequence[Probe]) -> float:
    """Gives the share of questions whose right choice is the single most likely one, in [0, 1].

    A tie at the top counts as wrong: a model that finds all choices equally likely knows nothing, wherever the right one stands.

    Args:
        probes: of one model.

    Returns:
        The share.

    Raises:
        DataError: as `check_probes`.

    Example:
        >>> accuracy([Probe("1", "it", ("a", "b"), 0, (0.9, 0.1)), Probe("2", "it", ("a", "b"), 0, (0.5, 0.5))])
        0.5
    """
    check_probes(probes)
    return float(np.mean([each.correct for each in probes]))


def overlaps(first: Sequence[Question], second: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Returns the pairs (one of the first, the one of the second that it repeats).

    Two questions are the same if, after normalisation (case, width, white space), they have the same text together with the same right
    answer or the same choices in any order. Ids do not count.
    """
    known: dict[object, Question] = {}
    for question in second:
        for key in _identities(question):
            known.setdefault(key, question)
    found = []
    for question in first:
        match = next((known[key] for key in _identities(question) if key in known), None)
        if match is not None:
            found.append((question, match))
    return found


def shuffled(items: Iterable[Item], seed: int, purpose: str) -> list[Item]:
    """Returns the items in an order that depends on their ids, the seed and the purpose, and on nothing else."""
    return sorted(items, key=lambda item: draw_key(seed, purpose, item.id))


def draw_key(seed: int, purpose: str, name: str) -> str:
    """Returns a name's place in a draw: adding or leaving out others does not move it."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).hexdigest()


def by_key(items: Iterable[Thing], key: Callable[[Thing], str]) -> dict[str, list[Thing]]:
    """Returns the items by key, keys sorted, items in their order."""
    found: dict[str, list[Thing]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return dict(sorted(found.items()))


def _freeze(record: Record, name: str) -> None:
    """Turns a field's list (from JSON) or array into a tuple of plain values; a text stays one, for the checks to refuse."""
    values = getattr(record, name)
    if not isinstance(values, str):
        plain = values.tolist() if isinstance(values, np.ndarray) else values
        object.__setattr__(record, name, tuple(v.item() if isinstance(v, np.generic) else v for v in plain))


def _identities(question: Question) -> list[object]:
    text = normalise(question.text)
    choices = [normalise(choice) for choice in question.choices]
    found: list[object] = [("choices", text, tuple(sorted(choices)))]
    if question.gold is not None:
        found.append(("gold", text, choices[question.gold]))
    return found


def _question_problems(question: Question) -> list[str]:
    name, n, problems = f"question {question.id!r}", len(question.choices), []
    if isinstance(question.choices, str) or any(not isinstance(choice, str) for choice in question.choices):
        return [f"{name} has the choices {question.choices!r}: give a list of texts"]
    if not question.domain.strip():
        problems.append(f"{name} has no domain: name one, tables are per domain")
    if not question.text.strip():
        problems.append(f"{name} has no text: write the question")
    if n < 2:
        problems.append(f"{name} has {n} choice{'s' * (n != 1)}: at least 2 are needed")
    if any(not choice.strip() for choice in question.choices):
        problems.append(f"{name} has an empty choice: write it or leave it out")
    seen = Counter(unicodedata.normalize("NFC", " ".join(choice.split())) for choice in question.choices)
    for choice in [choice for choice, count in seen.items() if count > 1 and choice]:
        problems.append(f"{name} has the choice {choice!r} more than once (spaces do not count): make them differ")
    return problems + _gold_problems(name, question.gold, n)


def _gold_problems(name: str, gold: Any, n: int) -> list[str]:
    if gold is None:
        return [f"{name} has no right choice: give its index from 0 as gold"]
    if isinstance(gold, bool) or not isinstance(gold, int):
        return [f"{name} has gold {gold!r}: it is the index of the right choice, use a whole number from 0"]
    if n and not 0 <= gold < n:
        return [f"{name} has gold {gold} and {n} choices: it is the index of the right choice, use 0 to {n - 1}"]
    return []


def _probe_problems(each: Probe) -> list[str]:
    name, n = f"question {each.id!r}", len(each.choices)
    problems = _gold_problems(name, each.gold, n)
    if n < 2:
        problems.append(f"{name} has {n} choice{'s' * (n != 1)}: at least 2 are needed")
    if len(each.probabilities) != n:
        problems.append(f"{name} has {len(each.probabilities)} probabilities and {n} choices: give one per choice")
        return problems
    wrong = [
        value for value in each.probabilities if not (isinstance(value, int | float) and 0 <= value <= 1)
    ]  # NaN too
    if wrong:
        problems.append(f"{name} has the probability {wrong[0]}: every one must be in [0, 1]")
    elif n and abs(sum(each.probabilities) - 1) > SUM_TOLERANCE:
        problems.append(
            f"{name} has probabilities that sum to {sum(each.probabilities):.6g}: they are shares over its choices, use a softmax"
        )
    return problems


def _repeated_ids(items: Sequence[Question] | Sequence[Probe]) -> list[str]:
    counts: Mapping[str, int] = Counter(item.id for item in items)
    return [f"id {name!r} occurs {count} times: ids must differ" for name, count in counts.items() if count > 1]


def _listed(names: Sequence[str]) -> str:
    return f"({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})" if names else ""


def refuse(problems: Sequence[str]) -> None:
    """Raises all problems at once, if there are any."""
    if problems:
        raise DataError(problems)
