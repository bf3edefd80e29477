"""The baselines that choose by where examples and instructions lie among the embeddings, at the same budget as `policies`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.replay.draws import check_budget, even_quotas, needed, rng_of, seed_of
from tunescope.replay.pool import Chosen, Indices, ReplayPool
from tunescope.replay.prototypes import best_clusters, farthest_first, prototypes


def prototype_data(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """Takes from each task, in even shares, the examples nearest to the centres of k-means over its examples.

    There are as many centres as examples wanted. Needs `PoolTask.example_embeddings`.

    Args:
        pool: the tasks.
        budget: examples to choose in all.
        seed: of k-means.

    Returns:
        ``min(budget, examples)`` choices with code ``prototype_data``.

    Raises:
        UserError: the budget is negative, or embeddings are missing.

    Source:
        The baseline "prototype data" of Wang et al., arXiv 2403.11435; mini-batches and the order of turns are ours.

    Example:
        >>> import numpy as np
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> old = PoolTask.build("old", ["1", "2", "3"], ["Sort."] * 3, example_embeddings=vectors)
        >>> now = PoolTask.build("now", ["1"], ["Classify."])
        >>> prototype_data(ReplayPool(now, (old,)), 2, 0)[1].id
        '3'
    """
    check_budget(budget)
    chosen = []
    for task, quota in zip(pool.ordered, even_quotas(pool, budget), strict=True):
        if quota == 0:
            continue
        vectors = needed(task.example_embeddings, task, "embeddings of its examples", "prototype_data")
        for position, distance in sorted(prototypes(vectors, quota, seed=seed_of(seed, "prototype_data", task.name))):
            reason = {"code": "prototype_data", "quota": quota, "distance_to_centre": distance}
            chosen.append(Chosen(task.name, task.ids[position], reason))
    return chosen


def prototype_instruction(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """Takes from each task, in even shares, random examples of the instructions nearest to the centres of k-means over its instructions.

    The number of centres is the one with the best silhouette. Needs `PoolTask.embeddings`. Where the prototypes have fewer examples than
    wanted, random examples of the other instructions follow.

    Args:
        pool: the tasks.
        budget: examples to choose in all.
        seed: of k-means and the draws.

    Returns:
        ``min(budget, examples)`` choices with the codes ``prototype_instruction`` and ``top_up``.

    Raises:
        UserError: the budget is negative, or embeddings are missing.

    Source:
        The baseline "prototype instruction" of Wang et al., arXiv 2403.11435; the search for the number of
        centres (2 to 10) and the filling up are ours.

    Example:
        >>> import numpy as np
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> old = PoolTask.build("old", ["1", "2"], ["Sort.", "Count."], embeddings=np.eye(2))
        >>> now = PoolTask.build("now", ["1"], ["Classify."])
        >>> len(prototype_instruction(ReplayPool(now, (old,)), 2, 0))
        2
    """
    check_budget(budget)
    chosen = []
    for task, quota in zip(pool.ordered, even_quotas(pool, budget), strict=True):
        if quota == 0:
            continue
        vectors = needed(task.embeddings, task, "embeddings of its instructions", "prototype_instruction")
        k = best_clusters(vectors, seed=seed_of(seed, "best_clusters", task.name))
        central = dict(prototypes(vectors, k, seed=seed_of(seed, "prototype_instruction", task.name)))
        order = rng_of(seed, "prototype_instruction", task.name).permutation(len(task)).tolist()
        of = task.grouped.of
        order.sort(key=lambda position: of[position] not in central)  # stable: random inside both parts
        for position in sorted(order[:quota]):
            instruction = int(of[position])
            reason: dict[str, Any] = {"code": "top_up", "quota": quota, "n_prototypes": k}
            if instruction in central:
                reason |= {"code": "prototype_instruction", "distance_to_centre": central[instruction]}
            chosen.append(Chosen(task.name, task.ids[position], reason))
    return chosen


def diverse_instruction(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """Takes from each task, in even shares, examples of instructions that are least similar to those kept so far.

    The first instruction is the one least similar to the current task's (mean cosine), each further one has the smallest largest cosine
    to those already kept in its task. Each gives one random example; when all had their turn, they go round again. Needs `PoolTask.embeddings`.

    Args:
        pool: the tasks.
        budget: examples to choose in all.
        seed: of the draws within an instruction.

    Returns:
        ``min(budget, examples)`` choices with code ``diverse_instruction``.

    Raises:
        UserError: the budget is negative, or embeddings are missing.

    Source:
        The baseline "diverse instruction" of Wang et al., arXiv 2403.11435; how it starts and goes round is ours.

    Example:
        >>> import numpy as np
        >>> from tunescope.replay import PoolTask, ReplayPool
        >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> old = PoolTask.build("old", ["1", "2", "3"], ["A", "B", "C"], embeddings=vectors)
        >>> now = PoolTask.build("now", ["1"], ["D"], embeddings=np.array([[1.0, 0.0]]))
        >>> [chosen.id for chosen in diverse_instruction(ReplayPool(now, (old,)), 2, 0)]
        ['1', '3']
    """
    check_budget(budget)
    chosen = []
    for task, quota in zip(pool.ordered, even_quotas(pool, budget), strict=True):
        if quota == 0:
            continue
        vectors = needed(task.embeddings, task, "embeddings of its instructions", "diverse_instruction")
        current = needed(pool.current.embeddings, pool.current, "embeddings of its instructions", "diverse_instruction")
        wanted = min(quota, len(vectors))
        rank = {k: (turn, cosine) for turn, (k, cosine) in enumerate(farthest_first(vectors, current, wanted))}
        order = rng_of(seed, "diverse_instruction", task.name).permutation(len(task)).tolist()
        for position, (turn, cosine) in _in_turns(order, task.grouped.of, rank)[:quota]:
            reason = {"code": "diverse_instruction", "quota": quota, "rank": turn, "cosine_to_kept": cosine}
            chosen.append(Chosen(task.name, task.ids[position], reason))
    return sorted(chosen, key=lambda one: (one.task, one.id))


def _in_turns(
    order: Sequence[int], of: Indices, rank: Mapping[int, tuple[int, float]]
) -> list[tuple[int, tuple[int, float]]]:
    """Returns the examples of the ranked instructions, first one of each by rank, then the second of each."""
    turns: dict[int, int] = {}
    queued = []
    for position in order:
        instruction = int(of[position])
        if instruction in rank:
            turns[instruction] = turns.get(instruction, -1) + 1
            queued.append((turns[instruction], *rank[instruction], position))
    return [(position, (turn, cosine)) for _, turn, cosine, position in sorted(queued)]
