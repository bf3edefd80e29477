"""Tune on one task, test on all: with and without in-context examples, over several seeds; and which published findings appear."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope import config as settings
from tunescope import evaluate
from tunescope.config import Arm, Config
from tunescope.data import ChatFormat
from tunescope.errors import ConfigError
from tunescope.evaluate import Crossed, Measured
from tunescope.evaluate.findings import Mode, Shots
from tunescope.metrics import crossed_difference
from tunescope.models import load_tokenizer
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast, Role
from tunescope.studies.arms import tune_arm
from tunescope.studies.bench import TUNED, Bench, remove_scratch, test_groups
from tunescope.studies.conclude import write_samples
from tunescope.studies.demonstrations import encode_training
from tunescope.studies.inputs import encode_inputs, read_inputs, refuse
from tunescope.studies.machine import release_memory
from tunescope.studies.measure import measure_arm, read_scored
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.serving import check_serving
from tunescope.studies.setup import Checked, begin, check, choose_once

STUDY = "matrix"
RESULT = "matrix.json"
CHANGE = "weight_change.json"
_ROLES: tuple[Role, ...] = ("in_domain", "out_of_domain")
_ARMS: dict[Shots, str] = {"zero": "zero-shot", "few": "few-shot"}
_AT: dict[Mode, list[str]] = {"base": ["test"], "ft": [], "fticl": ["train", "test"], "half": []}
_SHOTS: dict[Mode, tuple[Shots, ...]] = {
    "base": ("zero", "few"),
    "ft": ("zero", "few"),
    "fticl": ("few",),
    "half": ("zero",),
}

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class _Model:
    """One model of the matrix: what it is tuned on, how, with which seed; each is a run folder of its own."""

    task: str
    mode: Mode
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return "base" if self.mode == "base" else f"{self.task}-{self.mode}-{self.seed}"


def run(
    config: Config,
    *,
    seeds: Sequence[int] = (42, 43),
    half: Sequence[str] = (),
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tunes a model per task with training data, per way (without and with in-context examples) and seed, and tests each on all tasks.

    A model tuned without examples is measured without and with them in the prompt, one tuned with them with them. Called again with the
    same settings the study goes on where it was interrupted.

    Args:
        config: the settings; every task needs `demonstrations`. The first tuned arm in `arms` says what moves; `seed` is replaced.
        seeds: of the order of the data and of the adapters.
        half: tasks that are also tuned on half of their examples and tested in-domain, for what more data brings.
        command: command line, for the record.
        progress: told what happens.

    Returns:
        What ``matrix.json`` in ``config.output_dir`` holds: cells, mean absolute changes of the weights, and the six findings.

    Raises:
        ConfigError: a task lacks demonstrations, there is no tuned arm or training data, a seed is given twice, or `half` names no task.
        TunescopeError: see `tunescope.errors`; what was done up to then is kept.
    """
    progress = progress or Silent()
    arm, models = _check(config, seeds, half), _models(config, seeds, half)
    for number, model in enumerate(models, 1):
        progress.note(f"{model.folder} ({number} of {len(models)})")
        _make(config, model, arm, command, progress)
    crossed = _read(config, models)
    found = {
        "model": config.model,
        "seeds": list(seeds),
        "families": {task: "classification" if kind else "generation" for task, kind in crossed.families.items()},
        "cells": _cells(crossed),
        "weight_change": [
            {"task": task, "mode": mode, "by_seed": list(values)} for (task, mode), values in crossed.moved.items()
        ],
        "findings": [dataclasses.asdict(finding) for finding in evaluate.check(crossed)],
    }
    RunFolder(config.output_dir).write_json(RESULT, found)
    return found


def preview(config: Config, *, seeds: Sequence[int] = (42, 43), half: Sequence[str] = ()) -> list[str]:
    """Returns a line per model: what it reads in tuning and how often it answers; needs the tokenizer, and tunes nothing.

    Raises:
        ConfigError: as `run`.
        DataError: the data has errors.
    """
    arm = _check(config, seeds, half)
    chat = ChatFormat(load_tokenizer(config.model, revision=config.revision))
    lines, tokens, known = [], 0, {}
    for model in _models(config, seeds, half):
        way = (model.task, model.mode)
        if way not in known:  # other seeds read other examples of the same lengths, about
            mine = _settings_of(config, model, arm)
            inputs = encode_inputs(mine, read_inputs(mine, personal=False), chat)
            refuse(inputs.report)
            rows = encode_training(mine, inputs.tasks, chat, inputs.train)
            asked = sum(len(group.examples) for group in test_groups(inputs)) * len(_SHOTS[model.mode])
            known[way] = mine.tuning.num_epochs * sum(map(len, rows)), len(rows), asked
        read, n, asked = known[way]
        tokens += read
        lines.append(f"{model.folder}: {n} training examples, {read:,} tokens to tune on, {asked} answers")
    return [*lines, f"{len(lines)} models, {tokens:,} tokens to tune on"]


def _models(config: Config, seeds: Sequence[int], half: Sequence[str]) -> list[_Model]:
    """The base, then seed by seed every task and way, and the halves last."""
    trained = [task.name for task in config.tasks if task.train]
    ways: tuple[Mode, ...] = ("ft", "fticl")
    models = [_Model("", "base", config.seed)]
    models += [_Model(task, mode, seed) for seed in seeds for task in trained for mode in ways]
    return models + [_Model(task, "half", seed) for seed in seeds for task in half]


def _check(config: Config, seeds: Sequence[int], half: Sequence[str]) -> str:
    trained = [task.name for task in config.tasks if task.train]
    problems = [
        f"task {task.name!r} has no demonstrations: tuning with in-context examples needs them, such as {{count: 2}}"
        for task in config.tasks
        if task.demonstrations is None
    ]
    if not seeds or len(set(seeds)) < len(seeds):
        problems.append(f"seeds: got {', '.join(map(str, seeds)) or 'none'}; give at least one, each once")
    if not trained:
        problems.append("no task has train data: the matrix tunes a model per task that has some")
    problems += [
        f"half: got {name!r}; allowed are the tasks with train data: {', '.join(trained)}"
        for name in half
        if name not in trained
    ]
    tuned = [arm for arm in config.arms if arm in TUNED and arm not in (Arm.RANDOM, Arm.TOP_THIRD)]
    if not tuned:
        problems.append("arms: the matrix tunes the first of selected, lora-all and full that is listed; list one")
    if problems:
        raise ConfigError(problems)
    return tuned[0].value


def _settings_of(config: Config, model: _Model, arm: str) -> Config:
    values = config.model_dump(mode="json")
    values |= {
        "guard": [],
        "seed": model.seed,
        "arms": [Arm.NOTHING.value, Arm.PROMPT.value] if model.mode == "base" else [arm],
        "output_dir": str(config.output_dir / model.folder),
    }
    for task in values["tasks"]:
        task["demonstrations"] = task["demonstrations"] | {"at": _AT[model.mode]}
        task["train"] = task["train"] if task["name"] == model.task else None
        task["paraphrases"] = []
    if model.mode == "base":  # the base is shown the rows of the test files: it needs no training data
        return Config.model_validate(values)
    if model.mode == "half":
        values["tasks"] = [task | {"out_of_domain": []} for task in values["tasks"] if task["name"] == model.task]
        stops = values["evaluation"]["task_stop"]
        values["evaluation"]["task_stop"] = {name: texts for name, texts in stops.items() if name == model.task}
        values["data"]["max_train_examples"] = _half(config, model)
    return Config.model_validate(values)


def _half(config: Config, model: _Model) -> int:
    most = config.data.max_train_examples
    if most is None:
        raise ConfigError(f"half: set data.max_train_examples, of which {model.task!r} gets half")
    return max(1, most // 2)


def _make(config: Config, model: _Model, arm: str, command: str, progress: Progress) -> None:
    """Tunes and measures one model; a finished folder is left alone."""
    mine = _settings_of(config, model, arm)
    text = settings.dump(mine)
    RunFolder.check_free(mine.output_dir, text, study=STUDY, resume=True)
    if RunFolder(mine.output_dir).has("samples.jsonl"):
        return
    checked = check(mine, progress)
    check_serving(mine, checked.chat, [Arm.NOTHING.value, Arm.PROMPT.value], knock=model.mode == "base")
    folder = RunFolder.create(mine.output_dir, text, study=STUDY, command=command, resume=True)
    with folder.locked():
        bench = begin(checked, folder, command, progress)
        arms = _base(bench, progress) if model.mode == "base" else _tuned(bench, checked, model, arm, progress)
        write_samples(bench, read_scored(bench, arms))
        remove_scratch(folder)
        folder.set_status("done", stage="done")


def _base(bench: Bench, progress: Progress) -> list[str]:
    arms = [arm.value for arm in bench.config.arms]
    for arm in arms:
        bench.run.set_status("running", stage=f"arm {arm}")
        measure_arm(bench, arm, Forecast(arm=arm), progress)
    return arms


def _tuned(bench: Bench, checked: Checked, model: _Model, arm: str, progress: Progress) -> list[str]:
    selection = choose_once(bench, checked.loaded, progress)[arm]
    release_memory()
    bench.run.set_status("running", stage=f"arm {arm}")
    cost = tune_arm(bench, arm, selection, progress)
    release_memory()
    weights = bench.run.path / "weights" / arm
    names = []
    for shots in _SHOTS[model.mode]:
        name = _ARMS[shots]
        bench.run.set_status("running", stage=f"arm {name}")
        measure_arm(_with_shots(bench, shots), name, cost, progress, weights=weights)
        release_memory()
        names.append(name)
    change = bench.run.read_json(f"arms/{names[0]}/measured.json")["weight_change"]
    bench.run.write_json(CHANGE, change | {"arm": arm, "tuning_seconds": cost.tuning_seconds, "tokens": cost.tokens})
    return names


def _with_shots(bench: Bench, shots: Shots) -> Bench:
    """The same bench with examples in the test prompts, or without; what is scored is the same."""
    at = ("test",) if shots == "few" else ()
    tasks = tuple(
        task.model_copy(
            update={"demonstrations": task.demonstrations and task.demonstrations.model_copy(update={"at": at})}
        )
        for task in bench.config.tasks
    )
    return dataclasses.replace(bench, config=bench.config.model_copy(update={"tasks": tasks}))


def _read(config: Config, models: Sequence[_Model]) -> Crossed:
    """Reads all folders back: the seeds of one way together, in their order."""
    rows: dict[tuple[Any, ...], list[dict[str, list[float]]]] = {}
    moved: dict[tuple[str, Mode], list[float]] = {}
    for model in models:
        folder = RunFolder(config.output_dir / model.folder)
        for key, values in _values(folder, model).items():
            rows.setdefault((model.task, model.mode, *key), []).append(values)
        if model.mode != "base" and (change := folder.read_json(CHANGE)["mean_abs"]) is not None:
            moved.setdefault((model.task, model.mode), []).append(change)

    def stack(found: Sequence[Mapping[str, list[float]]], name: str) -> Floats | None:
        return np.array([values[name] for values in found]) if found[0][name] else None

    measured = {
        key: Measured(np.array([v["scores"] for v in found]), stack(found, "collapsed"), stack(found, "unrelated"))
        for key, found in rows.items()
    }
    evaluation = config.evaluation
    chance = {"n_bootstrap": evaluation.n_bootstrap, "confidence": evaluation.confidence, "seed": config.seed}
    return Crossed({task.name: task.labels is not None for task in config.tasks}, measured, moved, settings=chance)


def _values(folder: RunFolder, model: _Model) -> dict[tuple[Shots, str, Role], dict[str, list[float]]]:
    names = (
        {Arm.NOTHING.value: "zero", Arm.PROMPT.value: "few"}
        if model.mode == "base"
        else {n: s for s, n in _ARMS.items()}
    )
    found: dict[Any, dict[str, list[float]]] = {}
    for row in folder.read_jsonl("samples.jsonl"):
        if row["role"] not in _ROLES:
            continue
        for arm, answer in row["answers"].items():
            place = found.setdefault(
                (names[arm], row["task"], row["role"]), {"scores": [], "collapsed": [], "unrelated": []}
            )
            place["scores"].append(answer["score"])
            if answer["probabilities"] is None:
                place["collapsed"].append(float("label_of_other_task" in answer["flags"]))
                place["unrelated"].append(float(bool(answer["flags"])))
    return found


def _cells(crossed: Crossed) -> list[dict[str, Any]]:
    """A row per model, way of asking, test task and role: mean over the seeds, difference to the base asked alike."""
    cells = []
    for (source, mode, shots, test, role), found in crossed.measured.items():
        base = crossed.measured["", "base", shots, test, role]
        cell: dict[str, Any] = {
            "tuned_on": source,
            "mode": mode,
            "shots": shots,
            "task": test,
            "role": role,
            "relation": "same" if source == test else "other",
            "n": int(found.scores.shape[1]),
            "value": float(found.scores.mean()),
            "by_seed": found.scores.mean(axis=1).tolist(),
            "collapse_rate": None if found.collapsed is None else float(found.collapsed.mean()),
            "unrelated_rate": None if found.unrelated is None else float(found.unrelated.mean()),
        }
        if mode != "base":
            key = (source, test)
            gap = crossed_difference({key: found.scores}, {key: base.scores}, **crossed.settings)
            cell |= {"difference": gap.value, "low": gap.low, "high": gap.high, "beyond_noise": gap.decides}
        cells.append(cell)
    return cells
