"""Policies: which examples of earlier tasks are replayed. One signature, ``policy(pool, budget, seed)``, for all and for a user's own.

A policy returns at most `budget` examples of the earlier tasks (`joint` all of them), each once, sorted by task and id. The result depends
on what is in the pool and on the seed, not on the order of anything in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.errors import UserError
from tunescope.replay.allocation import Allocation, allocate
from tunescope.replay.baselines import diverse_instruction, prototype_data, prototype_instruction
from tunescope.replay.draws import check_budget, even_quotas, needed, rng_of, seed_of, sizes
from tunescope.replay.information import instruction_information
from tunescope.replay.pool import Chosen, Policy, ReplayPool
from tunescope.replay.sampling import sample_with_steps
from tunescope.replay.transport import sampled_wasserstein


def none(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """Replays nothing: what forgetting costs without any memory.

    Args:
        pool: the tasks.
        budget: not used.
        seed: not used.

    Returns:
        An empty list.

    Raises:
        UserError: the budget is negative.

    Example:
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> task = PoolTask.build("now", ["1"], ["Classify."])
        >>> none(ReplayPool(task, ()), 10, 0)
        []
    """
    check_budget(budget)
    return []


def random(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """Draws uniformly from all examples of the earlier tasks: what every other policy has to beat at the same budget.

    Args:
        pool: the tasks.
        budget: examples to choose.
        seed: of the draw.

    Returns:
        ``min(budget, examples)`` choices with code ``random``.

    Raises:
        UserError: the budget is negative.

    Example:
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> old, now = PoolTask.build("old", ["1", "2", "3"], ["Sort."] * 3), PoolTask.build("now", ["1"], ["Classify."])
        >>> [chosen.task for chosen in random(ReplayPool(now, (old,)), 2, 0)]
        ['old', 'old']
    """
    check_budget(budget)
    everything = [(task.name, name) for task in pool.ordered for name in task.ids]
    n = min(budget, len(everything))
    drawn = rng_of(seed, "random").choice(len(everything), size=n, replace=False)
    reason = {"code": "random", "budget": budget, "n_pool": len(everything)}
    return [Chosen(task, name, reason) for task, name in (everything[i] for i in sorted(drawn.tolist()))]


def inscl(pool: ReplayPool, budget: int, seed: int, *, allocation: Allocation = "distance") -> list[Chosen]:
    """Shares the budget by task distance and samples in each task by InsInfo.

    Needs `pool.distances`, or embeddings from which they are computed, and the tags of all tasks, the current one included.

    Args:
        pool: the tasks.
        budget: examples to choose in all.
        seed: of the draws.
        allocation: see `tunescope.replay.allocate`.

    Returns:
        ``min(budget, examples)`` choices with the codes of `sample_with_steps`.

    Raises:
        UserError: the budget is negative, or distances or tags are missing.

    Source:
        Wang et al., InsCL, NAACL 2024 (arXiv 2403.11435); see `allocate`, `instruction_information` and `sample_examples` for what differs.

    Example:
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> old = PoolTask.build("old", ["1", "2", "3"], ["Sort.", "Sort.", "Count."], tags=[["count", "number"], ["sort"]])
        >>> now = PoolTask.build("now", ["1"], ["Classify."], tags=[["classify"]])
        >>> [chosen.id for chosen in inscl(ReplayPool(now, (old,), {"old": 0.2}), 1, 0)]
        ['3']
    """
    check_budget(budget)
    distances = _distances(pool, seed)
    quotas = allocate([distances[t.name] for t in pool.ordered], budget, available=sizes(pool), allocation=allocation)
    return _by_information(pool, quotas, seed, distances)


def inscl_without_distance(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """Shares the budget evenly and samples in each task by InsInfo: InsCL without its task distance.

    Args:
        pool: the tasks, with tags.
        budget: examples to choose in all.
        seed: of the draws.

    Returns:
        ``min(budget, examples)`` choices with the codes of `sample_with_steps`.

    Raises:
        UserError: the budget is negative, or tags are missing.

    Source:
        The ablation "w/o W" of Wang et al., arXiv 2403.11435.

    Example:
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> now = PoolTask.build("now", ["1"], ["Classify."], tags=[["classify"]])
        >>> inscl_without_distance(ReplayPool(now, ()), 5, 0)
        []
    """
    check_budget(budget)
    return _by_information(pool, even_quotas(pool, budget), seed, {})


def inscl_without_information(
    pool: ReplayPool, budget: int, seed: int, *, allocation: Allocation = "distance"
) -> list[Chosen]:
    """Shares the budget by task distance and draws uniformly in each task: InsCL without InsInfo.

    Args:
        pool: the tasks, with distances or embeddings.
        budget: examples to choose in all.
        seed: of the draws.
        allocation: see `tunescope.replay.allocate`.

    Returns:
        ``min(budget, examples)`` choices with code ``random_in_task``.

    Raises:
        UserError: the budget is negative, or distances are missing.

    Source:
        The ablation "w/o InsInfo" of Wang et al., arXiv 2403.11435.

    Example:
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> old, now = PoolTask.build("old", ["1", "2"], ["Sort."] * 2), PoolTask.build("now", ["1"], ["Classify."])
        >>> inscl_without_information(ReplayPool(now, (old,), {"old": 0.2}), 2, 0)[0].reason
        {'code': 'random_in_task', 'quota': 2, 'distance': 0.2}
    """
    check_budget(budget)
    distances = _distances(pool, seed)
    tasks = pool.ordered
    quotas = allocate([distances[t.name] for t in tasks], budget, available=sizes(pool), allocation=allocation)
    chosen = []
    for task, quota in zip(tasks, quotas, strict=True):
        drawn = rng_of(seed, "random_in_task", task.name).choice(len(task), size=quota, replace=False)
        reason = {"code": "random_in_task", "quota": quota, "distance": distances[task.name]}
        chosen += [Chosen(task.name, task.ids[i], reason) for i in sorted(drawn.tolist())]
    return chosen


def joint(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """Takes every example of the earlier tasks, whatever the budget: the ceiling, no policy to be compared at equal cost.

    Args:
        pool: the tasks.
        budget: not used.
        seed: not used.

    Returns:
        All examples with code ``joint``.

    Raises:
        UserError: the budget is negative.

    Example:
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> old, now = PoolTask.build("old", ["1", "2"], ["Sort."] * 2), PoolTask.build("now", ["1"], ["Classify."])
        >>> len(joint(ReplayPool(now, (old,)), 1, 0))
        2
    """
    check_budget(budget)
    return [Chosen(task.name, name, {"code": "joint"}) for task in pool.ordered for name in task.ids]


POLICIES: dict[str, Policy] = {
    "none": none,
    "random": random,
    "prototype_data": prototype_data,
    "prototype_instruction": prototype_instruction,
    "diverse_instruction": diverse_instruction,
    "inscl": inscl,
    "inscl_without_distance": inscl_without_distance,
    "inscl_without_information": inscl_without_information,
    "joint": joint,
}


def _by_information(pool: ReplayPool, quotas: Sequence[int], seed: int, distances: Mapping[str, float]) -> list[Chosen]:
    tasks = pool.ordered
    tags: list[tuple[str, ...]] = []
    for task in (*tasks, pool.current):
        if task.tags is None:
            raise UserError(
                f"task {task.name!r}: has no tags, and InsInfo rests on them; give the tags of its instructions"
            )
        tags += task.tags
    information = instruction_information(tags)
    chosen, start = [], 0
    for task, quota in zip(tasks, quotas, strict=True):
        end = start + len(task.grouped.texts)
        own, start = information[start:end], end
        reason: dict[str, Any] = {"quota": quota}
        if task.name in distances:
            reason["distance"] = distances[task.name]
        draws = sample_with_steps(task.grouped.of, own, quota, seed=seed_of(seed, "information", task.name))
        for position, step in draws:
            code = {"code": step, "information": own[task.grouped.of[position]]}
            chosen.append(Chosen(task.name, task.ids[position], code | reason))
    return chosen


def _distances(pool: ReplayPool, seed: int) -> Mapping[str, float]:
    if pool.distances is not None:
        return pool.distances
    current = needed(pool.current.embeddings, pool.current, "embeddings of its instructions", "inscl")
    found = {}
    for task in pool.ordered:
        vectors = needed(task.embeddings, task, "embeddings of its instructions", "inscl")
        weights = (task.grouped.counts, pool.current.grouped.counts)
        found[task.name] = sampled_wasserstein(
            vectors, current, *weights, seed=seed_of(seed, "distance", task.name)
        ).value
    return found
