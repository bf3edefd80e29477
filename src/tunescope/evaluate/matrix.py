"""The generalisation matrix: every arm on its own tasks, on their out-of-domain data, and on other tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import get_args

from tunescope.evaluate.results import BASE_ARM, Scored, mean_over_tasks
from tunescope.evaluate.risk import collapse_rate, unrelated_rate
from tunescope.metrics import interval, normalise
from tunescope.runs.generalisation import MatrixCell, Relation, Rewording
from tunescope.runs.records import Answer, Result, Role

_ROLES: tuple[Role, ...] = ("in_domain", "out_of_domain")


def matrix(
    scored: Sequence[Scored],
    results: Sequence[Result],
    tuned_on: Mapping[str, Collection[str] | None],
    *,
    seed: int,
    demonstrations: Mapping[tuple[str, str], int] | None = None,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
) -> list[MatrixCell]:
    """Returns the matrix: a cell per arm and test file, and per arm the means over same and over other tasks.

    Args:
        scored: the answers of all arms.
        results: of `summarise` on the same answers; a cell carries their numbers.
        tuned_on: tuned arm -> tasks that it was tuned on, or None where its weights do not say. Arms that are missing are untuned; to
            them a task is "same" if any tuned arm was tuned on it.
        seed: of the resamples for the means.
        demonstrations: (arm, task) -> finished examples before each prompt; 0 where missing.
        n_bootstrap: resamples.
        confidence: level of the intervals.

    Returns:
        Cells by arm, those of the means (task ``*``) last of each arm. The guard set is not part of the matrix.

    Source:
        Yang et al. (2024), tables of same task in-domain, same task out-of-domain, other tasks; ours adds paired intervals and the rates of
        output that has nothing to do with the instruction.
    """
    items = [item for item in scored if item.role in _ROLES]
    known = {(r.arm, r.task, r.dataset, r.role): r for r in results}
    everywhere = {task for tasks in tuned_on.values() for task in tasks or ()}
    cells = []
    for arm in dict.fromkeys(arm for item in items for arm in item.answers):
        tasks = tuned_on.get(arm, everywhere if everywhere or not tuned_on else None)
        mine = [(item, _relation(item.task, tasks)) for item in items if arm in item.answers]
        shown = {item.task: (demonstrations or {}).get((arm, item.task), 0) for item, _ in mine}
        cells += [
            _cell(
                known[arm, item.task, item.dataset, item.role],
                relation,
                item.answers[arm],
                item.labels is None,
                shown[item.task],
            )
            for item, relation in mine
        ]
        for relation in get_args(Relation):
            for role in _ROLES:
                group = [item for item, kind in mine if kind == relation and item.role == role]
                if group:
                    mean = mean_over_tasks(group, arm, role, seed=seed, n_bootstrap=n_bootstrap, confidence=confidence)
                    free = [a for item in group if item.labels is None for a in item.answers[arm]]
                    cells.append(_cell(mean, relation, free, bool(free), max(shown[item.task] for item in group)))
    return cells


def reworded(
    arm: str,
    item: Scored,
    own: Sequence[Answer],
    others: Sequence[Sequence[Answer]],
    *,
    seed: int,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
) -> Rewording:
    """Says how often an answer stays the same when the instruction is worded differently.

    Two labels are the same if they are equal, two generated answers if they agree up to case, width, spaces, outer quotes and outer
    punctuation: a stricter rule than a reader's, so that a low number of a generation task means other words, not other content.

    Args:
        arm: name of the arm.
        item: the test file.
        own: answers under the own wording, of the examples that were asked again; at least one.
        others: per other wording one answer per example, in the same order; at least one wording.
        seed: of the resamples.
        n_bootstrap: resamples.
        confidence: level of the interval.

    Returns:
        The share of examples whose answer is the same under all wordings, with its interval.

    Raises:
        ValueError: there is no example or no other wording, or the numbers of answers differ.

    Example:
        >>> item = Scored("desk", "in_domain", "desk", "accuracy", ("it", "hr"), ("it", "it"), {})
        >>> own, other = ([Answer(text, 1.0) for text in texts] for texts in (("it", "it"), ("it", "hr")))
        >>> reworded("full", item, own, [other], seed=0).consistency
        0.5
    """
    if not own or not others or any(len(answers) != len(own) for answers in others):
        sizes = ", ".join(str(len(answers)) for answers in others) or "none"
        raise ValueError(
            f"got {len(own)} answers and under other wordings {sizes}: the same number of each is needed, at least 1"
        )
    keep = (lambda text: text) if item.labels is not None else normalise
    same = [float(all(keep(row[i].text) == keep(own[i].text) for row in others)) for i in range(len(own))]
    found = interval(same, seed=seed, n_bootstrap=n_bootstrap, confidence=confidence)
    role = item.role
    return Rewording(
        arm=arm,
        task=item.task,
        dataset=item.dataset,
        role=role,
        n=len(own),
        n_wordings=len(others),
        consistency=found.value,
        low=found.low,
        high=found.high,
        value=_mean(own),
        values=tuple(_mean(answers) for answers in others),
    )


def _relation(task: str, tuned_on: Collection[str] | None) -> Relation:
    if tuned_on is None:
        return "unknown"
    return "same" if task in tuned_on else "other"


def _cell(result: Result, relation: Relation, answers: Sequence[Answer], free: bool, shown: int) -> MatrixCell:
    return MatrixCell(
        arm=result.arm,
        task=result.task,
        dataset=result.dataset,
        role=result.role,
        relation=relation,
        metric=result.metric,
        n=result.n,
        value=result.value,
        low=result.low,
        high=result.high,
        difference=result.difference,
        difference_low=result.difference_low,
        difference_high=result.difference_high,
        noise_floor=result.noise_floor,
        collapse_rate=collapse_rate(answers) if free else None,
        unrelated_rate=unrelated_rate(answers) if free else None,
        demonstrations=0 if result.arm == BASE_ARM else shown,
    )


def _mean(answers: Sequence[Answer]) -> float:
    return sum(a.score for a in answers) / len(answers)
