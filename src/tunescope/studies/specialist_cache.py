"""The cache of specialists: under which hash one is known, which are there, and how a file gets in whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tunescope import engine, models
from tunescope.config import Arm, Config
from tunescope.data import Encoded, Example
from tunescope.errors import ConfigError, IntegrityError, RunError
from tunescope.models import Loaded
from tunescope.studies.bench import Bench

PARTS = ("q", "v")
_VERSION = 1  # of how a specialist is tuned: another one is another specialist


@dataclass(frozen=True)
class Wanted:
    """A specialist that a map needs.

    Attributes:
        task: name of the task.
        rows: what it is tuned on, every example as often as it is read.
        key: hash of base weights, rows and settings.
        file: where the cache keeps it.
    """

    task: str
    rows: tuple[Encoded, ...]
    key: str
    file: Path

    @property
    def scratch(self) -> Path:
        """Folder of the checkpoint while it is tuned."""
        return self.file.with_suffix(".part")


def cache_of(config: Config) -> Path:
    """Returns the folder that keeps specialists."""
    return config.map.cache or models.cache_folder() / "specialists"


def shared_by(config: Config) -> list[Path]:
    """Returns the folders, besides the run's own, that all machines of a cluster have to see to make a map."""
    return [cache_of(config)] if config.map.mode == "mossa" else []


def scored_with(config: Config) -> list[Path]:
    """Returns the same for a study that tunes what a score chose: none, unless the score is a map."""
    by_map = Arm.SELECTED in config.arms and config.selection.score in ("layer_map", "causal")
    return shared_by(config) if by_map else []


def steps_of(config: Config, n_examples: int) -> int:
    """Returns the optimiser steps that a specialist takes: the budget, or less where the epochs are over sooner."""
    settings = config.map.specialist
    return min(settings.steps, math.ceil(n_examples * settings.num_epochs / settings.batch_size))


def want(bench: Bench, loaded: Loaded, examples: Mapping[str, Sequence[Example]]) -> list[Wanted]:
    """Returns which specialists a map needs and under which hash the cache knows them; encodes what they read, each example once.

    Args:
        bench: the settings.
        loaded: the base model.
        examples: task -> its training examples, in a fixed order.

    Raises:
        ConfigError: tasks without training examples; all are named.
    """
    config, settings = bench.config, bench.config.map.specialist
    empty = [task for task, rows in examples.items() if not rows]
    if empty:
        raise ConfigError(
            f"map.mode mossa tunes a specialist per task, and {len(empty)} tasks have no training examples: {', '.join(map(repr, empty))}; "
            "give them `train` data, or use mode base or pair"
        )
    facts = {
        "version": _VERSION,
        "base": loaded.info.sha256,
        "dtype": config.dtype,
        "seed": config.seed,
        "parts": PARTS,
        "batch_tokens": config.tuning.batch_tokens,
        "settings": settings.model_dump(mode="json"),
    }
    found = []
    for task, mine in examples.items():
        count = min(steps_of(config, len(mine)) * settings.batch_size, len(mine) * settings.num_epochs)
        drawn = _in_epochs(len(mine), count, config.seed)
        encoded = {i: bench.chat.encode(mine[i]) for i in set(drawn)}
        rows = tuple(encoded[i] for i in drawn)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(repr([(e.prompt_ids, e.target_ids) for e in rows]).encode())
        key = digest.hexdigest()
        found.append(Wanted(task, rows, key, cache_of(config) / f"{key[:32]}.safetensors"))
    return found


def _in_epochs(n: int, count: int, seed: int) -> list[int]:
    """`count` of `n` examples by their place: whole passes over all of them, and of the last pass as many as are left."""
    order = np.random.default_rng([seed, 0x5BEC1]).permutation(n).tolist()
    return [order[i % n] for i in range(count)]


def missing(wanted: Sequence[Wanted], *, rebuild: bool) -> list[Wanted]:
    """Returns the specialists that have to be tuned; files of the others are checked against their hashes.

    Args:
        wanted: all that a map needs.
        rebuild: remove damaged files, so that they are tuned again.

    Raises:
        IntegrityError: a file is damaged or belongs to something else, and `rebuild` is False; all are named.
    """
    lacking: list[Wanted] = []
    damaged: list[str] = []
    for one in wanted:
        if not one.file.is_file():
            lacking.append(one)
            continue
        try:
            read_cached(one)
        except IntegrityError as error:
            if rebuild:
                one.file.unlink(missing_ok=True)
                lacking.append(one)
            else:
                damaged.extend(error.problems)
    if damaged:
        raise IntegrityError(damaged)
    return lacking


def read_cached(one: Wanted) -> dict[str, torch.Tensor]:
    """Returns the weights of a specialist from the cache.

    Raises:
        IntegrityError: the file is damaged or belongs to something else.
    """
    again = "set map.rebuild_cache=true to tune it again"
    try:
        tensors, facts = engine.read_tensors(one.file)
    except IntegrityError as error:
        reason = error.problems[0].removeprefix(f"{one.file}: ").partition(";")[0]
        raise IntegrityError(
            f"{one.file}: the cached specialist of task {one.task!r} cannot be used: {reason}; {again}"
        ) from None
    if facts.get("key") != one.key:
        raise IntegrityError(
            f"{one.file}: the cached specialist of task {one.task!r} belongs to other data or settings; {again}"
        )
    return tensors


@contextlib.contextmanager
def cache_written(one: Wanted) -> Iterator[None]:
    """Makes the folder and turns what can go wrong in writing there into one line."""
    advice = (
        "free some space, or set map.cache to a folder that can be written; then run the same command with --resume"
    )
    try:
        one.file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(
            f"{one.file.parent}: the cache of specialists cannot be written ({error.strerror or error}); {advice}"
        ) from None
    except RunError as error:
        raise RunError(f"{error.problems[0].partition(';')[0]}; {advice}") from None


@contextlib.contextmanager
def alone(one: Wanted) -> Iterator[None]:
    """Keeps two processes from tuning the same specialist at once: the second waits and finds it in the cache."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock: tuned twice it costs time, the file is swapped in whole
        yield
        return
    with one.file.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
