"""The score matrix, what became of every task, and what wrong answers are like."""

from __future__ import annotations

from tunescope.report import stream_figures
from tunescope.report.source import RunSource
from tunescope.report.stream import Stream, StreamChange, read_stream
from tunescope.report.tables import Cell, Mark, Section, Table, absent, number
from tunescope.report.wording import NONE, Words, shorten

KEY = "stream_matrix"
_LONGEST = 44  # characters of a name in a table; the figure has it in full
_CLASSES = ("right", "wrong", "unrelated")


def section(run: RunSource, words: Words) -> Section:
    """Returns the heat map, the table of changes and the classes of failures."""
    found = read_stream(run.folder)
    if found is None:
        return absent(KEY, words, "stream.json")
    content = {
        "meaning": _meaning(found, words),
        "chart": stream_figures.score_matrix(found, words),
        "note": words("stream_matrix.note"),
        "changes": _changes(found, words),
        "matrix": _matrix(found, words),
        "failures": _failures(found, words),
    }
    rows = [{"arm": row.arm, "scores": dict(row.scores), "failures": dict(row.failures)} for row in found.rows]
    return Section(KEY, words("stream_matrix.title"), content, facts={"rows": rows})


def _meaning(found: Stream, words: Words) -> str:
    if not found.by_task:
        return words("stream_matrix.meaning_none")
    worst = min(found.by_task, key=lambda change: change.difference)
    best = max(found.by_task, key=lambda change: change.difference)
    key = "stream_matrix.meaning_one" if worst is best else "stream_matrix.meaning"
    return words(
        key,
        worst=words("format.quoted", text=shorten(worst.task, _LONGEST)),
        worst_points=words.points(worst.difference),
        best=words("format.quoted", text=shorten(best.task, _LONGEST)),
        best_points=words.points(best.difference),
    )


def _changes(found: Stream, words: Words) -> Table | None:
    if not found.changes:
        return None
    head = [words(f"stream_matrix.{name}") for name in ("task", "learned", "before", "after", "change", "turned", "n")]
    body = []
    for change in found.changes:
        name = words("stream_matrix.mean") if change.task == "*" else shorten(change.task, _LONGEST)
        learned = stream_figures.stage_name(change.learned, words) if change.learned else NONE
        turned = (
            words(
                "stream_matrix.turns",
                lost=words.count(change.right_then_wrong),
                won=words.count(change.wrong_then_right),
            )
            if change.right_then_wrong is not None
            else NONE
        )
        body.append(
            [
                Cell(name),
                Cell(learned),
                number(words.score(change.before)),
                number(words.score(change.after)),
                _difference(change, words),
                Cell(turned),
                number(words.count(change.n)),
            ]
        )
    return Table(words("stream_matrix.changes"), head, body)


def _difference(change: StreamChange, words: Words) -> Cell:
    mark: Mark = "noise" if not change.decides else "better" if change.difference > 0 else "worse"
    interval = words.interval(change.low, change.high, words.points)
    return Cell(interval, mark=mark, note=words(f"mark.{mark}", change=words.points(change.difference)), css="n")


def _matrix(found: Stream, words: Words) -> Table:
    head = [words("stream_matrix.task"), *(stream_figures.stage_name(row.arm, words) for row in found.rows)]
    body = [
        [
            Cell(shorten(task, _LONGEST)),
            *(number(words.score(row.scores[task]) if task in row.scores else "") for row in found.rows),
        ]
        for task in found.order
    ]
    if any(row.guard_loss is not None for row in found.rows):
        body.append([Cell(words("stream_matrix.guard")), *(number(words.loss(row.guard_loss)) for row in found.rows)])
    return Table(words("stream_matrix.numbers"), head, body)


def _failures(found: Stream, words: Words) -> Table | None:
    """Right, wrong and unrelated answers after the last stage, with the rules that found the last."""
    last = found.rows[-1].failures
    if not last:
        return None
    head = [
        words("stream_matrix.task"),
        *(words(f"stream_matrix.{name}") for name in _CLASSES),
        words("stream_matrix.rules"),
    ]
    body = []
    for task in found.order:
        counts = last.get(task)
        if not isinstance(counts, dict):
            continue
        flags = [
            f"{words.get(f'flag.{flag}', flag)} {words.count(n)}" for flag, n in counts.items() if flag not in _CLASSES
        ]
        rules = words("format.comma").join(flags) or NONE
        body.append(
            [
                Cell(shorten(task, _LONGEST)),
                *(number(words.count(counts.get(name, 0))) for name in _CLASSES),
                Cell(rules),
            ]
        )
    return Table(words("stream_matrix.failures"), head, body)
