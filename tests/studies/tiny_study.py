"""A whole study in small: a random model with four blocks, three tasks of a few short rows, a guard set."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from tunescope.studies.progress import Silent
from tunescope.testing import save_tiny

ALL_ARMS = ["nothing", "prompt", "selected", "random", "lora-all", "full"]
TUNED_ARMS = ALL_ARMS[2:]
_DESKS = {"it": ("screen", "printer", "mail"), "hr": ("leave", "wage", "badge"), "ops": ("valve", "pump", "seal")}
_MOODS = {"good": ("quick", "kind"), "bad": ("late", "rude")}


def save_model(folder: Path, **settings: Any) -> Path:
    """Writes the random model: enough blocks for `selected` and `random` to differ."""
    return save_tiny(folder, **({"n_layers": 4, "d_model": 16} | settings))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_data(folder: Path) -> None:
    """Writes train, test and out-of-domain files of three tasks, and a guard set; no row repeats another one."""
    dice = random.Random(7)

    def words() -> str:  # so that no two rows are near duplicates
        return "".join(dice.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(16)).strip()

    def desk(site: str) -> dict[str, str]:
        label = dice.choice(list(_DESKS))
        return {"instruction": "Desk?", "input": f"{site} {dice.choice(_DESKS[label])} {words()}", "output": label}

    def mood(site: str) -> dict[str, str]:
        label = dice.choice(list(_MOODS))
        return {"instruction": "Mood?", "input": f"{site} {dice.choice(_MOODS[label])} {words()}", "output": label}

    def log(site: str) -> dict[str, str]:
        part = dice.choice(["pump", "belt"])
        return {"instruction": "Sum up.", "input": f"{site} {part} {words()}", "output": f"{part} fixed"}

    for name, make in {"routing": desk, "mood": mood, "summary": log}.items():
        for role, site, n in (("train", "A", 14), ("test", "A", 8), ("plant_b", "B", 5)):
            rows = [{"id": f"{name}-{role}-{i}"} | make(site) for i in range(n)]
            for row, label in zip(rows, [*_DESKS, *_MOODS] if name != "summary" else [], strict=False):
                if label in (_DESKS if name == "routing" else _MOODS):
                    row["output"] = label  # every label occurs in every file
            write_jsonl(folder / f"{name}.{role}.jsonl", rows)
    guard = [{"instruction": f"Say {words()}", "output": words()[:10] or "yes"} for _ in range(4)]
    write_jsonl(folder / "guard.jsonl", guard)


def settings(model: Path, **changes: Any) -> dict[str, Any]:
    """Returns the settings as plain values; money is counted without the machine's time, so that it can be compared."""

    def files(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "train": f"data/{name}.train.jsonl",
            "test": f"data/{name}.test.jsonl",
            "out_of_domain": [f"data/{name}.plant_b.jsonl"],
        }

    values: dict[str, Any] = {
        "model": str(model),
        "output_dir": "run",
        "seed": 3,
        "threads": 1,
        "dtype": "bfloat16",
        "tasks": [
            files("routing") | {"family": "classification", "labels": list(_DESKS)},
            files("mood") | {"family": "classification", "labels": list(_MOODS), "metric": "macro_f1"},
            files("summary") | {"family": "summary", "metric": "rouge_l"},
        ],
        "guard": ["data/guard.jsonl"],
        "arms": ALL_ARMS,
        "data": {"max_length": 160},
        "tuning": {"num_epochs": 2, "batch_size": 8, "lora_rank": 2},
        "selection": {"budget": 0.5, "calibration_examples": 6},
        "evaluation": {"max_new_tokens": 6, "demonstrations": 2, "n_bootstrap": 200, "latency_requests": 2},
        "business": {"machine_cost_per_hour": 0, "electricity_per_kwh": 0},
        "gate": {"min_test_examples": 5},
    }
    return values | changes


def write_study(folder: Path, model: Path, **changes: Any) -> Path:
    """Writes data and settings into a folder and returns the settings file."""
    write_data(folder / "data")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings(model, **changes), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


class StopsAfter(Silent):
    """Asks to stop, as Ctrl-C does, at the n-th step of tuning."""

    def __init__(self, steps: int) -> None:
        self.left, self.tuning = steps, False

    def stage(self, name: str, total: int | None = None) -> None:
        self.tuning = name.endswith(": tune")

    def advance(self, units: int = 1) -> None:
        self.left -= self.tuning * units

    def stopping(self) -> bool:
        return self.tuning and self.left <= 0
