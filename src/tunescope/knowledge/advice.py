"""What data to collect, from what the base knows: codes with numbers, most important first.

A domain counts as known, or unknown, if that holds for most of its questions beyond the noise: the Wilson interval of the share of known
questions lies above, or below, one half. Known means: the right choice is the single most likely one.

* known: examples of the wanted behaviour are enough; they bring out what is there.
* unknown, above chance or not: the facts have to come from somewhere: from a context put before the question (retrieval) where the questions
  have one, else from new data. In Ren et al. 2024 (arXiv 2402.18243) models tuned on right answers that contradict what they hold did worse
  than models tuned on their own wrong ones; a context before the question made up for much of that.
* neither: more questions would tell; how many is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from tunescope.errors import DataError, UserError
from tunescope.knowledge.chance import ALL, ChanceRow, chance_table
from tunescope.knowledge.grouping import Grouping, group
from tunescope.knowledge.questions import Probe, Question, check_questions
from tunescope.knowledge.resampling import wilson

Code = dict[str, Any]

MOST = 0.5
"""Share of a domain's questions from which it counts as known or unknown."""
MOST_QUESTIONS = 10_000
"""Stands for "more than is sensible" where a number of questions is asked for."""


def advise(
    questions: Sequence[Question],
    base: Sequence[Probe],
    *,
    threshold: float,
    behaviour_examples: int,
    alpha: float = 0.05,
    confidence: float = 0.95,
) -> tuple[Code, ...]:
    """Says what data to collect, by the rules at the top of this module.

    Args:
        questions: those that were probed, at least; only whether they have a context is read.
        base: probes of the base.
        threshold: as in `group`: what counts as sure.
        behaviour_examples: examples of the wanted behaviour that tuning is to have, at least 0; harmonious questions can serve as such.
        alpha: level of the tests against chance, in (0, 1).
        confidence: level of the intervals, in (0, 1).

    Returns:
        Codes, those on all domains first, then domain by domain:
        ``base_not_above_chance`` (n, correct, chance, p_value): no claim on knowledge can be built on this model;
        ``behaviour_examples`` (wanted, have, need): harmonious questions there, and examples still to be written;
        ``below_chance`` (domain, n, accuracy, chance, p_adjusted): worse than guessing: check the right answers and the prompt;
        ``domain_not_above_chance`` (the same): what it gets right may be luck;
        ``known`` (domain, n, share, low, high);
        ``use_context`` (domain, n, unknown, share, low, high, with_context): unknown, and at least half of these have a context;
        ``collect_facts`` (the same): unknown, and most have none;
        ``unclear`` (domain, n, share, low, high, needed): questions that would tell;
        ``unsure`` (domain, n, unsure): more than half are answered without being sure, beyond the noise.

    Raises:
        DataError: if questions or probes cannot be used, or a probe has no question.
        UserError: if a setting is out of range.

    Example:
        >>> ask = [Question(str(i), "it", f"What is {i}?", ("a", "b"), 0) for i in range(40)]
        >>> base = [Probe(q.id, q.domain, q.choices, 0, (0.9, 0.1)) for q in ask]
        >>> [code["code"] for code in advise(ask, base, threshold=0.5, behaviour_examples=100)]
        ['behaviour_examples', 'known']
    """
    check_questions(questions)
    if behaviour_examples < 0:
        raise UserError(f"behaviour_examples is {behaviour_examples}: use 0 or more")
    *rows, overall = chance_table(base, alpha=alpha, confidence=confidence)
    found = group(base, threshold=threshold)
    contexts = {question.id: bool(question.context.strip()) for question in questions}
    missing = [each.id for each in base if each.id not in contexts]
    if missing:
        raise DataError(
            f"{len(missing)} probes have no question, the first is {missing[0]!r}: give the questions that were probed"
        )
    codes: list[Code] = []
    if overall.state != "above":
        counts = {"n": overall.n, "correct": overall.correct, "chance": overall.chance, "p_value": overall.p_value}
        codes.append({"code": "base_not_above_chance", **counts})
    have = len(found.harmonious)
    need = max(0, behaviour_examples - have)
    codes.append({"code": "behaviour_examples", "wanted": behaviour_examples, "have": have, "need": need})
    for row in rows:
        codes += _of_domain(row, [each for each in base if each.domain == row.domain], found, contexts, confidence)
    return tuple(codes)


def questions_needed(share: float, *, confidence: float = 0.95) -> int:
    """Estimates how many questions would tell whether a share is above or below one half, if it stays where it is.

    Args:
        share: seen so far, in [0, 1].
        confidence: level of the interval.

    Returns:
        At most `MOST_QUESTIONS`.

    Source:
        Normal interval of a share, solved for n: ``z**2 * share * (1 - share) / (share - 1/2)**2``.

    Example:
        >>> questions_needed(0.6), questions_needed(0.5)
        (93, 10000)
    """
    distance = abs(share - MOST)
    if not 0 <= share <= 1:
        raise UserError(f"share is {share}: use a number in [0, 1]")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    variance = share * (1 - share)
    return MOST_QUESTIONS if not distance else min(MOST_QUESTIONS, math.ceil(z * z * variance / distance**2))


def _of_domain(
    row: ChanceRow, probes: Sequence[Probe], found: Grouping, contexts: dict[str, bool], confidence: float
) -> list[Code]:
    """Returns the codes of one domain."""
    assert row.domain != ALL
    codes: list[Code] = []
    if row.state != "above":
        code = "below_chance" if row.state == "below" else "domain_not_above_chance"
        numbers = {"accuracy": row.accuracy, "chance": row.chance, "p_adjusted": row.p_adjusted}
        codes.append({"code": code, "domain": row.domain, "n": row.n, **numbers})
    seen = {"domain": row.domain, "n": row.n, "share": row.accuracy, "low": row.low, "high": row.high}
    if row.low > MOST:
        codes.append({"code": "known", **seen})
    elif row.high < MOST:
        unknown = [each.id for each in probes if not each.correct]
        with_context = sum(contexts[name] for name in unknown)
        code = "use_context" if with_context >= MOST * len(unknown) else "collect_facts"
        codes.append({"code": code, **seen, "unknown": len(unknown), "with_context": with_context})
    else:
        needed = max(questions_needed(row.accuracy, confidence=confidence), row.n + 1)
        codes.append({"code": "unclear", **seen, "needed": min(needed, MOST_QUESTIONS)})
    unsure = len({each.id for each in probes} & set(found.unsure))
    share = wilson(unsure, row.n, confidence=confidence)
    if share.low is not None and share.low > MOST:
        codes.append({"code": "unsure", "domain": row.domain, "n": row.n, "unsure": unsure})
    return codes
