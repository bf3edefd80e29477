"""The statistics behind a verdict, computed once: every decision under other assumptions reads them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from tunescope.metrics.bootstrap import (
    Difference,
    Interval,
    difference_of_resamples,
    interval,
    paired_difference,
    resampled_means,
)

Floats = npt.NDArray[np.float64]
Scores = Mapping[str, Mapping[str, Floats]]

UNTUNED = ("nothing", "prompt")
"""The arms that change no weight."""
CONTROL = "random"
"""The arm that tunes as much as `selected`, in blocks drawn at random."""
SELECTED = "selected"
RULE_OF_THUMB = "top-third"
"""The arm that tunes as much as `selected`, in the blocks next to the output."""
BROKEN_RISE = 999.0
"""Stands for a rise of the guard loss that is not finite, in nats per token: records hold finite numbers only."""


@dataclass(frozen=True)
class Evidence:
    """What was measured, ready to decide.

    Attributes:
        arms: all arms, in the order given.
        n: in-domain test examples.
        scores: arm -> macro mean over the tasks, with its interval.
        resamples: arm -> macro means in the same resamples [n_bootstrap].
        differences: (a, b) -> a minus b in-domain, at the level adjusted for the number of tuned arms.
        selected_against_random: the same for selected minus random at the plain level, or None.
        against_top_third: arm -> the same for selected and for random minus top-third; empty where that did not run.
        out_of_domain: (a, b) -> a minus b on the out-of-domain sets both were measured on, at the plain level.
        guard_rise: arm -> mean guard loss minus that of ``nothing``, in nats per token; empty where not measured.
    """

    arms: tuple[str, ...]
    n: int
    scores: Mapping[str, Interval]
    resamples: Mapping[str, Floats]
    differences: Mapping[tuple[str, str], Difference]
    selected_against_random: Difference | None
    against_top_third: Mapping[str, Difference]
    out_of_domain: Mapping[tuple[str, str], Difference]
    guard_rise: Mapping[str, float]

    @property
    def tuned(self) -> tuple[str, ...]:
        """The arms that change weights."""
        return tuple(arm for arm in self.arms if arm not in UNTUNED)


def collect(
    scores: Scores,
    *,
    ood_scores: Scores,
    guard_losses: Mapping[str, Floats],
    confidence: float,
    n_bootstrap: int,
    seed: int,
) -> Evidence:
    """Computes all intervals and comparisons with one bootstrap.

    Args:
        scores: arm -> task -> scores in [0, 1] [n_task]; the same examples in the same order for all arms.
        ood_scores: the same for out-of-domain sets; arms and sets may be missing.
        guard_losses: arm -> losses [n_guard] in nats per token; may be empty.
        confidence: level of the intervals; comparisons with untuned arms use 1 - (1 - confidence) / tuned arms
            (Bonferroni).
        n_bootstrap: resamples.
        seed: of the resampling.

    Returns:
        The evidence.

    Raises:
        ValueError: if there are no arms or examples, arms differ in tasks or lengths, or a score is not in [0, 1].
    """
    rows, strata = _table(scores)
    arms = tuple(scores)
    n_tuned = max(1, sum(arm not in UNTUNED for arm in arms))
    adjusted = 1 - (1 - confidence) / n_tuned
    resamples = dict(zip(arms, resampled_means(rows, strata=strata, n_bootstrap=n_bootstrap, seed=seed), strict=True))
    numbers = dict(zip(arms, rows, strict=True))

    def compare(a: str, b: str, level: float) -> Difference:
        difference, resampled = numbers[a] - numbers[b], resamples[a] - resamples[b]
        return difference_of_resamples(difference, resampled, confidence=level, strata=strata)

    both = SELECTED in arms and CONTROL in arms
    choices = [arm for arm in (SELECTED, CONTROL) if arm in arms and RULE_OF_THUMB in arms]
    return Evidence(
        arms=arms,
        n=len(strata),
        scores={
            arm: interval(row, n_bootstrap=n_bootstrap, confidence=confidence, seed=seed, strata=strata)
            for arm, row in numbers.items()
        },
        resamples=resamples,
        differences={(a, b): compare(a, b, adjusted) for a, b in permutations(arms, 2)},
        selected_against_random=compare(SELECTED, CONTROL, confidence) if both else None,
        against_top_third={arm: compare(arm, RULE_OF_THUMB, confidence) for arm in choices},
        out_of_domain=_out_of_domain(ood_scores, arms, confidence=confidence, n_bootstrap=n_bootstrap, seed=seed),
        guard_rise=_guard_rise(guard_losses),
    )


def _table(scores: Scores) -> tuple[Floats, list[str]]:
    """Returns one row per arm with the examples of all tasks side by side [arms, n], and each column's task."""
    if not scores:
        raise ValueError("got no arms: a verdict needs at least one")
    first, reference = next(iter(scores.items()))
    tasks = sorted(reference)
    sizes = {task: len(reference[task]) for task in tasks}
    if not tasks or min(sizes.values()) == 0:
        raise ValueError(f"arm {first} has examples {sizes}: every task needs at least one in-domain test example")
    rows = []
    for arm, by_task in scores.items():
        got = {task: len(values) for task, values in sorted(by_task.items())}
        if got != sizes:
            raise ValueError(f"arm {arm} has examples {got}, arm {first} {sizes}: all arms need the same examples")
        row = np.concatenate([np.asarray(by_task[task], dtype=np.float64) for task in tasks])
        wrong = row[~((row >= 0) & (row <= 1))]
        if wrong.size:
            raise ValueError(f"arm {arm} has a score of {wrong[0]}: every score must be in [0, 1]")
        rows.append(row)
    return np.stack(rows), [task for task in tasks for _ in range(sizes[task])]


def _out_of_domain(
    scores: Scores, arms: Sequence[str], *, confidence: float, n_bootstrap: int, seed: int
) -> dict[tuple[str, str], Difference]:
    """Compares every tuned arm with every untuned one on the out-of-domain sets that both have."""
    found = {}
    for arm in (arm for arm in arms if arm not in UNTUNED and arm in scores):
        for other in (other for other in UNTUNED if other in arms and other in scores):
            shared = {name: scores[other][name] for name in scores[arm] if len(scores[other].get(name, ())) > 0}
            if not shared:
                continue
            (a, b), strata = _table({arm: {name: scores[arm][name] for name in shared}, other: shared})
            found[arm, other] = paired_difference(
                a, b, n_bootstrap=n_bootstrap, confidence=confidence, seed=seed, strata=strata
            )
    return found


def _guard_rise(losses: Mapping[str, Floats]) -> dict[str, float]:
    """Returns how much worse every arm is on the guard set than ``nothing``."""
    if "nothing" not in losses or not len(losses["nothing"]):
        return {}
    base = np.asarray(losses["nothing"], dtype=np.float64)
    rises = {}
    for arm, values in losses.items():
        if len(values) != len(base):
            raise ValueError(f"arm {arm} has {len(values)} guard losses, nothing {len(base)}: use the same examples")
        rise = float(np.mean(np.asarray(values, dtype=np.float64) - base))
        rises[arm] = min(rise, BROKEN_RISE) if np.isfinite(rise) else BROKEN_RISE
    return rises
