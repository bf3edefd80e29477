"""The examples that a memory keeps, and the two files they stand in; `tunescope.runs.memory` is what others use."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunescope.errors import IntegrityError, RunError
from tunescope.runs.folder import write_text
from tunescope.runs.records import SCHEMA_VERSION, Record

_CONTENT = ("system", "history", "instruction", "input", "targets")


@dataclasses.dataclass(frozen=True)
class Kept(Record):
    """One example that is kept (a line of ``memory/examples.jsonl``).

    Attributes:
        task: name of its task.
        id: its id, unique within the task.
        example: the example itself as plain values; must have ``instruction``, ``input`` and ``targets``.
        policy: name of the policy that chose it.
        stage: name of the stage it was chosen in.
        reason: the policy's code with its numbers.
    """

    task: str
    id: str
    example: Mapping[str, Any]
    policy: str
    stage: str
    reason: Mapping[str, Any]


def fingerprint(example: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what an example says: system message, earlier turns, instruction, input and right answers.

    Id, task, file, line and attributes are left out, so that the same content is recognised wherever it comes from. A changed text is
    another example.

    Args:
        example: plain values with ``instruction``, ``input`` and ``targets``; ``system`` and ``history`` may be missing.

    Raises:
        RunError: a part is missing, or is no plain JSON.

    Example:
        >>> one = {"instruction": "Which desk?", "input": "", "targets": ["it"], "id": "1"}
        >>> fingerprint(one) == fingerprint({**one, "id": "2", "system": None, "history": []})
        True
    """
    missing = [name for name in _CONTENT[2:] if name not in example]
    if missing:
        raise RunError(
            f"example with the fields {sorted(example)[:8]}: {', '.join(missing)} missing; memory keeps whole examples"
        )
    content = {name: example.get(name) or (None if name == "system" else []) for name in _CONTENT[:2]}
    content |= {name: example[name] for name in _CONTENT[2:]}
    try:
        return sha256(canonical(content).encode())
    except (TypeError, ValueError) as error:
        raise RunError(
            f"example {example.get('id')!r}: is no plain JSON ({str(error)[:80]}); keep texts, numbers and lists"
        ) from None


@dataclasses.dataclass(frozen=True)
class State:
    """What the two files say.

    Attributes:
        base_model: what names the base model.
        budget_examples: most examples, or None.
        budget_bytes: most bytes of the examples file, or None.
        withdrawn: fingerprints of examples that may not come back.
        kept: the examples, sorted by task and id.
        sha256: of the examples file as it was read.
    """

    base_model: dict[str, str]
    budget_examples: int | None
    budget_bytes: int | None
    withdrawn: frozenset[str] = frozenset()
    kept: tuple[Kept, ...] = ()
    sha256: str = hashlib.sha256(b"").hexdigest()

    def lines(self) -> str:
        """Returns the text of the examples file."""
        return "".join(line_of(one).decode() for one in self.kept)

    def index(self) -> dict[str, Any]:
        """Returns the content of the index, its seal left out."""
        lines = self.lines().encode()
        return {
            "schema_version": SCHEMA_VERSION,
            "base_model": self.base_model,
            "budget_examples": self.budget_examples,
            "budget_bytes": self.budget_bytes,
            "n_examples": len(self.kept),
            "n_bytes": len(lines),
            "sha256": sha256(lines),
            "pending": None,
            "withdrawn": sorted(self.withdrawn),
        }

    def over(self, n: int, n_bytes: int) -> bool:
        """Tells whether so many examples of so many bytes are over the budget."""
        most = ((n, self.budget_examples), (n_bytes, self.budget_bytes))
        return any(limit is not None and got > limit for got, limit in most)


def read_state(path: Path) -> State:
    """Reads and checks the two files of a memory, also while another program changes them.

    Raises:
        RunError: there is no memory, or a newer tunescope wrote it.
        IntegrityError: a file is missing, damaged or was changed.
    """
    where = path / "index.json"
    for attempt in range(3):
        try:
            index = where.read_bytes()
            lines = (path / "examples.jsonl").read_bytes()
        except FileNotFoundError as error:
            name = Path(error.filename).name
            if name == where.name:
                raise RunError(
                    f"{path}: is not a memory (it has no {name}); give the folder that an earlier stage wrote"
                ) from None
            raise IntegrityError(f"{path / name}: missing; restore the memory from a copy") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            return parse_state(path, index, lines, where)
        except IntegrityError:
            if attempt == 2 or where.read_bytes() == index:
                raise
    raise AssertionError("the last attempt returns or raises")


def parse_state(path: Path, index: bytes, lines: bytes, where: Path) -> State:
    """Checks and reads the content of the two files; `path` and `where` are their names for messages.

    Raises:
        RunError: a newer tunescope wrote them.
        IntegrityError: they are damaged or were changed.
    """
    try:
        said = json.loads(index)
        if not isinstance(said, dict):
            raise ValueError("not an object")
        version = said.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RunError(
                f"{where}: schema version {version} was written by a newer tunescope; this one reads up to {SCHEMA_VERSION}"
            )
        seal = said.pop("seal")
        whole = seal == sealed(said)["seal"]
        budget = (said["budget_examples"], said["budget_bytes"])
        withdrawn = frozenset(map(str, said["withdrawn"]))
        hashes, model = (said["sha256"], said["pending"]), dict(said["base_model"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise IntegrityError(f"{where}: damaged, or not written by tunescope; restore the memory from a copy") from None
    if not whole:
        raise IntegrityError(f"{where}: does not match its own hash, it was changed; restore the memory from a copy")
    digest = sha256(lines)
    if digest not in hashes:
        raise IntegrityError(
            f"{path}: the examples do not match the hash in the index, they were changed; restore the memory from a copy"
        )
    try:
        kept = [Kept.from_dict(json.loads(line)) for line in lines.decode().split("\n")[:-1]]
        kept = [one for one in kept if fingerprint(one.example) not in withdrawn]
    except (ValueError, TypeError, RecursionError, RunError):
        raise IntegrityError(f"{path}: a line of the examples cannot be read; restore the memory from a copy") from None
    return State(model, *budget, withdrawn, tuple(kept), digest)


def write_index(path: Path, index: Mapping[str, Any]) -> None:
    """Writes the index with its seal, whole or not at all."""
    write_text(path / "index.json", json.dumps(sealed(index), ensure_ascii=False, indent=1) + "\n")


def sealed(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the index with the hash of all its other fields."""
    return {**index, "seal": sha256(canonical(index).encode())}


def line_of(one: Kept) -> bytes:
    """Returns an example's line in the examples file.

    Raises:
        RunError: it is no plain JSON.
    """
    try:
        return (json.dumps(one.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise RunError(
            f"example {one.id!r} of task {one.task!r}: is no plain JSON ({str(error)[:80]}); keep texts, numbers and lists"
        ) from None


def canonical(value: Any) -> str:
    """Returns JSON that is the same for equal values: sorted keys, no spaces."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(content: bytes) -> str:
    """Returns the hash as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
