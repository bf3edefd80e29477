"""The containers: JSONL, JSON, CSV and Parquet as rows of plain values.

Each is one generator ``(path, found) -> rows`` in the table `READERS`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tunescope.data.findings import FindingList, shown
from tunescope.data.formats import Format, detect_format
from tunescope.data.lines import MAX_LINE_BYTES, UnusableError, lines, whole_text

MAX_FILE_BYTES = 256 * 2**20
MAX_DEPTH = 64


class Row(NamedTuple):
    """One row of a file, with its 1-based line or row number."""

    line: int
    value: Mapping[str, object] | None  # None: the row is there but could not be read; its finding is already added
    format: Format | None = None


def depth_of(value: object, limit: int = MAX_DEPTH) -> int:
    """Returns how deeply lists and objects are nested; stops counting one above `limit`. Never recurses.

    Example:
        >>> depth_of({"a": [1]})
        2
    """
    level: list[Any] = [value]
    depth = 0
    while depth <= limit:
        level = [item for item in level if isinstance(item, list | dict)]
        if not level:
            return depth
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _jsonl_rows(path: Path, found: FindingList) -> Iterator[Row]:
    for number, text in lines(path, found):
        if text is None:
            yield Row(number, None)
        elif text.strip():
            value = _parse(text, found, number)
            if value is not _INVALID and not isinstance(value, dict):
                found.add("type_wrong", "error", number, f"the line is {shown(value)}; allowed: one object per line")
            yield Row(number, value if isinstance(value, dict) else None)


def _json_rows(path: Path, found: FindingList) -> Iterator[Row]:
    document = _parse(whole_text(path, found), found, None)
    if document is _INVALID:
        return
    if isinstance(document, dict):
        if detect_format(document) == "super_ni":
            try:
                for number, row in enumerate(super_ni_rows(document), 1):
                    yield Row(number, row, "super_ni")
            except ValueError as error:
                found.add("type_wrong", "error", None, str(error))
            return
        document = [document]
    if not isinstance(document, list):
        raise UnusableError(
            "type_wrong", f"the file is {shown(document)}; allowed: a list of rows, or one task with Instances"
        )
    for number, row in enumerate(document, 1):
        if not isinstance(row, dict):
            found.add("type_wrong", "error", number, f"the row is {shown(row)}; allowed: an object")
        yield Row(number, row if isinstance(row, dict) else None)


def super_ni_rows(document: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Yields one alpaca row per instance of a Super-NaturalInstructions task.

    Its positive and negative examples are not used.

    Raises:
        ValueError: ``Definition`` is not text or a list of texts, or ``Instances`` is not a list of objects.
        The message is one line for the user.

    Source: the task schema of https://github.com/allenai/natural-instructions (2022). Ours ignores all but these keys.

    Example:
        >>> list(super_ni_rows({"Definition": ["Do it."], "Instances": [{"input": "a", "output": ["b"]}]}))
        [{'instruction': 'Do it.', 'input': 'a', 'output': ['b']}]
    """
    definition = document.get("Definition")
    parts = definition if isinstance(definition, list) else [definition]
    texts = [part for part in parts if isinstance(part, str)]
    if not texts or len(texts) < len(parts):
        raise ValueError(f"Definition is {shown(definition)}; allowed: text or a list of texts")
    instances = document.get("Instances")
    if not isinstance(instances, list):
        raise ValueError(f"Instances is {shown(instances)}; allowed: a list of {{input, output}}")
    for number, instance in enumerate(instances, 1):
        if not isinstance(instance, dict):
            raise ValueError(f"instance {number} is {shown(instance)}; allowed: an object with input and output")
        kept = {key: instance[key] for key in ("id", "input", "output") if key in instance}
        yield {"instruction": "\n".join(texts), **kept}


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


def _csv_rows(path: Path, found: FindingList) -> Iterator[Row]:
    source = _CsvLines(path, found)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        header: list[str] | None = None
        while True:
            source.first = 0
            try:
                cells = next(source.reader(delimiter))
            except StopIteration:
                return
            except csv.Error as error:
                found.add("csv_invalid", "error", source.first, _csv_message(error))
                yield Row(source.first, None)
                continue
            if not cells:
                continue
            if header is None:
                header = cells
                if len(header) == 1 and delimiter == "," and ";" in header[0]:
                    delimiter, header = ";", next(csv.reader([cells[0]], delimiter=";"))
                    found.add("csv_delimiter", "info", source.first, "the cells are separated by semicolons")
                _check_header(header, source.first)
                continue
            if len(cells) != len(header):
                message = (
                    f"{len(cells)} cells, the header has {len(header)}; put texts with separators in double quotes"
                )
                found.add("csv_invalid", "error", source.first, message)
                yield Row(source.first, None)
                continue
            yield Row(source.first, dict(zip(header, cells, strict=True)))
    finally:
        csv.field_size_limit(before)


class _CsvLines:
    """Feeds lines to a CSV reader and remembers the line on which the current row began."""

    def __init__(self, path: Path, found: FindingList) -> None:
        self.first = 0
        self._lines = lines(path, found)
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
        raise UnusableError("csv_invalid", f"column {shown(twice[0])} stands twice in the header; rename one", line)


def _parquet_rows(path: Path, found: FindingList) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            if size > MAX_FILE_BYTES:
                raise UnusableError(
                    "file_too_large", f"{size:,} bytes unpacked; allowed: {MAX_FILE_BYTES:,}; split the file"
                )
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    if depth_of(value) > MAX_DEPTH:
                        found.add(
                            "json_too_deep", "error", number, f"nested deeper than {MAX_DEPTH} levels; flatten it"
                        )
                    yield Row(number, value if depth_of(value) <= MAX_DEPTH else None)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:120]
        raise UnusableError("parquet_invalid", f"not a readable Parquet file: {reason}; write it again") from None


READERS: dict[str, Callable[[Path, FindingList], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
