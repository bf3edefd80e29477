"""The layer map itself: which prompts are read by which models, what comes of it, and what is proposed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tunescope import layers
from tunescope.config import Config
from tunescope.data import ChatFormat, Encoded
from tunescope.errors import DataError, TunescopeError, UserError
from tunescope.models import Loaded, bare
from tunescope.runs.records import LayerScores
from tunescope.studies.bench import Bench
from tunescope.studies.inputs import Inputs, encode_all
from tunescope.studies.map_causal import put_back_scores, windows_of
from tunescope.studies.map_conclude import MapResult, Prompts, block_costs, conclude
from tunescope.studies.map_models import Tuned, check_tuned, tuned_beside
from tunescope.studies.map_scores import (
    BASE,
    PROBE_ROWS,
    SPECIALIST,
    TUNED,
    Read,
    TaskScores,
    compare,
    probe_labels,
)
from tunescope.studies.map_store import load_scores, save_scores
from tunescope.studies.progress import Progress, ticker
from tunescope.studies.specialist_cache import want
from tunescope.studies.specialists import Specialists, specialists, tune_missing

FEWEST_PROMPTS = 4
_PARTS = ("capture", "specialists", "similarity", "causal")


def layer_map(bench: Bench, loaded: Loaded, progress: Progress, *, scratch: Path | None = None) -> MapResult:
    """Makes the map of the config's mode; writes nothing but specialists into their cache.

    Args:
        bench: settings, data, device.
        loaded: the base model; the same afterwards, bit for bit.
        progress: told what happens.
        scratch: folder that keeps what was done of each task, so that an interrupted map goes on; None: keep nothing.

    Raises:
        DataError: a task with fewer than 4 prompts, or with prompts or states that are all the same.
        ConfigError: a window of the causal check that is larger than the model.
        ModelError: a tuned model that does not fit the base, or states or losses that are not finite.
        IntegrityError: a damaged specialist in the cache.
        RunError: the cache cannot be written.
    """
    config = bench.config
    windows_of(config, loaded.info.n_layers)  # refuses what does not fit before anything is read
    prompts = prompts_of(config, bench.inputs, bench.chat)
    with_tuned = config.map.tuned is not None and config.map.mode != "base"
    unknown = check_tuned(loaded, config.map.tuned) if with_tuned and config.map.tuned is not None else ""
    if unknown:
        progress.note(unknown)
    if config.map.tuned is not None and not with_tuned:
        progress.note("map.tuned is not used in mode base; set map.mode to pair or mossa to compare with it")
    costs = block_costs(config, loaded)
    seconds = dict.fromkeys(_PARTS, 0.0)
    causal: list[LayerScores] = []
    newly_tuned = 0
    with contextlib.ExitStack() as stack:
        tuned: Tuned | None = None
        first_changed = 0
        if with_tuned and config.map.tuned is not None:
            alone = config.map.mode == "mossa"
            tuned = stack.enter_context(tuned_beside(bench, loaded, config.map.tuned, alone=alone))
            first_changed = tuned.first_changed
            if first_changed:
                progress.note(
                    f"the tuned model is the base below block.{first_changed}: read once for both, and no bands are looked for"
                )
        with contextlib.ExitStack() as inner:
            opened: Specialists | None = None
            if config.map.mode == "mossa":
                started = time.perf_counter()
                wanted = want(bench, loaded, {p.task.name: p.task.train for p in prompts})
                opened = inner.enter_context(specialists(bench, loaded, wanted))
                newly_tuned = tune_missing(bench, opened, wanted, progress, rebuild=config.map.rebuild_cache)
                seconds["specialists"] = time.perf_counter() - started
            readings = _read_all(bench, loaded, prompts, tuned, opened, scratch, progress)
            if opened is not None and tuned is None:
                with _timed(seconds, "causal"):
                    causal = put_back_scores(bench, _rows(prompts), progress, specialists=opened, scratch=scratch)
        if tuned is not None:
            with _timed(seconds, "causal"):
                causal = put_back_scores(bench, _rows(prompts), progress, tuned=tuned, scratch=scratch)
    for part in ("capture", "similarity"):
        seconds[part] = sum(one.seconds[part] for one in readings)
    progress.stage("compare the tasks")
    with _timed(seconds, "similarity"):
        result = conclude(config, prompts, readings, causal, costs, first_changed=first_changed)
    result.facts["d_model"] = int(bare(loaded.model).config.hidden_size)
    result.facts["seconds"] = {part: round(spent, 3) for part, spent in seconds.items()}
    return dataclasses.replace(result, tuned=newly_tuned)


def prompts_of(config: Config, inputs: Inputs, chat: ChatFormat) -> list[Prompts]:
    """Returns the prompts to read of each task; refuses tasks that cannot be mapped, all of them at once.

    Raises:
        DataError: tasks with fewer than 4 prompts, or whose prompts are all the same.
    """
    which = config.map.examples
    limit = config.map.prompts
    found = [
        Prompts(task, tuple(encode_all(chat, (task.train if which == "train" else task.test)[:limit])))
        for task in inputs.tasks
    ]
    problems = []
    few = [f"{p.task.name!r} ({len(p.rows)})" for p in found if len(p.rows) < FEWEST_PROMPTS]
    if few:
        problems.append(
            f"{len(few)} of {len(found)} tasks have fewer than {FEWEST_PROMPTS} usable {which} examples: {', '.join(few)}; similarity of "
            f"states needs at least {FEWEST_PROMPTS} prompts: give more, or leave these tasks out"
        )
    same = [
        p.task.name for p in found if len(p.rows) >= FEWEST_PROMPTS and len({row.prompt_ids for row in p.rows}) == 1
    ]
    if same:
        problems.append(
            f"the {which} prompts of {len(same)} tasks are all the same: {', '.join(map(repr, same))}; their states would be constant: give "
            "prompts that differ, or leave these tasks out"
        )
    if problems:
        raise DataError(problems)
    return found


def _read_all(
    bench: Bench,
    loaded: Loaded,
    prompts: Sequence[Prompts],
    tuned: Tuned | None,
    opened: Specialists | None,
    scratch: Path | None,
    progress: Progress,
) -> list[TaskScores]:
    """One task after the other, so that the states of one task at a time are in memory."""
    n_models = 1 + (tuned is not None) + (opened is not None)
    progress.stage("read the prompts", n_models * sum(len(p.rows) for p in prompts))
    readings = []
    for one in prompts:
        file = (
            None
            if scratch is None
            else scratch / f"{hashlib.sha256(one.task.name.encode()).hexdigest()[:16]}.safetensors"
        )
        if file is not None and file.is_file():
            readings.append(load_scores(file))
            progress.advance(n_models * len(one.rows))
            continue
        with _naming(one.task.name):
            reading = _read_one(bench, loaded, one, tuned, opened, len(prompts), progress)
        if file is not None:
            save_scores(file, reading)
        readings.append(reading)
    return readings


def _read_one(
    bench: Bench,
    loaded: Loaded,
    one: Prompts,
    tuned: Tuned | None,
    opened: Specialists | None,
    n_tasks: int,
    progress: Progress,
) -> TaskScores:
    config, seed = bench.config, bench.config.seed
    started = time.perf_counter()
    ids = [row.prompt_ids for row in one.rows]
    readers = {BASE: _base_reader(loaded, tuned, opened)}
    if tuned is not None:
        readers[TUNED] = layers.Reader(tuned.model, tuned.first_changed, f"{TUNED} model")
    if opened is not None:
        wear = functools.partial(opened.worn, one.task.name)
        readers[SPECIALIST] = layers.Reader(opened.model, name=f"{SPECIALIST} model", inside=wear)
    states_of = layers.capture_each(
        list(readers.values()), ids, batch_tokens=config.evaluation.batch_tokens, done=ticker(progress)
    )
    found = {
        which: Read(states.last if config.map.states == "last" else states.mean, states.mean[:2].copy())
        for which, states in zip(readers, states_of, strict=True)
    }
    captured = time.perf_counter()
    values, resampled, null = compare(found, config.map, seed)
    states = found[BASE].states
    labels = None
    if one.task.labels is not None:
        labels = probe_labels(states, [row.example.targets[0] for row in one.rows], seed)
    some = min(len(one.rows), max(2, PROBE_ROWS // n_tasks))
    return TaskScores(
        task=one.task.name,
        n=len(one.rows),
        values=values,
        resampled=resampled,
        null=null,
        sample=np.ascontiguousarray(states[1:, :some]),
        labels_read=labels[0] if labels else None,
        n_labels=labels[1] if labels else 0,
        chance=labels[2] if labels else 0.0,
        seconds={"capture": captured - started, "similarity": time.perf_counter() - captured},
    )


def _base_reader(loaded: Loaded, tuned: Tuned | None, opened: Specialists | None) -> layers.Reader:
    """The base model, whatever is wrapped around it."""
    name = f"{BASE} model"
    if opened is not None:
        return layers.Reader(opened.model, name=name, inside=opened.model.disable_adapter)
    if tuned is not None and tuned.base is None:
        return layers.Reader(tuned.model, name=name, inside=tuned.model.disable_adapter)
    return layers.Reader(loaded.model, name=name)


def _rows(prompts: Sequence[Prompts]) -> dict[str, tuple[Encoded, ...]]:
    return {one.task.name: one.rows for one in prompts}


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Says which task or model an error is about."""
    try:
        yield
    except TunescopeError as error:
        said = [f"{what}: {problem}" for problem in error.problems]
        raise (DataError(said) if type(error) is UserError else type(error)(said)) from None


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - started
