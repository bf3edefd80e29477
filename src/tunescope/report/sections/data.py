"""Data findings: what was read, what was found in it, and what the model really saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words, shorten
from tunescope.runs.records import Finding

KEY = "data"
SHOWN = 3  # findings of each kind that are written out
MAX_TOKENS = 600
SEVERITIES = ("error", "warning", "info")


def section(run: RunSource, words: Words) -> Section:
    """Returns files, findings grouped by kind, and one rendered example with its loss mask."""
    if not run.data:
        return absent(KEY, words, "data.json")
    groups = _groups(run.findings, words)
    content = {
        "meaning": _meaning(run, words),
        "groups": groups,
        "files": _files(run.data.get("files"), words),
        "labels": _labels(run.data.get("label_counts"), words),
        "example": _example(run.data.get("example"), words),
    }
    counts = {severity: sum(row.severity == severity for row in run.findings) for severity in SEVERITIES}
    facts = {
        "findings": counts,
        "by_code": {group["code"]: group["total"] for group in groups},
        "files": run.data.get("files"),
    }
    return Section(KEY, words("data.title"), content, facts=facts)


def _meaning(run: RunSource, words: Words) -> str:
    findings = run.findings
    if not findings:
        return words("data.clean")
    counts = {severity: words.count(sum(row.severity == severity for row in findings)) for severity in SEVERITIES}
    leaks = sum("leakage" in row.code for row in findings)
    text = words("data.meaning", **counts)
    if not leaks:
        return text
    key = "data.leaks_left_out" if run.setting("data.drop_duplicates", True) else "data.leaks_kept"
    return text + words("format.sentences") + words(key, count=words.count(leaks))


def _groups(findings: Sequence[Finding], words: Words) -> list[dict[str, Any]]:
    """Findings by code, gravest and most frequent first, each with its first few places."""
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    ordered = sorted(by_code.items(), key=lambda item: (min(_grade(row) for row in item[1]), -len(item[1]), item[0]))
    grades = {code: min(len(SEVERITIES) - 1, *(_grade(row) for row in rows)) for code, rows in ordered}
    return [
        {
            "code": code,
            "name": words.get(f"finding.{code}", code.replace("_", " ")),
            "severity": SEVERITIES[grades[code]],
            "severity_name": words(f"severity.{SEVERITIES[grades[code]]}"),
            "total": len(rows),
            "count": words.count(len(rows)),
            "first": [
                (row.file + (f":{row.line}" if row.line is not None else ""), shorten(row.message, 400))
                for row in rows[:SHOWN]
            ],
            "more": words("data.more", count=words.count(len(rows) - SHOWN)) if len(rows) > SHOWN else "",
        }
        for code, rows in ordered
    ]


def _grade(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else len(SEVERITIES)


def _files(files: object, words: Words) -> Table | None:
    rows = [row for row in files if isinstance(row, Mapping)] if isinstance(files, list) else []
    if not rows:
        return None
    head = [words(f"data.{name}") for name in ("file", "task", "role", "format", "rows", "used", "prompt", "target")]
    body = [
        [
            Cell(str(row.get("path", NONE))),
            Cell(str(row.get("task") or NONE)),
            Cell(words.get(f"file_role.{row.get('role')}", str(row.get("role", NONE)))),
            Cell(str(row.get("format", NONE))),
            number(words.count(row.get("rows"))),
            number(words.count(row.get("used"))),
            number(_lengths(row.get("prompt_tokens"), words)),
            number(_lengths(row.get("target_tokens"), words)),
        ]
        for row in rows
    ]
    return Table(words("data.files"), head, body)


def _lengths(lengths: object, words: Words) -> str:
    if not isinstance(lengths, Mapping):
        return NONE
    return " / ".join(words.count(lengths.get(name)) for name in ("p50", "p95", "max"))


def _labels(counts: object, words: Words) -> Table | None:
    if not isinstance(counts, Mapping) or not counts:
        return None
    body = [
        [
            Cell(str(task)),
            Cell(str(path)),
            Cell(words("format.comma").join(f"{label} {words.count(n)}" for label, n in found.items())),
        ]
        for task, files in counts.items()
        if isinstance(files, Mapping)
        for path, found in files.items()
        if isinstance(found, Mapping)
    ]
    return (
        Table(words("data.labels"), [words("data.task"), words("data.file"), words("data.label_counts")], body)
        if body
        else None
    )


def _example(example: object, words: Words) -> dict[str, Any] | None:
    """Tokens with the ones that carry a loss marked; neighbours of the same kind stand together."""
    if not isinstance(example, Mapping) or not isinstance(example.get("tokens"), list):
        return None
    pairs = [
        (str(pair[0]), bool(pair[1])) for pair in example["tokens"] if isinstance(pair, list | tuple) and len(pair) == 2
    ]
    learned = sum(flag for _, flag in pairs)
    return {
        "where": words("data.example_where", file=str(example.get("file", NONE)), id=str(example.get("id", NONE))),
        "tokens": [(text.replace("\n", "↵\n"), flag) for text, flag in pairs[:MAX_TOKENS]],
        "cut": words("data.example_cut", count=words.count(len(pairs) - MAX_TOKENS)) if len(pairs) > MAX_TOKENS else "",
        "meaning": words("data.example_meaning", learned=words.count(learned), total=words.count(len(pairs))),
    }
