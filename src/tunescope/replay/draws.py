"""What all policies do alike: check the budget, share it evenly, and draw with a seed of their own."""

from __future__ import annotations

import hashlib

import numpy as np

from tunescope.errors import UserError
from tunescope.replay.allocation import allocate
from tunescope.replay.pool import Floats, PoolTask, ReplayPool


def needed(rows: Floats | None, task: PoolTask, what: str, policy: str) -> Floats:
    """Returns the vectors that a policy rests on.

    Raises:
        UserError: there are none.
    """
    if rows is None:
        raise UserError(f"task {task.name!r}: policy {policy} needs {what}; compute them, or choose another policy")
    return rows


def even_quotas(pool: ReplayPool, budget: int) -> list[int]:
    """Returns how many examples each task gives, by name of the task, if all give the same as far as they have them."""
    return allocate([0.0] * len(pool.earlier), budget, available=sizes(pool))


def sizes(pool: ReplayPool) -> list[int]:
    """Returns the number of examples of each earlier task, by name of the task."""
    return [len(task) for task in pool.ordered]


def check_budget(budget: int) -> None:
    """Refuses a budget that is no number of examples.

    Raises:
        UserError: it is negative or no whole number.
    """
    if budget != int(budget) or budget < 0:
        raise UserError(f"budget {budget}: the number of examples to replay must be a whole number, at least 0")


def seed_of(seed: int, *names: str) -> int:
    """Returns a seed of its own for every use, whatever else is drawn."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def rng_of(seed: int, *names: str) -> np.random.Generator:
    """Returns a generator seeded with `seed_of`."""
    return np.random.default_rng(seed_of(seed, *names))
