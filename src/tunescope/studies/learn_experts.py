"""One expert per task, tuned on it alone: what the relative gain is measured against; kept for other runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import models
from tunescope.errors import RunError
from tunescope.runs.folder import write_text
from tunescope.runs.records import SCHEMA_VERSION, Answer, Selection
from tunescope.studies.arms import tune_arm
from tunescope.studies.bench import Bench
from tunescope.studies.inputs import encode_all
from tunescope.studies.learn_stage import give_mask, measuring_bench, remove_weights, tuning_bench
from tunescope.studies.machine import release_memory
from tunescope.studies.measure import measure_arm
from tunescope.studies.progress import Progress

_VERSION = 1  # of how an expert is tuned and measured: another one is another expert


@dataclass(frozen=True)
class Expert:
    """What an expert answered.

    Attributes:
        task: its task.
        answers: to the task's in-domain test examples, in their order.
        seconds: what tuning and measuring it took, in this run or the one that did.
    """

    task: str
    answers: tuple[Answer, ...]
    seconds: float


def experts(bench: Bench, arm: str, selection: Selection, tasks: Sequence[str], progress: Progress) -> list[Expert]:
    """Returns the expert of every task, tuned here where no run with the same data and settings did before.

    Kept are its answers to the test examples, in ``experts/`` in the user's cache, under a hash of everything they depend on; its weights are
    not kept. Interrupted, an expert goes on from its last checkpoint.

    Args:
        bench: the whole study.
        arm: whose mask is used for sparse entries.
        selection: what moves, as at every stage.
        tasks: which experts.
        progress: told what happens.

    Raises:
        RunError: the cache cannot be written.
    """
    return [_one(bench, arm, selection, task, progress) for task in tasks]


def _one(bench: Bench, arm: str, selection: Selection, task: str, progress: Progress) -> Expert:
    key = _key(bench, selection, task)
    file = models.cache_folder() / "experts" / f"{key[:32]}.json"
    name = f"expert-{task}"
    with _alone(file):
        found = _read(file, key, task)
        if found is not None:
            progress.note(f"{name}: tuned before, its answers are in {file.parent}")
            _tidy(bench, name)  # of a run that was killed right after it was kept
            return found
        give_mask(bench, arm, selection, name)
        cost = tune_arm(tuning_bench(bench, [task], {}), name, selection, progress)
        release_memory()
        measured = measuring_bench(bench, [task], guard=False)
        cost = measure_arm(measured, name, cost, progress, weights=bench.run.path / "weights" / name)
        release_memory()
        rows = [row for row in bench.run.read_jsonl(f"arms/{name}/answers.jsonl") if row["role"] == "in_domain"]
        _write(file, key, [row["answer"] for row in rows], cost.tuning_seconds + cost.evaluation_seconds)
        kept = _read(file, key, task)
        assert kept is not None
        _tidy(bench, name)
        return kept


def _tidy(bench: Bench, name: str) -> None:
    shutil.rmtree(bench.run.path / "arms" / name, ignore_errors=True)
    remove_weights(bench.run, name)


def _key(bench: Bench, selection: Selection, task_name: str) -> str:
    """Hash of all that the answers of an expert depend on."""
    config = bench.config
    task = next(task for task in bench.inputs.tasks if task.name == task_name)
    settings = next(s for s in config.tasks if s.name == task_name)
    chosen = {
        k: v
        for k, v in selection.to_dict().items()
        if k in ("method", "layers", "modules", "matrices", "mask_sha256", "whole_model")
    }
    facts: dict[str, Any] = {
        "version": _VERSION,
        "base": bench.located.sha256,
        "dtype": config.dtype,
        "seed": config.seed,
        "max_length": config.data.max_length,
        "tuning": config.tuning.model_dump(mode="json"),
        "selection": chosen,
        "templates": settings.templates,
        "task": task.version,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "stop": config.evaluation.task_stop.get(task_name, config.evaluation.stop),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for group in (task.train, task.validation, bench.inputs.replay):
        digest.update(repr([(e.prompt_ids, e.target_ids) for e in encode_all(bench.chat, group)]).encode())
    digest.update(repr([(e.prompt_text, e.targets, e.system, e.history) for e in task.test]).encode())
    return digest.hexdigest()


def _read(file: Path, key: str, task: str) -> Expert | None:
    """What the cache holds; a file that is damaged or of something else is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["schema_version"] != SCHEMA_VERSION or values["key"] != key or values["sha256"] != _digest(values):
            return None
        return Expert(task, tuple(Answer.from_dict(row) for row in values["answers"]), float(values["seconds"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(file: Path, key: str, answers: Sequence[dict[str, Any]], seconds: float) -> None:
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "seconds": seconds,
        "answers": list(answers),
    }
    with _written(file):
        write_text(file, json.dumps(values | {"sha256": _digest(values)}, ensure_ascii=False, indent=1) + "\n")


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps({k: v for k, v in values.items() if k != "sha256"}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keeps two processes from tuning the same expert at once: the second waits and finds it in the cache."""
    with _written(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.with_suffix(".lock").open("w")
    with handle:
        try:
            import fcntl
        except ImportError:  # Windows has no flock: tuned twice it costs time, the file is swapped in whole
            yield
            return
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _written(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{file.parent}: the cache of experts cannot be written ({error.strerror or error}); free some space, or set TUNESCOPE_CACHE to a "
            "folder that can be written; then run the same command with --resume"
        ) from None
