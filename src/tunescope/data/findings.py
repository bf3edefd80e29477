"""Collecting what is wrong with a file, and wording a value for a message."""

from __future__ import annotations

from tunescope.runs.records import Finding, Severity

FINDINGS_PER_CODE = 20


class FindingList:
    """Collects the findings of one file; beyond 20 of one code it only counts, so a bad file stays readable.

    Example:
        >>> found = FindingList("a.jsonl", "routing")
        >>> for line in range(1, 26):
        ...     found.add("json_invalid", "error", line, "not JSON")
        >>> [finding.message for finding in found.findings()][-1]
        'and 5 more'
    """

    def __init__(self, file: str, task: str | None) -> None:
        self.file = file
        self.task = task
        self._kept: list[Finding] = []
        self._counts: dict[tuple[str, Severity], int] = {}

    def add(self, code: str, severity: Severity, line: int | None, message: str) -> None:
        """Adds one finding."""
        count = self._counts[(code, severity)] = self._counts.get((code, severity), 0) + 1
        if count <= FINDINGS_PER_CODE:
            self._kept.append(Finding(code, severity, self.file, line, message, self.task))

    @property
    def has_errors(self) -> bool:
        """Whether an error was added."""
        return any(severity == "error" for _, severity in self._counts)

    def findings(self) -> tuple[Finding, ...]:
        """Returns the findings in the order found, then one ``and N more`` per code."""
        rest = [
            Finding(code, severity, self.file, None, f"and {count - FINDINGS_PER_CODE} more", self.task)
            for (code, severity), count in self._counts.items()
            if count > FINDINGS_PER_CODE
        ]
        return (*self._kept, *rest)


def shown(value: object, limit: int = 60) -> str:
    r"""Returns a value as it may stand in a message: one line, short, without control characters or lone surrogates.

    Example:
        >>> shown("a\nb")
        "'a\\nb'"
        >>> shown([1, 2])
        'a list'
    """
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[:limit] + "…")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}" if len(str(value)) <= limit else "a long number"
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"a value of type {type(value).__name__}"
