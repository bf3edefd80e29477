"""Progress of a piece of work in another process, told and heard through small files in the run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunescope.runs.folder import write_text

_TOLD = "progress.jsonl"
_WORD = "arms/.word"
_STOP = "stop"
_SECONDS = 0.25


def say(run: Path, *, stop: bool) -> None:
    """Tells all pieces of a run to go on, or to stop at the next safe point."""
    (run / _WORD).parent.mkdir(parents=True, exist_ok=True)
    write_text(run / _WORD, _STOP if stop else "go")


class Telling:
    """The `Progress` of a piece; what it is told is appended to a file of the piece.

    Files are opened for each line and closed again: so they are seen on other machines too, over NFS at the latest when they open it.

    Args:
        run: the run folder.
        piece: name of the piece.
        begins: whether the piece begins with this; False where it goes on in another process.
    """

    def __init__(self, run: Path, piece: str, *, begins: bool = True) -> None:
        self._file, self._word = run / "arms" / piece / _TOLD, run / _WORD
        self._units, self._told, self._asked, self._stop = 0, 0.0, 0.0, False
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if begins:
            self._tell({"begins": True})

    def plan(self, seconds: dict[str, float]) -> None:
        """Ignored: only the driver knows of all pieces."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Told at once."""
        self._tell({"stage": name, "total": total})

    def advance(self, units: int = 1) -> None:
        """Told a few times a second."""
        self._units += units
        if time.monotonic() - self._told > _SECONDS:
            self._tell({})

    def note(self, text: str) -> None:
        """Told at once."""
        self._tell({"note": text})

    def stopping(self) -> bool:
        """Whether the driver wants all pieces to stop; asked a few times a second."""
        if not self._stop and time.monotonic() - self._asked > _SECONDS:
            self._asked = time.monotonic()
            try:
                self._stop = self._word.read_text(encoding="utf-8") == _STOP
            except OSError:  # the driver is about to write it
                return False
        return self._stop

    def _tell(self, values: dict[str, Any]) -> None:
        units, self._units, self._told = self._units, 0, time.monotonic()
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"units": units, **values}, ensure_ascii=False) + "\n")


class Hearing:
    """The driver's side: reads what pieces tell and passes it on.

    Args:
        run: the run folder.
        pieces: their names; what earlier attempts told is forgotten.

    Attributes:
        begun: piece -> how often it began.
    """

    def __init__(self, run: Path, pieces: Sequence[str]) -> None:
        self._files = {piece: run / "arms" / piece / _TOLD for piece in pieces}
        self._read = dict.fromkeys(pieces, 0)
        self.begun = dict.fromkeys(pieces, 0)
        for file in self._files.values():
            file.unlink(missing_ok=True)

    def hear(self, piece: str) -> list[dict[str, Any]]:
        """Returns what a piece told since the last time; of a line that is still being written, nothing."""
        try:
            with self._files[piece].open("rb") as file:
                file.seek(self._read[piece])
                content = file.read()
        except OSError:
            return []
        end = content.rfind(b"\n") + 1
        self._read[piece] += end
        rows = [json.loads(line) for line in content[:end].splitlines() if _is_whole(line)]
        self.begun[piece] += sum("begins" in row for row in rows)
        return rows


def _is_whole(line: bytes) -> bool:
    """Whether a line is one; a piece that was killed may have left half of one, which the next attempt wrote on."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
