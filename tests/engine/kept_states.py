"""Rows and states that every test of the cache can tell right from wrong, also in another process."""

import hashlib
from types import SimpleNamespace

import numpy as np
import torch

from tunescope.engine.activations import open_cache

D_MODEL = 8
BASE = "3fa91c04d5e6" + "0" * 52
BUDGET = 10**8


def make_row(number: int, *, length: int | None = None):
    """A row that no other number gives; its length varies from 1 to 9."""
    ids = (number, *range(length - 1 if length else number % 9))
    cut = len(ids) // 2
    return SimpleNamespace(prompt_ids=ids[:cut], target_ids=ids[cut:])


def states_for(rows, *, dtype=torch.float32, d_model=D_MODEL, salt="") -> torch.Tensor:
    """States that follow from a row's tokens alone, and from the salt."""
    parts = []
    for row in rows:
        ids = row.prompt_ids + row.target_ids
        seed = int.from_bytes(hashlib.sha256(f"{salt} {ids}".encode()).digest()[:8], "little")
        parts.append(np.random.default_rng(seed).standard_normal((len(ids), d_model)))
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty((0, d_model))).to(dtype)


def open_at(root, **changed):
    """A cache with the settings of these tests."""
    settings = {
        "base_sha256": BASE,
        "dtype": torch.float32,
        "d_model": D_MODEL,
        "budget_bytes": BUDGET,
        "keep_free_bytes": 0,
    }
    return open_cache(root, **settings | changed)


def files_in(root, ending):
    """The files of all shards with this ending."""
    return sorted(root.glob(f"*/*{ending}"))


def fill_slowly(root, first, last, step, budget=BUDGET):
    """What the processes do that the tests start and kill: keep rows, a few at a time."""
    with open_at(root, budget_bytes=budget) as cache:
        for start in range(first, last, step):
            rows = [make_row(i) for i in range(start, min(start + step, last))]
            cache.states(rows, 3, states_for)


def fill_and_count(root, numbers, queue):
    """Serves rows in this order twice over; puts how many were wrong and what was computed."""
    wrong = 0
    with open_at(root) as cache:
        for _ in range(2):
            for start in range(0, len(numbers), 5):
                rows = [make_row(i) for i in numbers[start : start + 5]]
                wrong += not torch.equal(cache.states(rows, 3, states_for), states_for(rows))
        queue.put((wrong, vars(cache.counts), cache.stopped))
