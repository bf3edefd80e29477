"""A cluster is refused with a line that says what is missing, and a machine by its name; no cluster is needed to find that out."""

from __future__ import annotations

import builtins
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from workers import _context

from tunescope.config import Config, load
from tunescope.errors import ConfigError, IntegrityError, TunescopeError
from tunescope.studies import cluster, pieces
from tunescope.studies.cluster import Cluster, too_small
from tunescope.studies.cluster_nodes import Node, look, places, unfit
from tunescope.studies.progress import Silent

NODES = (Node("a1b2c3d4e5", "10.0.0.1", 8, 2, 0), Node("ffff0000aa", "10.0.0.2", 3, 0, 0))


def wanted(cpus: int = 1, gpus: float = 0, workers: int = 1) -> Cluster:
    return Cluster("2", False, NODES, cpus, gpus, workers, "none", 3)


@pytest.mark.parametrize(
    ("cpus", "gpus", "count"), [(1, 0, 11), (4, 0, 2), (9, 0, 0), (1, 1, 2), (1, 0.1, 8), (5, 0.5, 1)]
)
def test_places_are_counted_machine_by_machine(cpus: int, gpus: float, count: int) -> None:
    assert places(NODES, cpus, gpus) == count


def test_too_little_says_what_there_is_and_what_to_do() -> None:
    assert "16 CPUs and 0 GPUs, and the 2 machine(s) of the cluster have at most 8 CPUs and 2 GPUs" in too_small(
        NODES, wanted(16)
    )
    line = too_small(NODES, wanted(4, workers=5))
    assert "5 processes of 4 CPUs" in line and "there is room for 2" in line and "\n" not in line


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/driver").write_text("word")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("1234")
    return tmp_path / "here"


def ask(meeting: Path, **changes: Any) -> list[str]:
    answer = look([str(meeting)], NODES[0].id, [str(meeting.parent / "model")]) | changes
    return unfit(NODES[0], answer, "word", [meeting], [meeting.parent / "model"])


def test_a_machine_that_sees_the_same_is_fit(meeting: Path) -> None:
    assert ask(meeting) == []


def test_other_versions_other_files_and_unseen_folders_are_named_with_the_machine(meeting: Path) -> None:
    versions = look([], "", [])["versions"] | {"torch": "1.0"}
    found = ask(meeting, versions=versions, words=["another"], bytes=[3])
    assert len(found) == 3 and all(line.startswith("machine 10.0.0.1 (a1b2c3d4): ") for line in found)
    assert "torch 1.0, and 2" in found[0] and "does not see" in found[1] and "shared storage" in found[2]


def test_a_machine_that_reads_and_cannot_write_is_named(meeting: Path) -> None:
    answer = look([str(meeting)], NODES[0].id, [])
    (meeting / NODES[0].id).unlink()
    assert "cannot write into" in unfit(NODES[0], answer, "word", [meeting], [])[0]


def test_a_folder_that_is_not_there_is_no_error_of_the_machine(tmp_path: Path) -> None:
    assert look([str(tmp_path / "no")], "n", [str(tmp_path / "nothing")])["words"] == [None]
    assert look([str(tmp_path / "no")], "n", [str(tmp_path / "nothing")])["bytes"] == [None]


def test_without_ray_the_extra_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    on_ray = config.model_copy(update={"engine": config.engine.model_copy(update={"backend": "ray"})})
    with (
        pytest.raises(ConfigError, match=r"pip install 'tunescope\[ray\]'"),
        cluster.cluster_of(on_ray, Silent(), None),  # type: ignore[arg-type] # refused before the model is looked at
    ):
        pass


def test_one_process_asks_for_no_ray(config: Config) -> None:
    with cluster.cluster_of(config, Silent(), None) as found:  # type: ignore[arg-type]
        assert found is None


def _asked(study: Path, address: str, there: Any) -> None:
    """In a process of its own: the tests themselves may not reach the network."""
    cluster._ANSWER_SECONDS = 5.0
    config = load(study, ["engine=ray", f"engine.ray.address={address}"])
    try:
        with cluster.cluster_of(config, Silent(), None):  # type: ignore[arg-type]
            there.send("joined")
    except TunescopeError as error:
        there.send((type(error).__name__, str(error)))


@pytest.mark.parametrize("kind", ["nobody", "somebody else"])
def test_an_address_without_ray_is_refused_within_seconds(kind: str, study: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'tunescope[ray]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == "somebody else":
            taken.listen()
        here, there = _context.Pipe()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = _context.Process(target=_asked, args=(study, address, there))
        started = time.monotonic()
        process.start()
        assert here.poll(120), "still waiting"
        name, line = here.recv()
        process.join()
        here.close()
        there.close()
    assert (
        name == "ConfigError"
        and line.startswith(f"engine.ray.address: no Ray cluster at {address} (")
        and "\n" not in line
    )
    assert "ray start --head" in line and time.monotonic() - started < 120


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(["one: wrong", "two: wrong"]),
        IntegrityError("a hash"),
        OSError(28, "No space left on device", "/somewhere"),
    ],
)
def test_an_error_crosses_processes_as_itself(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        pieces.opened(pieces.closed(error, "selected"))
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "problems", None) == getattr(error, "problems", None)


def test_a_bug_brings_its_traceback_and_stopping_is_no_error() -> None:
    try:
        {}["missing"]
    except KeyError as error:
        outcome = pieces.closed(error, "selected")
    with pytest.raises(RuntimeError, match="selected: KeyError: 'missing'") as caught:
        pieces.opened(outcome)
    assert "test_cluster.py" in caught.value.__notes__[0]
    with pytest.raises(KeyboardInterrupt):
        pieces.opened(pieces.closed(KeyboardInterrupt(), "selected"))
    assert pieces.opened({"value": 3}) == 3


def test_two_processes_never_write_for_the_same_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_LOCK_SECONDS", 0.2)
    with (
        pieces.alone(tmp_path / "a/.lock", "a"),
        pytest.raises(TunescopeError, match="another process is still at work on a"),
        pieces.alone(tmp_path / "a/.lock", "a"),
    ):
        pass
    with pieces.alone(tmp_path / "a/.lock", "a"):
        pass


def test_versions_are_told_for_a_source_tree_too() -> None:
    assert look([], "", [])["versions"]["Python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert os.environ.get("RAY_ADDRESS") is None
