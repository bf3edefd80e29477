"""What stays in memory after a stage: within the budget, the same share for every task, chosen by the policy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunescope import replay
from tunescope.config import ReplaySettings
from tunescope.data import Example
from tunescope.replay import PoolTask, ReplayPool
from tunescope.runs.kept import line_of
from tunescope.runs.memory import Kept
from tunescope.studies.learn_choose import NEEDS_TAGS, Chooser, example_of, plain_example, stage_seed
from tunescope.studies.learn_stream import Stage

_BY_POSITION = (
    "prototype_data",
    "prototype_instruction",
    "diverse_instruction",
)  # the others draw, by information or evenly


def keep_after(
    stage: Stage,
    kept: Sequence[Kept],
    learned: Mapping[str, Sequence[Example]],
    *,
    settings: ReplaySettings,
    seed: int,
    chooser: Chooser,
) -> list[Kept]:
    """Returns what is kept after a stage, by task and id; called twice, the second time changes nothing.

    Without a budget everything is kept. Otherwise every task has the same share of it, what one does not need goes to the others, and
    within a task the policy chooses: by InsInfo over all tasks so far, by prototypes, by diversity, or at random.

    Args:
        stage: the stage that has ended.
        kept: what was kept before it.
        learned: task -> what the stage learned.
        settings: policy and budget.
        seed: of the draws.
        chooser: gives embeddings and tags where the policy needs them.
    """
    if settings.policy == "none":
        return []
    rows: dict[str, list[Kept]] = {}
    for one in kept:
        rows.setdefault(one.task, []).append(one)
    for name, examples in learned.items():
        if not any(one.stage == stage.arm for one in rows.get(name, ())):  # else it is the second call
            reason = {"code": "everything"}
            rows[name] = [Kept(name, e.id, plain_example(e), settings.policy, stage.arm, reason) for e in examples]
    rows = {name: sorted(rows[name], key=lambda one: one.id) for name in sorted(rows) if rows[name]}
    most = _examples(settings, rows)
    if most is None:
        return [one for mine in rows.values() for one in mine]
    quotas = replay.allocate(
        [1.0] * len(rows), most, available=[len(mine) for mine in rows.values()], allocation="even"
    )
    cut = _cut(stage, rows, dict(zip(rows, quotas, strict=True)), settings.policy, seed, chooser)
    if settings.memory_bytes is None:
        return [one for mine in cut.values() for one in mine]
    return sorted(_within(settings.memory_bytes, cut), key=lambda one: (one.task, one.id))


def _examples(settings: ReplaySettings, rows: Mapping[str, Sequence[Kept]]) -> int | None:
    """How many examples may stay; of a budget in bytes, as many as it holds of average size."""
    if settings.memory_bytes is None:
        return settings.memory_examples
    sizes = [len(line_of(one)) for mine in rows.values() for one in mine]
    total = sum(sizes)
    return None if total <= settings.memory_bytes else settings.memory_bytes * len(sizes) // total


def _cut(
    stage: Stage,
    rows: Mapping[str, list[Kept]],
    quotas: Mapping[str, int],
    policy: str,
    seed: int,
    chooser: Chooser,
) -> dict[str, list[Kept]]:
    if all(len(mine) <= quotas[name] for name, mine in rows.items()):
        return dict(rows)
    information: dict[str, list[float]] = {}
    tasks: dict[str, PoolTask] = {}
    if policy in NEEDS_TAGS or policy in _BY_POSITION:
        tasks = {name: chooser.pool_task(name, [example_of(one) for one in mine]) for name, mine in rows.items()}
    if policy in NEEDS_TAGS:
        information = chooser.information(list(tasks.values()))
    found = {}
    for name, mine in rows.items():
        quota = quotas[name]
        if len(mine) <= quota:
            found[name] = mine
            continue
        if policy in NEEDS_TAGS:
            reasons = dict(_by_information(tasks[name], information[name], quota, stage_seed(seed, stage)))
        else:
            reasons = _by_policy(name, mine, tasks.get(name), quota, policy, stage_seed(seed, stage))
        found[name] = [
            dataclasses.replace(
                one, policy=policy, stage=stage.arm, reason=reasons[one.id] | {"kept": quota, "of": len(mine)}
            )
            for one in mine
            if one.id in reasons
        ]
    return found


def _by_information(
    task: PoolTask, information: Sequence[float], quota: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, step in replay.sample_with_steps(task.grouped.of, information, quota, seed=seed):
        yield task.ids[place], {"code": step, "information": information[int(task.grouped.of[place])]}


def _by_policy(
    name: str, mine: Sequence[Kept], task: PoolTask | None, quota: int, policy: str, seed: int
) -> dict[str, dict[str, Any]]:
    """The policy's own choice within one task; the same task stands for the current one, of which policies read no example."""
    task = task or PoolTask.build(name, [one.id for one in mine], [name] * len(mine))
    chosen = replay.POLICIES[policy if policy in _BY_POSITION else "random"](
        ReplayPool(dataclasses.replace(task, name=f"{name} again"), (task,)), quota, seed
    )
    return {one.id: dict(one.reason) for one in chosen}


def _within(budget_bytes: int, rows: Mapping[str, Sequence[Kept]]) -> Iterator[Kept]:
    """Goes round the tasks, one example each, as long as the next one fits."""
    left = budget_bytes
    for turn in itertools.zip_longest(*rows.values()):
        for one in turn:
            size = 0 if one is None else len(line_of(one))
            if one is not None and size <= left:
                left -= size
                yield one
