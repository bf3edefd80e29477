"""Tags that somebody wrote into a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunescope.errors import DataError
from tunescope.runs.records import Finding

_SEPARATOR = ";"
_SHOWN = 20


class FileTagger:
    r"""Takes the tags of each instruction from a JSON Lines or CSV file.

    JSON Lines: ``{"instruction": "...", "tags": ["...", "..."]}`` per line. CSV: the columns ``instruction`` and ``tags``, tags separated by
    semicolons. An instruction has to be written exactly as in the data; its tags may be empty.

    Args:
        path: the file, ``.jsonl`` or ``.csv``, UTF-8.

    Raises:
        DataError: it cannot be read, a row is wrong, or an instruction has two rows with different tags; all rows at once, by line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tags.csv"
        >>> _ = file.write_text("instruction,tags\nTranslate.,translation;law\nSort.,\n")
        >>> tagger = FileTagger(file)
        >>> tagger(["Sort.", "Translate."])
        [(), ('translation', 'law')]
        >>> [finding.message for finding in tagger.findings(["Sort."])]
        ['instruction is not in the data: Translate.']
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tags: dict[str, tuple[str, ...]] = {}
        self._lines: dict[str, int] = {}
        problems = []
        for line, row in _rows(path):
            problem = row if isinstance(row, str) else self._add(line, row)
            if problem:
                problems.append(f"{path}:{line}: {problem}")
        if problems:
            more = [f"{path}: {len(problems) - _SHOWN} more rows are wrong"] if len(problems) > _SHOWN else []
            raise DataError([*problems[:_SHOWN], *more])

    @property
    def name(self) -> str:
        """``file`` and its name."""
        return f"file {self.path.name}"

    def findings(self, instructions: Sequence[str]) -> list[Finding]:
        """Returns the instructions without a row (errors), and the rows without an instruction (warnings, with their line).

        Call it with the instructions of all tasks: a row for a task that comes later is not extra.
        """
        wanted = dict.fromkeys(instructions)
        missing = [
            Finding(
                "tags_missing",
                "error",
                str(self.path),
                None,
                f"no row for the instruction: {text[:100]}; add one, its tags may be empty",
            )
            for text in wanted
            if text not in self._tags
        ]
        extra = [
            Finding("tags_extra", "warning", str(self.path), line, f"instruction is not in the data: {text[:100]}")
            for text, line in self._lines.items()
            if text not in wanted
        ]
        return missing + extra

    def __call__(self, instructions: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns the tags of each instruction; rows for others do not matter.

        Raises:
            DataError: an instruction has no row.
        """
        problems = [f"{f.file}: {f.message}" for f in self.findings(instructions) if f.severity == "error"]
        if problems:
            more = (
                [f"{self.path}: {len(problems) - _SHOWN} more instructions have no row"]
                if len(problems) > _SHOWN
                else []
            )
            raise DataError([*problems[:_SHOWN], *more])
        return [self._tags[text] for text in instructions]

    def _add(self, line: int, row: dict[str, Any]) -> str | None:
        """Returns what is wrong with a row, or notes it."""
        text, tags = row.get("instruction"), row.get("tags")
        if not isinstance(text, str) or not text:
            return f"`instruction` is {text!r:.60}; the text of an instruction is needed"
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            return f"`tags` is {tags!r:.60}; a list of texts is needed, it may be empty"
        if self._tags.setdefault(text, tuple(tags)) != tuple(tags):
            return f"the same instruction has other tags in line {self._lines[text]}; keep one of the rows"
        self._lines.setdefault(text, line)
        return None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields line and row, or line and what is wrong with it."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if path.suffix == ".csv":
        yield from _csv_rows(path, text)
    elif path.suffix == ".jsonl":
        yield from _jsonl_rows(text)
    else:
        raise DataError(
            f"{path}: tags are read from .jsonl or .csv, not from {path.suffix!r}; rename or convert the file"
        )


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is not JSON ({str(error)[:60]})"
            continue
        yield (
            number,
            row if isinstance(row, dict) else f"is {line[:40]!r}; an object with `instruction` and `tags` is needed",
        )


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        missing = {"instruction", "tags"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(
                f"{path}:1: no column {' and no column '.join(sorted(missing))}; the columns `instruction` and `tags` are needed"
            )
        line = reader.line_num + 1
        for row in reader:
            first, line = line, reader.line_num + 1  # a quoted text may run over several lines
            if row["tags"] is None or None in row:
                yield first, "has more or fewer fields than the header"
            else:
                tags = [tag.strip() for tag in row["tags"].split(_SEPARATOR)]
                yield first, {"instruction": row["instruction"], "tags": [tag for tag in tags if tag]}
    except csv.Error as error:
        yield line, f"is not CSV ({error})"
