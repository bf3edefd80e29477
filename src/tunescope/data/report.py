"""The result of looking at all data files together: what ``data.json`` holds and ``tunescope data check`` prints."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tunescope.data.check import check_duplicates, check_labels, check_leakage
from tunescope.data.lengths import LengthCheck
from tunescope.data.personal import check_personal
from tunescope.data.read import FileRead
from tunescope.runs.records import SCHEMA_VERSION, Finding

FileRole = Literal["train", "test", "out_of_domain", "guard", "replay"]


class TaskFile(NamedTuple):
    """A file that was read, and what it is for."""

    read: FileRead
    role: FileRole


@dataclass(frozen=True)
class FileSummary:
    """One data file in numbers.

    Attributes:
        path: as the user wrote it.
        task: name of the task.
        role: what it is for.
        format: detected row format.
        rows: rows in the file.
        used: rows left after unreadable and dropped ones.
        sha256: of the bytes.
        prompt_tokens: p50, p95 and max in tokens; empty until the rows are encoded.
        target_tokens: the same for the answers.
    """

    path: str
    task: str
    role: FileRole
    format: str
    rows: int
    used: int
    sha256: str
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)
    target_tokens: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DataReport:
    """Everything known about the data files.

    Attributes:
        files: one summary per file and task.
        label_counts: task -> path -> label -> rows.
        findings: all of them, file by file.
        example: one rendered row, as ``data.json`` shows it, or None.
        drop: (task, path) -> ids of training rows to leave out (repeats and leakage), and of replay rows that stand in the guard set.
    """

    files: tuple[FileSummary, ...]
    label_counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    findings: tuple[Finding, ...]
    example: Mapping[str, Any] | None = None
    drop: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def with_lengths(self, lengths: LengthCheck, *, task: str | None = None) -> DataReport:
        """Returns the report with length tables and findings added; `task` limits it to the files of one task."""

        def measured(file: FileSummary) -> FileSummary:
            if file.path not in lengths.prompt_tokens or task not in (None, file.task):
                return file
            tables = (lengths.prompt_tokens[file.path].to_dict(), lengths.target_tokens[file.path].to_dict())
            return dataclasses.replace(file, prompt_tokens=tables[0], target_tokens=tables[1])

        files = tuple(measured(file) for file in self.files)
        return dataclasses.replace(self, files=files, findings=(*self.findings, *lengths.findings))

    def with_example(self, file: str, example_id: str, tokens: Sequence[tuple[str, bool]]) -> DataReport:
        """Returns the report with one rendered row: its tokens, each with whether it has a loss."""
        example = {"file": file, "id": example_id, "tokens": [[text, bool(loss)] for text, loss in tokens]}
        return dataclasses.replace(self, example=example)

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``data.json`` holds, as plain values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "files": [dataclasses.asdict(file) for file in self.files],
            "label_counts": {t: {p: dict(n) for p, n in paths.items()} for t, paths in self.label_counts.items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "example": dict(self.example) if self.example is not None else None,
        }

    def table(self) -> str:
        """Returns the files, the label counts and the findings as plain text."""
        head = ("task", "role", "file", "format", "rows", "used", "prompt p50/p95/max", "answer p50/p95/max")
        rows = [
            (
                f.task,
                f.role,
                f.path,
                f.format,
                str(f.rows),
                str(f.used),
                _lengths(f.prompt_tokens),
                _lengths(f.target_tokens),
            )
            for f in self.files
        ]
        parts = [_columns([head, *rows])]
        counts = [
            f"{task}  {path}: " + ", ".join(f"{label} {n}" for label, n in labels.items())
            for task, paths in self.label_counts.items()
            for path, labels in paths.items()
            if labels
        ]
        if counts:
            parts.append("labels\n" + textwrap.indent("\n".join(counts), "  "))
        parts.append("\n".join(finding_line(finding) for finding in self.findings) or "no findings")
        return "\n\n".join(parts)


def finding_line(finding: Finding) -> str:
    """Returns a finding as one line: place, severity, code, message.

    Example:
        >>> finding_line(Finding("file_empty", "error", "a.jsonl", None, "the file is empty"))
        'a.jsonl: error: the file is empty [file_empty]'
    """
    place = finding.file if finding.line is None else f"{finding.file}:{finding.line}"
    return f"{place}: {finding.severity}: {finding.message} [{finding.code}]"


def build_report(
    files: Sequence[TaskFile],
    *,
    labels: Mapping[str, Sequence[str] | None] | None = None,
    near_threshold: float = 0.85,
    drop_duplicates: bool = True,
    personal: bool = True,
) -> DataReport:
    """Runs every check that needs no tokenizer.

    Args:
        files: the files by task and role.
        labels: task -> its labels, or None for free text.
        near_threshold: see `check_duplicates`.
        drop_duplicates: whether `DataReport.drop` names repeated and leaked training rows.
        personal: whether to look for personal data.

    Returns:
        The report; lengths and a rendered row are added by `DataReport.with_lengths` and `DataReport.with_example`.

    Example:
        >>> from tunescope.data.example import Example
        >>> row = Example("1", "desk", "", "The door is stuck.", ("it",), file="a.jsonl", line=1)
        >>> read = FileRead("a.jsonl", "desk", "alpaca", (row,), (), "", 1)
        >>> build_report([TaskFile(read, "train")], labels={"desk": ["it", "hr"]}).label_counts
        {'desk': {'a.jsonl': {'it': 1, 'hr': 0}}}
    """
    summaries: list[FileSummary] = []
    findings: list[Finding] = []
    label_counts: dict[str, dict[str, dict[str, int]]] = {}
    drop: dict[tuple[str, str], frozenset[str]] = {}
    for read, role in files:
        findings += read.findings
        task_labels = (labels or {}).get(read.task)
        checked = check_labels(read, task_labels, train=role == "train")
        repeated = check_duplicates(read, near_threshold=near_threshold)
        findings += (*checked.findings, *repeated.findings)
        if task_labels is not None:
            label_counts.setdefault(read.task, {})[read.path] = dict(checked.counts)
        dropped: frozenset[str] = frozenset()
        if role == "train":
            tests = [f.read for f in files if f.read.task == read.task and f.role in ("test", "out_of_domain")]
            leaked = check_leakage(read, tests, near_threshold=near_threshold)
            findings += leaked.findings
            if drop_duplicates:
                dropped = drop[(read.task, read.path)] = repeated.drop | leaked.drop
        if role == "replay":
            guards = [f.read for f in files if f.role == "guard"]
            leaked = check_leakage(read, guards, near_threshold=near_threshold)
            findings += leaked.findings
            dropped = drop[(read.task, read.path)] = leaked.drop  # always: the guard set would judge what it taught
        if personal:
            findings += check_personal(read)
        used = len(read.examples) - len(dropped)
        summaries.append(FileSummary(read.path, read.task, role, read.format, read.n_rows, used, read.sha256))
    return DataReport(tuple(summaries), label_counts, tuple(findings), None, drop)


def _lengths(table: Mapping[str, int]) -> str:
    return "/".join(str(table[name]) for name in ("p50", "p95", "max")) if table else "-"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
