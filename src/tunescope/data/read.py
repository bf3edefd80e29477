"""Reading a data file: bytes to examples, with every problem as a finding and never a traceback.

Each container (JSONL, JSON, CSV, Parquet) is one generator ``(path, found) -> rows`` in the table `_READERS`.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tunescope.data.example import Example
from tunescope.data.formats import (
    ALLOWED_SHAPES,
    MAX_DEPTH,
    FindingList,
    Format,
    depth_of,
    detect_format,
    example_from_row,
    shown,
    super_ni_rows,
    unused_keys,
)
from tunescope.errors import did_you_mean
from tunescope.runs.records import Finding

MAX_LINE_BYTES = 8 * 2**20
MAX_FILE_BYTES = 256 * 2**20
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_KANA = re.compile("[\u3040-\u30ff]")
_NOT_ASCII = re.compile("[^\x00-\x7f]")
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


class _Row(NamedTuple):
    line: int
    value: Mapping[str, object] | None  # None: the row is there but could not be read; its finding is already added
    format: Format | None = None


class _UnusableError(Exception):
    """The whole file cannot be read; caught in `read_file`."""

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.line = code, message, line


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
    except _UnusableError as problem:
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
    for line, value, given in _READERS[path.suffix.lower()](path, found):
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
        raise _UnusableError("file_missing", message) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _UnusableError(
                "file_unreadable", "the path is a loop of symbolic links; point it to a file"
            ) from None
        raise
    except ValueError:
        raise _UnusableError("file_unreadable", "the path holds a NUL character; it names no file") from None
    if stat.S_ISDIR(state.st_mode):
        raise _UnusableError("file_unreadable", f"is a folder, not a file; name a file in it ({', '.join(SUFFIXES)})")
    if not stat.S_ISREG(state.st_mode):
        raise _UnusableError("file_unreadable", "is not a regular file (a pipe or a device); copy the data to a file")
    if path.suffix.lower() not in _READERS:
        got = shown(path.suffix) if path.suffix else "no ending"
        raise _UnusableError(
            "file_type", f"the file name has {got}; allowed: {', '.join(SUFFIXES)}; convert or rename it"
        )
    if state.st_size == 0:
        raise _UnusableError("file_empty", "the file is empty (0 bytes); add examples or take it out of the config")
    if state.st_size > limit_bytes:
        message = f"{state.st_size:,} bytes; allowed: {limit_bytes:,}; split the file or leave rows out"
        raise _UnusableError("file_too_large", message)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _lines(path: Path, found: FindingList) -> Iterator[tuple[int, str | None]]:
    """Yields (line number, text without its end) with bounded memory; None for one too long or not UTF-8."""
    with path.open("rb") as stream:
        _refuse_utf16(stream.read(4096))
        stream.seek(0)
        number = bad_encoding = 0
        while True:
            start = stream.tell()
            raw = stream.readline(MAX_LINE_BYTES + 1)
            if not raw:
                break
            number += 1
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                length = len(raw) + _skip_line(stream)
                message = f"the line has {length:,} bytes; allowed: {MAX_LINE_BYTES:,}; shorten or remove the row"
                found.add("line_too_long", "error", number, message)
                yield number, None
                continue
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                found.add("bom", "info", 1, "the file begins with a byte order mark; it is left out")
                raw, start = raw[3:], start + 3
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                bad_encoding += 1
                if bad_encoding == 1:
                    found.add("encoding_wrong", "error", number, _encoding_message(path, start, start + error.start))
                yield number, None
                continue
            yield number, text.removesuffix("\n").removesuffix("\r")
    if bad_encoding > 1:
        found.add("encoding_wrong", "error", None, f"{bad_encoding} lines in all are not UTF-8")


def _skip_line(stream: Any) -> int:
    skipped = 0
    while chunk := stream.readline(2**20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _refuse_utf16(head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(head) > 1 and head.count(0) * 4 > len(head)):
        message = "looks like UTF-16 or UTF-32 (or is a binary file); allowed: UTF-8; save it as UTF-8"
        raise _UnusableError("encoding_wrong", message)


def _encoding_message(path: Path, line_start: int, offset: int) -> str:
    """Names the byte and the likely encoding, judged from the text around it."""
    with path.open("rb") as stream:
        stream.seek(line_start)
        sample = stream.read(32_768)
        stream.seek(offset)
        byte = stream.read(1)
    return (
        f"not UTF-8 at byte {offset} (0x{byte.hex()}{_likely_encoding(sample)}); allowed: UTF-8; save the file as UTF-8"
    )


def _likely_encoding(sample: bytes) -> str:
    import charset_normalizer

    matches = list(charset_normalizer.from_bytes(sample))
    if not matches:
        return ""
    # Short Japanese text also decodes as Korean or Chinese, which the library ranks first; but only Japanese has kana.
    match = max(matches, key=lambda m: len(_KANA.findall(str(m))) * 10 > len(_NOT_ASCII.findall(str(m))))
    # Several code pages may give the same text; then the usual one of an office is named.
    usual = next((name for name in ("cp932", "cp1252") if name in match.could_be_from_charset), match.encoding)
    return f", likely {usual}"


def _jsonl_rows(path: Path, found: FindingList) -> Iterator[_Row]:
    for number, text in _lines(path, found):
        if text is None:
            yield _Row(number, None)
        elif text.strip():
            value = _parse(text, found, number)
            if value is not _INVALID and not isinstance(value, dict):
                found.add("type_wrong", "error", number, f"the line is {shown(value)}; allowed: one object per line")
            yield _Row(number, value if isinstance(value, dict) else None)


def _json_rows(path: Path, found: FindingList) -> Iterator[_Row]:
    document = _parse(_whole_text(path, found), found, None)
    if document is _INVALID:
        return
    if isinstance(document, dict):
        if detect_format(document) == "super_ni":
            try:
                for number, row in enumerate(super_ni_rows(document), 1):
                    yield _Row(number, row, "super_ni")
            except ValueError as error:
                found.add("type_wrong", "error", None, str(error))
            return
        document = [document]
    if not isinstance(document, list):
        raise _UnusableError(
            "type_wrong", f"the file is {shown(document)}; allowed: a list of rows, or one task with Instances"
        )
    for number, row in enumerate(document, 1):
        if not isinstance(row, dict):
            found.add("type_wrong", "error", number, f"the row is {shown(row)}; allowed: an object")
        yield _Row(number, row if isinstance(row, dict) else None)


def _whole_text(path: Path, found: FindingList) -> str:
    raw = path.read_bytes()
    _refuse_utf16(raw[:4096])
    mark = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    if mark:
        found.add("bom", "info", 1, "the file begins with a byte order mark; it is left out")
    try:
        return raw[mark:].decode()
    except UnicodeDecodeError as error:
        offset = mark + error.start
        message = _encoding_message(path, max(0, offset - 4096), offset)
        raise _UnusableError("encoding_wrong", message, raw.count(b"\n", 0, offset) + 1) from None


_INVALID = object()


class _InvalidJsonError(ValueError):
    """Valid for Python's parser, not for us."""


def _parse(text: str, found: FindingList, line: int | None) -> object:
    """Returns the JSON value, or `_INVALID` with a finding added; `line` is None for a whole file."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_keys)
        if depth_of(value) <= MAX_DEPTH:
            return value
        raise RecursionError
    except RecursionError:
        message = f"nested deeper than {MAX_DEPTH} levels; a row is flat or a list of turns: remove what is not needed"
        found.add("json_too_deep", "error", line, message)
    except json.JSONDecodeError as error:
        where = f"column {error.pos + 1}" if line is not None else f"line {error.lineno}, column {error.colno}"
        hint = "fix the row"
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            hint = "it breaks off in the middle: write it whole or remove it"
        elif line is None and error.msg == "Extra data":
            hint = "one object per line is JSONL: name the file .jsonl"
        found.add("json_invalid", "error", line or error.lineno, f"not JSON at {where}: {error.msg}; {hint}")
    except _InvalidJsonError as error:
        found.add("json_invalid", "error", line, str(error))
    except ValueError:
        found.add("json_invalid", "error", line, "holds a number with thousands of digits; put it in quotes")
    return _INVALID


def _refuse_constant(name: str) -> object:
    raise _InvalidJsonError(f"holds {name}, which is not JSON; write null or a number")


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _InvalidJsonError(f"key {shown(twice)} stands twice in one object; keep one of them")
    return value


def _csv_rows(path: Path, found: FindingList) -> Iterator[_Row]:
    lines = _CsvLines(path, found)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        header: list[str] | None = None
        while True:
            lines.first = 0
            try:
                cells = next(lines.reader(delimiter))
            except StopIteration:
                return
            except csv.Error as error:
                found.add("csv_invalid", "error", lines.first, _csv_message(error))
                yield _Row(lines.first, None)
                continue
            if not cells:
                continue
            if header is None:
                header = cells
                if len(header) == 1 and delimiter == "," and ";" in header[0]:
                    delimiter, header = ";", next(csv.reader([cells[0]], delimiter=";"))
                    found.add("csv_delimiter", "info", lines.first, "the cells are separated by semicolons")
                _check_header(header, lines.first)
                continue
            if len(cells) != len(header):
                message = (
                    f"{len(cells)} cells, the header has {len(header)}; put texts with separators in double quotes"
                )
                found.add("csv_invalid", "error", lines.first, message)
                yield _Row(lines.first, None)
                continue
            yield _Row(lines.first, dict(zip(header, cells, strict=True)))
    finally:
        csv.field_size_limit(before)


class _CsvLines:
    """Feeds lines to a CSV reader and remembers the line on which the current row began."""

    def __init__(self, path: Path, found: FindingList) -> None:
        self.first = 0
        self._lines = _lines(path, found)
        self._readers: dict[str, Iterator[list[str]]] = {}

    def reader(self, delimiter: str) -> Iterator[list[str]]:
        """Returns the reader for a delimiter; all share the same lines."""
        if delimiter not in self._readers:
            self._readers[delimiter] = csv.reader(self._texts(), delimiter=delimiter, strict=True)
        return self._readers[delimiter]

    def _texts(self) -> Iterator[str]:
        for number, text in self._lines:
            if text is not None:
                self.first = self.first or number
                yield text + "\n"


def _csv_message(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a double quote opens in this row and is never closed; close it, or double it inside a text"
    return f"not CSV: {error}; put texts with separators, quotes or line breaks in double quotes"


def _check_header(header: list[str], line: int) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise _UnusableError("csv_invalid", f"column {shown(twice[0])} stands twice in the header; rename one", line)


def _parquet_rows(path: Path, found: FindingList) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            if size > MAX_FILE_BYTES:
                raise _UnusableError(
                    "file_too_large", f"{size:,} bytes unpacked; allowed: {MAX_FILE_BYTES:,}; split the file"
                )
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    if depth_of(value) > MAX_DEPTH:
                        found.add(
                            "json_too_deep", "error", number, f"nested deeper than {MAX_DEPTH} levels; flatten it"
                        )
                    yield _Row(number, value if depth_of(value) <= MAX_DEPTH else None)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:120]
        raise _UnusableError("parquet_invalid", f"not a readable Parquet file: {reason}; write it again") from None


_READERS: dict[str, Callable[[Path, FindingList], Iterator[_Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
