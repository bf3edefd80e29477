"""Score by task: a heat map of differences to `nothing`."""

from __future__ import annotations

from collections.abc import Sequence

from tunescope.report.sections.arms import quality_cell
from tunescope.report.select_results import OVERALL, focus_arm, group_by_file
from tunescope.report.source import RunSource
from tunescope.report.tables import MARKS, TEST_ROLES, Cell, Section, Table, absent, number, reading
from tunescope.report.wording import Words
from tunescope.runs.records import Result, Role

KEY = "tasks"
STEPS = (0.05, 0.10, 0.20)  # differences of scores from which a cell is coloured one shade darker


def section(run: RunSource, words: Words) -> Section:
    """Returns one table a role: tasks down, arms across, coloured by the difference to `nothing`."""
    tables, facts = [], []
    for role in TEST_ROLES:
        rows = {
            arm: [row for row in run.results if row.arm == arm and row.role == role and row.task != OVERALL]
            for arm in run.arms
        }
        if any(rows.values()):
            tables.append(_table(run.arms, {arm: group_by_file(found) for arm, found in rows.items()}, role, words))
            facts += [row.to_dict() for found in rows.values() for row in found]
    if not tables:
        return absent(KEY, words, "results.json")
    return Section(
        KEY, words("tasks.title"), {"meaning": _meaning(run, words), "tables": tables}, facts={"results": facts}
    )


def _table(arms: Sequence[str], found: dict[str, list[Result]], role: Role, words: Words) -> Table:
    keys = list(dict.fromkeys((row.task, row.dataset, row.metric) for rows in found.values() for row in rows))
    body = []
    for key in keys:
        cells = [next((row for row in found[arm] if (row.task, row.dataset, row.metric) == key), None) for arm in arms]
        n = next(row.n for row in cells if row is not None)
        metric = words.get(f"metric.{key[2]}", key[2])
        body.append(
            [
                Cell(key[0], words("tasks.row_hint", metric=metric, n=words.count(n))),
                *(_heat(row, words) for row in cells),
            ]
        )
    return Table(words("tasks.caption", role=words(f"role.{role}")), [words("tasks.task"), *arms], body)


def _heat(row: Result | None, words: Words) -> Cell:
    if row is None:
        return number(words("not_measured"))
    cell = quality_cell(row, words)
    if cell.mark not in ("better", "worse"):
        return cell
    level = 1 + sum(abs(row.difference or 0.0) >= step for step in STEPS)
    return Cell(cell.text, cell.sub, cell.mark, cell.note, css=f"n heat-{cell.mark}-{level}")


def _meaning(run: RunSource, words: Words) -> str:
    arm = focus_arm(run)
    parts = []
    for role in TEST_ROLES:
        rows = [row for row in run.results if row.arm == arm and row.role == role and row.task != OVERALL]
        marks = [reading(row) for row in group_by_file(rows) if row.difference is not None]
        if marks:
            total, found = words.count(len(marks)), []
            for mark in MARKS:
                if mark in marks:
                    found.append(words(f"tasks.meaning_{mark}", count=words.count(marks.count(mark)), total=total))
            parts.append(
                words(
                    "tasks.meaning",
                    arm=words.arm(arm),
                    role=words(f"role.{role}"),
                    found=words("format.comma").join(found),
                )
            )
    return words("format.sentences").join(parts) or words("tasks.no_meaning")
