"""From answers to results: means with intervals, and differences to the untuned model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope.metrics import (
    difference_of,
    interval,
    interval_of,
    macro_f1_statistic,
    paired_difference,
)
from tunescope.runs.records import Answer, Result, Role

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
    settings: dict[str, Any] = {"n_bootstrap": n_bootstrap, "confidence": confidence, "seed": seed}
    results = [_one(item, arm, settings) for item in scored for arm in item.answers]
    roles: list[Role] = ["in_domain", "out_of_domain"]
    for role in roles:
        items = [item for item in scored if item.role == role]
        if len({item.task for item in items}) > 1:
            results += [mean_over_tasks(items, arm, role, **settings) for arm in items[0].answers]
    return [dataclasses.replace(r, seed=seed if r.arm in tuned else None) for r in results]


def _one(item: Scored, arm: str, settings: dict[str, Any]) -> Result:
    bounded = item.role != "guard"
    values = item.scores(arm)
    compared = arm != BASE_ARM and BASE_ARM in item.answers
    if item.metric == "macro_f1" and item.labels is not None:
        own = macro_f1_statistic([a.text for a in item.answers[arm]], item.references, item.labels)
        here = interval_of(own, len(values), **settings)
        difference = None
        if compared:
            other = macro_f1_statistic([a.text for a in item.answers[BASE_ARM]], item.references, item.labels)
            difference = difference_of(own, other, len(values), **settings)
    else:
        here = interval(values, bounded=bounded, **settings)
        difference = paired_difference(values, item.scores(BASE_ARM), bounded=bounded, **settings) if compared else None
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


def mean_over_tasks(
    items: Sequence[Scored],
    arm: str,
    role: Role,
    *,
    seed: int,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
) -> Result:
    """Returns the mean over tasks of one arm, every task weighing the same, and its paired difference to ``nothing``.

    Args:
        items: answers to at least one test file, all with the arm.
        arm: its name.
        role: of the files, for the record.
        seed: of the resamples.
        n_bootstrap: resamples.
        confidence: level of the intervals.
    """
    settings: dict[str, Any] = {"n_bootstrap": n_bootstrap, "confidence": confidence, "seed": seed}
    values = np.concatenate([item.scores(arm) for item in items])
    strata = [item.task for item in items for _ in item.references]
    here = interval(values, strata=strata, **settings)
    difference = None
    if arm != BASE_ARM and BASE_ARM in items[0].answers:
        base = np.concatenate([item.scores(BASE_ARM) for item in items])
        difference = paired_difference(values, base, strata=strata, **settings)
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
