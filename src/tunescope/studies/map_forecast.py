"""How long a layer map will take, from a few prompts read on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunescope import engine, layers
from tunescope.models import Loaded, bare
from tunescope.runs.records import Record
from tunescope.studies.bench import Bench
from tunescope.studies.map_causal import windows_of
from tunescope.studies.map_conclude import Prompts
from tunescope.studies.progress import Progress
from tunescope.studies.specialist_cache import Wanted, missing, want

_TIMED_PROMPTS = 16
_BACKWARD = 3  # a step of tuning costs about three forward passes


@dataclass(frozen=True)
class MapForecast(Record):
    """What a map would do and cost.

    Attributes:
        mode: base, pair or mossa.
        tasks: number of tasks.
        prompts: prompts of all tasks.
        tokens: tokens that one model reads.
        models: forward passes over them: base, tuned, specialist.
        specialists: to be tuned.
        cached: specialists that are in the cache already.
        seconds: part of the work -> seconds.
        peak_memory_bytes: resident memory while the prompts were timed.
    """

    mode: str
    tasks: int
    prompts: int
    tokens: int
    models: int
    specialists: int
    cached: int
    seconds: dict[str, float]
    peak_memory_bytes: int


def forecast_map(bench: Bench, loaded: Loaded, prompts: Sequence[Prompts], progress: Progress) -> MapForecast:
    """Reads a few prompts with the base model, compares random states, and extrapolates.

    A step of tuning is counted as three forward passes over its tokens, the loss of the causal check as one. That blocks which a tuned
    model has in common with the base are read once is not counted: the model is not opened here.
    """
    config = bench.config
    progress.stage("forecast the cost", 2)
    tuned = config.map.mode != "base" and config.map.tuned is not None
    mossa = config.map.mode == "mossa"
    n_models = 1 + tuned + mossa
    tokens = sum(len(row.prompt_ids) for one in prompts for row in one.rows)
    lacking: list[Wanted] = []
    n_specialists = 0
    if mossa:
        wanted = want(bench, loaded, {p.task.name: p.task.train for p in prompts})
        lacking, n_specialists = missing(wanted, rebuild=False), len(wanted)
    with engine.Meter(bench.device) as meter:
        per_token = _read_seconds(bench, loaded, prompts)
    progress.advance()
    n_pairs = 1 + tuned + mossa * (1 + tuned)
    similarity = sum(_compare_seconds(bench, loaded, n) * many for n, many in _sizes(prompts)) * n_pairs
    progress.advance()
    seconds = {
        "capture": n_models * tokens * per_token,
        "specialists": _BACKWARD * per_token * sum(len(row) for one in lacking for row in one.rows),
        "similarity": similarity,
        "causal": _causal_passes(bench, loaded, prompts) * per_token if n_models > 1 else 0.0,
    }
    return MapForecast(
        mode=config.map.mode,
        tasks=len(prompts),
        prompts=sum(len(one.rows) for one in prompts),
        tokens=tokens,
        models=n_models,
        specialists=len(lacking),
        cached=n_specialists - len(lacking),
        seconds={part: float(f"{spent:.3g}") for part, spent in seconds.items()},
        peak_memory_bytes=meter.peak_memory_bytes,
    )


def _read_seconds(bench: Bench, loaded: Loaded, prompts: Sequence[Prompts]) -> float:
    """Seconds per token; prompts of one task share a batch, so the sample does too."""
    longest = max(prompts, key=lambda one: sum(len(row.prompt_ids) for row in one.rows))
    ids = [row.prompt_ids for row in longest.rows[:_TIMED_PROMPTS]]
    layers.capture(loaded.model, ids[:2], batch_tokens=bench.config.evaluation.batch_tokens)
    started = time.perf_counter()
    layers.capture(loaded.model, ids, batch_tokens=bench.config.evaluation.batch_tokens)
    return (time.perf_counter() - started) / sum(map(len, ids))


def _sizes(prompts: Sequence[Prompts]) -> list[tuple[int, int]]:
    """(prompts, number of tasks with as many)."""
    sizes = [len(one.rows) for one in prompts]
    return [(n, sizes.count(n)) for n in sorted(set(sizes))]


def _compare_seconds(bench: Bench, loaded: Loaded, n: int) -> float:
    """Seconds of comparing all blocks of one task once."""
    settings: Any = bench.config.map
    states = np.random.default_rng(0).standard_normal((2, n, int(bare(loaded.model).config.hidden_size)))
    started = time.perf_counter()
    draws = layers.Comparison(
        n,
        n_bootstrap=settings.n_bootstrap,
        n_permutations=settings.n_permutations,
        seed=0,
        estimator=settings.estimator,
    )
    draws.similarity(draws.geometry(states[0]), draws.geometry(states[1]))
    return (time.perf_counter() - started) * loaded.info.n_layers


def _causal_passes(bench: Bench, loaded: Loaded, prompts: Sequence[Prompts]) -> float:
    """Tokens of whole forward passes: below a window nothing is computed again."""
    n_layers = loaded.info.n_layers
    passes = 1 + sum((n_layers - start) / n_layers for start, _ in windows_of(bench.config, n_layers))
    return passes * math.fsum(len(row) for one in prompts for row in one.rows[: bench.config.map.causal_examples])
