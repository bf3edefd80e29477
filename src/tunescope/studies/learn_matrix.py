"""The score matrix of a stream with intervals over test examples, and the measures that are functions of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope import metrics
from tunescope.evaluate import Scored
from tunescope.studies.learn_stream import BASE, START, Stream

Floats = NDArray[np.float64]
Numbers = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Row:
    """One row of the matrix.

    Attributes:
        arm: ``nothing``, ``start``, or the name of a stage.
        tasks: what was measured, in the order of the stream.
        scored: the answers, by task; in-domain.
    """

    arm: str
    tasks: tuple[str, ...]
    scored: Mapping[str, Scored]


class ScoreMatrix:
    """Scores of all rows, on the test examples as they are and in resamples of them.

    In a resample every row sees the same examples of a task, so that what two rows differ by is not the luck of the draw.

    Args:
        stream: the stream.
        rows: what was measured, in order: before the first stage, then after each.
        n_bootstrap: resamples.
        confidence: level of the intervals.
        seed: of the resamples.
    """

    def __init__(self, stream: Stream, rows: Sequence[Row], *, n_bootstrap: int, confidence: float, seed: int) -> None:
        self.stream, self.rows = stream, tuple(rows)
        self._tail = (1 - confidence) / 2
        self._values: dict[tuple[str, str], Floats] = {}
        for task in stream.tasks:
            here = [row for row in rows if task in row.scored]
            if not here:
                continue
            n = len(here[0].scored[task].references)
            dice = np.random.default_rng([seed, *hashlib.sha256(task.encode()).digest()[:8]])
            # The first "resample" is the examples themselves.
            indices = np.concatenate([np.arange(n)[None], dice.integers(0, n, size=(n_bootstrap, n))])
            for row in here:
                self._values[row.arm, task] = _scores_at(row.scored[task], row.arm, indices)

    def value(self, arm: str, task: str) -> float:
        """Returns a score."""
        return float(self._values[arm, task][0])

    @property
    def joint(self) -> bool:
        """Whether all tasks were learned in one stage."""
        return len(self.stream.stages) == 1 and len(self.stream.stages[0].learns) > 1

    def measures(self, upper: Mapping[str, float]) -> dict[str, Any]:
        """Returns the measures of the stream, each with its interval; None where it does not exist.

        Args:
            upper: task -> score of its expert; empty without experts. A task without one, or whose expert scores 0, is left out of the
                relative gain.
        """
        last = self.rows[-1].arm
        found: dict[str, Any] = {
            "average": self._interval(lambda m: float(np.mean(m[-1])), self._final),
            "forgetting": None,
            "forgetting_by_task": {},
            "backward_transfer": None,
            "forward_transfer": None,
            "relative_gain": self._gains(upper),
            "without_share": [task for task in self.stream.tasks if upper.get(task, 0) <= 0] if upper else [],
            "after": last,
        }
        if self.joint or len(self.stream.tasks) < 2:
            return found
        found["forgetting"] = self._interval(lambda m: float(np.mean(metrics.forgetting(m))), self._matrix)
        for place, task in enumerate(self.stream.tasks[:-1]):
            one = functools.partial(_forgetting_of, place)
            found["forgetting_by_task"][task] = self._interval(one, self._matrix)
        found["backward_transfer"] = self._interval(metrics.backward_transfer, self._matrix)
        if self._reaches_next():
            found["forward_transfer"] = self._interval(
                lambda m: metrics.forward_transfer(m[1:], m[0]), lambda d: [self._row(BASE, d), *self._matrix(d)]
            )
        return found

    def _reaches_next(self) -> bool:
        stages = self.rows[1:]
        return self.rows[0].arm == BASE and all(len(row.tasks) > i + 1 for i, row in enumerate(stages[:-1]))

    def _gains(self, upper: Mapping[str, float]) -> list[dict[str, Any]] | None:
        """Relative gain after every stage from the second task on, the experts' scores taken as they are."""
        if not upper or len(self.stream.tasks) < 2:
            return None
        found = []
        for stage in self.stream.stages:
            seen = self.stream.tasks[: self.stream.tasks.index(stage.learns[-1]) + 1]
            shared = [task for task in seen[:-1] if upper.get(task, 0) > 0]
            if not shared:
                continue
            scores = [*[upper[task] for task in shared], 1.0]

            def gain(m: Numbers, scores: list[float] = scores) -> float:
                return metrics.relative_gain([list(m[0])] * len(m[0]), scores)

            def row(draw: int, arm: str = stage.arm, tasks: list[str] = shared, last: str = seen[-1]) -> Numbers:
                return [[self._values[arm, task][draw] for task in (*tasks, last)]]

            found.append({"stage": stage.arm, "tasks": len(shared)} | self._interval(gain, row))
        return found

    def _matrix(self, draw: int) -> list[list[float]]:
        """A row per task: tasks that an earlier run learned count as learned in the model that this one starts from."""
        rows = [row for row in self.rows if row.arm not in (BASE, START)]
        before = len(self.stream.earlier)
        start = self._row(START, draw) if before else []
        return [
            *[start[: i + 1] for i in range(before - 1)],
            *([start] if before else []),
            *[self._row(r.arm, draw) for r in rows],
        ]

    def _final(self, draw: int) -> list[list[float]]:
        return [self._row(self.rows[-1].arm, draw)]

    def _row(self, arm: str, draw: int) -> list[float]:
        tasks = next(row.tasks for row in self.rows if row.arm == arm)
        return [float(self._values[arm, task][draw]) for task in tasks]

    def _interval(self, measure: Callable[[Any], float], matrix: Callable[[int], Numbers]) -> dict[str, float]:
        draws = len(next(iter(self._values.values())))
        values = [measure(matrix(draw)) for draw in range(draws)]
        low, high = np.quantile(values[1:], [self._tail, 1 - self._tail]).tolist()
        return {"value": values[0], "low": min(low, values[0]), "high": max(high, values[0])}


def _forgetting_of(place: int, matrix: Numbers) -> float:
    return metrics.forgetting(matrix)[place]


def score_of(item: Scored, arm: str) -> float:
    """Returns the score of a task as the matrix holds it: macro-F1 where that is the metric, else the mean over the examples."""
    return float(_scores_at(item, arm, np.arange(len(item.references))[None])[0])


def _scores_at(item: Scored, arm: str, indices: NDArray[np.int64]) -> Floats:
    """The score of a task on every row of indices."""
    if item.metric == "macro_f1" and item.labels is not None:
        statistic = metrics.macro_f1_statistic([a.text for a in item.answers[arm]], item.references, item.labels)
        return statistic(indices)
    means: Floats = item.scores(arm)[indices].mean(axis=1)
    return means


def kept_and_lost(matrix: ScoreMatrix, *, n_bootstrap: int, confidence: float, seed: int) -> list[dict[str, Any]]:
    """Returns what became of every task between the stage that learned it and the last one, on the same examples.

    The first entry, task ``*``, is the mean over all of them, every task weighing the same; it is missing where there are fewer than two.
    """
    how = {"n_bootstrap": n_bootstrap, "confidence": confidence, "seed": seed}
    last = matrix.rows[-1]
    found: list[dict[str, Any]] = []
    pairs: list[tuple[str, Floats, Floats]] = []
    for task in matrix.stream.tasks:
        learned = next((s.arm for s in matrix.stream.stages if task in s.learns), START)
        if learned == last.arm:
            continue
        before = next(row for row in matrix.rows if row.arm == learned).scored[task]
        after = last.scored[task]
        old, new = before.scores(learned), after.scores(last.arm)
        pairs.append((task, old, new))
        if after.metric == "macro_f1" and after.labels is not None:
            stats = [
                metrics.macro_f1_statistic([a.text for a in item.answers[arm]], item.references, after.labels)
                for item, arm in ((after, last.arm), (before, learned))
            ]
            gap = metrics.difference_of(stats[0], stats[1], len(new), **how)  # type: ignore[arg-type]
        else:
            gap = metrics.paired_difference(new, old, **how)  # type: ignore[arg-type]
        found.append(
            {
                "task": task,
                "learned": learned,
                "before": matrix.value(learned, task),
                "after": matrix.value(last.arm, task),
                "difference": gap.value,
                "low": gap.low,
                "high": gap.high,
                "decides": gap.decides,
                "right_then_wrong": int(((old >= 0.5) & (new < 0.5)).sum()),
                "wrong_then_right": int(((old < 0.5) & (new >= 0.5)).sum()),
                "n": len(new),
            }
        )
    if len(pairs) > 1:
        strata = [task for task, old, _ in pairs for _ in old]
        gap = metrics.paired_difference(
            np.concatenate([new for *_, new in pairs]),
            np.concatenate([old for _, old, _ in pairs]),
            strata=strata,
            **how,  # type: ignore[arg-type]
        )
        found.insert(
            0,
            {
                "task": "*",
                "difference": gap.value,
                "low": gap.low,
                "high": gap.high,
                "decides": gap.decides,
                "n": gap.n,
            },
        )
    return found


def failures(item: Scored, arm: str) -> dict[str, int]:
    """Counts answers of one task by what became of them: right, wrong, or with nothing to do with the instruction, and by which rule.

    Right is a score of at least 0.5; generated text that is nearly right counts as right.

    Example:
        >>> from tunescope.runs.records import Answer
        >>> answers = [Answer("it", 1.0), Answer("", 0.0, flags=("empty",))]
        >>> failures(Scored("desk", "in_domain", "test", "rouge_l", None, ("it", "hr"), {"stage-01": answers}), "stage-01")
        {'right': 1, 'wrong': 0, 'unrelated': 1, 'empty': 1}
    """
    counts = {"right": 0, "wrong": 0, "unrelated": 0}
    for answer in item.answers[arm]:
        counts["unrelated" if answer.flags else "right" if answer.score >= 0.5 else "wrong"] += 1
        for flag in answer.flags:
            counts[flag] = counts.get(flag, 0) + 1
    return counts
