"""Independent pieces of a study on a Ray cluster: handed out, watched, tried again where a process or a machine died."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import errors
from tunescope.errors import RunError, TunescopeError
from tunescope.runs.folder import RunFolder
from tunescope.studies.bench import Bench
from tunescope.studies.cluster import Cluster, too_small
from tunescope.studies.cluster_nodes import alive, places
from tunescope.studies.machine import release_memory, set_threads
from tunescope.studies.progress import Progress
from tunescope.studies.told import Hearing, Telling, say

_POLL_SECONDS = 0.2
_WAITING_SECONDS = 30.0  # until it is said that nothing has begun
_ROOM_SECONDS = 60.0  # that a machine may be away before its pieces are given up
_LOCK_SECONDS = 120.0  # in which a process that Ray gave up has to end


@dataclass(frozen=True)
class Piece:
    """Work that needs no other piece.

    Attributes:
        name: of its folder under ``arms``, and in what is said about it.
        work: called as ``work(*arguments, progress)`` in another process; it must be safe to repeat after a kill, must write
            no file that another piece writes, and returns a plain value.
        arguments: sent to the process.
        computes: whether it does so in that process; a piece that only directs others takes no CPU.
        then: called here, with the value, as soon as it is there.
    """

    name: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    computes: bool = True
    then: Callable[[Any], None] = lambda value: None


def run_pieces(
    cluster: Cluster, run: Path, pieces: Sequence[Piece], stage: str, progress: Progress, *, at_once: int | None = None
) -> list[Any]:
    """Does the pieces on the cluster and returns their values in order.

    Args:
        cluster: joined.
        run: the run folder, which all machines see.
        pieces: each with a name of its own.
        stage: what is done, for the progress.
        progress: shows what the pieces tell.
        at_once: how many are handed out at the same time; None = all, and Ray lets them wait for a place.

    Raises:
        KeyboardInterrupt: the user asked to stop; the pieces have written their checkpoints and ended.
        TunescopeError: a piece failed, with its own error; the others have been asked to stop and have ended.
    """
    import ray

    say(run, stop=False)
    watch = _Watch(ray, cluster, run, pieces, progress)
    progress.stage(stage)
    try:
        while watch.hand_out(at_once or len(pieces)):
            watch.collect()
    except BaseException:
        watch.end_all()
        raise
    return watch.values()


class _Watch:
    """The pieces that were handed out."""

    def __init__(self, ray: Any, cluster: Cluster, run: Path, pieces: Sequence[Piece], progress: Progress) -> None:
        self._ray, self._cluster, self._run, self._progress = ray, cluster, run, progress
        self._pieces = {piece.name: piece for piece in pieces}
        self._waiting = list(pieces)
        self._hearing = Hearing(run, list(self._pieces))
        self._values: dict[str, Any] = {}
        self._failed: dict[str, BaseException] = {}
        self._busy = self._had_room = time.monotonic()
        self._asked = self._said_waiting = False
        self.pending: dict[Any, str] = {}

    def hand_out(self, at_once: int) -> bool:
        """Hands out what may be under way; returns whether anything is."""
        while self._waiting and len(self.pending) < at_once:
            self._hand_out(self._waiting.pop(0))
        return bool(self.pending)

    def _hand_out(self, piece: Piece) -> None:
        cluster = self._cluster
        # What only directs stays on this machine: it takes no place, so any other might get it, looked over or not.
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=False
        )
        remote = self._ray.remote(
            num_cpus=cluster.cpus if piece.computes else 0,
            num_gpus=cluster.gpus if piece.computes else 0,
            max_retries=cluster.max_failures,
            scheduling_strategy="SPREAD" if piece.computes else here,
        )(perform)
        ref = remote.remote(
            piece.work, piece.arguments, piece.name, str(self._run), cluster.cpus if piece.computes else 1
        )
        self.pending[ref] = piece.name

    def collect(self) -> None:
        """Waits a moment; shows what was told, takes what is done, and looks whether all is well."""
        done, _ = self._ray.wait(list(self.pending), num_returns=1, timeout=_POLL_SECONDS)
        for name in self.pending.values():
            self._show(name)
        for ref in done:
            name = self.pending.pop(ref)
            self._take(name, ref)
        if self._progress.stopping() or self._failed:
            self._ask_to_stop()
        self._check_attempts()
        self._check_room()

    def values(self) -> list[Any]:
        """What the pieces returned, in order; or the first error."""
        ours = [self._failed[name] for name in self._pieces if name in self._failed]
        worst = [error for error in ours if not isinstance(error, KeyboardInterrupt)]
        if ours:
            raise (worst or ours)[0]
        return [self._values[name] for name in self._pieces]

    def end_all(self) -> None:
        """Ends at once what is still at work."""
        with contextlib.suppress(Exception):  # the cluster itself may be gone
            say(self._run, stop=True)
            for ref in self.pending:
                self._ray.cancel(ref, force=True)

    def _show(self, name: str) -> None:
        for row in self._hearing.hear(name):
            self._progress.advance(row["units"])
            if "stage" in row:
                size = f" ({row['total']} steps)" if row["total"] else ""
                self._progress.note(f"{row['stage']}{size}")
            if "note" in row:
                self._progress.note(row["note"])
            if "begins" in row and self._hearing.begun[name] > 1:
                self._progress.note(f"{name}: its process was lost; it goes on from the last checkpoint")

    def _take(self, name: str, ref: Any) -> None:
        exceptions = self._ray.exceptions
        try:
            outcome = self._ray.get(ref)
        except exceptions.TaskCancelledError:
            self._failed.setdefault(name, KeyboardInterrupt())
            return
        except exceptions.RayError as error:
            self._failed.setdefault(name, _lost(name, self._cluster, error))
            return
        self._show(name)
        try:
            value = opened(outcome)
        except (Exception, KeyboardInterrupt) as error:
            self._failed[name] = error
            return
        self._pieces[name].then(value)
        self._values[name] = value

    def _ask_to_stop(self) -> None:
        """Once: pieces at work stop at the next checkpoint, those that have not begun do not begin."""
        if not self._asked:
            self._asked = True
            self._failed |= {piece.name: KeyboardInterrupt() for piece in self._waiting}
            self._waiting = []
            say(self._run, stop=True)
            for ref, name in self.pending.items():
                if not self._hearing.begun[name]:
                    self._ray.cancel(ref)

    def _check_attempts(self) -> None:
        """Ray repeats without end where memory is short; we do not."""
        for ref, name in self.pending.items():
            if self._hearing.begun[name] > self._cluster.max_failures + 1 and name not in self._failed:
                self._failed[name] = _lost(name, self._cluster, None)
                self._ray.cancel(ref, force=True)

    def _check_room(self) -> None:
        """Gives up where no machine is left that a piece could run on."""
        now, cluster = time.monotonic(), self._cluster
        if any(self._hearing.begun[name] for name in self.pending.values()):
            self._busy = now
        elif not self._said_waiting and now - self._busy > _WAITING_SECONDS:
            self._said_waiting = True
            self._progress.note(
                "waiting for the first process: it is still starting, or other work has the places (see `ray status`)"
            )
        if now - self._had_room < 2.0 or self._asked:
            return
        nodes = alive(self._ray)
        if places(nodes, cluster.cpus, cluster.gpus) >= cluster.workers:
            self._had_room = now
        elif now - self._had_room > _ROOM_SECONDS:
            raise TunescopeError(f"{too_small(nodes, cluster)}; then run the same command with --resume")


def perform(work: Callable[..., Any], arguments: tuple[Any, ...], name: str, run: str, threads: int) -> dict[str, Any]:
    """Does a piece, in a process of its own, and returns its value or its error as plain values; `opened` reads them.

    An error is no reason to try again, so it must not look like the death of the process.
    """
    folder = Path(run)
    try:
        progress = Telling(folder, name)
        with alone(folder / "arms" / name / ".lock", name):
            if progress.stopping():
                raise KeyboardInterrupt
            set_threads(threads)
            value = work(*arguments, progress)
            release_memory()
        return {"value": value}
    except BaseException as error:
        return closed(error, name)


def closed(error: BaseException, name: str) -> dict[str, Any]:
    """Returns an error as plain values."""
    if isinstance(error, KeyboardInterrupt):
        return {"stopped": True}
    if isinstance(error, TunescopeError):
        return {"error": type(error).__name__, "problems": list(error.problems)}
    if isinstance(error, OSError) and error.errno is not None:
        return {"errno": error.errno, "text": error.strerror, "file": error.filename and str(error.filename)}
    return {"bug": f"{name}: {type(error).__name__}: {error}", "trace": "".join(traceback.format_exception(error))}


def opened(outcome: dict[str, Any]) -> Any:
    """Returns the value of a piece, or raises its error as if it had happened here."""
    if "value" in outcome:
        return outcome["value"]
    if "stopped" in outcome:
        raise KeyboardInterrupt
    if "error" in outcome:
        raise getattr(errors, outcome["error"])(outcome["problems"])
    if "errno" in outcome:
        raise OSError(outcome["errno"], outcome["text"], outcome["file"])
    bug = RuntimeError(outcome["bug"])
    bug.add_note(outcome["trace"])
    raise bug


@contextlib.contextmanager
def alone(lock: Path, name: str) -> Iterator[None]:
    """Keeps a process that Ray gave up, on a machine that it could not reach, from writing beside the one that took its place."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise RunError(
                        f"{lock.parent}: another process is still at work on {name}; end it, then run the same command with --resume"
                    ) from None
                time.sleep(0.1)
        yield


def _lost(name: str, cluster: Cluster, error: Exception | None) -> TunescopeError:
    said = "" if error is None else f" ({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]})"
    return TunescopeError(
        f"{name}: its process died {cluster.max_failures + 1} times{said}, and engine.ray.max_failures is {cluster.max_failures}; most often memory "
        "is short (raise cpus_per_task, so that fewer run on a machine); then run the same command with --resume"
    )


def sent(bench: Bench, cluster: Cluster) -> Bench:
    """Returns a bench as another process needs it: absolute paths, the device that Ray gives, and no cluster of its own."""
    located = bench.located
    if Path(located.path).exists():
        located = dataclasses.replace(located, path=str(Path(located.path).absolute()))
    run = RunFolder(bench.run.path.absolute())
    return dataclasses.replace(bench, located=located, run=run, device=cluster.device, cluster=None)
