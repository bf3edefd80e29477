"""A stream of tasks as the report reads it from ``stream.json``: checked, and with its numbers found by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunescope.errors import RunError
from tunescope.report.checked import is_number, mapping, records
from tunescope.runs.records import SCHEMA_VERSION, Record

FILE = "stream.json"
BEFORE = ("nothing", "start")  # rows of the score matrix that stand before the first stage


@dataclass(frozen=True)
class StreamTask(Record):
    """One task of a stream.

    Attributes:
        name: of the task.
        stage: the stage that learned it; ``start`` if an earlier run did.
        n_train: training examples.
        n_test: test examples.
        family: as in the config.
        version: hash of what is scored.
    """

    name: str
    stage: str
    n_train: int
    n_test: int
    family: str = ""
    version: str = ""


@dataclass(frozen=True)
class StreamStage(Record):
    """One stage.

    Attributes:
        arm: its name.
        learns: tasks it learned.
        n_train: examples it learned anew.
        replayed: earlier task -> examples repeated of it.
        pool: earlier task -> examples there were to choose from.
        kept: task -> examples in memory afterwards.
        distances: earlier task -> ``value``, ``standard_error``, ``exact``.
        bias: rows of the bias table of what was repeated.
        tagger: name of the tagger, or empty.
        tuning_seconds: time of tuning.
    """

    arm: str
    learns: tuple[str, ...]
    n_train: int
    replayed: Mapping[str, float]
    pool: Mapping[str, float]
    kept: Mapping[str, float]
    distances: Mapping[str, Any] = field(default_factory=dict)
    bias: tuple[Mapping[str, Any], ...] = ()
    tagger: str = ""
    tuning_seconds: float = 0.0


@dataclass(frozen=True)
class StreamRow(Record):
    """One row of the score matrix.

    Attributes:
        arm: ``nothing``, ``start``, or a stage.
        scores: task -> score in [0, 1].
        failures: task -> counts of right, wrong and unrelated answers, and of the flags.
        guard_loss: on the guard set, in nats per token, or None.
    """

    arm: str
    scores: Mapping[str, float]
    failures: Mapping[str, Any] = field(default_factory=dict)
    guard_loss: float | None = None


@dataclass(frozen=True)
class StreamChange(Record):
    """What became of one task between the stage that learned it and the last one; task ``*`` is the mean over all.

    Attributes:
        task: its name.
        difference: last minus then, in [-1, 1].
        low: lower end of the interval.
        high: upper end.
        decides: whether it is outside the noise.
        n: test examples.
        learned: row of the matrix in which it was learned; empty for the mean.
        before: score then, or None.
        after: score at the end, or None.
        right_then_wrong: examples that were right then and are not now, or None.
        wrong_then_right: the reverse.
    """

    task: str
    difference: float
    low: float
    high: float
    decides: bool
    n: int
    learned: str = ""
    before: float | None = None
    after: float | None = None
    right_then_wrong: int | None = None
    wrong_then_right: int | None = None


@dataclass(frozen=True)
class Stream:
    """Everything that ``stream.json`` holds.

    Attributes:
        policy: name of the policy.
        order: tasks in the order they were learned.
        earlier: those that an earlier run learned.
        tasks: in that order.
        stages: of this run.
        rows: of the score matrix.
        changes: what was kept and lost, the mean first where there is one.
        measures: average, forgetting, transfer, relative gain.
        experts: task -> score of its expert; may be empty.
        memory: what is kept at the end.
        advice: codes with their numbers.
        raw: the file as it is.
    """

    policy: str
    order: tuple[str, ...]
    earlier: tuple[str, ...]
    tasks: tuple[StreamTask, ...]
    stages: tuple[StreamStage, ...]
    rows: tuple[StreamRow, ...]
    changes: tuple[StreamChange, ...]
    measures: Mapping[str, Any]
    experts: Mapping[str, float]
    memory: Mapping[str, Any]
    advice: tuple[Mapping[str, Any], ...]
    raw: Mapping[str, Any]

    @property
    def joint(self) -> bool:
        """Whether all tasks were learned at once."""
        return len(self.stages) == 1 and len(self.stages[0].learns) > 1

    @property
    def overall(self) -> StreamChange | None:
        """The change over all earlier tasks: the mean, or the only task."""
        return self.changes[0] if self.changes else None

    @property
    def by_task(self) -> tuple[StreamChange, ...]:
        """The changes of single tasks."""
        return tuple(change for change in self.changes if change.task != "*")

    @property
    def last_gain(self) -> Mapping[str, Any] | None:
        """The relative gain after the last stage, or None."""
        gains = self.measures.get("relative_gain")
        return gains[-1] if gains else None

    def measure(self, name: str) -> Mapping[str, float] | None:
        """Returns a measure with its interval, or None where it was not measured."""
        found = self.measures.get(name)
        return found if isinstance(found, Mapping) and is_number(found.get("value")) else None


def read_stream(folder: Path) -> Stream | None:
    """Reads the stream of a run; None where the run has none.

    Args:
        folder: the run folder.

    Raises:
        RunError: the file cannot be read, is broken, or was written by a newer tunescope.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path}: cannot be read ({str(error)[:100]}); restore the file or run the study again"
        ) from None
    found = mapping(values, path)
    version = found.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RunError(
            f"{path}: schema_version is {version!r}, this tunescope reads up to {SCHEMA_VERSION}; upgrade it to read this run"
        )
    rows = records(StreamRow, found.get("rows"), path)
    stages = records(StreamStage, found.get("stages"), path)
    if not rows or not stages:
        raise RunError(f"{path}: holds no stage or no scores; run the study again")
    order = tuple(map(str, found.get("order") or ()))
    unscored = [task for task in order if not any(task in row.scores for row in rows)]
    if not order or unscored:
        raise RunError(
            f"{path}: order names {unscored[:3] or 'no task'}, of which there is no score; run the study again"
        )
    return Stream(
        policy=str(found.get("policy", "")),
        order=order,
        earlier=tuple(map(str, found.get("earlier") or ())),
        tasks=records(StreamTask, found.get("tasks"), path),
        stages=stages,
        rows=rows,
        changes=records(StreamChange, found.get("changes"), path),
        measures=mapping(found.get("measures"), path),
        experts={name: float(score) for name, score in mapping(found.get("experts"), path).items() if is_number(score)},
        memory=mapping(found.get("memory"), path),
        advice=tuple(mapping(row, path) for row in found.get("advice") or ()),
        raw=found,
    )
