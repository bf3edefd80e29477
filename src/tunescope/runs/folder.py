"""A run is a folder of plain files; everything downstream only reads it."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tunescope.errors import ApprovalError, IntegrityError, RunError, TunescopeError
from tunescope.runs.records import SCHEMA_VERSION

State = Literal["running", "done", "failed", "awaiting-approval"]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a temporary file beside it is synced and swapped in."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    """Whether a file says nothing about what the folder holds: the lock, or what a kill left of `write_text`."""
    return name == ".lock" or (name.startswith(".") and name.endswith(".part"))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class RunFolder:
    r"""Reads and writes the files of one run.

    Make one with `RunFolder.create` (to write) or `RunFolder.open` (to read).

    Args:
        path: the folder.

    Example:
        >>> import tempfile
        >>> run = RunFolder.create(Path(tempfile.mkdtemp()) / "run", "seed: 1\n", study="poc", command="tunescope poc")
        >>> run.write_json("results.json", {"results": []})
        >>> run.read_json("results.json")["schema_version"]
        1
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config_text: str, *, study: str, command: str, resume: bool = False) -> RunFolder:
        """Makes the folder and saves the resolved settings before anything runs; or continues in it.

        Args:
            path: the folder; must not hold anything, unless `resume`.
            config_text: resolved settings as YAML.
            study: name of the study.
            command: command line, for ``status.json``.
            resume: continue a run that was interrupted; a folder that does not exist yet is started.

        Raises:
            RunError: the folder holds something else, a finished or foreign run, or settings differ from the first time.
        """
        cls.check_free(path, config_text, study=study, resume=resume)
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be made ({error.strerror}); choose another output_dir") from None
        # The status first: it makes the folder a run, which a kill between the two files must leave resumable.
        run.set_status("running", study=study, stage="start", command=command)
        if not run.has("config.yaml"):
            write_text(path / "config.yaml", config_text)
        return run

    @classmethod
    def check_free(cls, path: Path, config_text: str, *, study: str, resume: bool = False) -> None:
        """Refuses what `create` would refuse, and writes nothing: to be called before anything slow.

        Raises:
            RunError: see `create`.
        """
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: is a file, a run folder is needed; choose another output_dir")
        if path.is_dir() and any(not _is_ours(p.name) for p in path.iterdir()):
            cls(path)._check_reusable(config_text, study, resume)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Opens a run to read it.

        Raises:
            RunError: there is no run, or a newer tunescope wrote it.
            IntegrityError: its status is damaged.
        """
        run = cls(path)
        if not path.is_dir():
            raise RunError(f"{path}: no such run folder")
        if not run.has("status.json"):
            raise RunError(f"{path}: is not a run folder (it has no status.json)")
        run.read_json("status.json")
        return run

    def has(self, name: str) -> bool:
        """Tells whether a file of the run exists."""
        return (self.path / name).is_file()

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a JSON object with its schema version, whole or not at all."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema_version": SCHEMA_VERSION, **values}, ensure_ascii=False, indent=1, allow_nan=False)
        write_text(self.path / name, text + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON object.

        Raises:
            RunError: the file is missing, cannot be read, or is of a newer schema.
            IntegrityError: the file is damaged.
        """
        path = self.path / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{path}: missing; the run did not get that far (continue it with --resume)") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{path}: damaged ({str(error)[:100]})") from None
        version = values.get("schema_version") if isinstance(values, dict) else None
        if not isinstance(version, int):
            raise IntegrityError(f"{path}: damaged (no schema_version)")
        if version > SCHEMA_VERSION:
            raise RunError(
                f"{path}: schema version {version} was written by a newer tunescope; this one reads up to {SCHEMA_VERSION}"
            )
        return dict(values)

    def append_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows; each is on the disk before the call returns. What a kill left of a last line is cut off first."""
        with (self.path / name).open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            if file.read(1) not in (b"", b"\n"):
                file.seek(0)
                content = file.read()
                end = content.rfind(b"\n") + 1
                if _row(content[end:]) is None:
                    file.truncate(end)
                else:
                    file.write(b"\n")
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes all rows, whole or not at all."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(
            self.path / name, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        )

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """Reads all rows; a torn last line, as a kill leaves it, is left out. A missing file has no rows.

        Raises:
            IntegrityError: any other line is damaged.
        """
        if not self.has(name):
            return []
        rows = []
        lines = (self.path / name).read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            row = _row(line)
            if row is not None:
                rows.append(row)
            elif line.strip() and number < len(lines):
                raise IntegrityError(f"{self.path / name}:{number}: damaged")
        return rows

    def set_status(
        self,
        state: State,
        *,
        stage: str,
        study: str | None = None,
        error: str | None = None,
        command: str | None = None,
    ) -> None:
        """Writes ``status.json``; what is not given stays."""
        old = self.read_json("status.json") if self.has("status.json") else {}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        values = {
            "state": state,
            "study": study or old.get("study"),
            "stage": stage,
            "error": error,
            "command": command or old.get("command"),
            "started": old.get("started", now),
            "finished": now if state in ("done", "failed") else None,
        }
        self.write_json("status.json", values)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps two processes from writing the same run; an error inside is noted in ``status.json`` before it goes on.

        Raises:
            RunError: another process is at work in it.
        """
        try:
            import fcntl
        except ImportError:  # Windows has no flock; there the user has to take care
            with self._failure_noted():
                yield
            return
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{self.path}: another process is at work in this run; wait for it or choose another output_dir"
                ) from None
            with self._failure_noted():
                yield

    @contextlib.contextmanager
    def _failure_noted(self) -> Iterator[None]:
        try:
            yield
        except ApprovalError:  # nothing failed: a person has the next word
            self.set_status("awaiting-approval", stage=self.read_json("status.json").get("stage", ""))
            raise
        except BaseException as error:
            line = (
                "stopped by the user"
                if isinstance(error, KeyboardInterrupt)
                else (str(error).splitlines() or [type(error).__name__])[0]
            )
            with contextlib.suppress(OSError, TunescopeError):  # on a full disk the error itself is what counts
                self.set_status("failed", stage=self.read_json("status.json").get("stage", ""), error=line[:500])
            raise

    def _check_reusable(self, config_text: str, study: str, resume: bool) -> None:
        if not self.has("status.json"):
            raise RunError(f"{self.path}: the folder is not empty and is not a run; choose another output_dir")
        status = self.read_json("status.json")
        if not resume:
            raise RunError(
                f"{self.path}: a run is already there (state {status.get('state')}); "
                "choose another output_dir, remove it, or continue it with --resume"
            )
        if status.get("study") != study:
            raise RunError(
                f"{self.path}: holds a run of `{status.get('study')}`, not of `{study}`; choose another output_dir"
            )
        before = config_text
        if self.has("config.yaml"):
            before = (self.path / "config.yaml").read_text(encoding="utf-8", errors="replace")
        if before != config_text:
            changes = [
                line
                for line in difflib.unified_diff(before.splitlines(), config_text.splitlines(), lineterm="", n=0)
                if line[:1] in "+-" and line[:3] not in ("+++", "---")
            ]
            raise RunError(
                f"{self.path}: settings differ from the run's own ({'; '.join(c.strip() for c in changes[:6])}); "
                "put them back to resume, or choose another output_dir"
            )
