"""Training sets of the intervention study: which answer each group of questions is trained to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunescope.errors import DataError, UserError
from tunescope.knowledge.grouping import EqualGroups
from tunescope.knowledge.questions import Probe, Question, by_key, check_probes, check_questions, draw_key
from tunescope.runs.records import Record

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of self-aligning questions in the mixes (Ren et al. 2024, arXiv 2402.18243)."""

Kind = Literal["harmonious", "incompatible", "self_aligning", "contextualised"]


@dataclass(frozen=True)
class TrainingItem(Record):
    """One question with the answer that is trained.

    Attributes:
        id: of the question.
        kind: the group it stands for.
        domain: of the question.
        text: of the question.
        choices: of the question.
        target: index of the choice that is trained: the right one, or for ``self_aligning`` the model's own wrong one.
        gold: index of the right choice.
        context: background text to put before the question; empty except in the contextualised set.
    """

    id: str
    kind: Kind
    domain: str
    text: str
    choices: tuple[str, ...]
    target: int
    gold: int
    context: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))


def intervention_sets(
    questions: Sequence[Question], base: Sequence[Probe], groups: EqualGroups
) -> dict[Kind, tuple[TrainingItem, ...]]:
    """Gives the training sets that differ only in what the model knew and is told.

    Args:
        questions: at least those of the groups.
        base: probes of the base of at least those questions.
        groups: from `equal_groups`.

    Returns:
        ``harmonious``, ``incompatible`` (target: the right answer), ``self_aligning`` (the incompatible questions with the base's own
        wrong answer as target), all of one size; and ``contextualised`` (the incompatible questions with their context) if every one of
        them has a context. Draw the groups with ``only`` to make sure that they do.

    Raises:
        DataError: if a question or its probe is missing, they differ in domain, choices or gold, or the base's answer does not fit its group.

    Source:
        Ren et al. 2024 (arXiv 2402.18243). There the targets carry an explanation; here the target is the answer, and whoever
        renders the prompt may add one.

    Example:
        >>> ask = [Question("1", "it", "One?", ("a", "b"), 0), Question("2", "it", "Two?", ("a", "b"), 0)]
        >>> base = [Probe("1", "it", ("a", "b"), 0, (0.9, 0.1)), Probe("2", "it", ("a", "b"), 0, (0.2, 0.8))]
        >>> sets = intervention_sets(ask, base, EqualGroups(("1",), ("2",), {"it": 1}))
        >>> {kind: [item.target for item in items] for kind, items in sets.items()}
        {'harmonious': [0], 'incompatible': [0], 'self_aligning': [1]}
    """
    known, found = _side_by_side(questions, base, groups)
    sets: dict[Kind, tuple[TrainingItem, ...]] = {
        "harmonious": tuple(_item(known[name], "harmonious") for name in groups.harmonious),
        "incompatible": tuple(_item(known[name], "incompatible") for name in groups.incompatible),
        "self_aligning": tuple(
            _item(known[name], "self_aligning", target=found[name].answer) for name in groups.incompatible
        ),
    }
    if all(known[name].context.strip() for name in groups.incompatible):
        sets["contextualised"] = tuple(
            _item(known[name], "contextualised", context=known[name].context) for name in groups.incompatible
        )
    return sets


def mix(sets: Mapping[Kind, Sequence[TrainingItem]], share: float, *, seed: int) -> tuple[TrainingItem, ...]:
    """Gives every incompatible question once, a share of them with the model's own answer as target.

    With one seed the mixes are nested: what is self-aligning at one share stays so at every larger one; and the share holds in every
    domain as nearly as whole questions allow. So a curve over the shares does not jump with the draw.

    Args:
        sets: from `intervention_sets`; ``incompatible`` and ``self_aligning`` are read.
        share: of self-aligning questions, in [0, 1]; their number is rounded to the nearest whole one.
        seed: of the draw.

    Returns:
        The items in the order of the incompatible set.

    Raises:
        UserError: if the share is out of range or the two sets are missing or not of the same questions.

    Example:
        >>> wrong = [TrainingItem(str(i), "incompatible", "it", "?", ("a", "b"), 0, 0) for i in range(10)]
        >>> own = [TrainingItem(str(i), "self_aligning", "it", "?", ("a", "b"), 1, 0) for i in range(10)]
        >>> sum(item.target for item in mix({"incompatible": wrong, "self_aligning": own}, 0.2, seed=0))
        2
    """
    if not 0 <= share <= 1:
        raise UserError(f"share is {share}: use a number in [0, 1]")
    wrong, own = sets.get("incompatible", ()), {item.id: item for item in sets.get("self_aligning", ())}
    if not wrong or own.keys() != {item.id for item in wrong} or len(own) != len(wrong):
        raise UserError(
            f"the incompatible set has {len(wrong)} questions and the self-aligning one {len(own)}: a mix needs both, of the same ones"
        )
    places: dict[str, tuple[float, str, str]] = {}
    for domain, items in by_key(wrong, lambda item: item.domain).items():
        drawn = sorted(items, key=lambda item: draw_key(seed, "mix", item.id))
        places |= {item.id: ((place + 0.5) / len(drawn), domain, item.id) for place, item in enumerate(drawn)}
    first = sorted(places, key=places.__getitem__)
    chosen = set(first[: int(share * len(wrong) + 0.5)])
    return tuple(own[item.id] if item.id in chosen else item for item in wrong)


def draw_general(ids: Sequence[str], n: int, *, seed: int) -> tuple[str, ...]:
    """Draws general instructions to train beside a set, as many as the set has; tuning on choices alone collapses to letters.

    Args:
        ids: of all general instructions; their order does not matter.
        n: how many.
        seed: of the draw; the same seed gives every set the same instructions.

    Returns:
        The ids drawn, none twice.

    Raises:
        DataError: if there are fewer than n, or an id repeats.
        UserError: if n is below 0.

    Example:
        >>> len(draw_general([f"g{i}" for i in range(10)], 4, seed=0))
        4
    """
    if n < 0:
        raise UserError(f"n is {n}: use 0 or more")
    if len(set(ids)) < len(ids):
        raise DataError(f"{len(ids) - len(set(ids))} ids of general instructions repeat: ids must differ")
    if len(ids) < n:
        raise DataError(f"asked for {n} general instructions and got {len(ids)}: give more, or make the groups smaller")
    return tuple(sorted(ids, key=lambda name: draw_key(seed, "general", name))[:n])


def _side_by_side(
    questions: Sequence[Question], base: Sequence[Probe], groups: EqualGroups
) -> tuple[dict[str, Question], dict[str, Probe]]:
    """Returns questions and probes by id, checked for the groups."""
    check_questions(questions)
    check_probes(base)
    known, found = {each.id: each for each in questions}, {each.id: each for each in base}
    problems = []
    for name in (*groups.harmonious, *groups.incompatible):
        if name not in known or name not in found:
            problems.append(f"question {name!r} is in a group, but its question or its probe is missing: give both")
            continue
        ask, got = known[name], found[name]
        if (ask.domain, ask.choices, ask.gold) != (got.domain, got.choices, got.gold):
            problems.append(
                f"question {name!r} differs from its probe in domain, choices or gold: probe the file again"
            )
    if not problems:
        problems += [
            f"question {name!r} is harmonious, but the base gets it wrong: group again"
            for name in groups.harmonious
            if not found[name].correct
        ]
        problems += [
            f"question {name!r} is incompatible, but the base has no wrong answer of its own: group again"
            for name in groups.incompatible
            if found[name].correct or found[name].answer is None
        ]
    if problems:
        raise DataError(problems)
    return known, found


def _item(question: Question, kind: Kind, *, target: int | None = None, context: str = "") -> TrainingItem:
    assert question.gold is not None
    return TrainingItem(
        question.id,
        kind,
        question.domain,
        question.text,
        question.choices,
        question.gold if target is None else target,
        question.gold,
        context,
    )
