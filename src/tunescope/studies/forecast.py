"""What every arm will cost, from a few real steps on this machine, before anything long is started."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope import engine, models
from tunescope.data import Encoded, Example
from tunescope.runs.folder import write_text
from tunescope.runs.records import Forecast, Selection
from tunescope.studies.arms import Bench, answering, test_groups
from tunescope.studies.inputs import GUARD, encode_all
from tunescope.studies.machine import release_memory
from tunescope.studies.plan import plan_text
from tunescope.studies.progress import Progress

_DECODED = 6
_ROWS = 24


def forecast_arms(
    bench: Bench, arms: Sequence[str], selections: Mapping[str, Selection], progress: Progress
) -> list[Forecast]:
    """Takes two steps with each tuned arm and a few answers with the base, and extrapolates by tokens.

    Args:
        bench: what all arms share.
        arms: all arms of the study.
        selections: arm -> what it moves.
        progress: told about every arm.

    Returns:
        One forecast per arm. Evaluation is forecast from the base model: adapters make it a little slower.
    """
    progress.stage("forecast the cost", len(arms) + 1)
    train = encode_all(bench.chat, bench.inputs.train) if selections else []
    rates = _answer_rates(bench)
    progress.advance()
    forecasts = []
    for arm in arms:
        measured = _evaluation_seconds(bench, arm, rates)
        if arm in selections:
            forecasts.append(_tuning_forecast(bench, arm, selections[arm], train, measured, rates.read))
        else:
            forecasts.append(Forecast(arm=arm, evaluation_seconds=measured, peak_memory_bytes=rates.memory))
        progress.advance()
        release_memory()
    return forecasts


def forecast_once(
    bench: Bench, arms: Sequence[str], selections: Mapping[str, Selection], progress: Progress, *, started: float
) -> tuple[list[Forecast], float]:
    """Forecasts and writes ``plan.yaml``; on resume reads the first forecast back, so that it is compared with the fact honestly.

    Returns:
        The forecasts, and the seconds from `started` (of ``time.perf_counter``) until they were ready the first time.
    """
    name = "arms/forecast.json"
    if bench.run.has(name):
        saved = bench.run.read_json(name)
        return [Forecast.from_dict(f) for f in saved["forecast"]], saved["preparation_seconds"]
    forecasts = forecast_arms(bench, arms, selections, progress)
    planned = {arm: selections[arm] for arm in arms if arm in selections}
    if planned:
        write_text(bench.run.path / "plan.yaml", plan_text(bench.config, planned, forecasts))
    seconds = time.perf_counter() - started
    bench.run.write_json(name, {"forecast": [f.to_dict() for f in forecasts], "preparation_seconds": seconds})
    return forecasts, seconds


def _tuning_forecast(
    bench: Bench,
    arm: str,
    selection: Selection,
    train: Sequence[Encoded],
    evaluation_seconds: float,
    seconds_per_token: float,
) -> Forecast:
    tuning = bench.config.tuning
    longest = sorted(train, key=len, reverse=True)[: tuning.batch_size]
    rows = longest[
        : len(engine.pieces([len(row) for row in longest], tuning.batch_tokens)[0])
    ]  # the largest pass of all
    loaded = bench.load()
    with engine.Meter(bench.device) as meter:
        moving = engine.prepare(
            loaded.model,
            loaded.family,
            selection,
            lora_rank=tuning.lora_rank,
            lora_alpha=tuning.lora_alpha,
            seed=bench.config.seed,
        )
        models.save_memory(moving.model, max(len(e) for e in train))
        # Two steps over the same rows: the first one warms up, the second one counts.
        recipe = engine.Recipe(1e-5, num_epochs=2, batch_size=len(rows), batch_tokens=tuning.batch_tokens)
        records = list(engine.Tuner(moving, rows, recipe, arm=arm).steps())
        # A held-out check, which may need more memory than a step.
        _fullest_pass(bench, moving.model, bench.inputs.validation)
    per_token = records[-1].seconds / records[-1].tokens
    epoch_tokens = sum(len(e) for e in train)
    steps_per_epoch = -(-len(train) // tuning.batch_size)
    tokens = epoch_tokens * tuning.num_epochs
    checks = tuning.num_epochs * tuning.checks_per_epoch
    if tuning.learning_rate == "auto":
        candidates = len(engine.CANDIDATES[selection.method])
        tokens += candidates * round(
            epoch_tokens * engine.race_steps(steps_per_epoch * tuning.num_epochs) / steps_per_epoch
        )
        checks += candidates
    held_out = sum(len(e) for e in encode_all(bench.chat, bench.inputs.validation))
    element = 4 if selection.method == "lora" else torch.finfo(getattr(torch, bench.config.dtype)).bits // 8
    return Forecast(
        arm=arm,
        tuning_seconds=tokens * per_token + checks * held_out * seconds_per_token,
        evaluation_seconds=evaluation_seconds,
        peak_memory_bytes=meter.peak_memory_bytes,
        adapter_bytes=moving.selection.trainable_parameters * element,
        trainable_parameters=moving.selection.trainable_parameters,
        steps=steps_per_epoch * tuning.num_epochs,
        tokens=tokens,
    )


@dataclass(frozen=True)
class Rates:
    """What answering costs on this machine.

    Attributes:
        read: seconds per token read.
        step: seconds per decoding step of an empty batch.
        row: seconds that every row adds to a decoding step.
        memory: highest resident memory meanwhile, in bytes.
    """

    read: float = 0.0
    step: float = 0.0
    row: float = 0.0
    memory: int = 0

    def steps(self, rows: int, count: int = 1) -> float:
        """Seconds of `count` decoding steps of a batch of `rows`."""
        return count * (self.step + self.row * rows)


def _answer_rates(bench: Bench) -> Rates:
    """Measures on test examples: a pass over whole rows, and decoding with a small and with a large batch."""
    groups = [g for g in test_groups(bench.inputs) if g.role != "guard"]
    if not groups:
        return Rates()
    loaded = bench.load()
    rows = encode_all(bench.chat, groups[0].examples[:_ROWS])
    prompts = [list(r.prompt_ids) for r in rows]
    with engine.Meter(bench.device) as meter:
        models.mean_losses(loaded.model, rows[:2])
        started = time.perf_counter()
        models.mean_losses(loaded.model, rows, batch_tokens=bench.config.evaluation.batch_tokens)
        read = (time.perf_counter() - started) / sum(len(r) for r in rows)
        few = _decoding_step(loaded.model, prompts[:2])
        many = _decoding_step(loaded.model, prompts) if len(prompts) > 2 else few
        _fullest_pass(bench, loaded.model, [e for g in groups for e in g.examples])
    row = max(0.0, many - few) / max(1, len(prompts) - 2)
    return Rates(read, max(0.0, few - 2 * row), row, meter.peak_memory_bytes)


def _fullest_pass(bench: Bench, model: Any, examples: Sequence[Example]) -> None:
    """Reads one batch as full as evaluation makes them, of the longest examples: for the memory that it takes."""
    rows = encode_all(bench.chat, examples)
    limit = bench.config.evaluation.batch_tokens
    for batch in models.length_batches([len(row) for row in rows], batch_tokens=limit)[:1]:
        models.mean_losses(model, [rows[i] for i in batch], batch_tokens=limit)


def _decoding_step(model: Any, prompts: list[list[int]]) -> float:
    """Seconds of one decoding step: what more tokens take than one, which reading the prompts includes."""
    seconds = []
    for tokens in (1, 1 + _DECODED):
        started = time.perf_counter()
        for _ in models.greedy(model, prompts, stop_ids=(), max_new_tokens=tokens):
            pass
        seconds.append(time.perf_counter() - started)
    return max(0.0, seconds[1] - seconds[0]) / _DECODED


def _evaluation_seconds(bench: Bench, arm: str, rates: Rates) -> float:
    """Tokens that are read (a task's common start once) and decoding steps, at the measured rates."""
    settings = bench.config.evaluation
    seconds = 0.0
    groups = test_groups(bench.inputs)
    for task in bench.inputs.tasks:
        examples = [e for g in groups if g.task == task.name for e in g.examples]
        if not examples:
            continue
        how = answering(bench, task.name, arm)
        prompts = [bench.chat.encode(e, demonstrations=how.demonstrations).prompt_ids for e in examples]
        shared = models.common_prefix(prompts)
        own = sum(len(p) - shared for p in prompts) + shared
        if task.labels is not None:
            # Every label's second and later tokens are one more short pass over each batch.
            later = [len(bench.chat.target_ids(label)) - 1 for label in task.labels]
            lengths = [len(p) - shared for p in prompts]
            batches = models.length_batches(lengths, batch_tokens=settings.batch_tokens)
            seconds += sum(rates.steps(len(batch) * width) for batch in batches for width in later if width)
        else:
            lengths = [len(p) - shared + settings.max_new_tokens for p in prompts]
            batches = models.length_batches(lengths, batch_tokens=settings.batch_tokens, max_rows=32)
            seconds += sum(rates.steps(len(batch), settings.max_new_tokens) for batch in batches)
        seconds += own * rates.read
        timed = settings.latency_requests / max(1, sum(bool(t.test) for t in bench.inputs.tasks))
        steps = (
            max(len(bench.chat.target_ids(label)) for label in task.labels) if task.labels else settings.max_new_tokens
        )
        seconds += timed * (rates.steps(1, steps) + max(map(len, prompts)) * rates.read)
    guard = next((g for g in groups if g.task == GUARD), None)
    if guard:
        seconds += sum(len(e) for e in encode_all(bench.chat, guard.examples)) * rates.read
    return seconds
