"""What the tests with a real Ray cluster share: its nodes, and commands with a time limit that run on it, in processes of their own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
from workers import _context

from tunescope.cli.main import main

# Without a password: the nodes live for a minute. As nice as the tests are, not nicer: on a busy core they would wait for ever.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}
Entry = Callable[[list[str]], None]
LIMIT_SECONDS = 400  # a hard limit, far above what a command takes alone on a core


class Nodes:
    """A head without CPUs and the nodes that work.

    Attributes:
        address: of the head.
    """

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()
        if not self.address:
            errors.seek(0)
            raise AssertionError(f"the cluster did not start: {errors.read()[-2000:]}")

    def remove(self, number: int) -> None:
        """Takes a node away, as when its power is cut."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline()) != "removed\n":
            assert line, "the cluster ended"

    def working(self, title: str) -> list[psutil.Process]:
        """Processes of this cluster that are at work on something, by the title that Ray gives them."""
        return [p for p in psutil.Process(self._process.pid).children(recursive=True) if _title(p).startswith(title)]


@contextmanager
def nodes(*cpus: int) -> Iterator[Nodes]:
    """Starts a cluster for the time of the context."""
    errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed below, with what writes into it
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ray_nodes.py")), *map(str, cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd="/",
    )
    try:
        yield Nodes(process, errors)
    finally:
        _end(process)
        errors.close()


def _end(process: subprocess.Popen[str]) -> None:
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    for child in family:
        if child.is_running():
            child.kill()


class Command:
    """A command of ours in a process of its own, which joins and leaves the cluster.

    Args:
        arguments: of the command line.
        output: file for what it prints.
    """

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self.output = output
        self.process: Any = _context.Process(target=_alone, args=(list(arguments), str(output)))
        self.process.start()

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Returns as soon as something is so; fails if the command ends before, or takes too long."""
        end = time.monotonic() + LIMIT_SECONDS
        while not reached():
            assert not self.ended() and time.monotonic() < end, self.said()
            time.sleep(0.02)

    def ended(self) -> bool:
        """Whether it has."""
        return not self.process.is_alive()

    def code(self) -> int:
        """Waits for the end and returns the exit code."""
        end = time.monotonic() + LIMIT_SECONDS
        while not self.ended():
            if time.monotonic() > end:
                self.process.kill()
                raise AssertionError(f"still at work after {LIMIT_SECONDS} s: {self.said()}")
            time.sleep(0.02)
        return self._code()

    def said(self) -> str:
        """What it printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.is_file() else ""

    def _code(self) -> int:
        code: int = self.process.exitcode
        return code


class Session:
    """A process that has joined the cluster, as a notebook does, and runs commands one after the other.

    Ray keeps the processes of one that has joined, so what they import is imported once for all commands.

    Args:
        address: of the cluster.
    """

    def __init__(self, address: str) -> None:
        self.here, there = _context.Pipe()
        self.process: Any = _context.Process(target=_serve, args=(there, address))
        self.process.start()
        there.close()

    def start(self, arguments: Sequence[str], output: Path, entry: Entry = main) -> InSession:
        """Begins a command, or another function of a module that both processes can import."""
        return InSession(self, arguments, output, entry)

    def run(self, arguments: Sequence[str], output: Path, entry: Entry = main) -> tuple[int, str]:
        """Runs a command to its end; returns its exit code and what it printed."""
        begun = self.start(arguments, output, entry)
        return begun.code(), begun.said()

    def close(self) -> None:
        """Leaves the cluster."""
        self.here.close()
        self.process.join(30)
        self.process.kill()
        self.process.join()


class InSession(Command):
    """A command of a session."""

    def __init__(self, session: Session, arguments: Sequence[str], output: Path, entry: Entry) -> None:
        self.output, self.process, self._session = output, session.process, session
        self._session.here.send((list(arguments), str(output), entry))

    def ended(self) -> bool:
        """Whether it has, or the session."""
        return bool(self._session.here.poll()) or not self.process.is_alive()

    def _code(self) -> int:
        code: int = self._session.here.recv()
        return code


def _alone(arguments: list[str], output: str) -> None:
    _prepare()
    sys.exit(_run(arguments, output, main))


def _serve(there: Any, address: str) -> None:
    _prepare()
    import logging

    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    while True:
        try:
            arguments, output, entry = there.recv()
        except EOFError:
            return
        there.send(_run(arguments, output, entry))


def _prepare() -> None:
    gc.freeze()
    os.environ.update(QUIET)
    import torch

    torch.set_num_threads(1)


def _run(arguments: list[str], output: str, entry: Entry) -> int:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    try:
        entry(arguments)
    except SystemExit as stop:
        sys.stdout.flush()
        return int(stop.code or 0)
    raise AssertionError("the command line did not exit")


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""
