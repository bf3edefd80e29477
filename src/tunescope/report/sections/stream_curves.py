"""The course of every task over the stages, and how near the stream stays to experts."""

from __future__ import annotations

from tunescope.report import stream_figures
from tunescope.report.source import RunSource
from tunescope.report.stream import Stream, read_stream
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import Words

KEY = "stream_curves"


def section(run: RunSource, words: Words) -> Section:
    """Returns a pane per task, and the measures with their intervals."""
    found = read_stream(run.folder)
    if found is None:
        return absent(KEY, words, "stream.json")
    without = [str(task) for task in found.measures.get("without_share") or ()]
    content = {
        "meaning": words("stream_curves.meaning"),
        "chart": stream_figures.courses(found, words) if len(found.rows) > 1 else None,
        "note": words("stream_curves.note"),
        "measures": _measures(found, words),
        "gains": _gains(found, words),
        "without": words("stream_curves.without", tasks=words.listing(without)) if without else "",
    }
    return Section(
        KEY,
        words("stream_curves.title"),
        content,
        facts={"measures": dict(found.measures), "experts": dict(found.experts)},
    )


def _measures(found: Stream, words: Words) -> Table:
    head = [words("stream_curves.measure"), words("stream_curves.value"), words("stream_curves.what")]
    body = []
    for name, writer in (
        ("average", words.score),
        ("forgetting", words.points),
        ("backward_transfer", words.points),
        ("forward_transfer", words.points),
    ):
        measure = found.measure(name)
        text = writer(measure["value"]) if measure else words("not_measured")
        interval = words.interval(measure["low"], measure["high"], writer) if measure else ""
        body.append([Cell(words(f"measure.{name}")), number(text, interval), Cell(words(f"measure_why.{name}"))])
    return Table(words("stream_curves.measures"), head, body)


def _gains(found: Stream, words: Words) -> Table | None:
    gains = found.measures.get("relative_gain")
    if not gains:
        return None
    head = [words("stream_curves.stage"), words("stream_curves.tasks"), words("measure.relative_gain")]
    body = []
    for row in gains:
        percent = words.number(row["value"], 1) + "%"
        interval = words.interval(row["low"], row["high"], lambda value: words.number(value, 1) + "%")
        body.append(
            [
                Cell(stream_figures.stage_name(str(row["stage"]), words)),
                number(words.count(row["tasks"])),
                number(percent, interval),
            ]
        )
    return Table(words("stream_curves.gains"), head, body)
