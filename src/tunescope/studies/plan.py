"""Plan what is going to be tuned, write it down for a person to see and change, and tune only what the plan then says."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunescope import config as settings
from tunescope import models, select
from tunescope.config import Arm, Config
from tunescope.errors import ConfigError, IntegrityError, RunError
from tunescope.runs.folder import RunFolder
from tunescope.runs.plan import Plan, PlannedArm
from tunescope.runs.records import Forecast, LayerScores, Selection
from tunescope.studies import approve, plan_folder
from tunescope.studies.bench import TUNED, Bench
from tunescope.studies.choose import choose
from tunescope.studies.forecast import FORECAST, forecast_again, forecast_and_calibrate, forecast_once
from tunescope.studies.machine import release_memory
from tunescope.studies.map_rows import not_comparable
from tunescope.studies.plan_folder import EDITED, IN_USE, PLAN, PROPOSAL, PROPOSED
from tunescope.studies.prices import Calibration, alternatives, price_of
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.setup import begin, check, choose_once, finished, settings_text


@dataclass(frozen=True)
class Settled:
    """What a run does, after a person had their say.

    Attributes:
        arms: names of all arms, without those that were deleted from the plan.
        selections: arm -> what it moves.
        forecasts: one per arm.
        preparation_seconds: until the first forecast was ready.
    """

    arms: tuple[str, ...]
    selections: Mapping[str, Selection]
    forecasts: tuple[Forecast, ...]
    preparation_seconds: float


def run(
    config: Config,
    arm: str | None = None,
    *,
    command: str = "",
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[RunFolder, Plan]:
    """Makes the run folder of a proof of concept, or of the tuning of one arm, as far as its plan.

    Args:
        config: the settings.
        arm: plan `tunescope tune --arm` instead of the whole proof of concept.
        command: command line, for the record.
        overrides: settings replaced on the command line, for the ledger.
        resume: continue an interrupted run; where there is a plan already, look at it again.
        progress: told what happens.

    Returns:
        The run folder and the plan, edits included.

    Raises:
        ConfigError: none of the arms tunes anything.
        IntegrityError: the plan was changed after it was approved, or after tuning began with it.
        TunescopeError: see `tunescope.errors`.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    config, study = _for_study(config, arm)
    text = settings_text(config, resume=resume)
    RunFolder.check_free(config.output_dir, text, study=study, resume=resume)
    folder = RunFolder(config.output_dir)
    if resume and (finished(config.output_dir) or (folder.has(PROPOSAL) and plan_folder.last_note(folder))):
        return folder, look(folder, progress.note)
    checked = check(config, progress, needs_test=arm is None)
    folder = RunFolder.create(config.output_dir, text, study=study, command=command, resume=resume)
    with folder.locked():
        bench = begin(checked, folder, command, progress, overrides=overrides)
        selections = choose_once(bench, checked.loaded, progress)
        del checked
        release_memory()
        folder.set_status("running", stage="plan")
        arms = [a.value for a in config.arms] if arm is None else [arm]
        forecast_once(bench, arms, selections, progress, started=started)
        _propose(bench, arms, selections)
        folder.set_status("awaiting-approval" if config.approval == "required" else "done", stage="plan")
    return folder, look(folder)


def preview(
    config: Config, arm: str | None = None, progress: Progress | None = None
) -> tuple[list[Forecast], dict[str, Selection], Plan]:
    """What `run` would write; keeps nothing."""
    progress = progress or Silent()
    config, study = _for_study(config, arm)
    with tempfile.TemporaryDirectory(prefix="tunescope-dry-run-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", settings.dump(config), study=study, command="")
        checked = check(config, progress, needs_test=arm is None)
        bench = begin(checked, folder, "", progress)
        choice = choose(bench, checked.loaded, progress)
        selections = choice.selections
        arms = [a.value for a in config.arms] if arm is None else [arm]
        forecasts, calibration = forecast_and_calibrate(bench, arms, selections, progress)
        assert calibration is not None  # _for_study refuses settings that tune nothing
        planned = {a: selections[a] for a in arms if a in selections}
        over_all = next((s for s in choice.scores if s.task == "*"), None)
        return (
            forecasts,
            planned,
            make_plan(config, planned, forecasts, calibration, over_all, plan_folder.basis(folder)),
        )


def look(folder: RunFolder, note: Callable[[str], None] = lambda line: None) -> Plan:
    """Returns the plan of a run as it stands in the file, with the numbers that go with its edits; changes nothing.

    Args:
        folder: the run.
        note: told about alternatives that cannot be read.

    Raises:
        IntegrityError: it was changed after it was approved, or after tuning began with it.
        RunError: it cannot be tuned; see `read_plan`.
    """
    if not folder.has(PROPOSAL):  # a finished run keeps the plan and not the scratch that it was made from
        raise RunError(
            f"{folder.path}: the run is done, its plan cannot be changed any more; it is in {folder.path / PLAN}"
        )
    proposal, current, line = approve.read_sealed(folder, note)
    if line:
        return dataclasses.replace(current, state="approved")
    return plan_folder.refresh(folder, proposal, current, plan_folder.estimated(folder))[0]


def next_steps(folder: RunFolder, plan: Plan, *, required: bool) -> list[str]:
    """Returns what a person does next, in words and commands.

    Args:
        folder: the run.
        plan: its plan.
        required: whether it has to be approved first.
    """
    steps = [] if plan.state == "approved" else [f"read {folder.path / PLAN}; edit it if you like"]
    if required and plan.state != "approved":
        steps.append(plan_folder.approve_command(folder))
    return [*steps, plan_folder.resume_command(folder, plan)]


def settle(
    bench: Bench,
    arms: Sequence[str],
    selections: Mapping[str, Selection],
    progress: Progress,
    *,
    started: float,
) -> Settled:
    """Writes the plan, or reads what a person made of it, and returns what may be tuned now.

    Args:
        bench: what all arms share.
        arms: all arms of the study.
        selections: arm -> what it moves, as chosen.
        progress: told about the forecast.
        started: ``time.perf_counter`` at the start of the run.

    Raises:
        ApprovalError: the settings want an approval, and nobody approved.
        IntegrityError: the plan was changed after it was approved, or after tuning began with it.
        RunError: the plan cannot be tuned; see `read_plan`.
    """
    folder = bench.run
    forecasts, preparation = forecast_once(bench, arms, selections, progress, started=started)
    if not any(arm in selections for arm in arms):
        return Settled(tuple(arms), {}, tuple(forecasts), preparation)
    _propose(bench, arms, selections)
    approve.gate(folder, required=bench.config.approval == "required")
    proposal, current, line = approve.read_sealed(folder, progress.note)
    if line is None:
        current = _take_edits(bench, proposal, current)
    elif current.state != "approved":  # killed after the ledger had it
        plan_folder.write_approved(folder, current)
    folder.write_json(IN_USE, {"sha256": current.sha256})
    kept = tuple(arm for arm in arms if arm not in TUNED or current.arm(arm))
    chosen = _chosen(folder, current)
    by_arm = {row["arm"]: Forecast.from_dict(row) for row in folder.read_json(FORECAST)["forecast"]}
    return Settled(kept, chosen, tuple(by_arm[arm] for arm in kept), preparation)


def make_plan(
    config: Config,
    selections: Mapping[str, Selection],
    forecasts: Sequence[Forecast],
    calibration: Calibration,
    scores: LayerScores | None,
    rests_on: Mapping[str, str],
) -> Plan:
    """Returns the plan that is proposed.

    Args:
        config: the settings.
        selections: tuned arm -> what it moves.
        forecasts: of all arms.
        calibration: to price the alternatives.
        scores: of the blocks, over all tasks; None where nothing was scored.
        rests_on: see `Plan`.
    """
    by_arm = {f.arm: f for f in forecasts}
    price = config.business.machine_cost_per_hour
    scored = dict(zip(scores.layers, scores.values, strict=True)) if scores else {}
    arms = [
        PlannedArm(
            arm=arm,
            why=selection.why,
            method=selection.method,
            layers=tuple(selection.layers),
            modules=tuple(part for part in models.PARTS if part in selection.modules),
            whole_model=selection.whole_model,
            matrices=tuple(selection.matrices),
            mask_sha256=selection.mask_sha256,
            trainable_parameters=by_arm[arm].trainable_parameters,
            scores={b: float(f"{scored[b]:.4g}") for b in selection.layers} if scored and arm == Arm.SELECTED else {},
            forecast=price_of(by_arm[arm], price, measured=True),
        )
        for arm, selection in selections.items()
    ]
    measured = {arm: (selection, by_arm[arm]) for arm, selection in selections.items()}
    first = next(iter(selections.values()))
    if scores is not None and scores.name == "layer_map":
        scores = select.put_last(scores, not_comparable(config.map.mode, config.map.states))
    others = alternatives(calibration, first, scores, measured, config.tuning.target_modules, price)
    state = "proposed" if config.approval == "required" else "not required"
    return Plan(tuple(arms), others, dict(rests_on), config.business.currency, state)  # type: ignore[arg-type]


def _propose(bench: Bench, arms: Sequence[str], selections: Mapping[str, Selection]) -> None:
    """Writes what is not there yet: the proposal, ``plan.yaml``, the line in the ledger; a kill between two leaves the rest to do."""
    folder = bench.run
    if folder.has(PROPOSAL):
        proposal = Plan.from_dict(folder.read_json(PROPOSAL)["plan"])
    else:
        saved = folder.read_json(FORECAST)
        proposal = make_plan(
            bench.config,
            {arm: selections[arm] for arm in arms if arm in selections},
            [Forecast.from_dict(row) for row in saved["forecast"]],
            Calibration.from_dict(saved["calibration"]),
            next(iter(plan_folder.all_task_scores(folder)), None),
            plan_folder.basis(folder),
        )
        folder.write_json(PROPOSAL, {"plan": proposal.to_dict()})
    if not folder.has(PLAN):
        if line := plan_folder.last_note(folder, plan_folder.APPROVED):
            raise IntegrityError(
                f"{folder.path / PLAN}: is missing, though {line['details']['by']} approved it; put it back, or start again in another "
                "output_dir"
            )
        plan_folder.write_plan(folder, proposal)
    if plan_folder.last_note(folder) is None:
        plan_folder.note(folder, PROPOSED, proposal, approval=bench.config.approval.replace("_", " "))


def _take_edits(bench: Bench, proposal: Plan, current: Plan) -> Plan:
    """Prices what a person changed with real steps, and notes the edit in the ledger."""
    folder = bench.run

    def price(arm: str, selection: Selection, evaluation_seconds: float) -> Forecast:
        return forecast_again(bench, arm, selection, evaluation_seconds)

    plan, forecasts = plan_folder.refresh(folder, proposal, current, price)
    if forecasts != folder.read_json(FORECAST):
        folder.write_json(FORECAST, forecasts)
    plan = dataclasses.replace(plan, state=proposal.state)
    if plan != current:
        plan_folder.write_plan(folder, plan)
    plan_folder.note(folder, EDITED, plan)
    return plan


def _chosen(folder: RunFolder, plan: Plan) -> dict[str, Selection]:
    """What each arm of the plan moves; ``layers.json`` follows the plan, and keeps what was counted since."""
    layers = folder.read_json("layers.json")
    before = layers["selections"]
    chosen: dict[str, Selection] = {}
    for arm in plan.arms:
        old, new = Selection.from_dict(before[arm.arm]), arm.selection()
        if old.mask_sha256 != arm.mask_sha256:
            raise IntegrityError(
                f"{folder.path / 'layers.json'}: the mask of {arm.arm} is not the one of the plan; put it back, or start again in another "
                "output_dir"
            )
        same = (tuple(old.layers), set(old.modules)) == (new.layers, set(new.modules))
        chosen[arm.arm] = dataclasses.replace(old, why=new.why) if same or arm.fixed else new
    selections = {arm: selection.to_dict() for arm, selection in chosen.items()}
    if selections != before:
        folder.write_json("layers.json", {**layers, "selections": selections})
    return chosen


def _for_study(config: Config, arm: str | None) -> tuple[Config, str]:
    """The settings and the study that goes on with this plan."""
    if arm is not None:
        return only(config, arm), "tune"
    if not any(a in TUNED for a in config.arms):
        raise ConfigError(
            f"arms {', '.join(config.arms)}: none of them tunes anything, so there is nothing to plan; add selected, random, top-third, "
            "lora-all or full"
        )
    return config, "poc"


def only(config: Config, arm: str) -> Config:
    """Returns the settings for tuning one arm alone.

    Raises:
        ConfigError: the arm is not one that is tuned.
    """
    if arm not in [a.value for a in TUNED]:
        raise ConfigError(f"--arm {arm!r}: is not tuned; allowed: {', '.join(a.value for a in TUNED)}")
    # The controls take their budget from `selected`, and `random` must differ from it: it has to be chosen as well.
    arms = (Arm.SELECTED, Arm(arm)) if arm in (Arm.RANDOM, Arm.TOP_THIRD) else (Arm(arm),)
    return config.model_copy(update={"arms": arms})
