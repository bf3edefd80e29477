"""The machines of a Ray cluster: what each has room for, and whether it runs the same and sees the same."""

from __future__ import annotations

import contextlib
import importlib.metadata
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.errors import RunError

_LOOK_SECONDS = 120.0
_PACKAGES = ("tunescope", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's name of it.
        address: as the others see it.
        cpus: that Ray may give away.
        gpus: that Ray may give away.
        memory_bytes: that Ray may give away.
    """

    id: str
    address: str
    cpus: int
    gpus: int
    memory_bytes: int

    @property
    def name(self) -> str:
        """Address and the beginning of the id: on one machine several may share an address."""
        return f"{self.address} ({self.id[:8]})"


def places(nodes: Sequence[Node], cpus: int, gpus: float) -> int:
    """Returns how many processes fit on machines at the same time.

    Args:
        nodes: the machines.
        cpus: of one process.
        gpus: of one process.

    Example:
        >>> places([Node("a", "10.0.0.1", 8, 2, 0), Node("b", "10.0.0.2", 3, 0, 0)], 2, 0)
        5
        >>> places([Node("a", "10.0.0.1", 8, 2, 0), Node("b", "10.0.0.2", 3, 0, 0)], 2, 0.5)
        4
    """
    return sum(min(node.cpus // cpus, int(node.gpus / gpus + 1e-9) if gpus else node.cpus // cpus) for node in nodes)


def alive(ray: Any) -> list[Node]:
    """Returns the machines of the joined cluster that are alive."""
    return [
        Node(
            id=row["NodeID"],
            address=row["NodeManagerAddress"],
            cpus=int(row["Resources"].get("CPU", 0)),
            gpus=int(row["Resources"].get("GPU", 0)),
            memory_bytes=int(row["Resources"].get("memory", 0)),
        )
        for row in ray.nodes()
        if row["Alive"]
    ]


def look_over(ray: Any, nodes: Sequence[Node], shared: Sequence[Path], needed: Sequence[Path]) -> None:
    """Refuses machines with other versions, or that do not see the files; all of them are named.

    Args:
        ray: the module, a cluster joined.
        nodes: the machines.
        shared: folders that all of them write into; one that is not there yet will be made where it is named.
        needed: files and folders that all of them read.

    Raises:
        RunError: one line per machine and problem.
    """
    word = secrets.token_hex(16)
    with contextlib.ExitStack() as kept:
        meetings = [kept.enter_context(_meeting(folder, word)) for folder in shared]
        task = ray.remote(num_cpus=0, max_retries=0)(look)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {
            task.options(scheduling_strategy=here(node.id, soft=False)).remote(
                [str(meeting) for meeting in meetings], node.id, [str(path.absolute()) for path in needed]
            ): node
            for node in nodes
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_SECONDS)
        problems = []
        for ref, node in asked.items():
            if ref not in answered:
                problems.append(f"machine {node.name}: no answer within {_LOOK_SECONDS:.0f} s; look at `ray status`")
                continue
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayError as error:
                said = (str(error).strip().splitlines() or [""])[-1][:200]
                problems.append(
                    f"machine {node.name}: it cannot run tunescope ({said}); install the same version there"
                )
                continue
            problems += unfit(node, answer, word, meetings, needed)
    if problems:
        raise RunError(problems)


@contextlib.contextmanager
def _meeting(folder: Path, word: str) -> Iterator[Path]:
    """A folder for the time of the context in which the machines leave what they read: in `folder`, or where it will be."""
    where = folder.absolute()
    while not where.is_dir():
        where = where.parent
    try:
        # Named as the run folder allows, should a kill leave it there.
        meeting = Path(tempfile.mkdtemp(prefix=".cluster-", suffix=".part", dir=where))
    except OSError as error:
        raise RunError(f"{where}: cannot be written ({error.strerror}); choose another folder") from None
    try:
        (meeting / "driver").write_text(word, encoding="utf-8")
        yield meeting
    finally:
        shutil.rmtree(meeting, ignore_errors=True)


def look(meetings: Sequence[str], node: str, needed: Sequence[str]) -> dict[str, Any]:
    """What a machine sees; runs there.

    Args:
        meetings: folders in which the driver left a word, and the machine leaves it again under its own name.
        node: that name.
        needed: files and folders.

    Returns:
        The words, None for a folder that it does not see; versions; and the bytes of what is needed, None where it sees nothing.
    """
    words: list[str | None] = []
    for meeting in map(Path, meetings):
        word = None
        with contextlib.suppress(OSError):
            word = (meeting / "driver").read_text(encoding="utf-8")
            (meeting / node).write_text(word, encoding="utf-8")
        words.append(word)
    return {"words": words, "versions": _versions(), "bytes": [_bytes(Path(path)) for path in needed]}


def unfit(node: Node, answer: dict[str, Any], word: str, meetings: Sequence[Path], needed: Sequence[Path]) -> list[str]:
    """Returns what is wrong with a machine, one line each, from its answer to `look`.

    Args:
        node: the machine.
        answer: of `look`.
        word: that was left for it.
        meetings: the folders in which it was left.
        needed: files and folders.
    """
    problems = [
        f"machine {node.name}: {name} {answer['versions'][name]}, and {version} here; install the same version on all machines"
        for name, version in _versions().items()
        if answer["versions"][name] != version
    ]
    for meeting, read in zip(meetings, answer["words"], strict=True):
        back = meeting / node.id
        if read != word or not back.is_file() or back.read_text(encoding="utf-8") != word:
            how = "does not see" if read != word else "cannot write into"
            problems.append(
                f"machine {node.name}: it {how} {meeting.parent}; all machines need that folder under the same path: choose one on shared "
                "storage (NFS, say)"
            )
    problems += [
        f"machine {node.name}: it does not see {path} as it is here; put it on shared storage, or at the same path on all machines"
        for path, size in zip(needed, answer["bytes"], strict=True)
        if size != _bytes(path)
    ]
    return problems


def _versions() -> dict[str, str]:
    found = {"Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # from a source tree
            found[name] = "not installed"
    return found


def _bytes(path: Path) -> int | None:
    """Of a file, or of the files right in a folder."""
    try:
        files = [inner for inner in path.iterdir() if inner.is_file()] if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return None
