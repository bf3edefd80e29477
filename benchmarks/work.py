"""The work that both sides of a comparison do: one model, one set of examples, one measure of quality."""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tunescope import config as settings
from tunescope import engine, models
from tunescope.data import ChatFormat, Encoded, Example, read_file
from tunescope.runs.environment import cpu_name
from tunescope.runs.records import Selection
from tunescope.samples import quickstart_config
from tunescope.studies.machine import gpu_name

MODEL = "smollm2-135m-instruct"
BATCH_SIZE = 8
LORA_RANK = 8
LORA_ALPHA = 16
LEARNING_RATE = 5e-4
WARMUP_FRACTION = 0.05
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
CHECKS_PER_EPOCH = 2
DEVICE = os.environ.get("TUNESCOPE_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
"""Where both sides compute; ``python -m benchmarks --device`` sets it."""


@dataclass(frozen=True)
class Round:
    """What one round of work took and gave.

    Attributes:
        seconds: wall time of the work alone.
        done: how much of it, by unit, for example ``{"tokens": 8000, "examples": 64}``.
        quality: what came out, by name; both sides are to agree here.
    """

    seconds: float
    done: dict[str, float]
    quality: dict[str, Any] = field(default_factory=dict)


Side = Callable[[], Callable[[], Round]]
"""Loads what is needed and returns the function that does one round; loading is not timed."""


@functools.cache
def sample_tasks() -> dict[str, tuple[list[Example], list[Example]]]:
    """Returns task -> (training examples, test examples) of the sample data that ships with the package."""
    config = settings.load(quickstart_config())
    return {
        task.name: tuple(read_file(path, task=task.name).examples for path in (task.train, task.test))  # type: ignore[misc,arg-type]
        for task in config.tasks
    }


def mixed(count: int, *, test: bool = False) -> list[Example]:
    """Returns `count` examples of the sample tasks in a fixed random order."""
    pool = [example for pair in sample_tasks().values() for example in pair[test]]
    return [pool[i] for i in np.random.default_rng(0).permutation(len(pool))[:count]]


def processor() -> str:
    """Returns the name of what computes: the GPU or the CPU."""
    return gpu_name(DEVICE) or cpu_name()


def now() -> float:
    """Returns the seconds of a clock, read when the device has done all that it was given."""
    if DEVICE.startswith("cuda"):
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter()


def peak_bytes() -> int:
    """Returns the most memory that this process has held: of the device where that is a GPU, else resident."""
    if DEVICE.startswith("cuda"):
        return torch.cuda.max_memory_allocated(DEVICE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(dtype: str = "bfloat16") -> tuple[models.Loaded, ChatFormat]:
    """Returns the model and its chat format."""
    loaded = models.load(MODEL, dtype=dtype, device=DEVICE)
    return loaded, ChatFormat(loaded.tokenizer)


def encoded(chat: ChatFormat, examples: Sequence[Example], demonstrations: Sequence[Example] = ()) -> list[Encoded]:
    """Returns the examples as token ids."""
    return [chat.encode(example, demonstrations=demonstrations) for example in examples]


def held_out_loss(model: Any, rows: Sequence[Encoded]) -> float:
    """Returns the mean loss per target token in nats; the same measure for both sides."""
    with torch.autocast(torch.device(DEVICE).type, dtype=torch.bfloat16):
        return float(np.mean(models.mean_losses(model, rows)))


def recipe(num_epochs: int) -> engine.Recipe:
    """Returns the recipe of our side; the peers get the same numbers."""
    return engine.Recipe(LEARNING_RATE, num_epochs, BATCH_SIZE, warmup_fraction=WARMUP_FRACTION)


def tokens_of(rows: Sequence[Encoded]) -> int:
    """Returns the tokens in rows, padding not counted."""
    return sum(len(row) for row in rows)


def done(rows: Sequence[Encoded], num_epochs: int = 1) -> dict[str, float]:
    """Returns how much work there was."""
    return {"tokens": tokens_of(rows) * num_epochs, "examples": len(rows) * num_epochs}


def everything_moves(loaded: models.Loaded) -> engine.Moving:
    """Returns the model with LoRA on all matrices of all blocks."""
    chosen = Selection("lora", models.block_names(loaded.info.n_layers), MODULES, why="all blocks")
    return engine.prepare(loaded.model, loaded.family, chosen, lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA)


def start_of(moving: engine.Moving) -> dict[str, torch.Tensor]:
    """Returns a copy of the moving weights, for `engine.load_weights` before the next round."""
    return {f"weight.{name}": p.detach().clone() for name, p in moving.parameters.items()}


def curve(tuner: engine.Tuner, model: Any, held_out: Sequence[Encoded]) -> list[dict[str, float]]:
    """Tunes to the end and returns seconds of tuning alone and held-out loss, twice an epoch."""
    every = max(1, tuner.steps_per_epoch // CHECKS_PER_EPOCH)
    found, seconds = [], 0.0
    started = now()
    for record in tuner.steps():
        seconds += now() - started
        if record.step % every == 0 or record.step == tuner.total_steps:
            found.append({"seconds": seconds, "held-out loss": held_out_loss(model, held_out)})
        started = now()
    return found


def end_of(points: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns the quality at the end of a curve, with the curve."""
    return {"held-out loss": points[-1]["held-out loss"], "curve": list(points)}
