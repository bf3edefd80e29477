"""Lengths in tokens: tables by file, and the rows that do not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tunescope.data.findings import FindingList
from tunescope.runs.records import Finding

PROMPT_SHARE = 0.75


@dataclass(frozen=True)
class LengthTable:
    """Lengths in tokens: median, 95th percentile, longest."""

    p50: int
    p95: int
    max: int

    def to_dict(self) -> dict[str, int]:
        """Returns the three numbers by name."""
        return {"p50": self.p50, "p95": self.p95, "max": self.max}


class LengthRow(NamedTuple):
    """Lengths of one encoded example, in tokens."""

    file: str
    line: int | None
    n_prompt_tokens: int
    n_target_tokens: int


@dataclass(frozen=True)
class LengthCheck:
    """Findings about lengths, and the length tables by file.

    Attributes:
        findings: codes ``target_truncated``, ``target_no_tokens``, ``prompt_long``.
        prompt_tokens: file -> table.
        target_tokens: file -> table.
    """

    findings: tuple[Finding, ...]
    prompt_tokens: Mapping[str, LengthTable] = field(default_factory=dict)
    target_tokens: Mapping[str, LengthTable] = field(default_factory=dict)


def length_findings(rows: Iterable[LengthRow], *, max_length: int, task: str | None = None) -> LengthCheck:
    """Checks the lengths of encoded examples.

    Args:
        rows: (file, line, prompt tokens, target tokens) before anything is cut.
        max_length: longest prompt plus target, in tokens.
        task: name of the task.

    Returns:
        Findings, and per file a table of prompt and of target lengths.

    Example:
        >>> check = length_findings([LengthRow("a.jsonl", 1, 20, 4)], max_length=22)
        >>> check.findings[0].code, check.prompt_tokens["a.jsonl"].to_dict()
        ('target_truncated', {'p50': 20, 'p95': 20, 'max': 20})
    """
    by_file: dict[str, list[LengthRow]] = defaultdict(list)
    for row in rows:
        by_file[row[0]].append(LengthRow(*row))
    findings: list[Finding] = []
    for file, group in by_file.items():
        found = FindingList(file, task)
        needed = max(row.n_prompt_tokens + row.n_target_tokens for row in group)
        for row in group:
            _check_length(found, row, max_length, needed)
        findings += found.findings()
    prompts = {file: _length_table([row.n_prompt_tokens for row in group]) for file, group in by_file.items()}
    targets = {file: _length_table([row.n_target_tokens for row in group]) for file, group in by_file.items()}
    return LengthCheck(tuple(findings), prompts, targets)


def _check_length(found: FindingList, row: LengthRow, max_length: int, needed: int) -> None:
    prompt, target = row.n_prompt_tokens, row.n_target_tokens
    if target < 1:
        found.add("target_no_tokens", "error", row.line, "the answer has no tokens: nothing to learn; write the answer")
    elif prompt + target > max_length:
        cut = "entirely" if prompt >= max_length else f"by {prompt + target - max_length} of {target} tokens"
        message = (
            f"prompt {prompt} + answer {target} tokens; allowed: {max_length} (data.max_length), so the answer would "
            f"be cut {cut}; shorten the row, or set data.max_length to {needed} (the longest row of this file)"
        )
        found.add("target_truncated", "error", row.line, message)
    elif prompt > PROMPT_SHARE * max_length:
        message = f"the prompt has {prompt} of {max_length} tokens (data.max_length): little room is left for an answer"
        found.add("prompt_long", "warning", row.line, message)


def _length_table(lengths: Sequence[int]) -> LengthTable:
    # 'higher' keeps the numbers lengths that occur, and p95 <= max whatever the number of rows.
    p50, p95 = np.percentile(np.asarray(lengths), [50, 95], method="higher")
    return LengthTable(int(p50), int(p95), max(lengths))
