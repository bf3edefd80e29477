"""The memory of a run: begun, continued from an earlier run, and what a person does with it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunescope.config import ReplaySettings
from tunescope.data import Example
from tunescope.errors import RunError, TunescopeError
from tunescope.runs import ledger
from tunescope.runs.environment import user_name
from tunescope.runs.folder import RunFolder
from tunescope.runs.memory import Kept, Memory
from tunescope.studies.bench import Bench
from tunescope.studies.learn_choose import example_of, plain_example
from tunescope.studies.learn_onto import MEMORY, Earlier
from tunescope.studies.learn_plan import PLAN


def open_memory(bench: Bench, earlier: Earlier | None) -> Memory:
    """Returns the memory of a run: as it is there, or as the earlier run left it, or empty.

    Raises:
        RunError: it was made with another base model, or another program is at work in it.
        IntegrityError: it is damaged or was changed.
    """
    path, base = bench.run.path / MEMORY, {"sha256": bench.located.sha256}
    # What a kill left of the start of one: it holds examples, which a person may withdraw.
    for rest in bench.run.path.glob(f".{MEMORY}.*.part"):
        shutil.rmtree(rest, ignore_errors=True)
    if (path / "index.json").is_file():
        return Memory.open(path, base_model=base)
    settings = bench.config.replay
    if earlier is None or earlier.memory is None:
        return Memory.create(
            path, base_model=base, budget_examples=settings.memory_examples, budget_bytes=settings.memory_bytes
        )
    file = bench.run.path / "arms" / "memory.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    Memory.open(earlier.memory, base_model=base).export(file)
    memory = Memory.load_export(file, path, base_model=base)
    file.unlink()
    return memory


def with_memory(bench: Bench, memory: Memory, tasks: Sequence[str]) -> Bench:
    """Returns a bench in which tasks have as training examples what is kept of them: the files may be gone, demonstrations are needed."""
    kept: dict[str, list[Example]] = {}
    for one in memory.kept:
        kept.setdefault(one.task, []).append(example_of(one))
    filled = tuple(
        dataclasses.replace(task, train=tuple(kept.get(task.name, ()))) if task.name in tasks else task
        for task in bench.inputs.tasks
    )
    return dataclasses.replace(bench, inputs=dataclasses.replace(bench.inputs, tasks=filled))


def write_kept(memory: Memory, kept: Sequence[Kept], settings: ReplaySettings) -> None:
    """Writes what is kept, within the budget of the settings; an earlier run may have had another one."""
    budget = {"budget_examples": settings.memory_examples, "budget_bytes": settings.memory_bytes}
    if (memory.budget_examples, memory.budget_bytes) != tuple(budget.values()):
        memory.set_budget(budget_examples=None, budget_bytes=None)
    memory.write(kept)
    memory.set_budget(**budget)


def not_withdrawn(memory: Memory, examples: Sequence[Example]) -> list[Example]:
    """Returns the examples without those that were withdrawn, by content."""
    if not memory.withdrawn:
        return list(examples)
    return [example for example in examples if not memory.is_withdrawn(plain_example(example))]


def show(run_folder: Path) -> dict[str, Any]:
    """Returns what a run keeps: counts and bytes per task, why, budgets, and how many examples were withdrawn.

    Args:
        run_folder: a run with a memory.

    Raises:
        RunError: there is no such run, or it has no memory.
        IntegrityError: the memory is damaged or was changed.
    """
    memory = _memory(run_folder)
    tasks: dict[str, dict[str, Any]] = {}
    for one in memory.kept:
        row = tasks.setdefault(one.task, {"examples": 0, "instructions": set(), "reasons": {}})
        row["examples"] += 1
        row["instructions"].add(one.example["instruction"])
        code = f"{one.policy}: {one.reason['code']}"
        row["reasons"][code] = row["reasons"].get(code, 0) + 1
    return {
        "memory": str(memory.path),
        "base_model": memory.base_model,
        "examples": len(memory.kept),
        "bytes": (memory.path / "examples.jsonl").stat().st_size,
        "budget_examples": memory.budget_examples,
        "budget_bytes": memory.budget_bytes,
        "withdrawn": len(memory.withdrawn),
        "sha256": memory.digest,
        "tasks": {name: row | {"instructions": len(row["instructions"])} for name, row in tasks.items()},
    }


def export(run_folder: Path, file: Path) -> int:
    """Writes the memory of a run to one file and returns how many examples it holds.

    Raises:
        RunError: no such run or memory, or the file is there already.
        IntegrityError: the memory is damaged or was changed.
    """
    memory = _memory(run_folder)
    memory.export(file)
    _note(
        RunFolder(run_folder),
        "memory exported",
        {"to": str(file), "examples": len(memory.kept), "memory": memory.digest},
    )
    return len(memory.kept)


def load(run_folder: Path, file: Path) -> int:
    """Gives a run that has no memory the one of a file, and returns how many examples it holds.

    Raises:
        RunError: no such run, it has a memory already, or the memory is of another base model.
        IntegrityError: the file was changed.
    """
    run = RunFolder.open(run_folder)
    base = {"sha256": run.read_json("environment.json")["model"]["sha256"]}
    with _quiet_lock(run):
        memory = Memory.load_export(file, run.path / MEMORY, base_model=base)
        details = {"from": str(file), "examples": len(memory.kept), "memory": memory.digest}
        _note(run, "memory imported", details)
    return len(memory.kept)


def forget(run_folder: Path, ids: Sequence[str], *, task: str | None = None) -> list[Kept]:
    """Withdraws examples: from the memory, from the replay plan, and from every later stage; the ledger says so.

    Weights that were tuned on them stay what they are; only tuning again without them changes that.

    Args:
        run_folder: a run with a memory.
        ids: of kept examples.
        task: theirs; needed where an id occurs in several tasks.

    Returns:
        What was withdrawn.

    Raises:
        RunError: no such run or memory, a process is at work in it, or an id is unknown or occurs in several tasks.
        IntegrityError: the memory is damaged or was changed.
    """
    run = RunFolder.open(run_folder)
    with _quiet_lock(run):
        memory = _memory(run_folder)
        gone = memory.forget(ids, task=task)
        keys = {(one.task, one.id) for one in gone}
        rows = run.read_jsonl(PLAN)
        left = [row for row in rows if (row["task"], row["id"]) not in keys]
        if len(left) < len(rows):
            run.write_jsonl(PLAN, left)
        details: dict[str, Any] = {
            "examples": [{"task": one.task, "id": one.id} for one in gone],
            "plan_rows": len(rows) - len(left),
            "memory": memory.digest,
        }
        _note(run, "examples withdrawn", details)
    return gone


@contextlib.contextmanager
def _quiet_lock(run: RunFolder) -> Iterator[None]:
    """Locks a run; what a person got wrong here is no failure of the run, whose status stays."""
    failure: TunescopeError | None = None
    with run.locked():
        try:
            yield
        except TunescopeError as error:
            failure = error
    if failure is not None:
        raise failure


def _memory(run_folder: Path) -> Memory:
    run = RunFolder.open(run_folder)
    if not (run.path / MEMORY).is_dir():
        raise RunError(
            f"{run_folder}: has no memory; a run of `tunescope learn` has one, and `tunescope memory import` gives a run one"
        )
    return Memory.open(run.path / MEMORY)


def _note(run: RunFolder, event: str, details: Mapping[str, Any]) -> None:
    ledger.append(run.path / "ledger.jsonl", event, dict(details), actor=user_name(), key=ledger.key_from_environment())
