"""Runs a study in a process of its own that dies, as by ``kill -9``, at a stated moment.

The processes come from a fork server that has imported torch and the rest once, so that one starts in a fraction of a second.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

SIGKILLED = -signal.SIGKILL
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["peft", "scipy.stats", "transformers.models.llama.modeling_llama", "tunescope.report", "tunescope.studies.poc"]
)


def start(config: Path, run: Path, **how: Any) -> Any:
    """Starts the proof of concept, or continues it, and returns the process; `how` is described at `_work`."""
    process = _context.Process(target=_work, args=(config, run), kwargs=how)
    process.start()
    return process


def outcome(config: Path, run: Path, **how: Any) -> int:
    """Runs it to its end, whichever that is, and returns the exit code."""
    process = start(config, run, **how)
    process.join(120)
    code: int = process.exitcode
    process.close()
    return code


def count_moments(config: Path, run: Path) -> int:
    """Runs it uninterrupted and returns how many moments it has at which it can be killed."""
    here, there = _context.Pipe(duplex=False)
    with here, there:
        process = start(config, run, tell=there)
        process.join(120)
        assert process.exitcode == 0
        moments: int = here.recv()
    return moments


def _work(
    config: Path, run: Path, *, moment: int | None = None, after: str | None = None, tell: Connection | None = None
) -> None:
    """Dies at the `moment`-th thing that can be counted, or once a file named `after` was swapped in."""
    gc.freeze()  # what was imported is never collected: a collection then takes milliseconds
    from tunescope.config import load
    from tunescope.studies import poc
    from tunescope.studies.progress import Silent

    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            die()

    class Counting(Silent):
        def advance(self, units: int = 1) -> None:
            count()

    def watched(call: Any) -> Any:
        def instead(*arguments: Any, **more: Any) -> Any:
            count()
            result = call(*arguments, **more)
            if after is not None and len(arguments) > 1 and Path(arguments[1]).name == after:
                die()
            count()
            return result

        return instead

    for name in ("fsync", "replace", "rename"):  # every file of a run is made whole with these
        setattr(os, name, watched(getattr(os, name)))
    poc.run(load(config, [f"output_dir={run}"]), resume=True, progress=Counting())
    if tell is not None:
        tell.send(seen)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")
