"""From answers to results: means with intervals, differences to the untuned model, and risk."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunescope.metrics import (
    choose_human_share,
    difference_of,
    expected_calibration_error,
    interval,
    interval_of,
    macro_f1_statistic,
    paired_difference,
    risk_coverage,
)
from tunescope.runs.records import Answer, Result, Risk, Role

BASE_ARM = "nothing"


@dataclass(frozen=True)
class Scored:
    """The answers of all arms to one test file.

    Attributes:
        task: name of the task; ``guard`` for the guard set.
        role: in_domain, out_of_domain or guard.
        dataset: stem of the file.
        metric: name of the metric; ``loss`` for the guard set.
        labels: the allowed answers, or None.
        references: first right answer per example.
        answers: arm -> one answer per example, in the same order for all arms.
        version: hash of what is scored.
    """

    task: str
    role: Role
    dataset: str
    metric: str
    labels: tuple[str, ...] | None
    references: tuple[str, ...]
    answers: Mapping[str, Sequence[Answer]]
    version: str = ""

    def scores(self, arm: str) -> NDArray[np.float64]:
        """Returns one score per example."""
        return np.array([a.score for a in self.answers[arm]], dtype=np.float64)


def summarise(
    scored: Sequence[Scored],
    *,
    seed: int,
    tuned: Collection[str] = (),
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
) -> list[Result]:
    """Returns a result per arm and test file, and per arm and role the mean over tasks.

    Differences are to the arm ``nothing`` on the same examples, by paired bootstrap. The mean over tasks weighs every task the same.

    Args:
        scored: the answers.
        seed: of the resamples, the same for all arms, and of the tuning of the arms in `tuned`.
        tuned: arms whose results carry the seed; the others have None.
        n_bootstrap: resamples.
        confidence: level of the intervals.

    Returns:
        The results, file by file and arm by arm, the means (task ``*``) last.
    """
    settings = {"n_bootstrap": n_bootstrap, "confidence": confidence, "seed": seed}
    results = [_one(item, arm, settings) for item in scored for arm in item.answers]
    roles: list[Role] = ["in_domain", "out_of_domain"]
    for role in roles:
        items = [item for item in scored if item.role == role]
        if len({item.task for item in items}) > 1:
            results += [_mean(items, arm, role, settings) for arm in items[0].answers]
    return [dataclasses.replace(r, seed=seed if r.arm in tuned else None) for r in results]


def risks(scored: Sequence[Scored], *, seed: int, target_error: float = 0.05) -> list[Risk]:
    """Returns calibration and risk–coverage per arm and role over the label tasks, and the rates of unrelated output over the others.

    Args:
        scored: the answers.
        seed: of the split in which the share for people is chosen and checked.
        target_error: wanted error rate of the automatic answers.
    """
    found = []
    roles: list[Role] = ["in_domain", "out_of_domain"]
    for role in roles:
        items = [item for item in scored if item.role == role]
        for arm in items[0].answers if items else ():
            labelled = [a for item in items if item.labels is not None for a in item.answers[arm]]
            free = [a for item in items if item.labels is None for a in item.answers[arm]]
            found.append(_risk(arm, role, labelled, free, seed, target_error))
    return found


def _risk(
    arm: str, role: Role, labelled: Sequence[Answer], free: Sequence[Answer], seed: int, target_error: float
) -> Risk:
    collapse = unrelated = None
    if free:
        collapse = sum("label_of_other_task" in a.flags for a in free) / len(free)
        unrelated = sum(bool(a.flags) for a in free) / len(free)
    n = len(labelled)
    if n < 2:
        return Risk(arm, role, n, None, (), (), None, None, target_error, None, collapse, unrelated)
    confidence = np.array([a.confidence for a in labelled], dtype=np.float64)
    correct = np.array([a.score for a in labelled], dtype=np.float64)
    curve = risk_coverage(confidence, correct)
    human = choose_human_share(confidence, correct, target_error, seed)
    return Risk(
        arm=arm,
        role=role,
        n=n,
        ece=expected_calibration_error(confidence, correct),
        coverage=curve.coverage,
        risk=curve.risk,
        area=curve.area,
        human_share=human.share,
        target_error=target_error,
        checked_error=human.checked_error,
        collapse_rate=collapse,
        unrelated_rate=unrelated,
    )


def _one(item: Scored, arm: str, settings: dict[str, float]) -> Result:
    bounded = item.role != "guard"
    values = item.scores(arm)
    compared = arm != BASE_ARM and BASE_ARM in item.answers
    if item.metric == "macro_f1" and item.labels is not None:
        own = macro_f1_statistic([a.text for a in item.answers[arm]], item.references, item.labels)
        here = interval_of(own, len(values), **settings)  # type: ignore[arg-type]
        difference = None
        if compared:
            other = macro_f1_statistic([a.text for a in item.answers[BASE_ARM]], item.references, item.labels)
            difference = difference_of(own, other, len(values), **settings)  # type: ignore[arg-type]
    else:
        here = interval(values, bounded=bounded, **settings)  # type: ignore[arg-type]
        difference = paired_difference(values, item.scores(BASE_ARM), bounded=bounded, **settings) if compared else None  # type: ignore[arg-type]
    return Result(
        arm=arm,
        task=item.task,
        role=item.role,
        metric=item.metric,
        value=here.value,
        low=here.low,
        high=here.high,
        n=len(values),
        higher_is_better=item.role != "guard",
        difference=difference.value if difference else None,
        difference_low=difference.low if difference else None,
        difference_high=difference.high if difference else None,
        noise_floor=difference.noise_floor if difference else None,
        task_version=item.version,
        dataset=item.dataset,
    )


def _mean(items: Sequence[Scored], arm: str, role: Role, settings: dict[str, float]) -> Result:
    values = np.concatenate([item.scores(arm) for item in items])
    strata = [item.task for item in items for _ in item.references]
    here = interval(values, strata=strata, **settings)  # type: ignore[arg-type]
    difference = None
    if arm != BASE_ARM and BASE_ARM in items[0].answers:
        base = np.concatenate([item.scores(BASE_ARM) for item in items])
        difference = paired_difference(values, base, strata=strata, **settings)  # type: ignore[arg-type]
    return Result(
        arm=arm,
        task="*",
        role=role,
        metric="mean_score",
        value=here.value,
        low=here.low,
        high=here.high,
        n=len(values),
        difference=difference.value if difference else None,
        difference_low=difference.low if difference else None,
        difference_high=difference.high if difference else None,
        noise_floor=difference.noise_floor if difference else None,
        task_version="+".join(sorted({item.version for item in items})),
    )
