r"""What is kept of earlier tasks: a folder with the examples, why each is kept, and what may never come back.

::

    memory/
      index.json        base model, budget, hash of the examples, fingerprints of withdrawn examples
      examples.jsonl    one `Kept` per line, sorted by task and id

A change writes the index with the hash to come, then the examples, then the index again; a kill at any moment leaves a memory that opens.
A withdrawn example is in the index before it leaves the examples, and is left out on reading from then on.

The hashes show a change by accident, or by someone who does not compute them anew; against others keep `Memory.digest` in the ledger.
Withdrawing removes an example from these files. It cannot remove it from copies, exports, the disk's free blocks or tuned weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tunescope.errors import RunError, did_you_mean
from tunescope.runs.folder import write_text
from tunescope.runs.kept import (
    Kept,
    State,
    canonical,
    fingerprint,
    line_of,
    parse_state,
    read_state,
    sealed,
    sha256,
    write_index,
)

__all__ = ["Kept", "Memory", "fingerprint"]


class Memory:
    """What is kept of earlier tasks, within a budget. Make one with `Memory.create` or `Memory.open`.

    Every change reads the folder anew under a lock, so that no program undoes what another did.

    Args:
        path: the folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "memory"
        >>> memory = Memory.create(folder, base_model={"name": "smollm2-135m"}, budget_examples=100)
        >>> example = {"instruction": "Which desk?", "input": "The door is stuck.", "targets": ["facility"]}
        >>> memory.write([Kept("routing", "7", example, "random", "1", {"code": "random"})])
        >>> [kept.id for kept in Memory.open(folder).kept]
        ['7']
        >>> memory.forget(["7"])[0].task, memory.kept, memory.is_withdrawn(example)
        ('routing', (), True)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._depth = 0
        self._state: State | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        base_model: Mapping[str, str],
        budget_examples: int | None = None,
        budget_bytes: int | None = None,
    ) -> Self:
        """Starts an empty memory.

        Args:
            path: the folder; it must not hold anything.
            base_model: what names the base model, for example its name, revision and hash; compared when the memory is opened for a model.
            budget_examples: most examples to keep, or None.
            budget_bytes: most bytes of ``examples.jsonl``, or None.

        Raises:
            RunError: the folder is not empty, the model is not named, or a budget is not above 0.
        """
        return cls._start(path, State(_named(base_model), *_budget(path, budget_examples, budget_bytes)))

    @classmethod
    def open(cls, path: Path, *, base_model: Mapping[str, str] | None = None) -> Self:
        """Opens a memory and checks all of it.

        Args:
            path: the folder.
            base_model: what names the model that is going to use it; None: not compared.

        Raises:
            RunError: there is no memory, a newer tunescope wrote it, or it was made with another base model.
            IntegrityError: a file is damaged or was changed.
        """
        memory = cls(path)
        memory._state = read_state(path)
        memory._check_model(base_model)
        return memory

    @property
    def kept(self) -> tuple[Kept, ...]:
        """All that is kept, sorted by task and id; withdrawn examples are left out."""
        return self._now.kept

    @property
    def base_model(self) -> dict[str, str]:
        """What names the base model."""
        return dict(self._now.base_model)

    @property
    def budget_examples(self) -> int | None:
        """Most examples to keep, or None."""
        return self._now.budget_examples

    @property
    def budget_bytes(self) -> int | None:
        """Most bytes of ``examples.jsonl``, or None."""
        return self._now.budget_bytes

    @property
    def withdrawn(self) -> frozenset[str]:
        """Fingerprints of the examples that may never come back."""
        return self._now.withdrawn

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the memory says, for the ledger."""
        return sha256(canonical(self._now.index()).encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other programs from changing the memory; every change takes this lock by itself.

        Raises:
            RunError: another program is at work in it.
        """
        try:
            import fcntl
        except ImportError:  # Windows has no flock; there the user has to take care
            yield
            return
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path}: there is no memory; start one, or give the folder of another")
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{self.path}: another program is at work in this memory; wait for it, or work on a copy"
                ) from None
            self._depth = 1
            try:
                yield
            finally:
                self._depth = 0

    def is_withdrawn(self, example: Mapping[str, Any]) -> bool:
        """Tells whether an example with this content was withdrawn; ask before an example enters a stage.

        Raises:
            RunError: see `fingerprint`.
        """
        return fingerprint(example) in self.withdrawn

    def fitting(self, kept: Iterable[Kept]) -> list[Kept]:
        """Returns those of `kept`, the first first, that together stay within the budget; withdrawn ones are left out.

        The first that does not fit ends it, so that no later and smaller example is preferred to it.
        """
        state = self._now
        chosen: list[Kept] = []
        n_bytes = 0
        for one in kept:
            if fingerprint(one.example) in state.withdrawn:
                continue
            n_bytes += len(line_of(one))
            if state.over(len(chosen) + 1, n_bytes):
                break
            chosen.append(one)
        return chosen

    def write(self, kept: Iterable[Kept]) -> None:
        """Replaces all that is kept.

        Raises:
            RunError: over the budget, an id twice in a task, a withdrawn example, one that is no plain JSON, or another
                program is at work; then nothing is changed.
            IntegrityError: the memory was changed from outside.
        """
        wanted = tuple(sorted((Kept.from_dict(one.to_dict()) for one in kept), key=lambda one: (one.task, one.id)))
        with self.locked():
            old = read_state(self.path)
            self._check_content(wanted, old)
            self._replace(old, dataclasses.replace(old, kept=wanted))

    def set_budget(self, *, budget_examples: int | None, budget_bytes: int | None) -> None:
        """Replaces the budget; keep less with `write` first if it shrinks.

        Raises:
            RunError: more is kept than it allows, it is not above 0, or another program is at work.
            IntegrityError: the memory was changed from outside.
        """
        with self.locked():
            old = read_state(self.path)
            examples, most_bytes = _budget(self.path, budget_examples, budget_bytes)
            new = dataclasses.replace(old, budget_examples=examples, budget_bytes=most_bytes)
            self._check_content(new.kept, new)
            self._replace(old, new)

    def forget(self, ids: Sequence[str], *, task: str | None = None) -> list[Kept]:
        """Withdraws kept examples: they leave the memory, and nothing with the same content can be written to it again.

        Args:
            ids: ids of kept examples.
            task: their task; needed where an id occurs in several tasks.

        Returns:
            What was withdrawn, other examples with the same content included; note in the ledger that it was.

        Raises:
            RunError: an id is unknown or occurs in several tasks, or another program is at work; then nothing is withdrawn.
            IntegrityError: the memory was changed from outside.
        """
        with self.locked():
            old = read_state(self.path)
            found: dict[str, list[Kept]] = {}
            for one in old.kept:
                if task is None or one.task == task:
                    found.setdefault(one.id, []).append(one)
            problems = []
            for name in dict.fromkeys(ids):
                tasks = [one.task for one in found.get(name, [])]
                where = "" if task is None else f" of task {task!r}"
                if not tasks:
                    problems.append(
                        f"{self.path}: no example {name!r}{where} is kept{did_you_mean(name, list(found))}; nothing was withdrawn"
                    )
                elif len(tasks) > 1:
                    problems.append(
                        f"{self.path}: id {name!r} occurs in the tasks {', '.join(tasks)}; say which task is meant"
                    )
            if problems:
                raise RunError(problems)
            return self._withdraw(old, {fingerprint(found[name][0].example) for name in ids})

    def forget_examples(self, examples: Iterable[Mapping[str, Any]]) -> list[Kept]:
        """Withdraws examples by content, whether they are kept or not, and returns the kept ones among them.

        Raises:
            RunError: see `fingerprint`, or another program is at work.
            IntegrityError: the memory was changed from outside.
        """
        contents = {fingerprint(example) for example in examples}
        with self.locked():
            return self._withdraw(read_state(self.path), contents)

    def export(self, file: Path) -> None:
        """Writes everything to one JSON Lines file for `load_export`: a line that describes the memory, then one line per example.

        Raises:
            RunError: the file is there already.
            IntegrityError: the memory was changed from outside.
        """
        if file.exists():
            raise RunError(f"{file}: is there already; choose another name or remove it")
        state = read_state(self.path)
        write_text(file, canonical(sealed(state.index())) + "\n" + state.lines())

    @classmethod
    def load_export(cls, file: Path, path: Path, *, base_model: Mapping[str, str] | None = None) -> Self:
        """Makes a memory in an empty folder from a file of `export`; withdrawn examples stay withdrawn.

        Args:
            file: the exported file.
            path: folder of the new memory; it must not hold anything.
            base_model: see `open`.

        Raises:
            RunError: not such a file, or see `open` and `create`.
            IntegrityError: the file was changed.
        """
        try:
            first, _, rest = file.read_bytes().partition(b"\n")
        except OSError as error:
            raise RunError(
                f"{file}: cannot be read ({error.strerror}); give a file written by an export of a memory"
            ) from None
        state = parse_state(file, first, rest, file)
        memory = cls(path)
        memory._state = state
        memory._check_model(base_model)
        return cls._start(path, state)

    @property
    def _now(self) -> State:
        if self._state is None:
            self._state = read_state(self.path)
        return self._state

    @classmethod
    def _start(cls, path: Path, state: State) -> Self:
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: is a file, a folder is needed for a memory; choose another")
        if path.is_dir() and any(_says_something(entry) for entry in path.iterdir()):
            raise RunError(f"{path}: the folder is not empty; open the memory that is there, or choose another folder")
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            write_text(beside / "examples.jsonl", state.lines())
            write_index(beside, state.index())
            if path.is_dir():
                shutil.rmtree(path)  # it holds nothing, see above
            beside.rename(path)  # whole or not at all: a half memory would look like one that keeps less
        except OSError as error:
            raise RunError(f"{path}: cannot be made ({error.strerror}); choose another folder") from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        memory = cls(path)
        memory._state = state
        return memory

    def _check_model(self, base_model: Mapping[str, str] | None) -> None:
        if base_model is None:
            return
        mine, yours = self._now.base_model, _named(base_model)
        odd = [
            f"{key} {mine.get(key)!r}, now {yours.get(key)!r}"
            for key in sorted({*mine, *yours})
            if mine.get(key) != yours.get(key)
        ]
        if odd:
            raise RunError(
                f"{self.path}: made with another base model ({'; '.join(odd)}); go on with that model, or start a new memory for this one"
            )

    def _check_content(self, kept: tuple[Kept, ...], state: State) -> None:
        seen: set[tuple[str, str]] = set()
        problems = []
        for one in kept:
            if (one.task, one.id) in seen:
                problems.append(f"{self.path}: example {one.id!r} of task {one.task!r} is given twice")
            seen.add((one.task, one.id))
            if fingerprint(one.example) in state.withdrawn:
                problems.append(
                    f"{self.path}: example {one.id!r} of task {one.task!r} was withdrawn and may not come back"
                )
        n_bytes = sum(len(line_of(one)) for one in kept)
        if state.over(len(kept), n_bytes):
            problems.append(
                f"{self.path}: {len(kept)} examples with {n_bytes} bytes are over the budget of {_most(state.budget_examples)} examples and "
                f"{_most(state.budget_bytes)} bytes; keep fewer or raise the budget"
            )
        if problems:
            raise RunError(problems[:20])

    def _withdraw(self, old: State, contents: set[str]) -> list[Kept]:
        gone: list[Kept] = []
        left: list[Kept] = []
        for one in old.kept:
            (gone if fingerprint(one.example) in contents else left).append(one)
        self._replace(old, dataclasses.replace(old, withdrawn=old.withdrawn | contents, kept=tuple(left)))
        return gone

    def _replace(self, old: State, new: State) -> None:
        lines = new.lines()
        write_index(self.path, new.index() | {"sha256": old.sha256, "pending": sha256(lines.encode())})
        write_text(self.path / "examples.jsonl", lines)
        write_index(self.path, new.index())
        self._state = dataclasses.replace(new, sha256=sha256(lines.encode()))


def _says_something(entry: Path) -> bool:
    """Whether a file is more than the lock, or what a kill left of `write_text`."""
    return entry.name != ".lock" and not (entry.name.startswith(".") and entry.name.endswith(".part"))


def _named(base_model: Mapping[str, str]) -> dict[str, str]:
    if not base_model or not all(isinstance(value, str) for pair in base_model.items() for value in pair):
        raise RunError(f"base model {dict(base_model)!r}: give at least its name, all values as text")
    return dict(base_model)


def _budget(path: Path, examples: int | None, n_bytes: int | None) -> tuple[int | None, int | None]:
    for what, limit in (("examples", examples), ("bytes", n_bytes)):
        if limit is not None and limit < 1:
            raise RunError(f"{path}: a budget of {limit} {what} keeps nothing; give at least 1, or none for no limit")
    return examples, n_bytes


def _most(limit: int | None) -> str:
    return "any number of" if limit is None else str(limit)
