"""What became of each question: known before and after, lost, learned, still unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from tunescope.errors import UserError
from tunescope.knowledge.chance import ALL
from tunescope.knowledge.questions import Probe, by_key, paired
from tunescope.knowledge.resampling import Estimate, paired_difference, wilson
from tunescope.runs.records import Record


@dataclass(frozen=True)
class Transition(Record):
    """Counts of one domain. Known means: the right choice is the single most likely one.

    Attributes:
        domain: its name; ``*`` for all together.
        n: questions.
        kept: known before and after.
        lost: known before, not after.
        learned: not known before, known after.
        still_unknown: not known before and after.
        lost_share: lost / (kept + lost), Wilson interval.
        learned_share: learned / (learned + still_unknown), Wilson interval.
        change: (learned - lost) / n, the change in accuracy, with its paired interval.
        p_value: two-sided exact McNemar test of learned against lost.
    """

    domain: str
    n: int
    kept: int
    lost: int
    learned: int
    still_unknown: int
    lost_share: Estimate
    learned_share: Estimate
    change: Estimate
    p_value: float

    @property
    def shares(self) -> dict[str, float]:
        """The four counts as shares of all questions; they sum to 1."""
        names = ("kept", "lost", "learned", "still_unknown")
        return {name: getattr(self, name) / self.n for name in names}


def transitions(
    base: Sequence[Probe], tuned: Sequence[Probe], *, n_bootstrap: int, confidence: float = 0.95, seed: int
) -> tuple[Transition, ...]:
    """Counts what became of the questions between two models.

    Args:
        base: probes before tuning.
        tuned: probes after it, of the same questions in any order.
        n_bootstrap: resamples behind the interval of the change.
        confidence: level of the intervals, in (0, 1).
        seed: of the resampling.

    Returns:
        One row per domain, sorted by name, and a last one (``*``) for all questions.

    Raises:
        DataError: if the probes cannot be used or are not of the same questions (see `paired`).
        UserError: if a setting is out of range.

    Source:
        McNemar 1947 (test); Wilson 1927 (shares). The four counts are those of every before-and-after table.

    Example:
        >>> right, wrong = (0.9, 0.1), (0.1, 0.9)
        >>> def probes(*all_):
        ...     return [Probe(str(i), "it", ("a", "b"), 0, p) for i, p in enumerate(all_)]
        >>> row = transitions(probes(right, right, wrong, wrong), probes(right, wrong, right, wrong), n_bootstrap=100, seed=0)[-1]
        >>> row.kept, row.lost, row.learned, row.still_unknown, row.p_value
        (1, 1, 1, 1, 1.0)
    """
    pairs = paired(base, tuned)
    rows = [
        _row(domain, group, n_bootstrap, confidence, seed)
        for domain, group in by_key(pairs, lambda pair: pair[0].domain).items()
    ]
    return (*rows, _row(ALL, pairs, n_bootstrap, confidence, seed))


def mcnemar(lost: int, learned: int) -> float:
    """Gives the two-sided exact p-value of McNemar's test.

    Args:
        lost: questions right only before, at least 0.
        learned: questions right only after, at least 0.

    Returns:
        Probability that a fair coin splits the changed questions at least as unevenly; 1 where nothing changed.

    Raises:
        UserError: if a count is negative.

    Source:
        McNemar 1947, in its exact binomial form; no mid-p, no continuity correction.

    Example:
        >>> mcnemar(0, 5), mcnemar(0, 0)
        (0.0625, 1.0)
    """
    if lost < 0 or learned < 0:
        raise UserError(f"got {lost} lost and {learned} learned: counts are at least 0")
    return float(binomtest(learned, lost + learned, 0.5).pvalue) if lost + learned else 1.0


def _row(
    domain: str, pairs: Sequence[tuple[Probe, Probe]], n_bootstrap: int, confidence: float, seed: int
) -> Transition:
    before = np.array([first.correct for first, _ in pairs])
    after = np.array([second.correct for _, second in pairs])
    kept, lost = int((before & after).sum()), int((before & ~after).sum())
    learned, unknown = int((~before & after).sum()), int((~before & ~after).sum())
    return Transition(
        domain=domain,
        n=len(pairs),
        kept=kept,
        lost=lost,
        learned=learned,
        still_unknown=unknown,
        lost_share=wilson(lost, kept + lost, confidence=confidence),
        learned_share=wilson(learned, learned + unknown, confidence=confidence),
        change=paired_difference(
            after.astype(np.float64),
            before.astype(np.float64),
            n_bootstrap=n_bootstrap,
            confidence=confidence,
            seed=seed,
        ),
        p_value=mcnemar(lost, learned),
    )
