"""Streams in small: the tasks of `tiny_study` learned one after another by a random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tiny_study import settings, write_data

from tunescope.config import Config, load

TASKS = ("routing", "mood", "summary")


def stream_settings(model: Path, tasks: tuple[str, ...] = TASKS, **replay: Any) -> dict[str, Any]:
    """Returns the settings of a stream as plain values: one epoch, short answers, nothing timed."""
    values = settings(model)
    by_name = {task["name"]: {k: v for k, v in task.items() if k != "out_of_domain"} for task in values["tasks"]}
    return values | {
        "tasks": [by_name[name] for name in tasks],
        "guard": [],
        "arms": ["nothing"],
        "tuning": {"num_epochs": 1, "batch_size": 4, "lora_rank": 2, "learning_rate": 3e-3, "checks_per_epoch": 1},
        "evaluation": {"max_new_tokens": 3, "n_bootstrap": 200, "latency_requests": 0},
        "replay": {"budget_per_task": 4, "evaluate": "seen"} | replay,
    }


def write_stream_study(folder: Path, model: Path, tasks: tuple[str, ...] = TASKS, **replay: Any) -> Path:
    """Writes data and settings into a folder and returns the settings file."""
    if not (folder / "data").is_dir():
        write_data(folder / "data")
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump(stream_settings(model, tasks, **replay), sort_keys=False), encoding="utf-8")
    return path


def stream(
    folder: Path, model: Path, name: str, tasks: tuple[str, ...] = TASKS, *overrides: str, **replay: Any
) -> Config:
    """Returns the settings of a stream in ``folder/name`` on the data in ``folder/data``."""
    study = write_stream_study(folder, model, tasks, **replay)
    return load(study, [f"output_dir={folder / name}", *overrides])
