"""Makes a map in a process of its own that dies, as by ``kill -9``, at a stated moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from workers import _context, die


def outcome(config: Path, overrides: list[str], moment: int | None = None, *, after: tuple[str, int] = ("", 0)) -> int:
    """Makes or continues the map, and returns the exit code.

    `moment` counts what it writes and reports; `after` is the start of a file's name, and the how-manieth such file is its last.
    """
    process = _context.Process(target=_work, args=(config, overrides, moment, after))
    process.start()
    process.join(120)
    code: int = process.exitcode
    process.close()
    return code


def _work(config: Path, overrides: list[str], moment: int | None, after: tuple[str, int]) -> None:
    import gc

    gc.freeze()
    from tunescope.config import load
    from tunescope.studies import map as study
    from tunescope.studies.progress import Silent

    seen = written = 0

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
            if after[1] and len(arguments) > 1 and Path(arguments[1]).name.startswith(after[0]):
                nonlocal written
                written += 1
                if written == after[1]:
                    die()
            count()
            return result

        return instead

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, watched(getattr(os, name)))
    study.run(load(config, overrides), resume=True, progress=Counting())
