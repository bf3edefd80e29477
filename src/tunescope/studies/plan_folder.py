"""The plan in a run folder: the file, what was proposed, its numbers, and its lines in the ledger."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable
from typing import Any

from tunescope.config import plain
from tunescope.errors import IntegrityError
from tunescope.runs import ledger
from tunescope.runs.environment import user_name
from tunescope.runs.folder import RunFolder, write_text
from tunescope.runs.plan import Plan, PlannedArm, moves_text, plan_text
from tunescope.runs.records import Forecast, LayerScores, Selection
from tunescope.studies.forecast import FORECAST
from tunescope.studies.plan_file import read_plan
from tunescope.studies.prices import Calibration, price_of

PLAN = "plan.yaml"
PROPOSAL = "arms/plan.json"  # what was proposed, to tell what a person changed
IN_USE = "arms/plan_in_use.json"  # the sha256 of the plan that tuning began with
PROPOSED, EDITED, APPROVED = "plan proposed", "plan edited", "plan approved"


def read_current(folder: RunFolder, note: Callable[[str], None] = lambda line: None) -> tuple[Plan, Plan]:
    """Returns the plan that was proposed and the one that stands in ``plan.yaml`` now.

    Args:
        folder: the run.
        note: as in `read_plan`.

    Raises:
        RunError: ``plan.yaml`` cannot be tuned.
        IntegrityError: the ledger is damaged, or model, data or settings are not those the plan was made with.
    """
    proposal = Plan.from_dict(folder.read_json(PROPOSAL)["plan"])
    environment = folder.read_json("environment.json")
    if folder.has("ledger.jsonl"):
        ledger.verify(folder.path / "ledger.jsonl", key=ledger.key_from_environment())
    changed = [name for name, digest in basis(folder).items() if proposal.rests_on.get(name) != digest]
    if changed:
        raise IntegrityError(
            f"{folder.path}: {', '.join(changed)} of this run changed since the plan was made; put config.yaml and environment.json "
            "back, or start again in another output_dir"
        )
    n_layers, seed = environment["model"]["n_layers"], environment["seed"]
    return proposal, read_plan(folder.path / PLAN, proposal, n_layers=n_layers, seed=seed, note=note)


def basis(folder: RunFolder) -> dict[str, str]:
    """Returns name -> sha256 of what a plan rests on: the model's weights, the data files, the settings (not where they are written)."""
    environment = folder.read_json("environment.json")
    values, _, _ = plain.parse(
        (folder.path / "config.yaml").read_text(encoding="utf-8"), str(folder.path / "config.yaml")
    )
    values.pop("output_dir", None)
    return {
        "model": str(environment["model"]["sha256"]),
        "data": _digest(list(environment["files"].values())),
        "settings": _digest(values),
    }


def refresh(
    folder: RunFolder, proposal: Plan, current: Plan, price: Callable[[str, Selection, float], Forecast]
) -> tuple[Plan, dict[str, Any]]:
    """Writes the numbers of a plan anew, so that an edited arm has its own.

    Args:
        folder: the run.
        proposal: what was proposed.
        current: what a person made of it.
        price: gives the forecast of an arm that was changed, from its name, what it moves, and the seconds of measuring it.

    Returns:
        The plan, and the contents of ``arms/forecast.json`` to go with it.
    """
    saved = folder.read_json(FORECAST)
    forecasts = {values["arm"]: Forecast.from_dict(values) for values in saved["forecast"]}
    estimated = set(saved["estimated"])
    price_per_hour = _price_per_hour(folder)
    arms = []
    for arm in current.arms:
        first = proposal.arm(arm.arm)
        assert first is not None  # read_plan refuses arms that were not proposed
        selection = arm.selection()
        priced = Selection.from_dict(saved["selections"][arm.arm])
        if _moves(priced) != _moves(selection):
            forecasts[arm.arm] = price(arm.arm, selection, forecasts[arm.arm].evaluation_seconds)
            saved["selections"][arm.arm] = selection.to_dict()
            estimated = estimated | {arm.arm} if forecasts[arm.arm].steps == 0 else estimated - {arm.arm}
        cost = forecasts[arm.arm]
        changed = arm.moves != first.moves
        why = (
            f"changed by hand; proposed was {moves_text(first)}: {first.why}"
            if changed and arm.why == first.why
            else arm.why
        )
        arms.append(
            dataclasses.replace(
                arm,
                why=why,
                trainable_parameters=cost.trainable_parameters,
                scores=block_scores(folder, arm) if first.scores else {},
                forecast=price_of(cost, price_per_hour, measured=arm.arm not in estimated),
            )
        )
    saved |= {"forecast": [f.to_dict() for f in forecasts.values()], "estimated": sorted(estimated)}
    return dataclasses.replace(current, arms=tuple(arms), alternatives=proposal.alternatives), saved


def block_scores(folder: RunFolder, arm: PlannedArm | Selection) -> dict[str, float]:
    """Returns block -> score of the blocks that an arm moves, over all tasks together; empty where nothing was scored."""
    scores = next(iter(all_task_scores(folder)), None)
    if scores is None:
        return {}
    values = dict(zip(scores.layers, scores.values, strict=True))
    return {block: float(f"{values[block]:.4g}") for block in arm.layers}


def all_task_scores(folder: RunFolder) -> list[LayerScores]:
    """Returns the block scores of the run that are over all tasks together."""
    rows = folder.read_json("layers.json")["scores"]
    return [LayerScores.from_dict(row) for row in rows if row["task"] == "*"]


def write_plan(folder: RunFolder, plan: Plan) -> None:
    """Writes ``plan.yaml``, whole or not at all."""
    n_layers = folder.read_json("environment.json")["model"]["n_layers"]
    text = plan_text(plan, run=shlex.quote(str(folder.path)), n_layers=n_layers, resume=resume_command(folder, plan))
    write_text(folder.path / PLAN, text)


def write_approved(folder: RunFolder, plan: Plan) -> None:
    """Writes ``plan.yaml`` with its last approval, as it stands in the ledger."""
    line = last_note(folder, APPROVED)
    assert line is not None
    details = line["details"]
    sealed = {"approved_by": details["by"], "approved_at": when(line), "approved_sha256": details["sha256"]}
    write_plan(folder, dataclasses.replace(plan, state="approved", **sealed))


def last_note(folder: RunFolder, event: str | None = None) -> dict[str, Any] | None:
    """Returns the last line of the ledger on the plan, or of one kind; None without one."""
    wanted = (PROPOSED, EDITED, APPROVED) if event is None else (event,)
    rows = [row for row in folder.read_jsonl("ledger.jsonl") if row["event"] in wanted]
    return rows[-1] if rows else None


def note(folder: RunFolder, event: str, plan: Plan, **more: Any) -> dict[str, Any]:
    """Adds a line on the plan to the ledger and returns it; a plan that the last line names already is not noted as edited again."""
    before = last_note(folder)
    if before and event != APPROVED and before["details"]["sha256"] == plan.sha256:
        return before
    details = {"sha256": plan.sha256, "moves": {arm.arm: moves_text(arm) for arm in plan.arms}, **more}
    if event == EDITED and before:
        details["before"] = before["details"]["sha256"]
    ledger.append(
        folder.path / "ledger.jsonl",
        event,
        details,
        actor=user_name(),
        key=ledger.key_from_environment(),
    )
    line = last_note(folder)
    assert line is not None
    return line


def approve_command(folder: RunFolder) -> str:
    """Returns what to type to approve the plan of a run."""
    return f'tunescope approve {shlex.quote(str(folder.path))} --by "YOUR NAME"'


def resume_command(folder: RunFolder, plan: Plan) -> str:
    """Returns what to type to go on with a run."""
    study = folder.read_json("status.json")["study"]
    config = shlex.quote(str(folder.path / "config.yaml"))
    if study == "tune":
        return f"tunescope tune {config} --arm {plan.arms[0].arm} --resume"
    if study == "quickstart":  # its settings are not in a file of the user's
        command = folder.read_json("status.json")["command"] or "tunescope quickstart"
        return command if "--resume" in command else f"{command} --resume"
    return f"tunescope {study} {config} --resume"


def when(line: dict[str, Any]) -> str:
    """Time of a ledger line, to the second."""
    return f"{line['time'][:19]}Z"


def estimated(folder: RunFolder) -> Callable[[str, Selection, float], Forecast]:
    """Returns a price for `refresh` that takes no steps: worked out from the calibration of the run."""
    calibration = Calibration.from_dict(folder.read_json(FORECAST)["calibration"])

    def price(arm: str, selection: Selection, evaluation_seconds: float) -> Forecast:
        return dataclasses.replace(calibration.estimate(arm, selection), evaluation_seconds=evaluation_seconds)

    return price


def _price_per_hour(folder: RunFolder) -> float:
    path = folder.path / "config.yaml"
    values, _, _ = plain.parse(path.read_text(encoding="utf-8"), str(path))
    return float(values["business"]["machine_cost_per_hour"])


def _moves(selection: Selection) -> tuple[object, ...]:
    return (selection.method, tuple(selection.layers), frozenset(selection.modules), selection.whole_model)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
