"""What every stage repeated of which task, how far the tasks are apart, and what is kept."""

from __future__ import annotations

from tunescope.report import stream_figures
from tunescope.report.source import RunSource
from tunescope.report.stream import Stream, StreamStage, read_stream
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words, shorten

KEY = "stream_allocation"
_LONGEST = 44  # characters of a name in a table


def section(run: RunSource, words: Words) -> Section:
    """Returns the allocation as a picture and as a table, and what is in memory at the end."""
    found = read_stream(run.folder)
    if found is None:
        return absent(KEY, words, "stream.json")
    tagger = next((stage.tagger for stage in found.stages if stage.tagger), "")
    embedding = str(found.raw.get("embedding") or "")
    embedding = words.get(f"stream_allocation.{embedding}", embedding)
    content = {
        "meaning": _meaning(found, words),
        "chart": stream_figures.allocation(found, words),
        "note": words("stream_allocation.note"),
        "table": _stages(found, words),
        "last": _last(found, words),
        "basis": words("stream_allocation.basis", tagger=tagger or NONE, embedding=embedding or NONE)
        if tagger or embedding
        else "",
    }
    facts = {"stages": [stage.to_dict() for stage in found.stages], "memory": dict(found.memory)}
    return Section(KEY, words("stream_allocation.title"), content, facts=facts)


def _meaning(found: Stream, words: Words) -> str:
    repeated = sum(sum(stage.replayed.values()) for stage in found.stages)
    if not repeated:
        return words("stream_allocation.meaning_none")
    learned = sum(stage.n_train for stage in found.stages)
    return words("stream_allocation.meaning", repeated=words.count(repeated), learned=words.count(learned))


def _stages(found: Stream, words: Words) -> Table:
    head = [
        words(f"stream_allocation.{name}")
        for name in ("stage", "learns", "n_train", "repeated", "pool", "kept", "time")
    ]
    body = [
        [
            Cell(stream_figures.stage_name(stage.arm, words)),
            Cell(shorten(words("format.comma").join(stage.learns), 2 * _LONGEST)),
            number(words.count(stage.n_train)),
            number(words.count(sum(stage.replayed.values()))),
            number(words.count(sum(stage.pool.values()))),
            number(words.count(sum(stage.kept.values()))),
            number(words.duration(stage.tuning_seconds)),
        ]
        for stage in found.stages
    ]
    return Table(words("stream_allocation.stages"), head, body)


def _last(found: Stream, words: Words) -> Table | None:
    """Of the last stage that repeated anything: every earlier task with its distance and its examples."""
    stage = next((stage for stage in reversed(found.stages) if any(stage.replayed.values())), None)
    if stage is None:
        return None
    head = [words(f"stream_allocation.{name}") for name in ("task", "distance", "repeated", "pool")]
    body = [
        [
            Cell(shorten(task, _LONGEST)),
            _distance(stage, task, words),
            number(words.count(stage.replayed.get(task, 0))),
            number(words.count(count)),
        ]
        for task, count in stage.pool.items()
    ]
    caption = words(
        "stream_allocation.last",
        stage=stream_figures.stage_name(stage.arm, words),
        learns=words.listing(list(stage.learns)),
    )
    return Table(caption, head, body)


def _distance(stage: StreamStage, task: str, words: Words) -> Cell:
    row = stage.distances.get(task)
    if not isinstance(row, dict):
        return number(NONE)
    error = (
        "" if row.get("exact") else words("stream_allocation.error", error=words.number(row.get("standard_error"), 4))
    )
    return number(words.number(row.get("value"), 4), error)
