"""Did tuning bring out what the base already held, or did it add to it? The rules of the judgement.

What decides are the questions that the base answered **wrong** with an answer of its own (a tie at the top is none). After tuning such a
question

* has **kept** the base's own wrong answer, or
* is **newly right**, or
* has another wrong answer (or a tie).

Some changed answers hit the right one without anything learned: the base had it second. So the newly right are counted less what is
**expected** if every changed answer were drawn from the base's own other choices: for one that changed, ``p(right) / (1 - p(top))`` under the
base (an even draw where the base gives its own answer all of the probability). With ``balance = kept - (newly right - expected)``, each as a share
of these questions:

1. The base is not above chance over all questions (exact test at 1 - confidence): ``not_enough_evidence``.
2. Fewer than `MIN_WRONG` such questions: ``not_enough_evidence``.
3. The balance is above 0 with its interval, and the mean rank consistency over all questions is at least `MIN_CONSISTENCY` with its
   interval: ``mostly_self_aligning``.
4. The balance is below 0 with its interval, and more questions are learned than lost (McNemar at 1 - confidence): ``mostly_learning``.
5. Otherwise, if the half width of the balance's interval is above `MAX_NOISE`: ``not_enough_evidence``, with how many questions would do.
6. Otherwise: ``mixed``.

KL is reported and decides nothing: a model that only became surer of the same order has a large one. The rule is ours; consistency and KL are
those of Ren et al. 2024 (arXiv 2402.18243).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunescope.errors import UserError
from tunescope.knowledge.chance import probability_of_at_least
from tunescope.knowledge.measures import consistencies, divergences
from tunescope.knowledge.questions import Probe, paired
from tunescope.knowledge.resampling import Estimate, check_confidence, mean_estimate
from tunescope.knowledge.transitions import mcnemar
from tunescope.runs.records import Record

Floats = npt.NDArray[np.float64]
Code = dict[str, Any]
Decision = Literal["mostly_self_aligning", "mostly_learning", "mixed", "not_enough_evidence"]

MIN_WRONG = 30
"""Questions the base answered wrong, below which nothing is said: the normal approximation behind an interval starts about there."""
MIN_CONSISTENCY = 0.5
"""With four choices, keeping the top choice and shuffling the rest gives 0.6; shuffling all gives 0."""
MAX_NOISE = 0.2
"""Half width of the balance's interval above which an undecided balance says nothing."""


@dataclass(frozen=True)
class Judgement(Record):
    """What tuning mostly did.

    Attributes:
        decision: ``mostly_self_aligning``, ``mostly_learning``, ``mixed`` or ``not_enough_evidence``.
        balance: kept less newly right less expected, in [-1, 1]; above 0 is self-aligning. Over the questions that the base answered wrong, like
            the next three.
        kept: share with the base's own wrong answer after tuning.
        newly_right: share right after tuning, less the expected.
        expected: share that would be right if every changed answer were drawn from the base's own other choices; None without questions.
        consistency: mean rank consistency over all questions.
        kl: mean KL(base || tuned) in nats over all questions; value None where infinite.
        reasons: codes with numbers, most important first.
    """

    decision: Decision
    balance: Estimate
    kept: Estimate
    newly_right: Estimate
    expected: float | None
    consistency: Estimate
    kl: Estimate
    reasons: tuple[Mapping[str, Any], ...]


def judge(
    base: Sequence[Probe],
    tuned: Sequence[Probe],
    *,
    n_bootstrap: int,
    confidence: float = 0.95,
    seed: int,
    min_consistency: float = MIN_CONSISTENCY,
    min_wrong: int = MIN_WRONG,
    max_noise: float = MAX_NOISE,
) -> Judgement:
    """Says whether tuning brought out what the base had, or added to it, by the rules at the top of this module.

    Args:
        base: probes before tuning (with demonstrations).
        tuned: probes after it (without), of the same questions in any order.
        n_bootstrap: resamples behind the intervals, drawn within the domains.
        confidence: level of the intervals; the tests are at 1 - confidence.
        seed: of the resampling.
        min_consistency: see rule 3, in [-1, 1].
        min_wrong: see rule 2, at least 1.
        max_noise: see rule 5, above 0.

    Returns:
        The judgement. Codes of its reasons: ``base_not_above_chance`` (n, correct, chance, p_value), ``few_wrong_answers`` (n, needed),
        ``wide_interval`` (half_width, n, needed), ``kept`` and ``newly_right`` (value, low, high, n; the second with expected and p_value, the
        probability of as many right by drawing from the base's own other choices), ``transitions`` (kept, lost, learned, still_unknown,
        p_value), ``consistency`` (value, low, high, n, wanted), ``kl`` (value, low, high, n, base_confidence, tuned_confidence).

    Raises:
        DataError: if the probes cannot be used or are not of the same questions (see `paired`).
        UserError: if a setting is out of range.

    Example:
        >>> own, right = (0.1, 0.7, 0.2), (0.8, 0.1, 0.1)
        >>> def probes(*all_):
        ...     return [Probe(str(i), "it", ("a", "b", "c"), 0, p) for i, p in enumerate(all_)]
        >>> base = probes(*[right] * 60, *[own] * 40)
        >>> judge(base, base, n_bootstrap=200, seed=0).decision
        'mostly_self_aligning'
        >>> judge(base, probes(*[right] * 100), n_bootstrap=200, seed=0).decision
        'mostly_learning'
    """
    check_confidence(confidence)
    if not -1 <= min_consistency <= 1 or min_wrong < 1 or not max_noise > 0:
        raise UserError(
            f"min_consistency is {min_consistency}, min_wrong {min_wrong}, max_noise {max_noise}: use [-1, 1], at least 1, above 0"
        )
    evidence = _Evidence(paired(base, tuned), n_bootstrap, confidence, seed)
    decision, first = _decide(evidence, 1 - confidence, min_consistency, min_wrong, max_noise)
    order = {
        "mostly_self_aligning": ("kept", "consistency", "newly_right", "transitions", "kl"),
        "mostly_learning": ("newly_right", "transitions", "kept", "consistency", "kl"),
    }.get(decision, ("transitions", "kept", "newly_right", "consistency", "kl"))
    codes = evidence.codes(min_consistency)
    return Judgement(
        decision,
        evidence.balance,
        evidence.kept,
        evidence.newly_right,
        evidence.expected,
        evidence.consistency,
        evidence.kl,
        (*first, *(codes[name] for name in order if name in codes)),
    )


class _Evidence:
    """Everything the rules read, computed once."""

    def __init__(self, pairs: Sequence[tuple[Probe, Probe]], n_bootstrap: int, confidence: float, seed: int) -> None:
        self.pairs = pairs
        wrong = [(a, b) for a, b in pairs if a.answer is not None and not a.correct]
        self.n_wrong = len(wrong)
        kept = np.array([b.answer == a.answer for a, b in wrong], dtype=np.float64)
        right = np.array([b.correct for _, b in wrong], dtype=np.float64)
        changed = np.array([b.answer is not None and b.answer != a.answer for a, b in wrong], dtype=bool)
        chances = np.array([_own_chance(a) for a, _ in wrong], dtype=np.float64)
        expected = np.where(changed, chances, 0.0)

        def estimate(
            values: Floats, among: Sequence[tuple[Probe, Probe]], limits: tuple[float, float] | None
        ) -> Estimate:
            return mean_estimate(
                values,
                limits=limits,
                strata=[a.domain for a, _ in among] or None,
                n_bootstrap=n_bootstrap,
                confidence=confidence,
                seed=seed,
            )

        self.balance = estimate(kept - right + expected, wrong, (-1.0, 1.0))
        self.kept = estimate(kept, wrong, (0.0, 1.0))
        self.newly_right = estimate(right - expected, wrong, (-1.0, 1.0))
        self.expected = math.fsum(expected) / len(wrong) if wrong else None
        self.p_newly_right = probability_of_at_least(int(right.sum()), chances[changed]) if wrong else None
        sides = [a.probabilities for a, _ in pairs], [b.probabilities for _, b in pairs]
        self.consistency = estimate(consistencies(*sides), pairs, (-1.0, 1.0))
        kl = divergences(*sides)
        finite = bool(np.isfinite(kl).all())
        self.kl = estimate(kl, pairs, None) if finite else Estimate(None, None, None, len(pairs))

    def chance(self) -> Code:
        """Returns how the base compares with guessing over all questions."""
        guess = np.array([1 / len(a.choices) for a, _ in self.pairs])
        correct = sum(a.correct for a, _ in self.pairs)
        p_value = probability_of_at_least(correct, guess)
        return {"n": len(guess), "correct": correct, "chance": math.fsum(guess) / len(guess), "p_value": p_value}

    def codes(self, wanted: float) -> dict[str, Code]:
        """Returns the evidence as codes by name; those without questions are left out."""
        outcome = [(a.correct, b.correct) for a, b in self.pairs]
        lost, learned = outcome.count((True, False)), outcome.count((False, True))
        codes: dict[str, Code] = {
            "transitions": {
                "code": "transitions",
                "kept": outcome.count((True, True)),
                "lost": lost,
                "learned": learned,
                "still_unknown": outcome.count((False, False)),
                "p_value": mcnemar(lost, learned),
            },
            "consistency": {"code": "consistency", **self.consistency.to_dict(), "wanted": wanted},
            "kl": {
                "code": "kl",
                **self.kl.to_dict(),
                "base_confidence": math.fsum(a.confidence for a, _ in self.pairs) / len(self.pairs),
                "tuned_confidence": math.fsum(b.confidence for _, b in self.pairs) / len(self.pairs),
            },
        }
        if self.n_wrong:
            codes["kept"] = {"code": "kept", **self.kept.to_dict()}
            extra = {"expected": self.expected, "p_value": self.p_newly_right}
            codes["newly_right"] = {"code": "newly_right", **self.newly_right.to_dict(), **extra}
        return codes


def _decide(
    evidence: _Evidence, alpha: float, min_consistency: float, min_wrong: int, max_noise: float
) -> tuple[Decision, list[Code]]:
    """Applies the rules in order; returns the decision and the codes that only the rule itself has."""
    chance = evidence.chance()
    if chance["p_value"] >= alpha:
        return "not_enough_evidence", [{"code": "base_not_above_chance", **chance}]
    if evidence.n_wrong < min_wrong:
        return "not_enough_evidence", [{"code": "few_wrong_answers", "n": evidence.n_wrong, "needed": min_wrong}]
    balance, consistency = evidence.balance, evidence.consistency
    assert balance.low is not None and balance.high is not None and consistency.low is not None  # there are questions
    if balance.low > 0 and consistency.low >= min_consistency:
        return "mostly_self_aligning", []
    counts = evidence.codes(min_consistency)["transitions"]
    if balance.high < 0 and counts["learned"] > counts["lost"] and counts["p_value"] < alpha:
        return "mostly_learning", []
    half = (balance.high - balance.low) / 2
    if half > max_noise:
        needed = math.ceil(evidence.n_wrong * (half / max_noise) ** 2)
        code = {"code": "wide_interval", "half_width": half, "n": evidence.n_wrong, "needed": needed}
        return "not_enough_evidence", [code]
    return "mixed", []


def _own_chance(base: Probe) -> float:
    """Returns the probability of the right choice if the base had to name another than its own wrong one."""
    rest = 1 - base.confidence
    return min(1.0, base.probabilities[base.gold] / rest) if rest > 0 else 1 / (len(base.choices) - 1)
