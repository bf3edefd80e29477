"""Questions in small for the knowledge study: two domains and another one, with choices a random model has opinions about."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from tiny_study import write_data, write_jsonl

from tunescope.config import Config, load

WORDS = ("ash", "bay", "cob", "den", "elm", "fig", "gum", "hop", "ink", "jay", "kit", "log", "mud", "nut", "oak", "pod")


def rows(
    name: str, count: int, *, domains: tuple[str, ...] = ("plants", "tools"), seed: int = 0, **more: Any
) -> list[dict[str, Any]]:
    """Returns multiple-choice rows; no two are alike."""
    dice = random.Random(f"{name}{seed}")
    made = []
    for i in range(count):
        choices = dice.sample(WORDS, 3)
        text = f"{name} {i}: which {''.join(dice.choice('abcdefgh') for _ in range(6))}?"
        made.append(
            {
                "question": text,
                "choices": choices,
                "answer": dice.randrange(3),
                "domain": domains[i % len(domains)],
                **more,
            }
        )
    return made


def settings(model: Path, **changes: Any) -> dict[str, Any]:
    """Returns settings of a knowledge study as plain values."""
    knowledge = {
        "questions": [
            {"file": "data/own.jsonl"},
            {"file": "data/other.jsonl", "role": "in_domain"},
            {"file": "data/far.jsonl", "role": "out_of_domain"},
            {"file": "data/shown.jsonl", "role": "demonstrations"},
        ],
        "demonstrations": 2,
        "header": "About {domain}.",
        "threshold": 0.34,
        "style_prompts": 4,
        "style_tokens": 5,
        "general": ["data/guard.jsonl", "data/summary.train.jsonl"],
        "intervention": {"group_size": 4, "shares": [0.5], "explanation_tokens": 8},
    }
    values: dict[str, Any] = {
        "model": str(model),
        "output_dir": "run",
        "seed": 3,
        "threads": 1,
        "dtype": "bfloat16",
        "tasks": [{"name": "routing", "labels": ["it", "hr"]}],
        "data": {"max_length": 400},
        "tuning": {"num_epochs": 1, "batch_size": 8, "lora_rank": 2, "learning_rate": 1e-3},
        "evaluation": {"n_bootstrap": 200, "batch_tokens": 8192},
        "knowledge": knowledge | changes.pop("knowledge", {}),
    }
    return values | changes


def write_files(folder: Path) -> None:
    """Writes the files of questions and of general data."""
    write_data(folder / "data")
    write_jsonl(folder / "data/own.jsonl", rows("own", 40, context="It says so."))
    write_jsonl(folder / "data/other.jsonl", rows("other", 10))
    write_jsonl(folder / "data/far.jsonl", rows("far", 8, domains=("stars",)))
    write_jsonl(folder / "data/shown.jsonl", rows("shown", 9, domains=("plants", "tools", "stars")))


def write_study(folder: Path, model: Path, **changes: Any) -> Path:
    """Writes files and settings into a folder and returns the settings file."""
    write_files(folder)
    path = folder / "knowledge.yaml"
    path.write_text(yaml.safe_dump(settings(model, **changes), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def config_of(path: Path, out: Path, *overrides: str) -> Config:
    """Reads the settings with a run folder of their own."""
    return load(path, [f"output_dir={out}", *overrides])
