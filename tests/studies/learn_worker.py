"""Learns a stream in a process of its own that dies, as by ``kill -9``, at a stated moment."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from workers import _context, die


def outcome(config: Path, run: Path, cache: Path, **how: Any) -> int:
    """Learns the stream or goes on with it, and returns the exit code; `how` is described at `_work`."""
    process = _context.Process(target=_work, args=(config, run, cache), kwargs=how)
    process.start()
    process.join(200)
    code: int = process.exitcode
    process.close()
    return code


def count_moments(config: Path, run: Path, cache: Path) -> int:
    """Learns it uninterrupted and returns how many moments it has at which it can be killed."""
    here, there = _context.Pipe(duplex=False)
    with here, there:
        assert outcome(config, run, cache, tell=there) == 0
        moments: int = here.recv()
    return moments


def _work(
    config: Path,
    run: Path,
    cache: Path,
    *,
    moment: int | None = None,
    after: str | None = None,
    tell: Connection | None = None,
) -> None:
    """Dies at the `moment`-th thing that can be counted, or once a file named `after` was swapped in."""
    import gc

    gc.freeze()
    os.environ["TUNESCOPE_CACHE"] = str(cache)
    from tunescope.config import load
    from tunescope.studies import learn
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

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, watched(getattr(os, name)))
    learn.run(load(config, [f"output_dir={run}"]), resume=True, progress=Counting())
    if tell is not None:
        tell.send(seen)
