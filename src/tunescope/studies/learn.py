"""Learn task after task with one set of weights, repeating what the policy chooses; measure what is kept and what is lost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunescope import config as settings
from tunescope.config import Config
from tunescope.errors import IntegrityError
from tunescope.runs.folder import RunFolder
from tunescope.runs.memory import Memory
from tunescope.runs.records import Forecast, Selection
from tunescope.studies.bench import remove_scratch
from tunescope.studies.conclude import write_costs
from tunescope.studies.learn_choose import NEEDS_TAGS, TAGS, Chooser, make_tagger
from tunescope.studies.learn_conclude import write_stream
from tunescope.studies.learn_experts import experts
from tunescope.studies.learn_forecast import forecast_stream
from tunescope.studies.learn_memory import open_memory, with_memory
from tunescope.studies.learn_onto import Earlier, read_earlier, refuse_other_base, with_earlier
from tunescope.studies.learn_stage import arms_of, what_moves
from tunescope.studies.learn_stages import Study, count_by_task, keep_earlier, measure_before, plan_stages, run_stage
from tunescope.studies.learn_stream import BASE, START, Stream, make_stream, refuse_unfit_stream
from tunescope.studies.machine import release_memory
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.serving import check_serving
from tunescope.studies.setup import Checked, begin, check, finished, record, settings_text

STUDY = "learn"


def run(
    config: Config,
    *,
    command: str = "",
    overrides: Sequence[str] = (),
    resume: bool = False,
    plan_only: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Runs the stream in ``config.output_dir``; continues there with ``resume=True``.

    Args:
        config: the settings; `arms` is ignored, ``replay.arm`` says what moves.
        command: command line, for the record.
        overrides: settings replaced on the command line, for the ledger.
        resume: continue an interrupted run, or tune what was only planned.
        plan_only: write ``replay_plan.jsonl`` for all stages and tune nothing.
        progress: told what happens.

    Returns:
        The run folder; the report is built from it by `tunescope.report`.

    Raises:
        ConfigError: a setting does not fit the tasks, or the run of ``replay.onto``.
        ModelError: the run of ``replay.onto`` has another base model.
        IntegrityError: data or weights of an earlier stage changed.
        TunescopeError: see `tunescope.errors`; what was done up to then is kept.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    text = settings_text(config, resume=resume)
    RunFolder.check_free(config.output_dir, text, study=STUDY, resume=resume)
    if resume and (whole := finished(config.output_dir)):
        return whole
    checked, stream, earlier = _check(config, progress)
    if not plan_only:
        check_serving(config, checked.chat, [BASE, *([START] if earlier else [])])
    folder = RunFolder.create(config.output_dir, text, study=STUDY, command=command, resume=resume)
    with folder.locked():
        bench = begin(checked, folder, command, progress, overrides=overrides)
        _take_over(folder, earlier)
        study = Study(bench, stream, earlier, Chooser(bench, progress), progress)
        if plan_only:
            del checked
            plan_stages(study)
            folder.set_status("done", stage="plan")
            return folder
        arm, selection = what_moves(bench, checked.loaded, stream, earlier, progress)
        del checked
        release_memory()
        memory = open_memory(bench, earlier)
        keep_earlier(study, memory)
        study = replace(study, bench=with_memory(bench, memory, stream.earlier))
        forecasts = _forecast(study, arm, selection, memory)
        preparation = time.perf_counter() - started
        measured, costs = measure_before(study)
        learned = []
        for place, stage in enumerate(stream.stages):
            folder.set_status("running", stage=stage.arm)
            learned.append(run_stage(study, memory, stage, arm, selection))
            measured.append((stage.arm, stream.measured(place, config.replay.evaluate)))
            costs.append(learned[-1].cost)
        new = [name for stage in stream.stages for name in stage.learns]
        found = experts(bench, arm, selection, new, progress) if config.replay.experts else []
        folder.set_status("running", stage="measures")
        progress.stage("compare the stages")
        write_stream(
            bench,
            stream,
            measured,
            learned,
            earlier=earlier,
            experts=found,
            memory=_in_numbers(memory),
            rests_on=study.chooser.rests_on,
        )
        write_costs(bench, forecasts, costs, preparation)
        remove_scratch(folder)
        folder.set_status("done", stage="done")
    return folder


def preview(config: Config, progress: Progress | None = None) -> tuple[list[Forecast], dict[str, Selection]]:
    """What `run` would do and cost; keeps nothing."""
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(prefix="tunescope-dry-run-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", settings.dump(config), study="dry-run", command="")
        checked, stream, earlier = _check(config, progress)
        bench = begin(checked, folder, "", progress)
        arm, selection = what_moves(bench, checked.loaded, stream, earlier, progress)
        kept = Memory.open(earlier.memory).kept if earlier is not None and earlier.memory is not None else ()
        forecasts = forecast_stream(bench, stream, arm, selection, count_by_task(kept), progress)
        return forecasts, {stage.arm: selection for stage in stream.stages}


def _check(config: Config, progress: Progress) -> tuple[Checked, Stream, Earlier | None]:
    """Everything that can be refused before a run folder is made."""
    earlier = read_earlier(config)
    whole = with_earlier(config, earlier).model_copy(update={"arms": arms_of(config, earlier)})
    stream = make_stream(whole, [task.name for task in earlier.tasks] if earlier is not None else ())
    checked = check(whole, progress)
    if earlier is not None:
        info = checked.loaded.info
        refuse_other_base(earlier, info.sha256, info.name)
        if earlier.memory is not None:
            Memory.open(earlier.memory, base_model={"sha256": info.sha256})
    refuse_unfit_stream(whole, checked.inputs, stream)
    replay = whole.replay
    if replay.tags.tagger == "file" and replay.policy in NEEDS_TAGS:  # a missing row is found now and not at stage 12
        make_tagger(replay.tags, Path())(sorted({e.instruction for e in checked.inputs.train}))
    most, n_tasks = replay.memory_examples, len(stream.tasks)
    if most is not None and most < n_tasks and replay.policy != "none":
        progress.note(
            f"replay.memory_examples {most} is below the number of tasks, {n_tasks}: once more than {most} are learned, some keep no example and "
            f"are never repeated; {n_tasks} or more keeps one of each"
        )
    return checked, stream, earlier


def _take_over(folder: RunFolder, earlier: Earlier | None) -> None:
    """Notes on what more is learned, which on resume must be the same, and takes the tags over that were paid for there."""
    if earlier is None:
        return
    facts = earlier.facts
    before = next((r["details"] for r in folder.read_jsonl("ledger.jsonl") if r["event"] == "learns onto"), facts)
    if before != facts:
        raise IntegrityError(
            f"replay.onto {earlier.run.path}: its weights changed since this run began; put them back, or start again in another output_dir"
        )
    record(folder, "learns onto", facts)
    if earlier.run.has(TAGS) and not folder.has(TAGS):
        folder.write_jsonl(TAGS, earlier.run.read_jsonl(TAGS))


def _forecast(study: Study, arm: str, selection: Selection, memory: Memory) -> list[Forecast]:
    found = forecast_stream(study.bench, study.stream, arm, selection, count_by_task(memory.kept), study.progress)
    study.progress.plan(
        {f"{f.arm}: tune": f.tuning_seconds for f in found if f.tuning_seconds}
        | {f"{f.arm}: measure": f.evaluation_seconds for f in found}
    )
    return found


def _in_numbers(memory: Memory) -> dict[str, Any]:
    return {
        "examples": len(memory.kept),
        "bytes": (memory.path / "examples.jsonl").stat().st_size,
        "budget_examples": memory.budget_examples,
        "budget_bytes": memory.budget_bytes,
        "withdrawn": len(memory.withdrawn),
        "by_task": count_by_task(memory.kept),
        "sha256": memory.digest,
    }
