"""What a section of a report consists of: sentences, tables, charts. The templates only lay them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunescope.report.wording import Words
from tunescope.runs.records import Result, Role

Mark = Literal["", "better", "worse", "noise"]
MARKS: tuple[Mark, ...] = ("better", "worse", "noise")
TEST_ROLES: tuple[Role, ...] = ("in_domain", "out_of_domain")
ROLES: tuple[Role, ...] = (*TEST_ROLES, "guard")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what stands in it.
        sub: a second, smaller line.
        mark: how a difference is to be read; written out in words as well as in colour.
        note: the difference in words, beside its mark.
        css: extra class names; ``n`` aligns numbers.
    """

    text: str
    sub: str = ""
    mark: Mark = ""
    note: str = ""
    css: str = ""


@dataclass(frozen=True)
class Table:
    """A table: the first column names the rows.

    Attributes:
        caption: what it shows, for screen readers and as a small heading.
        head: names of the columns.
        rows: the cells; a row of a single cell is a heading that spans the table.
        strong: indices of columns to highlight.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        key: anchor, and name of its template.
        title: heading.
        content: what its template shows; None if the run has nothing for it.
        missing: the sentence that says what is missing then.
        facts: the same numbers, unrounded, for ``report.json``.
    """

    key: str
    title: str
    content: Mapping[str, Any] | None
    missing: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def number(text: str, sub: str = "") -> Cell:
    """Returns a right-aligned cell."""
    return Cell(text, sub, css="n")


def absent(key: str, words: Words, *files: str) -> Section:
    """Returns the section of a part that the run does not hold, naming the files it would be in."""
    return Section(
        key, words(f"{key}.title"), None, words("missing", files=words.listing(files)), {"missing": list(files)}
    )


def reading(result: Result) -> Mark:
    """Returns how a result's difference to `nothing` is to be read; inside the noise is neither better nor worse.

    Example:
        >>> gap = {"difference": 0.1, "difference_low": 0.02, "difference_high": 0.18}
        >>> reading(Result("selected", "*", "in_domain", "mean", 0.7, 0.6, 0.8, 90, **gap))
        'better'
    """
    low, high = result.difference_low, result.difference_high
    if result.difference is None or low is None or high is None:
        return ""
    inside = low <= 0 <= high or abs(result.difference) < (result.noise_floor or 0.0)
    if inside or not low <= result.difference <= high:  # also anything that is not a number
        return "noise"
    return "better" if (result.difference > 0) == result.higher_is_better else "worse"
