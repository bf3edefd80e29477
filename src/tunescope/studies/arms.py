"""How each arm is tuned; every step can be repeated after a kill."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunescope import engine
from tunescope.errors import ConfigError
from tunescope.runs.records import Forecast, Selection, StepRecord
from tunescope.studies.bench import Bench
from tunescope.studies.beside import TRAINING, tuned_on
from tunescope.studies.machine import trim_heap
from tunescope.studies.progress import Progress
from tunescope.studies.ready import make_ready
from tunescope.studies.step_files import begin_steps, merge_steps, steps_of

_STEPS_PER_TRIM = 8


def tune_arm(
    bench: Bench,
    arm: str,
    selection: Selection,
    progress: Progress,
    *,
    start: Path | None = None,
    live: bool = True,
    workers: engine.Workers = engine.ALONE,
) -> Forecast:
    """Tunes one arm, saves its weights under ``weights/<arm>``, and returns what that cost.

    Repeated after a kill it continues from the last checkpoint; repeated after it ended it returns what was recorded.

    Args:
        bench: what all arms share.
        arm: its name.
        selection: what it moves.
        progress: told what happens.
        start: a folder of saved weights of the same selection, to go on from; None = from the base model.
        live: write into the files that arms share; else only under ``arms/<arm>`` and ``weights/<arm>``, as arms do that are tuned at
            the same time, and `merge_arm` does the rest.
        workers: processes that tune it together; all of them call this, the first one writes.
    """
    folder = bench.run.path / "arms" / arm
    if workers.any(workers.main and (folder / "tuned.json").is_file()):
        return recorded_cost(bench, arm)
    if workers.main:
        folder.mkdir(parents=True, exist_ok=True)
    resumed = (folder / "race.json").is_file() or (folder / "checkpoint.safetensors").is_file()
    with engine.Meter(bench.device) as meter:
        checks = bench.checks(len(bench.inputs.train))
        ready = make_ready(bench, arm, selection, checks, progress, start=start, workers=workers)
        moving, loaded = ready.moving, ready.loaded
        progress.note(f"{arm}: {engine.describe(moving).splitlines()[0]}")
        if workers.main:
            bench.run.write_json(
                f"arms/{arm}/moves.json", {"selection": moving.selection.to_dict(), "text": engine.describe(moving)}
            )
            if live:
                _count_in_layers(bench, arm, moving.selection)

        race = _learning_rate(bench, arm, selection.method, ready.tuner, checks, progress, workers)
        outcome = _fit(bench, arm, ready.tuner(race["learning_rate"]), checks, progress, live=live, main=workers.main)
        ready.release()
        engine.to_inference(moving)
        size = engine.save(
            moving,
            loaded.tokenizer,
            bench.run.path / "weights" / arm,
            card=_card(bench, arm, moving.selection, outcome),
            base=bench.located.name,
            base_sha256=loaded.info.sha256,
        )
    cost = Forecast(
        arm=arm,
        tuning_seconds=race["seconds"],
        peak_memory_bytes=meter.peak_memory_bytes,
        adapter_bytes=size,
        trainable_parameters=moving.selection.trainable_parameters,
        energy_kwh=None if resumed else meter.energy_kwh,
        learning_rate=race["learning_rate"],
        learning_rate_why=race["why"],
        steps=outcome.steps,
        tokens=race["tokens"],
    )
    return _concluded(bench, arm, cost, outcome, moving.selection) if workers.main else cost


def _concluded(bench: Bench, arm: str, cost: Forecast, outcome: engine.Outcome, selection: Selection) -> Forecast:
    """Adds what the steps took to the cost, writes what only the end of an arm can say, and removes its checkpoints."""
    records = steps_of(bench.run, arm)
    cost = dataclasses.replace(
        cost,
        tuning_seconds=cost.tuning_seconds + sum(r["seconds"] for r in records),
        tokens=cost.tokens + sum(r["tokens"] for r in records),
    )
    bench.run.write_json(f"weights/{arm}/{TRAINING}", tuned_on(bench.config, bench.inputs.tasks))
    bench.run.write_json(
        f"arms/{arm}/tuned.json",
        {"cost": cost.to_dict(), "outcome": dataclasses.asdict(outcome), "selection": selection.to_dict()},
    )
    engine.remove_checkpoints(bench.run.path / "arms" / arm)
    return cost


def recorded_cost(bench: Bench, arm: str) -> Forecast:
    """Returns what tuning an arm cost, once it ended."""
    return Forecast.from_dict(bench.run.read_json(f"arms/{arm}/tuned.json")["cost"])


def merge_arm(bench: Bench, arm: str, order: Sequence[str]) -> None:
    """Takes an arm that was tuned with ``live=False`` into the files that arms share; repeated after a kill it does no harm.

    Args:
        bench: what all arms share.
        arm: its name.
        order: all arms, as their records are sorted.
    """
    merge_steps(bench.run, arm, order)
    tuned = bench.run.read_json(f"arms/{arm}/tuned.json")["selection"]
    if bench.run.read_json("layers.json")["selections"].get(arm) != tuned:
        _set_in_layers(bench, arm, tuned)


def _count_in_layers(bench: Bench, arm: str, selection: Selection) -> None:
    """Puts the selection with its counts into ``layers.json``, which was written before the arm was prepared."""
    _set_in_layers(bench, arm, selection.to_dict())


def _set_in_layers(bench: Bench, arm: str, selection: dict[str, Any]) -> None:
    values = bench.run.read_json("layers.json")
    values["selections"][arm] = selection
    bench.run.write_json("layers.json", values)


def _learning_rate(
    bench: Bench,
    arm: str,
    method: str,
    make_tuner: Any,
    checks: engine.Checks,
    progress: Progress,
    workers: engine.Workers,
) -> dict[str, Any]:
    """The configured rate, or the winner of a race; a finished race is read back."""
    configured = bench.config.tuning.learning_rate
    if configured != "auto":
        return {"learning_rate": configured, "why": "set in the config", "seconds": 0.0, "tokens": 0}
    name = f"arms/{arm}/race.json"
    if workers.any(workers.main and bench.run.has(name)):
        return bench.run.read_json(name)
    if not checks.validation:
        raise ConfigError(
            "tuning.learning_rate is auto, which needs held-out examples, and there are none; raise data.validation_fraction, add training "
            "examples, or set a number such as 5e-4"
        )
    candidates = engine.CANDIDATES[method]
    total = make_tuner(candidates[0]).total_steps
    progress.stage(f"{arm}: choose the learning rate", len(candidates) * engine.race_steps(total))

    def after_step(record: StepRecord) -> None:
        _trim_sometimes(record)
        progress.advance()
        if workers.any(progress.stopping()):  # all of them, or the others would wait for the one that stopped
            raise KeyboardInterrupt

    won = engine.race(make_tuner, checks, candidates, done=after_step)
    found = {"learning_rate": won.learning_rate, "why": won.why, "seconds": won.seconds, "tokens": won.tokens}
    if workers.main:
        bench.run.write_json(name, found | {"losses": {f"{rate:g}": loss for rate, loss in won.losses.items()}})
    return found


def _fit(
    bench: Bench,
    arm: str,
    tuner: engine.Tuner,
    checks: engine.Checks,
    progress: Progress,
    *,
    live: bool,
    main: bool,
) -> engine.Outcome:
    fit = engine.Fit(tuner, checks, folder=bench.run.path / "arms" / arm, should_stop=progress.stopping)
    file = begin_steps(bench.run, arm, tuner.step, live=live) if main else ""
    if tuner.step:
        progress.note(f"{arm}: continues after step {tuner.step} of {tuner.total_steps}")
    progress.stage(f"{arm}: tune", tuner.total_steps)
    progress.advance(tuner.step)
    before = time.perf_counter()
    for record in fit:
        now = time.perf_counter()
        if main:
            bench.run.append_jsonl(file, [dataclasses.replace(record, seconds=now - before).to_dict()])
        before = now
        _trim_sometimes(record)
        progress.advance()
    assert fit.outcome is not None
    return fit.outcome


def _trim_sometimes(record: StepRecord) -> None:
    if record.step % _STEPS_PER_TRIM == 0:
        trim_heap()


def _card(bench: Bench, arm: str, selection: Selection, outcome: engine.Outcome) -> str:
    """The model card: what it is, how it was made, what it may be used for."""
    loss = (
        "no held-out examples" if outcome.best_loss is None else f"held-out loss {outcome.best_loss:.4f} nats per token"
    )
    facts = {
        "base model": bench.located.name,
        "base weights sha256": bench.located.sha256,
        "licence of the base model": bench.located.license or "see the base model",
        "tasks": ", ".join(task.name for task in bench.inputs.tasks),
        "training examples": len(bench.inputs.train),
        "what moves": f"{selection.why}; {selection.trainable_parameters:,} of {selection.total_parameters:,} weights ({selection.method})",
        "kept": f"step {outcome.best_step} of {outcome.steps}, {loss}",
        "seed": bench.config.seed,
    }
    lines = [
        f"# {arm}, tuned from {bench.located.name}",
        "",
        "Made by tunescope; the run's report.html says how well it works and where not.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    return (
        "\n".join(lines)
        + "\n\n```json\n"
        + json.dumps(bench.config.tuning.model_dump(mode="json"), indent=1)
        + "\n```\n"
    )
