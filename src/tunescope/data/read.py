"""Reading a data file: bytes to examples, with every problem as a finding and never a traceback."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunescope.data.example import Example
from tunescope.data.findings import FindingList, shown
from tunescope.data.formats import ALLOWED_SHAPES, Format, detect_format, example_from_row, unused_keys
from tunescope.data.lines import UnusableError
from tunescope.data.rows import MAX_FILE_BYTES, READERS
from tunescope.errors import did_you_mean
from tunescope.runs.records import Finding

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_FIELDS = ("instruction", "input", "output", "id", "system", "prompt", "completion", "messages", "conversations")


@dataclass(frozen=True)
class FileRead:
    """What came out of one data file.

    Attributes:
        path: the file as the user wrote it.
        task: name of the task.
        format: row format, or ``unknown``.
        examples: the rows that could be read.
        findings: everything that was found; any ``error`` means that the file must not be used as it is.
        sha256: of the bytes; empty if the file could not be read.
        n_rows: rows in the file, the unreadable ones included.
    """

    path: str
    task: str
    format: str
    examples: tuple[Example, ...]
    findings: tuple[Finding, ...]
    sha256: str
    n_rows: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def read_file(
    path: str | os.PathLike[str],
    *,
    task: str,
    instruction: str | None = None,
    columns: Mapping[str, str] | None = None,
    attributes: Sequence[str] = (),
    shown_as: str | None = None,
    limit_bytes: int = MAX_FILE_BYTES,
) -> FileRead:
    r"""Reads a data file of any format and says what is wrong with it.

    Args:
        path: a .jsonl, .json, .csv, .tsv or .parquet file.
        task: name of the task the examples belong to.
        instruction: for rows without one of their own.
        columns: field (instruction, input, output, id, system) -> column name.
        attributes: keys to keep with each example.
        shown_as: how findings name the file; the path itself if None.
        limit_bytes: larger files are refused.

    Returns:
        Examples and findings. A file that cannot be read at all has no examples and at least one error.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "a.jsonl")
        >>> _ = file.write_text('{"prompt": "2+2=", "completion": "4"}\n{"prompt": "1+1=", "comp', encoding="utf-8")
        >>> read = read_file(file, task="sums", shown_as="a.jsonl")
        >>> [e.targets for e in read.examples], [(f.code, f.line) for f in read.errors]
        ([('4',)], [('json_invalid', 2)])
    """
    name = (shown_as or os.fspath(path)).encode("utf-8", "backslashreplace").decode()
    name = name if name.isprintable() else repr(name)
    found = FindingList(name, task)
    settings = _Settings(task, instruction, columns, tuple(attributes))
    rows = _RowsRead([], "unknown", 0)
    sha256 = ""
    try:
        file = _usable(Path(path), limit_bytes)
        sha256 = _sha256(file)
        rows = _read_rows(file, found, settings)
    except UnusableError as problem:
        found.add(problem.code, "error", problem.line, problem.message)
    except OSError as error:
        found.add("file_unreadable", "error", None, f"cannot be read: {error.strerror or type(error).__name__}")
    return FileRead(name, task, rows.format, tuple(rows.examples), found.findings(), sha256, rows.n_rows)


class _Settings(NamedTuple):
    task: str
    instruction: str | None
    columns: Mapping[str, str] | None
    attributes: tuple[str, ...]


class _RowsRead(NamedTuple):
    examples: list[Example]
    format: str
    n_rows: int


def _read_rows(path: Path, found: FindingList, settings: _Settings) -> _RowsRead:
    """Converts the rows one by one; the first readable row decides the format of the file."""
    examples: list[Example] = []
    first_format: Format | None = None
    format_line = n_rows = 0
    lines_by_id: dict[str, int] = {}
    unused: dict[str, tuple[int, str]] = {}
    for line, value, given in READERS[path.suffix.lower()](path, found):
        n_rows += 1
        if value is None:
            continue
        here = given or detect_format(value, settings.columns)
        if here is None or (here == "super_ni" and given is None):
            keys = ", ".join(shown(key, 30) for key in list(value)[:10]) or "no keys"
            near = "".join(did_you_mean(key, _FIELDS) for key in list(value)[:10] if key not in _FIELDS)
            found.add("format_unknown", "error", line, f"the row has {keys}{near}; {ALLOWED_SHAPES}")
            continue
        if first_format is None:
            first_format, format_line = here, line
        if here != first_format:
            message = f"the row is {here}, the file is {first_format} since line {format_line}; use one format per file"
            found.add("format_mixed", "error", line, message)
            continue
        read = example_from_row(
            value, here, file=found.file, line=line, default_id=f"{path.stem}-{line}", **settings._asdict()
        )
        for problem in read.problems:
            found.add(problem.code, problem.severity, line, problem.message)
        for key, near in unused_keys(value, here, settings.columns, settings.attributes).items():
            if len(unused) < 50:
                unused.setdefault(key, (line, near))
        if read.example is None:
            continue
        if (first := lines_by_id.setdefault(read.example.id, line)) != line:
            message = f"id {shown(read.example.id)} is already used in line {first}; ids must differ within a file"
            found.add("id_duplicate", "error", line, message)
            continue
        examples.append(read.example)
    _note_whole_file(found, n_rows, unused)
    return _RowsRead(examples, first_format or "unknown", n_rows)


def _note_whole_file(found: FindingList, n_rows: int, unused: Mapping[str, tuple[int, str]]) -> None:
    if n_rows == 0 and not found.has_errors:
        found.add("file_empty", "error", None, "the file holds no rows; add examples or take it out of the config")
    if n_rows == 1:
        found.add("one_row", "warning", None, "the file holds one row: too little to learn from or to measure")
    for key, (line, near) in unused.items():
        if near:
            found.add("key_ignored", "warning", line, f"key {shown(key)} is not read{near}; rename it, or ignore this")
    if plain := [shown(key, 30) for key, (_, near) in unused.items() if not near]:
        message = f"keys that are not read: {', '.join(plain)}; list those to keep under attributes"
        found.add("key_ignored", "info", None, message)


def _usable(path: Path, limit_bytes: int) -> Path:
    """Returns the path if it is a regular file of a known kind that is not too large."""
    try:
        state = path.stat()
    except FileNotFoundError:
        siblings = []
        if path.parent.is_dir():
            siblings = [child.name for child in list(path.parent.iterdir())[:1000]]
        near = did_you_mean(path.name, siblings).encode("utf-8", "backslashreplace").decode()
        message = f"no such file{near}; paths in a config are relative to the config file"
        raise UnusableError("file_missing", message) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnusableError("file_unreadable", "the path is a loop of symbolic links; point it to a file") from None
        raise
    except ValueError:
        raise UnusableError("file_unreadable", "the path holds a NUL character; it names no file") from None
    if stat.S_ISDIR(state.st_mode):
        raise UnusableError("file_unreadable", f"is a folder, not a file; name a file in it ({', '.join(SUFFIXES)})")
    if not stat.S_ISREG(state.st_mode):
        raise UnusableError("file_unreadable", "is not a regular file (a pipe or a device); copy the data to a file")
    if path.suffix.lower() not in READERS:
        got = shown(path.suffix) if path.suffix else "no ending"
        raise UnusableError(
            "file_type", f"the file name has {got}; allowed: {', '.join(SUFFIXES)}; convert or rename it"
        )
    if state.st_size == 0:
        raise UnusableError("file_empty", "the file is empty (0 bytes); add examples or take it out of the config")
    if state.st_size > limit_bytes:
        message = f"{state.st_size:,} bytes; allowed: {limit_bytes:,}; split the file or leave rows out"
        raise UnusableError("file_too_large", message)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
