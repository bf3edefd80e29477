"""What a replay policy sees, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunescope.errors import DataError, UserError
from tunescope.runs.records import Record

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Chosen(Record):
    """One example that a policy keeps, and why.

    Attributes:
        task: name of the earlier task it comes from.
        id: the example's id within that task.
        reason: a code with its numbers, for example ``{"code": "top_information", "information": 4.1, "quota": 12, "distance": 0.21}``.
    """

    task: str
    id: str
    reason: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """Equal instructions taken together.

    Attributes:
        texts: the distinct instructions, sorted.
        of: for every example the index of its instruction in `texts`, shape (n,).
        counts: how many examples carry each instruction, shape (k,); the weights of a task distance.
    """

    texts: tuple[str, ...]
    of: Indices
    counts: Indices


def group_instructions(instructions: Sequence[str]) -> Grouped:
    """Takes equal instructions together and counts how often each occurs.

    Two instructions are equal if their characters are. The order of the distinct ones is that of the sorted texts, so that it does not
    depend on the order of the examples; embeddings and tags are given in this order.

    Args:
        instructions: one text per example.

    Returns:
        Distinct texts, the index of each example's text, and the counts.

    Example:
        >>> grouped = group_instructions(["Translate.", "Classify.", "Translate."])
        >>> grouped.texts, grouped.of.tolist(), grouped.counts.tolist()
        (('Classify.', 'Translate.'), [1, 0, 1], [1, 2])
    """
    texts = tuple(sorted(set(instructions)))
    place = {text: index for index, text in enumerate(texts)}
    of = np.fromiter((place[text] for text in instructions), dtype=np.int64, count=len(instructions))
    return Grouped(texts, of, np.bincount(of, minlength=len(texts)).astype(np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class PoolTask:
    """The examples of one task, as far as replay needs them. Make one with `PoolTask.build`, which puts everything in order.

    Attributes:
        name: name of the task.
        ids: ids of its examples, sorted.
        grouped: their distinct instructions; `grouped.of` is aligned with `ids`.
        embeddings: one row per distinct instruction, shape (k, d), or None.
        example_embeddings: one row per example, shape (n, d), aligned with `ids`, or None.
        tags: normalised tags of every distinct instruction, or None.
    """

    name: str
    ids: tuple[str, ...]
    grouped: Grouped
    embeddings: Floats | None = None
    example_embeddings: Floats | None = None
    tags: tuple[tuple[str, ...], ...] | None = None

    @classmethod
    def build(
        cls,
        name: str,
        ids: Sequence[str],
        instructions: Sequence[str],
        *,
        embeddings: Floats | None = None,
        example_embeddings: Floats | None = None,
        tags: Sequence[Sequence[str]] | None = None,
    ) -> PoolTask:
        """Checks and sorts: the result does not depend on the order of the examples.

        Args:
            name: name of the task.
            ids: unique within the task.
            instructions: one text per example; none may be empty or blank.
            embeddings: one row per *distinct* instruction, in the order of `group_instructions(instructions).texts`, shape (k, d).
            example_embeddings: one row per example, in the order of `ids`, shape (n, d).
            tags: tags of every distinct instruction, in the order of `group_instructions(instructions).texts`.

        Raises:
            DataError: no example, an id twice, or an example without an instruction.
            UserError: lengths or shapes do not fit.

        Example:
            >>> task = PoolTask.build("routing", ["b", "a"], ["Which desk?", "Where to?"])
            >>> task.ids, task.grouped.texts, task.grouped.of.tolist()
            (('a', 'b'), ('Where to?', 'Which desk?'), [0, 1])
        """
        _check_examples(name, ids, instructions)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        grouped = group_instructions([instructions[i] for i in order])
        n, k = len(ids), len(grouped.texts)
        _check_rows(name, "embeddings", embeddings, k, "one per distinct instruction")
        _check_rows(name, "example_embeddings", example_embeddings, n, "one per example")
        if tags is not None and len(tags) != k:
            raise UserError(
                f"task {name!r}: {len(tags)} lists of tags for {k} distinct instructions; give one list each"
            )
        return cls(
            name,
            tuple(ids[i] for i in order),
            grouped,
            embeddings,
            None if example_embeddings is None else example_embeddings[order],
            None if tags is None else tuple(tuple(given) for given in tags),
        )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.ids)


def _check_examples(name: str, ids: Sequence[str], instructions: Sequence[str]) -> None:
    if len(ids) != len(instructions):
        raise UserError(
            f"task {name!r}: {len(ids)} ids for {len(instructions)} instructions; give one of each per example"
        )
    if not ids:
        raise DataError(f"task {name!r}: no examples; a task needs at least one to be replayed or compared")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise DataError(f"task {name!r}: id {twice!r} occurs more than once; ids must be unique within a task")
    blank = [i for i, text in zip(ids, instructions, strict=True) if not text.strip()]
    if blank:
        raise DataError(
            f"task {name!r}: {len(blank)} of {len(ids)} examples have no instruction (first: {blank[0]!r}); replay compares tasks "
            "by their instructions: give every example one"
        )


def _check_rows(name: str, what: str, rows: Floats | None, n: int, meaning: str) -> None:
    if rows is not None and (rows.ndim != 2 or rows.shape[0] != n):
        raise UserError(f"task {name!r}: {what} have shape {rows.shape}; {n} rows are needed, {meaning}")


@dataclasses.dataclass(frozen=True, eq=False)
class ReplayPool:
    """Everything that a policy may look at before a stage.

    Attributes:
        current: the task that comes next; its examples are never chosen.
        earlier: the tasks before it, in any order.
        distances: name of each earlier task -> its distance to the current one, or None where they have not been computed.
    """

    current: PoolTask
    earlier: tuple[PoolTask, ...]
    distances: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuses two tasks of one name, and distances that belong to other tasks."""
        names = [task.name for task in self.earlier]
        if len({*names, self.current.name}) <= len(names):
            raise UserError(f"replay: tasks {names} and {self.current.name!r}: every task needs a name of its own")
        if self.distances is not None and set(self.distances) != set(names):
            odd = sorted(set(self.distances) ^ set(names))
            raise UserError(
                f"replay: distances and earlier tasks differ in {odd[:5]}; give one distance per earlier task"
            )

    @property
    def ordered(self) -> tuple[PoolTask, ...]:
        """The earlier tasks by name, so that no choice depends on the order in which they were given."""
        return tuple(sorted(self.earlier, key=lambda task: task.name))


Policy = Callable[[ReplayPool, int, int], list[Chosen]]
"""``policy(pool, budget, seed)`` returns what to replay: at most `budget` examples of the earlier tasks, each once, sorted by task and id."""
