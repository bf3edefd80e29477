"""How to reproduce: command, settings, versions, hashes, seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent
from tunescope.report.wording import NONE, Words

KEY = "reproduce"


def section(run: RunSource, words: Words) -> Section:
    """Returns what another person needs to get the same numbers."""
    if not run.environment and not run.config:
        return absent(KEY, words, "config.yaml", "environment.json")
    found = run.environment
    content = {
        "meaning": words("reproduce.meaning"),
        "command": str(found.get("command") or ""),
        "machine": _machine(run, words),
        "answered": (answered := _answered(run, words)),
        "places": words("reproduce.places") if answered and len({row[1].text for row in answered.rows}) > 1 else "",
        "hashes": _pairs(words("reproduce.hashes"), found.get("files"), words("reproduce.file"), "sha256", words),
        "packages": _pairs(
            words("reproduce.packages"),
            found.get("packages"),
            words("reproduce.package"),
            words("reproduce.version"),
            words,
        ),
        "config": yaml.safe_dump(dict(run.config), allow_unicode=True, sort_keys=False) if run.config else "",
        "ledger": _ledger(run, words),
        "decisions": _decisions(run, words),
    }
    return Section(
        KEY, words("reproduce.title"), content, facts={"environment": dict(found), "config": dict(run.config)}
    )


def _machine(run: RunSource, words: Words) -> Table:
    found = run.environment
    model = run.model
    git = found.get("git")
    rows: list[tuple[str, object]] = [
        ("seed", found.get("seed", run.setting("seed"))),
        ("model", " ".join(str(model[key]) for key in ("name", "revision") if model.get(key)) or run.setting("model")),
        ("model_source", model.get("source")),
        ("model_hash", model.get("sha256")),
        ("model_license", model.get("license")),
        ("tunescope", found.get("tunescope")),
        ("python", found.get("python")),
        ("git", _git(git, words) if isinstance(git, Mapping) else None),
        ("platform", found.get("platform")),
        ("cpu", found.get("cpu")),
        ("threads", found.get("threads")),
        ("memory", words.size(found["memory_bytes"]) if "memory_bytes" in found else None),
        ("device", " · ".join(str(found[key]) for key in ("device", "gpu") if found.get(key))),
        ("dtype", found.get("dtype")),
        ("number_format", _speedup(found.get("number_format"), words)),
        (
            "batch_noise",
            f"{found['score_batch_noise']:.1e}" if isinstance(found.get("score_batch_noise"), float) else None,
        ),
        ("started", found.get("started") or run.status.get("started")),
        ("finished", run.status.get("finished")),
    ]
    body = [
        [Cell(words(f"reproduce.{name}")), Cell(str(value), css="mono")]
        for name, value in rows
        if value not in (None, "")
    ]
    return Table(words("reproduce.machine"), [words("reproduce.what"), words("reproduce.value")], body)


def _speedup(measured: object, words: Words) -> str | None:
    seconds = measured.get("seconds") if isinstance(measured, Mapping) else None
    try:
        ratio = seconds["float32"] / seconds["bfloat16"]  # type: ignore[index]
    except (TypeError, KeyError, ZeroDivisionError):
        return None
    return words("reproduce.speedup", ratio=words.number(ratio, 2))


def _answered(run: RunSource, words: Words) -> Table | None:
    """Who generated the free answers of each arm; nothing where no server was set."""
    if not run.environment.get("generation"):
        return None
    counts: dict[tuple[str, str], int] = {}
    for sample in run.samples:
        for arm, given in sample.answers.items() if sample.role != "guard" else ():
            if given.get("probabilities") is None:
                key = (arm, given.get("answered_by") or words("reproduce.here"))
                counts[key] = counts.get(key, 0) + 1
    body = [[Cell(arm), Cell(by, css="mono"), Cell(words.count(n))] for (arm, by), n in counts.items()]
    head = [words(f"reproduce.{name}") for name in ("arm", "by", "answers")]
    return Table(words("reproduce.answered"), head, body) if body else None


def _git(git: Mapping[str, Any], words: Words) -> str:
    commit = str(git.get("commit", ""))
    return f"{commit} ({words('reproduce.dirty')})" if git.get("dirty") else commit


def _pairs(caption: str, values: object, first: str, second: str, words: Words) -> Table | None:
    if not isinstance(values, Mapping) or not values:
        return None
    return Table(
        caption, [first, second], [[Cell(str(key)), Cell(str(value), css="mono")] for key, value in values.items()]
    )


def _ledger(run: RunSource, words: Words) -> str:
    if not run.ledger:
        return ""
    last = str(run.ledger[-1].get("hash", ""))
    return words("reproduce.ledger", count=words.count(len(run.ledger)), hash=last[:16], run=run.name)


def _decisions(run: RunSource, words: Words) -> Table | None:
    """Who decided what, when: the readable part of the ledger."""
    if not run.ledger:
        return None
    names = ("time", "actor", "event")
    body = [[Cell(str(row.get(name, NONE))) for name in names] for row in run.ledger]
    return Table(words("reproduce.decisions"), [words(f"reproduce.{name}") for name in names], body)
