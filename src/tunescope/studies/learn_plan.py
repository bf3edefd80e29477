"""The replay plan: what every stage repeats, with its reasons, for the run's files, the ledger and any other trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.data import Example
from tunescope.runs.folder import RunFolder
from tunescope.runs.memory import Kept
from tunescope.studies.learn_choose import Replay
from tunescope.studies.learn_stream import Stage
from tunescope.studies.setup import record

PLAN = "replay_plan.jsonl"


def plan_rows(stage: Stage, found: Replay, kept: Sequence[Kept], policy: str) -> list[dict[str, Any]]:
    """Returns a row per repeated example: where it comes from, what it says, and why it was chosen."""
    by_id = {(one.task, one.id): one.example for one in kept}
    rows = []
    for one in found.chosen:
        example = by_id[one.task, one.id]
        rows.append(
            {
                "stage": stage.arm,
                "learns": list(stage.learns),
                "task": one.task,
                "id": one.id,
                "instruction": example["instruction"],
                "input": example["input"],
                "output": example["targets"][0],
                "system": example.get("system"),
                "history": example.get("history") or [],
                "policy": policy,
                "reason": dict(one.reason),
            }
        )
    return rows


def replayed_examples(found: Replay, examples: Mapping[str, Mapping[str, Example]]) -> dict[str, tuple[Example, ...]]:
    """Returns task -> the examples that are repeated of it; tasks of which none is are left out."""
    chosen: dict[str, list[Example]] = {}
    for one in found.chosen:
        chosen.setdefault(one.task, []).append(examples[one.task][one.id])
    return {name: tuple(rows) for name, rows in chosen.items()}


def write_plan(folder: RunFolder, rows: Sequence[Mapping[str, Any]], stage: Stage, found: Replay, policy: str) -> None:
    """Puts the rows of a stage into the plan, in the place of older ones of it, and notes the choice in the ledger."""
    others = [row for row in folder.read_jsonl(PLAN) if row["stage"] != stage.arm]
    folder.write_jsonl(PLAN, [*others, *rows])
    details = {
        "stage": stage.arm,
        "learns": list(stage.learns),
        "policy": policy,
        "budget": found.budget,
        "examples": {name: count for name, count in found.counts.items() if count},
        "of": dict(found.pool),
        "sha256": digest(found),
    }
    if found.distances:
        details["distances"] = {name: round(row["value"], 6) for name, row in found.distances.items()}
    if found.tagger:
        details["tagger"] = found.tagger
    record(folder, "replay chosen", details)


def digest(found: Replay) -> str:
    """Returns the hash of what was chosen and why: task, id and reason of every example, in order."""
    text = json.dumps([one.to_dict() for one in found.chosen], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
