"""A finished run on which more is learned: its weights, its tasks, what it kept of them, and what does not fit the new one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunescope import config as settings
from tunescope import engine, models
from tunescope.config import Config, TaskSettings
from tunescope.errors import ConfigError, IntegrityError, ModelError, RunError
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Selection

STREAM = "stream.json"
MEMORY = "memory"
_STUDIES = ("learn", "poc", "tune", "quickstart")


@dataclass(frozen=True)
class Earlier:
    """What an earlier run brings.

    Attributes:
        run: its folder.
        arm: which of its arms goes on.
        weights: folder of the saved weights.
        selection: what moved there.
        tasks: the tasks it learned, in their order, as they are to be read now.
        hashes: task -> sha256 of the training file it learned.
        counts: task -> training examples it learned.
        experts: task -> version of what was scored, and the score of its expert; of those that it had.
        memory: folder of what it kept, or None where it kept nothing apart from its files.
        base_sha256: hash of its base model's weights.
        base_name: name of its base model.
    """

    run: RunFolder
    arm: str
    weights: Path
    selection: Selection
    tasks: tuple[TaskSettings, ...]
    hashes: dict[str, str]
    counts: dict[str, int]
    experts: dict[str, tuple[str, float]]
    memory: Path | None
    base_sha256: str
    base_name: str

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it: paths and hashes, for the ledger."""
        return {
            "run": str(self.run.path),
            "arm": self.arm,
            "tasks": [task.name for task in self.tasks],
            "weights": {p.name: models.sha256_of(p) for p in sorted(self.weights.glob("*.safetensors"))},
            "base_model": self.base_sha256,
        }


def read_earlier(config: Config) -> Earlier | None:
    """Reads the run that ``replay.onto`` names; None where it names none.

    A task of the config that the run has learned already is not learned again: its settings here say where its test data are now.

    Args:
        config: the settings.

    Raises:
        RunError: there is no such run, it is not finished, or it tuned nothing.
        ConfigError: the config has no new task, or it is not clear which arm goes on, or its adapter has another rank or scale.
        IntegrityError: the training data of an earlier task changed since they were learned, or a file of the run is damaged.
    """
    if config.replay.onto is None:
        return None
    run, arm = _which(config.replay.onto)
    weights = run.path / "weights" / arm
    selection = engine.saved_selection(weights)
    learned, hashes, counts = _learned(run)
    memory = run.path / MEMORY if (run.path / MEMORY).is_dir() else None
    given = {task.name: task for task in config.tasks}
    if not given.keys() - {task.name for task in learned}:
        raise ConfigError(
            f"tasks: {run.path} has learned {', '.join(repr(name) for name in given)} already, so there is nothing new; add the new task"
        )
    _refuse_changed(run, learned, given, hashes, needs_files=memory is None)
    _refuse_other_adapter(config, weights)
    tasks = []
    for task in learned:
        now = given.get(task.name, task)
        # What it kept is in its memory: the training files need not be there any more.
        tasks.append(now.model_copy(update={"train": None if memory else now.train or task.train}))
    model = run.read_json("environment.json")["model"]
    return Earlier(
        run,
        arm,
        weights,
        selection,
        tuple(tasks),
        hashes,
        counts,
        _experts(run),
        memory,
        model["sha256"],
        model["name"],
    )


def with_earlier(config: Config, earlier: Earlier | None) -> Config:
    """Returns the settings with the tasks of an earlier run in front of the new ones."""
    if earlier is None:
        return config
    known = {task.name for task in earlier.tasks}
    return config.model_copy(update={"tasks": (*earlier.tasks, *(t for t in config.tasks if t.name not in known))})


def refuse_other_base(earlier: Earlier, sha256: str, name: str) -> None:
    """Stops where the loaded model is not the one that the earlier run was tuned from.

    Raises:
        ModelError: it is not.
    """
    if earlier.base_sha256 != sha256:
        raise ModelError(
            f"replay.onto {earlier.run.path}: tuned from {earlier.base_name} (sha256 {earlier.base_sha256[:12]}), and model is {name} "
            f"({sha256[:12]}): its weights and its memory belong to another base model; set model to the one of that run, or learn all tasks anew "
            "without replay.onto"
        )


def _which(path: Path) -> tuple[RunFolder, str]:
    """The run and its arm: of a run folder, or of one of its folders of weights."""
    if (path / "selection.json").is_file() and path.parent.name == "weights":
        run, arms = RunFolder.open(path.parent.parent), [path.name]
    else:
        run = RunFolder.open(path)
        arms = sorted(p.parent.name for p in run.path.glob("weights/*/selection.json"))
    status = run.read_json("status.json")
    if status.get("study") not in _STUDIES or status.get("state") != "done" or not run.has("costs.json"):
        raise RunError(
            f"replay.onto {path}: a run of `{status.get('study')}` that is {status.get('state')}; needed is a finished run of learn, tune or "
            "poc (finish it with --resume)"
        )
    if not arms:
        raise RunError(
            f"replay.onto {path}: the run tuned nothing, it has no weights; give one that did, or leave onto out"
        )
    wanted = run.read_json("verdict.json").get("arm") if run.has("verdict.json") and len(arms) > 1 else arms[0]
    if wanted not in arms:
        raise ConfigError(
            f"replay.onto {path}: has the tuned arms {', '.join(arms)}, and its verdict names none of them; give the folder of one, such as "
            f"{run.path / 'weights' / arms[0]}"
        )
    return run, str(wanted)


def _learned(run: RunFolder) -> tuple[list[TaskSettings], dict[str, str], dict[str, int]]:
    """The tasks that a run learned, and by name the hash of what it learned of each and how many examples that were."""
    if run.has(STREAM):
        rows = run.read_json(STREAM)["tasks"]
        try:
            tasks = [TaskSettings.model_validate(row["settings"]) for row in rows]
            return tasks, {r["name"]: r["train_sha256"] for r in rows}, {r["name"]: r["n_train"] for r in rows}
        except (KeyError, TypeError, ValidationError) as error:
            line = str(error).splitlines()[0][:120]
            raise IntegrityError(f"{run.path / STREAM}: damaged ({line}); restore it from a copy") from None
    files = [file for file in run.read_json("data.json")["files"] if file["role"] == "train"]
    hashes = {file["task"]: file["sha256"] for file in files}
    tasks = [task for task in settings.load(run.path / "config.yaml").tasks if task.name in hashes]
    return tasks, hashes, {file["task"]: file["used"] for file in files}


def _experts(run: RunFolder) -> dict[str, tuple[str, float]]:
    if not run.has(STREAM):
        return {}
    values = run.read_json(STREAM)
    versions = {row["name"]: row["version"] for row in values["tasks"]}
    return {task: (versions[task], float(score)) for task, score in values["experts"].items()}


def _refuse_changed(
    run: RunFolder,
    learned: Sequence[TaskSettings],
    given: dict[str, TaskSettings],
    hashes: dict[str, str],
    *,
    needs_files: bool,
) -> None:
    problems = []
    for task in learned:
        now = given.get(task.name)
        path = (now.train if now else None) or (task.train if needs_files else None)
        if path is None:
            continue
        if not path.is_file():
            if now is not None or needs_files:
                problems.append(
                    f"{path}: no such file; {run.path} learned task {task.name!r} from it: put it back, or name its place in tasks"
                )
        elif models.sha256_of(path) != hashes[task.name]:
            problems.append(
                f"{path}: changed since {run.path} learned task {task.name!r} from it; put it back, give the task another name to learn it as a "
                "new one, or leave the task out of tasks"
            )
    if problems:
        raise IntegrityError(problems)


def _refuse_other_adapter(config: Config, weights: Path) -> None:
    """An adapter goes on with its own rank and scale; found here, before anything is loaded."""
    path = weights / "adapter_config.json"
    if not path.is_file():
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = saved["r"], saved.get("lora_alpha")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: damaged ({str(error)[:120]}); restore it from a copy") from None
    mine = config.tuning
    if alpha is not None and (rank, alpha) != (mine.lora_rank, mine.lora_alpha):
        raise ConfigError(
            f"tuning.lora_rank {mine.lora_rank} and lora_alpha {mine.lora_alpha:g}: the adapter in {weights} has {rank} and {alpha:g}, and goes "
            "on with them; set both to that"
        )
