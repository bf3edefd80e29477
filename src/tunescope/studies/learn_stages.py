"""The stages of a stream: choose what comes back, tune, measure, keep; each goes on where a kill left it."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.config import Config
from tunescope.data import Example
from tunescope.runs.folder import RunFolder
from tunescope.runs.memory import Kept, Memory
from tunescope.runs.records import Forecast, Selection
from tunescope.studies.arms import tune_arm
from tunescope.studies.bench import Bench
from tunescope.studies.learn_bias import bias_rows
from tunescope.studies.learn_choose import Chooser, Replay, example_of
from tunescope.studies.learn_conclude import Learned
from tunescope.studies.learn_keep import keep_after
from tunescope.studies.learn_memory import not_withdrawn, write_kept
from tunescope.studies.learn_onto import Earlier
from tunescope.studies.learn_plan import digest, plan_rows, replayed_examples, write_plan
from tunescope.studies.learn_stage import give_mask, measuring_bench, remove_weights, tuning_bench, weights_before
from tunescope.studies.learn_stream import BASE, START, Stage, Stream
from tunescope.studies.machine import release_memory
from tunescope.studies.measure import measure_arm
from tunescope.studies.progress import Progress
from tunescope.studies.setup import record

_EARLIER = "arms/replay/earlier.json"


@dataclass(frozen=True)
class Study:
    """What all stages share.

    Attributes:
        bench: settings, data, base model and run folder.
        stream: which tasks at which stage.
        earlier: the run on which more is learned, or None.
        chooser: chooses what comes back.
        progress: told what happens.
    """

    bench: Bench
    stream: Stream
    earlier: Earlier | None
    chooser: Chooser
    progress: Progress

    @property
    def config(self) -> Config:
        """The settings."""
        return self.bench.config

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self.bench.run


def keep_earlier(study: Study, memory: Memory) -> None:
    """Puts the earlier tasks into the memory where the earlier run kept nothing but its training files."""
    if study.earlier is None or study.earlier.memory is not None or study.run.has(_EARLIER):
        return
    stage, tasks = _earlier_stage(study)
    learned = {name: not_withdrawn(memory, rows) for name, rows in tasks.items()}
    write_kept(memory, _kept(study, stage, memory.kept, learned), study.config.replay)
    study.run.write_json(_EARLIER, {"tasks": list(learned)})


def measure_before(study: Study) -> tuple[list[tuple[str, tuple[str, ...]]], list[Forecast]]:
    """Measures the model before the first stage, where anything is compared with it.

    Returns:
        The row of the score matrix as arm and tasks, and its cost; nothing where only the tasks seen are measured, and none was.
    """
    stream, what = study.stream, study.config.replay.evaluate
    if not stream.earlier and what == "seen":
        return [], []
    arm, tasks = START if stream.earlier else BASE, stream.measured(-1, what)
    weights = study.earlier.weights if study.earlier is not None else None
    bench = measuring_bench(study.bench, tasks)
    cost = measure_arm(bench, arm, Forecast(arm=arm), study.progress, weights=weights)
    release_memory()
    return [(arm, tasks)], [cost]


def run_stage(study: Study, memory: Memory, stage: Stage, arm: str, selection: Selection) -> Learned:
    """Chooses, tunes, measures and keeps; repeated after a kill it goes on where it was.

    Args:
        study: what all stages share.
        memory: what is kept; brought up to date.
        stage: the stage.
        arm: whose mask is used for sparse entries.
        selection: what moves.
    """
    run, done = study.run, f"arms/replay/{stage.arm}.done.json"
    current = _current(study, memory, stage)
    plan = _chosen(study, memory, stage, current)
    found = Replay.from_dict(plan["replay"])
    if not run.has(done):
        cost = _tuned_and_measured(study, memory, stage, arm, selection, current, found)
        write_kept(memory, _kept(study, stage, memory.kept, current), study.config.replay)
        counts = count_by_task(memory.kept)
        record(run, "memory kept", {"stage": stage.arm, "examples": counts, "memory": memory.digest})
        run.write_json(done, {"cost": cost.to_dict(), "kept": counts})
    place = study.stream.stages.index(stage)
    if place:
        remove_weights(run, study.stream.stages[place - 1].arm)
    saved = run.read_json(done)
    n_train = sum(len(rows) for rows in current.values())
    return Learned(stage, found, n_train, saved["kept"], Forecast.from_dict(saved["cost"]), plan["bias"])


def plan_stages(study: Study) -> None:
    """Writes the replay plan of all stages; the memory is only worked out, not written."""
    run, policy = study.run, study.config.replay.policy
    tasks = {task.name: list(task.train) for task in study.bench.inputs.tasks}
    kept: list[Kept] = []
    if study.earlier is not None and study.earlier.memory is not None:
        kept = list(Memory.open(study.earlier.memory).kept)
    elif study.earlier is not None:
        kept = _kept(study, *_before_first(study))
    for stage in study.stream.stages:
        current = {name: tasks[name] for name in stage.learns}
        found = study.chooser.choose(stage, [e for rows in current.values() for e in rows], kept)
        write_plan(run, plan_rows(stage, found, kept, policy), stage, found, policy)
        kept = _kept(study, stage, kept, current)


def count_by_task(kept: Sequence[Kept]) -> dict[str, int]:
    """Returns task -> examples.

    Example:
        >>> one = Kept("desk", "1", {"instruction": "", "input": "", "targets": []}, "random", "stage-01", {})
        >>> count_by_task([one, one])
        {'desk': 2}
    """
    return dict(Counter(one.task for one in kept))


def _earlier_stage(study: Study) -> tuple[Stage, dict[str, list[Example]]]:
    """The tasks of an earlier run without a memory, as if one stage had learned them."""
    tasks = {task.name: list(task.train) for task in study.bench.inputs.tasks if task.name in study.stream.earlier}
    return Stage(START, tuple(tasks)), tasks


def _before_first(study: Study) -> tuple[Stage, tuple[Kept, ...], dict[str, list[Example]]]:
    stage, tasks = _earlier_stage(study)
    return stage, (), tasks


def _tuned_and_measured(
    study: Study,
    memory: Memory,
    stage: Stage,
    arm: str,
    selection: Selection,
    current: Mapping[str, Sequence[Example]],
    found: Replay,
) -> Forecast:
    measured = f"arms/{stage.arm}/measured.json"
    if study.run.has(measured):  # killed while the memory was brought up to date
        return Forecast.from_dict(study.run.read_json(measured)["cost"])
    bench = study.bench
    examples: dict[str, dict[str, Example]] = {}
    for one in memory.kept:
        examples.setdefault(one.task, {})[one.id] = example_of(one)
    tuned = tuning_bench(_learning(bench, current), stage.learns, replayed_examples(found, examples))
    give_mask(bench, arm, selection, stage.arm)
    start = weights_before(bench, study.stream, stage, study.earlier)
    cost = tune_arm(tuned, stage.arm, selection, study.progress, start=start)
    release_memory()
    place = study.stream.stages.index(stage)
    what = study.stream.measured(place, study.config.replay.evaluate)
    answered = measuring_bench(bench, what, timed=stage == study.stream.stages[-1])
    cost = measure_arm(answered, stage.arm, cost, study.progress, weights=study.run.path / "weights" / stage.arm)
    release_memory()
    return cost


def _chosen(study: Study, memory: Memory, stage: Stage, current: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """What a stage repeats; chosen anew where examples were withdrawn since, and then the stage begins again."""
    run, name = study.run, f"arms/replay/{stage.arm}.json"
    if run.has(f"arms/{stage.arm}/measured.json"):  # what it is made of is done
        return run.read_json(name)
    ids = [(task, e.id) for task, rows in current.items() for e in rows]
    state = hashlib.sha256(f"{memory.digest} {ids}".encode("utf-8", "surrogatepass")).hexdigest()
    if run.has(name):
        saved = run.read_json(name)
        if saved["state"] == state:
            return saved
        study.progress.note(f"{stage.arm}: examples were withdrawn since it began, so it begins again without them")
        _begin_again(run, stage)
    found = study.chooser.choose(stage, [e for rows in current.values() for e in rows], memory.kept)
    study.chooser.release()
    pool = [example_of(one) for one in memory.kept]
    chosen = {(one.task, one.id) for one in found.chosen}
    bias = bias_rows(pool, chosen, study.bench.inputs.tasks) if chosen else []
    policy = study.config.replay.policy
    write_plan(run, plan_rows(stage, found, memory.kept, policy), stage, found, policy)
    run.write_json(name, {"state": state, "sha256": digest(found), "replay": found.to_dict(), "bias": bias})
    return run.read_json(name)


def _begin_again(run: RunFolder, stage: Stage) -> None:
    """Removes what an unfinished stage has done."""
    shutil.rmtree(run.path / "arms" / stage.arm, ignore_errors=True)
    remove_weights(run, stage.arm)
    run.write_jsonl("steps.jsonl", [row for row in run.read_jsonl("steps.jsonl") if row["arm"] != stage.arm])


def _current(study: Study, memory: Memory, stage: Stage) -> dict[str, list[Example]]:
    """What a stage learns: the training examples of its tasks without those that were withdrawn."""
    tasks = {task.name: task for task in study.bench.inputs.tasks}
    return {name: not_withdrawn(memory, tasks[name].train) for name in stage.learns}


def _learning(bench: Bench, current: Mapping[str, Sequence[Example]]) -> Bench:
    """The bench with what a stage really learns of its tasks."""
    tasks = tuple(
        dataclasses.replace(task, train=tuple(current[task.name])) if task.name in current else task
        for task in bench.inputs.tasks
    )
    return dataclasses.replace(bench, inputs=dataclasses.replace(bench.inputs, tasks=tasks))


def _kept(study: Study, stage: Stage, kept: Sequence[Kept], learned: Mapping[str, Sequence[Example]]) -> list[Kept]:
    settings, seed = study.config.replay, study.config.seed
    found = keep_after(stage, kept, learned, settings=settings, seed=seed, chooser=study.chooser)
    study.chooser.release()
    return found
