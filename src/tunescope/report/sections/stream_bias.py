"""Whether what was repeated looks like what it was chosen from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunescope.report import stream_figures
from tunescope.report.source import RunSource
from tunescope.report.stream import read_stream
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words

KEY = "stream_bias"
_MOST = 40  # rows of the table; all are in report.json


def section(run: RunSource, words: Words) -> Section:
    """Returns the bias table of the last stage, shifts first, and the shifts of the stages before it."""
    found = read_stream(run.folder)
    if found is None:
        return absent(KEY, words, "stream.json")
    stage = next((stage for stage in reversed(found.stages) if stage.bias), None)
    if stage is None:
        return Section(KEY, words("stream_bias.title"), None, words("stream_bias.nothing"), {"stages": {}})
    flagged = [(s, row) for s in found.stages for row in s.bias if row.get("flagged")]
    others = [(s, row) for s, row in flagged if row.get("attribute") != "task"]
    content = {
        "meaning": words("stream_bias.meaning_shifts", count=words.count(len(others)))
        if others
        else words("stream_bias.meaning_none"),
        "note": words("stream_bias.note"),
        "last": _table(
            words("stream_bias.last", stage=stream_figures.stage_name(stage.arm, words)),
            [(stage.arm, row) for row in sorted(stage.bias, key=lambda row: not row.get("flagged"))][:_MOST],
            words,
        ),
        "earlier": _table(
            words("stream_bias.shifts"), [(s.arm, row) for s, row in others if s is not stage][:_MOST], words
        ),
        "more": words("stream_bias.more", count=words.count(len(stage.bias))) if len(stage.bias) > _MOST else "",
    }
    facts = {"stages": {s.arm: [dict(row) for row in s.bias] for s in found.stages}}
    return Section(KEY, words("stream_bias.title"), content, facts=facts)


def _table(caption: str, rows: list[tuple[str, Mapping[str, Any]]], words: Words) -> Table | None:
    if not rows:
        return None
    head = [words(f"stream_bias.{name}") for name in ("value", "stage", "pool", "kept", "chance", "reading")]
    body = []
    for arm, row in rows:
        attribute = str(row.get("attribute"))
        name = f"{words.get(f'stream_bias.{attribute}', attribute)}{words('format.colon')}{row.get('value')}"
        p = row.get("p")
        body.append(
            [
                Cell(name, str(row.get("within") or "")),
                Cell(stream_figures.stage_name(arm, words)),
                number(words.share(row.get("pool_share")), words.count(row.get("n_pool"))),
                number(words.share(row.get("kept_share")), words.count(row.get("n_kept"))),
                number(f"{p:.2g}" if isinstance(p, float) else NONE),
                Cell(words("stream_bias.shift" if row.get("flagged") else "stream_bias.no_shift")),
            ]
        )
    return Table(caption, head, body)
