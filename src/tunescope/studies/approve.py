"""Approve the plan of a run; and find out whether the plan that is there may be tuned.

What counts is the ledger: the last approval in it names the sha256 of the plan. The lines on approval in ``plan.yaml`` are for the
reader. Each write is whole, and their order is such that after a kill between any two the same command goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunescope.errors import ApprovalError, IntegrityError, RunError, UserError
from tunescope.runs.folder import RunFolder
from tunescope.runs.plan import Plan
from tunescope.studies.forecast import FORECAST
from tunescope.studies.plan_folder import (
    APPROVED,
    EDITED,
    IN_USE,
    PLAN,
    PROPOSAL,
    approve_command,
    estimated,
    last_note,
    note,
    read_current,
    refresh,
    resume_command,
    when,
    write_approved,
    write_plan,
)

_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class Approval:
    """What `run` did.

    Attributes:
        plan: as it was approved.
        by: who approved it.
        at: when, in UTC.
        already: it had been approved before, and nothing was changed.
        resume: the command that goes on.
        notes: alternatives that could not be read and were written anew, one line each.
    """

    plan: Plan
    by: str
    at: str
    already: bool
    resume: str
    notes: tuple[str, ...] = ()


def run(path: Path, by: str) -> Approval:
    """Approves the plan of a run as it stands in ``plan.yaml``, edits included.

    Numbers of an edited arm are written anew: how many parameters move, and its price, worked out from the calibrated steps.

    Args:
        path: the run folder.
        by: name of the person who approves.

    Raises:
        UserError: the name is empty, too long, or holds control characters.
        RunError: there is no plan, the run is done, or the plan cannot be tuned; see `read_plan`.
        IntegrityError: the ledger, or what the plan was made with, was changed; or tuning has begun with another plan.
    """
    name = by.strip()
    if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise UserError(
            f"--by: got {by[:40]!r}; give the name of the person who approves, on one line, at most {_LONGEST_NAME} characters"
        )
    folder = RunFolder.open(path.absolute())
    if not folder.has(PROPOSAL):
        done = folder.has("costs.json")
        raise RunError(
            f"{path}: the run is done, there is nothing left to approve"
            if done
            else f"{path}: has no plan yet; make one with `tunescope plan CONFIG`, or with the command of the run and --resume"
        )
    notes: list[str] = []
    proposal, current = read_current(folder, notes.append)
    plan, forecasts = refresh(folder, proposal, current, estimated(folder))
    _check_in_use(folder, plan)
    resume = resume_command(folder, plan)
    before = last_note(folder, APPROVED)
    if before and before["details"]["sha256"] == plan.sha256:
        write_approved(folder, plan)
        return Approval(plan, before["details"]["by"], when(before), True, resume, tuple(notes))
    with folder.locked():
        if forecasts != folder.read_json(FORECAST):
            folder.write_json(FORECAST, forecasts)
        write_plan(
            folder, dataclasses.replace(plan, state="proposed", approved_by="", approved_at="", approved_sha256="")
        )
        note(folder, EDITED, plan)
        line = note(folder, APPROVED, plan, by=name)
        write_approved(folder, plan)
        folder.set_status("done", stage="plan")
    return Approval(plan, name, when(line), False, resume, tuple(notes))


def check_seal(folder: RunFolder, current: Plan) -> dict[str, Any] | None:
    """Compares a plan with its last approval.

    Returns:
        The ledger line of the approval, or None where nobody approved yet.

    Raises:
        IntegrityError: the plan was changed after it was approved, or says it was approved and the ledger does not, or it was
            changed after tuning began.
    """
    _check_in_use(folder, current)
    line, path = last_note(folder, APPROVED), folder.path / PLAN
    if line is None:
        if current.state == "approved":
            raise IntegrityError(
                f"{path}: says that it is approved, but the ledger has no approval; approve it: "
                f"{approve_command(folder)}"
            )
        return None
    if line["details"]["sha256"] != current.sha256:
        raise IntegrityError(_changed(folder, line, current.sha256))
    says = (current.approved_by, current.approved_at, current.approved_sha256)
    if current.state == "approved" and says != (line["details"]["by"], when(line), line["details"]["sha256"]):
        raise IntegrityError(
            f"{path}: its lines on the approval are not those of the ledger ({line['details']['by']}, {when(line)}); put them back, or "
            f"have them written again: {approve_command(folder)}"
        )
    return line


def gate(folder: RunFolder, *, required: bool) -> None:
    """Stops a run whose plan may not be tuned; to be called before anything slow. A run without a plan passes.

    Raises:
        ApprovalError: approval is required, and nobody approved.
        IntegrityError: see `check_seal`.
        RunError: see `read_plan`.
    """
    if not folder.has(PROPOSAL) or not (folder.has(PLAN) or last_note(folder, APPROVED)):
        return
    _, current, line = read_sealed(folder)
    if line is None and required:
        raise ApprovalError(
            f"{folder.path / PLAN}: waits for approval; read it, edit it if you like, then run "
            f"{approve_command(folder)}  and  {resume_command(folder, current)}"
        )


def read_sealed(
    folder: RunFolder, note: Callable[[str], None] = lambda line: None
) -> tuple[Plan, Plan, dict[str, Any] | None]:
    """Returns `read_current`, and the ledger line of the approval that seals the current plan, or None.

    Raises:
        IntegrityError: see `read_current` and `check_seal`; also where an approved plan can no longer be read.
        RunError: the plan cannot be tuned, and nobody approved yet.
    """
    try:
        proposal, current = read_current(folder, note)
    except RunError as error:
        if line := last_note(folder, APPROVED):
            raise IntegrityError([_changed(folder, line), *error.problems]) from None
        raise
    return proposal, current, check_seal(folder, current)


def _changed(folder: RunFolder, line: dict[str, Any], now: str = "") -> str:
    before = line["details"]["sha256"][:12]
    return (
        f"{folder.path / PLAN}: was changed after {line['details']['by']} approved it at {when(line)} (sha256 {before}"
        f"{f', now {now[:12]}' if now else ''}); put it back, or approve it as it is now: {approve_command(folder)}"
    )


def _check_in_use(folder: RunFolder, plan: Plan) -> None:
    """A plan may be edited until the first weight moves."""
    begun = any((folder.path / "arms").glob("*/moves.json"))
    if begun and folder.has(IN_USE) and folder.read_json(IN_USE)["sha256"] != plan.sha256:
        raise IntegrityError(
            f"{folder.path / PLAN}: was changed after tuning began with it; put it back, or start again in another output_dir"
        )
