"""What every arm will cost, from a few real steps on this machine, before anything long is started."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope import engine, evaluate, models
from tunescope.data import Encoded, Example, Task
from tunescope.models import Loaded
from tunescope.runs.records import Forecast, Selection
from tunescope.studies.asking import answering
from tunescope.studies.base_model import is_streamed
from tunescope.studies.bench import Bench, test_groups
from tunescope.studies.beside import Beside
from tunescope.studies.demonstrations import encode_training
from tunescope.studies.inputs import GUARD, encode_all
from tunescope.studies.machine import release_memory
from tunescope.studies.mask_files import mask_of
from tunescope.studies.prices import Calibration, Point, parameter_table
from tunescope.studies.progress import Progress
from tunescope.studies.regularisation import loss_terms, rows_of, training_rows
from tunescope.studies.serving import server_of

FORECAST = "arms/forecast.json"
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
    return _forecast_arms(bench, arms, selections, progress)[0]


def forecast_and_calibrate(
    bench: Bench, arms: Sequence[str], selections: Mapping[str, Selection], progress: Progress
) -> tuple[list[Forecast], Calibration | None]:
    """Returns what `forecast_arms` does, and what prices other choices of blocks (None where nothing is tuned)."""
    planned = {arm: selections[arm] for arm in arms if arm in selections}
    progress.stage("forecast the cost", len(arms) + 1 + bool(planned))
    forecasts, seconds_per_token = _forecast_arms(bench, arms, selections, progress)
    if not planned:
        return forecasts, None
    calibration = _calibration(bench, planned, {f.arm: f for f in forecasts}, seconds_per_token)
    progress.advance()
    release_memory()
    return forecasts, calibration


def _forecast_arms(
    bench: Bench, arms: Sequence[str], selections: Mapping[str, Selection], progress: Progress
) -> tuple[list[Forecast], float]:
    """The forecasts, and the seconds per token read."""
    train = _first_epoch(bench) if selections else []
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
    return forecasts, rates.read


def forecast_once(
    bench: Bench, arms: Sequence[str], selections: Mapping[str, Selection], progress: Progress, *, started: float
) -> tuple[list[Forecast], float]:
    """Forecasts once; on resume reads the first forecast back, so that it is compared with the fact honestly.

    Returns:
        The forecasts, and the seconds from `started` (of ``time.perf_counter``) until they were ready the first time.
    """
    if bench.run.has(FORECAST):
        saved = bench.run.read_json(FORECAST)
        return [Forecast.from_dict(f) for f in saved["forecast"]], saved["preparation_seconds"]
    forecasts, calibration = forecast_and_calibrate(bench, arms, selections, progress)
    seconds = time.perf_counter() - started
    values = {
        "forecast": [f.to_dict() for f in forecasts],
        "preparation_seconds": seconds,
        "selections": {arm: selections[arm].to_dict() for arm in arms if arm in selections},
        "estimated": [],
        "calibration": calibration.to_dict() if calibration else None,
    }
    bench.run.write_json(FORECAST, values)
    return forecasts, seconds


def forecast_again(bench: Bench, arm: str, selection: Selection, evaluation_seconds: float) -> Forecast:
    """Forecasts one arm that moves something else than first proposed; measuring it costs what it did."""
    calibration = bench.run.read_json(FORECAST)["calibration"]
    train = _first_epoch(bench)
    forecast = _tuning_forecast(bench, arm, selection, train, evaluation_seconds, calibration["seconds_per_token"])
    release_memory()
    return forecast


def _calibration(
    bench: Bench,
    planned: Mapping[str, Selection],
    forecasts: Mapping[str, Forecast],
    seconds_per_token: float,
) -> Calibration:
    """Adds to the arms the cheapest choice there is, the last block alone: what it costs is what every choice costs at least."""
    train = _first_epoch(bench)
    loaded = bench.load()
    table = parameter_table(loaded, bench.config.tuning.lora_rank)
    info = loaded.info
    parts = tuple(bench.config.tuning.target_modules)
    blockwise = [s for s in planned.values() if s.method != "sparse" and not s.whole_model and not s.matrices]
    like = blockwise[0] if blockwise else Selection("lora", (), parts, "")
    last = Selection(like.method, (f"block.{info.n_layers - 1}",), like.modules, "")
    evaluation_seconds = max(forecasts[arm].evaluation_seconds for arm in planned)
    cost = _tuning_forecast(bench, "last block", last, train, evaluation_seconds, seconds_per_token, loaded)
    points = [Point(last.method, last.layers, cost.tuning_seconds, cost.peak_memory_bytes)]
    points += [
        Point(s.method, s.layers, forecasts[arm].tuning_seconds, forecasts[arm].peak_memory_bytes)
        for arm, s in planned.items()
        if s in blockwise
    ]
    return Calibration(
        points=tuple(points),
        table=table,
        n_layers=info.n_layers,
        evaluation_seconds=evaluation_seconds,
        seconds_per_token=seconds_per_token,
        model_parameters=info.parameters,
        model_bytes=info.weight_bytes,
    )


def _tuning_forecast(
    bench: Bench,
    arm: str,
    selection: Selection,
    train: Sequence[Encoded],
    evaluation_seconds: float,
    seconds_per_token: float,
    loaded: Loaded | None = None,
) -> Forecast:
    tuning = bench.config.tuning
    longest = sorted(train, key=len, reverse=True)[: tuning.batch_size]
    rows = longest[
        : len(engine.pieces([len(row) for row in longest], tuning.batch_tokens)[0])
    ]  # the largest pass of all
    loaded = loaded or bench.load()
    with engine.Meter(bench.device) as meter:
        moving = engine.prepare(
            loaded.model,
            loaded.family,
            selection,
            lora_rank=tuning.lora_rank,
            lora_alpha=tuning.lora_alpha,
            seed=bench.config.seed,
            mask=mask_of(bench.run, arm, selection),
        )
        # Two steps over the same rows: the first one warms up, the second one counts.
        recipe = engine.Recipe(1e-5, num_epochs=2, batch_size=len(rows), batch_tokens=tuning.batch_tokens)
        terms = loss_terms(bench.config, bench.inputs, bench.chat, moving)
        records = list(engine.Tuner(moving, rows, recipe, arm=arm).steps())
        term_seconds = _seconds_of_terms(terms, moving)
        # A held-out check, which may need more memory than a step.
        held_out_rows = encode_training(bench.config, bench.inputs.tasks, bench.chat, bench.inputs.validation)
        with moving.compute():
            _fullest_pass(bench, moving.model, held_out_rows)
    per_token = records[-1].seconds / records[-1].tokens
    epoch_tokens = sum(len(e) for e in train)
    steps_per_epoch = -(-len(train) // tuning.batch_size)
    tokens = epoch_tokens * tuning.num_epochs
    n_steps = steps_per_epoch * tuning.num_epochs
    checks = tuning.num_epochs * tuning.checks_per_epoch
    if tuning.learning_rate == "auto":
        candidates = len(engine.CANDIDATES[selection.method])
        race_steps = engine.race_steps(n_steps)
        n_steps += candidates * race_steps
        tokens += candidates * round(epoch_tokens * race_steps / steps_per_epoch)
        checks += candidates
    held_out = sum(map(len, held_out_rows))
    dtype_bytes = torch.finfo(getattr(torch, bench.config.dtype)).bits // 8
    # Of sparse entries a float32 change with its row and column is written; filling up the file comes on top.
    element = {"lora": 4, "sparse": 12}.get(selection.method, dtype_bytes)
    return Forecast(
        arm=arm,
        tuning_seconds=tokens * per_token + n_steps * term_seconds + checks * held_out * seconds_per_token,
        evaluation_seconds=evaluation_seconds,
        peak_memory_bytes=meter.peak_memory_bytes,
        adapter_bytes=moving.selection.trainable_parameters * element,
        trainable_parameters=moving.selection.trainable_parameters,
        steps=steps_per_epoch * tuning.num_epochs,
        tokens=tokens,
    )


def _first_epoch(bench: Bench) -> Sequence[Encoded]:
    return rows_of(training_rows(bench.config, bench.inputs, bench.chat), 0)


def _seconds_of_terms(terms: Sequence[engine.Term], moving: engine.Moving) -> float:
    """Seconds that the terms of the loss add to a step; the first round warms up."""
    started = time.perf_counter()
    for step in range(2):
        started = time.perf_counter()
        for term in terms:
            float(term.add_gradient(step))
    for parameter in moving.parameters.values():
        parameter.grad = None
    return time.perf_counter() - started


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
        steps = 1 if is_streamed(loaded) else _DECODED  # every step reads the base, and takes the same time
        few = _decoding_step(loaded.model, prompts[:2], steps)
        many = _decoding_step(loaded.model, prompts, steps) if len(prompts) > 2 else few
        _fullest_pass(bench, loaded.model, encode_all(bench.chat, [e for g in groups for e in g.examples]))
    row = max(0.0, many - few) / max(1, len(prompts) - 2)
    return Rates(read, max(0.0, few - 2 * row), row, meter.peak_memory_bytes)


def _fullest_pass(bench: Bench, model: Any, rows: Sequence[Encoded]) -> None:
    """Reads one batch as full as evaluation makes them, of the longest rows: for the memory that it takes."""
    limit = bench.config.evaluation.batch_tokens
    for batch in models.length_batches([len(row) for row in rows], batch_tokens=limit)[:1]:
        models.mean_losses(model, [rows[i] for i in batch], batch_tokens=limit)


def _decoding_step(model: Any, prompts: list[list[int]], steps: int) -> float:
    """Seconds of one decoding step: what more tokens take than one, which reading the prompts includes."""
    seconds = []
    for tokens in (1, 1 + steps):
        started = time.perf_counter()
        for _ in models.greedy(model, prompts, stop_ids=(), max_new_tokens=tokens):
            pass
        seconds.append(time.perf_counter() - started)
    return max(0.0, seconds[1] - seconds[0]) / steps


def _evaluation_seconds(bench: Bench, arm: str, rates: Rates) -> float:
    """Tokens that are read (a task's common start once) and decoding steps, at the measured rates."""
    settings = bench.config.evaluation
    seconds = 0.0
    groups, beside = test_groups(bench.inputs), Beside(bench.config, bench.inputs.tasks)
    for task in bench.inputs.tasks:
        examples = [e for g in groups if g.task == task.name for e in g.examples]
        if not examples:
            continue
        how = answering(bench, task.name, arm)
        served = (
            task.labels is None and server_of(bench.config, arm) is not None
        )  # how long that takes, the server knows
        for asked in (examples, *beside.examples(task.name)) if not served else ():
            for part in evaluate.same_start(asked, how):
                seconds += _answer_seconds(bench, task, how, [asked[i] for i in part], rates)
        timed = settings.latency_requests / max(1, sum(bool(t.test) for t in bench.inputs.tasks))
        steps = (
            max(len(bench.chat.target_ids(label)) for label in task.labels) if task.labels else settings.max_new_tokens
        )
        longest = max(len(bench.chat.encode(e, demonstrations=how.shown(e)).prompt_ids) for e in examples)
        seconds += timed * (rates.steps(1, steps) + longest * rates.read)
    guard = next((g for g in groups if g.task == GUARD), None)
    if guard:
        seconds += sum(len(e) for e in encode_all(bench.chat, guard.examples)) * rates.read
    return seconds


def _answer_seconds(
    bench: Bench, task: Task, how: evaluate.Answering, examples: Sequence[Example], rates: Rates
) -> float:
    """Seconds for examples that go through the model together: what they share is read once."""
    settings = bench.config.evaluation
    prompts = [bench.chat.encode(e, demonstrations=how.shown(e)).prompt_ids for e in examples]
    shared = models.common_prefix(prompts)
    lengths = [len(p) - shared for p in prompts]
    if task.labels is not None:
        # Every label's second and later tokens are one more short pass over each batch.
        later = [len(bench.chat.target_ids(label)) - 1 for label in task.labels]
        batches = models.length_batches(lengths, batch_tokens=settings.batch_tokens)
        steps = sum(rates.steps(len(batch) * width) for batch in batches for width in later if width)
    else:
        lengths = [length + settings.max_new_tokens for length in lengths]
        batches = models.length_batches(lengths, batch_tokens=settings.batch_tokens, max_rows=32)
        steps = sum(rates.steps(len(batch), settings.max_new_tokens) for batch in batches)
    return steps + (sum(len(p) - shared for p in prompts) + shared) * rates.read
