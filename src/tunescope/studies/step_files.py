"""Where an arm's step records go: straight into the run's own file, or into one of the arm where arms are tuned at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunescope.runs.folder import RunFolder

STEPS = "steps.jsonl"


def begin_steps(run: RunFolder, arm: str, step: int, *, live: bool) -> str:
    """Prepares the file that an arm's records are appended to; those after `step` are dropped, since these steps are taken again.

    Args:
        run: the run folder.
        arm: name in the records.
        step: steps that the arm's checkpoint holds.
        live: into the run's own file; else into one of the arm, which `merge_steps` takes over.

    Returns:
        Name of the file in the run.
    """
    mine = [row for row in steps_of(run, arm) if row["step"] <= step]
    if not live:
        run.write_jsonl(_own(arm), mine)
        return _own(arm)
    rows = run.read_jsonl(STEPS)
    kept = [row for row in rows if row["arm"] != arm] + mine
    if kept != rows or not run.has(STEPS):
        run.write_jsonl(STEPS, kept)
    (run.path / _own(arm)).unlink(missing_ok=True)
    return STEPS


def steps_of(run: RunFolder, arm: str) -> list[dict[str, Any]]:
    """Returns the records of one arm, wherever they are."""
    if run.has(_own(arm)):
        return run.read_jsonl(_own(arm))
    return [row for row in run.read_jsonl(STEPS) if row["arm"] == arm]


def merge_steps(run: RunFolder, arm: str, order: Sequence[str]) -> None:
    """Takes the records of an arm into the run's own file, arm by arm in the given order; repeated after a kill it does no harm."""
    if not run.has(_own(arm)):
        return
    mine = run.read_jsonl(_own(arm))
    rows = [row for row in run.read_jsonl(STEPS) if row["arm"] != arm] + mine
    place = {name: number for number, name in enumerate(order)}
    run.write_jsonl(STEPS, sorted(rows, key=lambda row: place.get(row["arm"], len(place))))
    (run.path / _own(arm)).unlink()


def _own(arm: str) -> str:
    return f"arms/{arm}/{STEPS}"
