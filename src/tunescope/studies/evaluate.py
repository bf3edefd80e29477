"""Measure saved weights beside the base model on the tasks of a config."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunescope import config as settings
from tunescope import engine, models
from tunescope.config import Arm, Config
from tunescope.errors import ConfigError, IntegrityError
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast, Selection
from tunescope.studies.bench import remove_scratch
from tunescope.studies.choose import Choice
from tunescope.studies.conclude import write_costs, write_results, write_verdict
from tunescope.studies.demonstrations import shown_at
from tunescope.studies.forecast import forecast_arms, forecast_once
from tunescope.studies.generalise import shown_in_tuning
from tunescope.studies.harness import check_tasks, note_tasks, run_harness, write_harness
from tunescope.studies.machine import release_memory
from tunescope.studies.measure import measure_arm
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.serving import check_serving
from tunescope.studies.setup import begin, check, finished, record, settings_text, write_layers

_MEASURES = "weights to measure"


def run(
    config: Config,
    weights: Sequence[Path] = (),
    *,
    arms: Mapping[str, Path] | None = None,
    lm_eval: Sequence[Path] = (),
    command: str = "",
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Measures the untuned arms of the config and every given folder of weights, on the same examples.

    Args:
        config: the settings; of `arms` only the untuned ones count.
        weights: folders as tuning wrote them (``runs/x/weights/selected``), or any PEFT adapter of the same base.
        arms: further folders by the name that they get.
        lm_eval: task files of lm-evaluation-harness that every arm is asked as well.
        command: command line, for the record.
        overrides: settings replaced on the command line, for the ledger.
        resume: continue an interrupted run.
        progress: told what happens.

    Raises:
        ConfigError: two folders have the same name, or a task file cannot be used.
        IntegrityError: on resume, data or weights are not those of the first time.
        TunescopeError: see `tunescope.errors`.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    named = name_arms(weights, arms)
    check_tasks(lm_eval)
    config = _untuned_only(config)
    text, study = settings_text(config, resume=resume), "evaluate"
    RunFolder.check_free(config.output_dir, text, study=study, resume=resume)
    measured = {
        name: {"path": str(path), "sha256": {p.name: models.sha256_of(p) for p in sorted(path.glob("*.safetensors"))}}
        for name, path in named.items()
    }
    _refuse_other_weights(RunFolder(config.output_dir), measured)
    if resume and (whole := finished(config.output_dir)):
        return whole
    checked = check(config, progress)
    measuring = [arm.value for arm in config.arms] + list(named)
    check_serving(config, checked.chat, measuring)
    for path in named.values():
        if unknown := engine.check_fits(checked.loaded, path):
            progress.note(unknown)
    folder = RunFolder.create(config.output_dir, text, study=study, command=command, resume=resume)
    with folder.locked():
        bench = begin(checked, folder, command, progress, overrides=overrides)
        for note in _asked_otherwise(config, named):
            progress.note(note)
        forecasts, preparation = forecast_once(bench, measuring, {}, progress, started=started)
        progress.plan({f"{f.arm}: measure": f.evaluation_seconds for f in forecasts})
        record(folder, _MEASURES, measured)
        note_tasks(folder, lm_eval)
        write_layers(folder, Choice([], {}))
        del checked
        release_memory()
        costs = []
        for arm in measuring:
            folder.set_status("running", stage=f"arm {arm}")
            cost = Forecast(arm=arm, adapter_bytes=engine.weight_bytes(named[arm]) if arm in named else 0)
            costs.append(measure_arm(bench, arm, cost, progress, weights=named.get(arm)))
            release_memory()
            run_harness(bench, arm, named.get(arm), lm_eval, progress)
            release_memory()
        scored = write_results(bench, measuring, named)
        write_harness(bench, measuring, lm_eval)
        write_verdict(bench, scored, costs)
        write_costs(bench, forecasts, costs, preparation)
        remove_scratch(folder)
        folder.set_status("done", stage="done")
    return folder


def preview(
    config: Config,
    weights: Sequence[Path],
    progress: Progress | None = None,
    *,
    arms: Mapping[str, Path] | None = None,
) -> tuple[list[Forecast], dict[str, Selection]]:
    """What `run` would cost, tasks of lm-evaluation-harness left out; keeps nothing."""
    progress = progress or Silent()
    named = name_arms(weights, arms)
    config = _untuned_only(config)
    with tempfile.TemporaryDirectory(prefix="tunescope-dry-run-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", settings.dump(config), study="dry-run", command="")
        checked = check(config, progress)
        check_serving(config, checked.chat, [arm.value for arm in config.arms] + list(named), knock=False)
        for path in named.values():
            if unknown := engine.check_fits(checked.loaded, path):
                progress.note(unknown)
        bench = begin(checked, folder, "", progress)
        return forecast_arms(bench, [arm.value for arm in config.arms] + list(named), {}, progress), {}


def name_arms(weights: Sequence[Path], arms: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Returns arm name -> folder: the name that was given, else the folder's own, with the run's in front where two are alike.

    Args:
        weights: folders without a name.
        arms: name -> folder.

    Raises:
        ConfigError: a folder does not exist, a name cannot be one of an arm, or two have the same name.
    """
    given = dict(arms or {})
    problems = [f"--weights {path}: no such folder" for path in weights if not path.is_dir()]
    problems += [f"--arm {name}={path}: no such folder" for name, path in given.items() if not path.is_dir()]
    problems += [
        f"--arm {name}={path}: the name may hold letters, digits, dots, hyphens and underscores, and not be nothing or prompt"
        for name, path in given.items()
        if not re.fullmatch(r"[\w][\w.\-]*", name) or name in (Arm.NOTHING, Arm.PROMPT)
    ]
    plain = [path.resolve().name for path in weights]
    named: dict[str, Path] = {name: path.resolve() for name, path in given.items()}
    for path, name in zip(weights, plain, strict=True):
        full = path.resolve()
        wanted = (
            name
            if plain.count(name) == 1 and name not in (Arm.NOTHING, Arm.PROMPT)
            else f"{full.parent.parent.name}-{name}"
        )
        wanted = re.sub(r"[^\w.\-]", "_", wanted)
        if wanted in named:
            problems.append(f"--weights {path}: a second arm named {wanted!r}; give each folder once")
        named[wanted] = full
    if problems:
        raise ConfigError(problems)
    return named


def _asked_otherwise(config: Config, named: Mapping[str, Path]) -> list[str]:
    """What a reader should know of arms that were tuned with examples in the prompt and are asked without."""
    return [
        f"{name}: in tuning {count} finished examples stood before each prompt of {task}, and the settings show none at test; set "
        f"demonstrations of the task (at: [test]) to ask as it was tuned"
        for name, path in named.items()
        for task, count in shown_in_tuning(path).items()
        if any(t.name == task for t in config.tasks) and not shown_at(config, task, "test")
    ]


def _refuse_other_weights(folder: RunFolder, measured: dict[str, Any]) -> None:
    """Stops a resume with weights that are not those of the first time; the settings do not name them, the ledger does."""
    before = next((row["details"] for row in folder.read_jsonl("ledger.jsonl") if row["event"] == _MEASURES), measured)
    if before != measured:
        shown = ", ".join(str(weights["path"]) for weights in before.values()) or "none"
        raise IntegrityError(
            f"{folder.path}: this run measures other weights ({shown}), or they changed since it began; give the same ones to resume, or "
            "choose another output_dir"
        )


def _untuned_only(config: Config) -> Config:
    arms = tuple(arm for arm in config.arms if arm in (Arm.NOTHING, Arm.PROMPT))
    return config.model_copy(update={"arms": arms or (Arm.NOTHING,)})
