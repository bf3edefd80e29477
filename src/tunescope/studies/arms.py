"""How each arm is tuned; every step can be repeated after a kill."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from tunescope import engine
from tunescope.errors import ConfigError
from tunescope.runs.records import Forecast, Selection, StepRecord
from tunescope.studies.bench import Bench
from tunescope.studies.beside import TRAINING, tuned_on
from tunescope.studies.machine import trim_heap
from tunescope.studies.progress import Progress, ticker
from tunescope.studies.ready import make_ready

_STEPS_PER_TRIM = 8


def tune_arm(
    bench: Bench, arm: str, selection: Selection, progress: Progress, *, start: Path | None = None
) -> Forecast:
    """Tunes one arm, saves its weights under ``weights/<arm>``, and returns what that cost.

    Repeated after a kill it continues from the last checkpoint; repeated after it ended it returns what was recorded. With `start`, a
    folder of saved weights of the same selection, it goes on from them and not from the base model.
    """
    folder = bench.run.path / "arms" / arm
    if (folder / "tuned.json").is_file():
        return Forecast.from_dict(bench.run.read_json(f"arms/{arm}/tuned.json")["cost"])
    folder.mkdir(parents=True, exist_ok=True)
    resumed = (folder / "race.json").is_file() or (folder / "checkpoint.safetensors").is_file()
    with engine.Meter(bench.device) as meter:
        checks = bench.checks(len(bench.inputs.train))
        ready = make_ready(bench, arm, selection, checks, progress, start=start)
        moving, loaded = ready.moving, ready.loaded
        progress.note(f"{arm}: {engine.describe(moving).splitlines()[0]}")
        bench.run.write_json(
            f"arms/{arm}/moves.json", {"selection": moving.selection.to_dict(), "text": engine.describe(moving)}
        )
        _count_in_layers(bench, arm, moving.selection)

        race = _learning_rate(bench, arm, selection.method, ready.tuner, checks, progress)
        outcome = _fit(bench, arm, ready.tuner(race["learning_rate"]), checks, progress)
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
        bench.run.write_json(f"weights/{arm}/{TRAINING}", tuned_on(bench.config, bench.inputs.tasks))
    records = [r for r in bench.run.read_jsonl("steps.jsonl") if r["arm"] == arm]
    cost = Forecast(
        arm=arm,
        tuning_seconds=race["seconds"] + sum(r["seconds"] for r in records),
        peak_memory_bytes=meter.peak_memory_bytes,
        adapter_bytes=size,
        trainable_parameters=moving.selection.trainable_parameters,
        energy_kwh=None if resumed else meter.energy_kwh,
        learning_rate=race["learning_rate"],
        learning_rate_why=race["why"],
        steps=outcome.steps,
        tokens=race["tokens"] + sum(r["tokens"] for r in records),
    )
    bench.run.write_json(
        f"arms/{arm}/tuned.json",
        {"cost": cost.to_dict(), "outcome": dataclasses.asdict(outcome), "selection": moving.selection.to_dict()},
    )
    for name in ("checkpoint.safetensors", "best.safetensors"):
        (folder / name).unlink(missing_ok=True)
    return cost


def _count_in_layers(bench: Bench, arm: str, selection: Selection) -> None:
    """Puts the selection with its counts into ``layers.json``, which was written before the arm was prepared."""
    values = bench.run.read_json("layers.json")
    values["selections"][arm] = selection.to_dict()
    bench.run.write_json("layers.json", values)


def _learning_rate(
    bench: Bench, arm: str, method: str, make_tuner: Any, checks: engine.Checks, progress: Progress
) -> dict[str, Any]:
    """The configured rate, or the winner of a race; a finished race is read back."""
    configured = bench.config.tuning.learning_rate
    if configured != "auto":
        return {"learning_rate": configured, "why": "set in the config", "seconds": 0.0, "tokens": 0}
    name = f"arms/{arm}/race.json"
    if bench.run.has(name):
        return bench.run.read_json(name)
    if not checks.validation:
        raise ConfigError(
            "tuning.learning_rate is auto, which needs held-out examples, and there are none; raise data.validation_fraction, add training "
            "examples, or set a number such as 5e-4"
        )
    candidates = engine.CANDIDATES[method]
    total = make_tuner(candidates[0]).total_steps
    progress.stage(f"{arm}: choose the learning rate", len(candidates) * engine.race_steps(total))

    tick = ticker(progress)

    def after_step(record: StepRecord) -> None:
        _trim_sometimes(record)
        tick(1)

    won = engine.race(make_tuner, checks, candidates, done=after_step)
    found = {"learning_rate": won.learning_rate, "why": won.why, "seconds": won.seconds, "tokens": won.tokens}
    bench.run.write_json(name, found | {"losses": {f"{rate:g}": loss for rate, loss in won.losses.items()}})
    return found


def _fit(bench: Bench, arm: str, tuner: engine.Tuner, checks: engine.Checks, progress: Progress) -> engine.Outcome:
    fit = engine.Fit(tuner, checks, folder=bench.run.path / "arms" / arm, should_stop=progress.stopping)
    rows = bench.run.read_jsonl("steps.jsonl")
    kept = [r for r in rows if r["arm"] != arm or r["step"] <= tuner.step]
    if len(kept) != len(rows) or not bench.run.has("steps.jsonl"):
        bench.run.write_jsonl("steps.jsonl", kept)  # steps after the checkpoint are taken again
    if tuner.step:
        progress.note(f"{arm}: continues after step {tuner.step} of {tuner.total_steps}")
    progress.stage(f"{arm}: tune", tuner.total_steps)
    progress.advance(tuner.step)
    before = time.perf_counter()
    for record in fit:
        now = time.perf_counter()
        bench.run.append_jsonl("steps.jsonl", [dataclasses.replace(record, seconds=now - before).to_dict()])
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
