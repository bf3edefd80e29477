"""The distances of one task to many, one by one, so that a plan for a thousand tasks can be watched, stopped and gone on with."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunescope.errors import IntegrityError, UserError
from tunescope.replay.pool import Floats
from tunescope.replay.transport import sampled_wasserstein
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Record


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionSet:
    """The distinct instructions of a task as vectors.

    Attributes:
        name: name of the task.
        embeddings: one row per distinct instruction, shape (k, d); may be a memory map, of which only what is needed is read.
        counts: how often each occurs, shape (k,).
    """

    name: str
    embeddings: Floats
    counts: npt.NDArray[Any]

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of vectors and counts; the name is left out."""
        digest = hashlib.sha256(f"{self.embeddings.dtype} {self.embeddings.shape}".encode())
        for start in range(0, len(self.embeddings), 4096):
            digest.update(np.ascontiguousarray(self.embeddings[start : start + 4096]).tobytes())
        digest.update(np.ascontiguousarray(self.counts, dtype=np.float64).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class TaskDistance(Record):
    """Distance of an earlier task to the current one.

    Attributes:
        task: the earlier task.
        current: the current task.
        value: 1-Wasserstein distance with ground cost 1 - cosine, in [0, 2].
        standard_error: of `value` where it was sampled, else 0.
        exact: whether all instructions took part.
        n_instructions: distinct instructions of the earlier task.
        key: hash of everything that the number depends on; a stored one with another key is not used.
    """

    task: str
    current: str
    value: float
    standard_error: float
    exact: bool
    n_instructions: int
    key: str


def task_distances(
    current: InstructionSet,
    earlier: Sequence[InstructionSet],
    *,
    seed: int,
    limit: int = 2000,
    n_subsamples: int = 4,
    store: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[TaskDistance]:
    """Yields the distance of every earlier task to the current one, in the order given.

    One pair is in memory at a time. With `store`, each distance is on disk before the next is begun, and one that is there already is taken from it,
    provided that vectors, counts and settings are the same.

    Args:
        current: the task that comes next.
        earlier: the tasks before it.
        seed: of the subsamples; every pair has draws of its own.
        limit: see `sampled_wasserstein`.
        n_subsamples: see `sampled_wasserstein`.
        store: JSON Lines file; made where it does not exist.
        progress: called with (done, all) after each pair.

    Raises:
        UserError: two tasks have one name, or see `sampled_wasserstein`, with the name of the task.
        IntegrityError: a line of the store is damaged, its last one excepted, or no distance.

    Example:
        >>> old = InstructionSet("old", np.eye(2), np.array([3, 1]))
        >>> now = InstructionSet("now", np.array([[1.0, 0.0]]), np.array([5]))
        >>> [(d.task, d.value) for d in task_distances(now, [old], seed=0)]
        [('old', 0.25)]
    """
    names = [one.name for one in earlier]
    if len({*names, current.name}) <= len(names):
        raise UserError(f"tasks {sorted(names)[:10]} and {current.name!r}: every task needs a name of its own")
    folder = None if store is None else RunFolder(store.parent)
    known: dict[str, TaskDistance] = {}
    if folder is not None and store is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            known = {row["key"]: TaskDistance.from_dict(row) for row in folder.read_jsonl(store.name)}
        except (KeyError, TypeError):
            raise IntegrityError(f"{store}: holds something else than distances; choose another file") from None
    for done, task in enumerate(earlier, 1):
        key = hashlib.sha256(f"{task.key} {current.key} {seed} {limit} {n_subsamples}".encode()).hexdigest()
        found = known.get(key)
        if found is None:
            found = _distance(task, current, key, seed, limit, n_subsamples)
            if folder is not None and store is not None:
                folder.append_jsonl(store.name, [found.to_dict()])
        if progress is not None:
            progress(done, len(earlier))
        yield dataclasses.replace(found, task=task.name, current=current.name)


def _distance(
    task: InstructionSet, current: InstructionSet, key: str, seed: int, limit: int, n_subsamples: int
) -> TaskDistance:
    try:
        found = sampled_wasserstein(
            task.embeddings,
            current.embeddings,
            task.counts,
            current.counts,
            seed=int(hashlib.sha256(f"{key} {seed}".encode()).hexdigest()[:16], 16),
            limit=limit,
            n_subsamples=n_subsamples,
        )
    except UserError as error:
        raise UserError(f"distance of task {task.name!r} (x) to {current.name!r} (y): {error}") from None
    return TaskDistance(
        task.name, current.name, found.value, found.standard_error, found.exact, len(task.embeddings), key
    )
