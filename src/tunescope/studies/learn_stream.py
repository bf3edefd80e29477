"""The stream: which tasks are learned in which order, at which stages, and what makes that impossible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunescope.config import INSTRUCTION_POLICIES, ORDERS, Config
from tunescope.data import Task
from tunescope.errors import ConfigError, did_you_mean
from tunescope.studies.inputs import Inputs

BASE, START = "nothing", "start"
"""Rows of the score matrix before the first stage: the base model, or the run on which more is learned."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        arm: its name in all files: stage-01, stage-02 ...
        learns: the tasks it learns; several at once only with policy ``joint``.
    """

    arm: str
    learns: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """What is learned after what.

    Attributes:
        earlier: tasks that the run on which more is learned has learned before, in its order.
        stages: the stages of this run.
    """

    earlier: tuple[str, ...]
    stages: tuple[Stage, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks in the order in which they were and will be learned."""
        return (*self.earlier, *(name for stage in self.stages for name in stage.learns))

    def before(self, stage: Stage) -> tuple[str, ...]:
        """Returns the tasks that were learned before a stage, in their order."""
        return self.tasks[: self.tasks.index(stage.learns[0])]

    def measured(self, place: int, what: str) -> tuple[str, ...]:
        """Returns the tasks that are measured after a stage.

        Args:
            place: of the stage, from 0; -1 for before the first one.
            what: ``seen``, ``next`` or ``all``.

        Example:
            >>> stream = Stream((), (Stage("stage-01", ("a",)), Stage("stage-02", ("b",)), Stage("stage-03", ("c",))))
            >>> stream.measured(0, "seen"), stream.measured(0, "next"), stream.measured(-1, "seen")
            (('a',), ('a', 'b'), ())
        """
        if what == "all" or (place < 0 and what == "next"):
            return self.tasks
        seen = len(self.earlier) + sum(len(stage.learns) for stage in self.stages[: place + 1])
        return self.tasks[: seen + (what == "next")]


def make_stream(config: Config, earlier: Sequence[str]) -> Stream:
    """Returns the stream of a config.

    Args:
        config: the settings, with the earlier tasks in front.
        earlier: names of the tasks that were learned before.

    Raises:
        ConfigError: ``replay.order`` names no such task, or not all.
    """
    new = [task.name for task in config.tasks if task.name not in set(earlier)]
    ordered = _ordered(config, new)
    first = len(earlier) + 1
    if config.replay.policy == "joint":
        return Stream(tuple(earlier), (Stage(f"stage-{first:02d}", tuple(ordered)),))
    stages = [Stage(f"stage-{place:02d}", (name,)) for place, name in enumerate(ordered, first)]
    return Stream(tuple(earlier), tuple(stages))


def _ordered(config: Config, names: list[str]) -> list[str]:
    order = config.replay.order
    if order == ("reverse",):
        return names[::-1]
    if order == ("random",):
        return [names[i] for i in np.random.default_rng([config.seed, 0x57EA]).permutation(len(names))]
    if order == ("as_given",):
        return names
    allowed = [*names, *(ORDERS if len(order) == 1 else ())]
    problems = [
        f"replay.order: {name!r} is no new task{did_you_mean(name, allowed)}; there are: {', '.join(allowed)}"
        for name in order
        if name not in names
    ]
    lacking = [name for name in names if name not in order]
    if lacking and not problems:
        problems = [f"replay.order: leaves out {', '.join(map(repr, lacking))}; name every new task once"]
    if problems:
        raise ConfigError(problems)
    return list(order)


def refuse_unfit_stream(config: Config, inputs: Inputs, stream: Stream) -> None:
    """Names all tasks with which the stream could not be learned or measured, before anything is written.

    Raises:
        ConfigError: a task without test or training examples, without instructions where the policy needs them, or without held-out ones
            where the learning rate is to be probed.
    """
    tasks = {task.name: task for task in inputs.tasks}
    learns = [tasks[name] for stage in stream.stages for name in stage.learns]
    problems = [
        f"task {name!r} has no `test` file with examples, so nobody could see what is lost of it; give it one"
        + (" (name the task in tasks, with `test`)" if name in stream.earlier else "")
        for name in stream.tasks
        if not tasks[name].test
    ]
    problems += [
        f"task {task.name!r} has no usable `train` example, so there is nothing to learn; give it a file"
        for task in learns
        if not task.train
    ]
    if config.tuning.learning_rate == "auto":
        problems += [
            f"tuning.learning_rate is auto, which needs held-out examples at every stage, and the {len(task.train)} training examples of task "
            f"{task.name!r} with data.validation_fraction {config.data.validation_fraction:g} give none; raise it, or set a number such as 5e-4"
            for task in learns
            if task.train and not task.validation
        ]
    if config.replay.policy in INSTRUCTION_POLICIES:
        problems += [
            problem for task in tasks.values() if (problem := _without_instruction(task, config.replay.policy))
        ]
    if problems:
        raise ConfigError(problems)


def _without_instruction(task: Task, policy: str) -> str:
    blank = [e for e in task.train if not e.instruction.strip()]
    if not blank:
        return ""
    return (
        f"task {task.name!r}: {len(blank)} of {len(task.train)} training examples have no instruction (the first: {blank[0].file}:{blank[0].line}), "
        f"and policy {policy} chooses by instructions; set `instruction` of the task, or replay.policy to random or prototype_data"
    )
