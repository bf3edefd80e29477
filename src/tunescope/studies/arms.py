"""What each arm moves, how it is tuned, and how it is measured; every step can be repeated after a kill."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import engine, evaluate, models
from tunescope.config import Arm, Config
from tunescope.data import ChatFormat, Example, Task
from tunescope.errors import ConfigError
from tunescope.models import Loaded, Located
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Answer, Forecast, Role, Selection, StepRecord
from tunescope.studies.beside import TRAINING, Beside, tuned_on
from tunescope.studies.demonstrations import at_test, encode_training
from tunescope.studies.inputs import GUARD, Inputs, encode_all
from tunescope.studies.kept_states import kept_states
from tunescope.studies.machine import trim_heap
from tunescope.studies.mask_files import mask_of
from tunescope.studies.progress import Progress, ticker
from tunescope.studies.regularisation import Rows, loss_terms, training_rows

_STEPS_PER_TRIM = 8
TUNED = (Arm.SELECTED, Arm.RANDOM, Arm.TOP_THIRD, Arm.LORA_ALL, Arm.FULL)


@dataclass(frozen=True)
class Bench:
    """What all arms share.

    Attributes:
        config: the settings.
        located: the base model's files; every arm loads its own copy, so that none inherits from another.
        inputs: tasks and guard set.
        chat: chat format of the tokenizer.
        device: torch device.
        run: the run folder.
    """

    config: Config
    located: Located
    inputs: Inputs
    chat: ChatFormat
    device: str
    run: RunFolder

    def load(self) -> Loaded:
        """Returns a fresh copy of the base model."""
        return models.load_located(self.located, dtype=self.config.dtype, device=self.device)

    def checks(self, n_train: int) -> engine.Checks:
        """Returns when to look at the held-out slice."""
        tuning = self.config.tuning
        per_epoch = -(-n_train // tuning.batch_size)
        every = max(1, per_epoch // tuning.checks_per_epoch)
        validation = encode_training(self.config, self.inputs.tasks, self.chat, self.inputs.validation)
        return engine.Checks(validation, every, tuning.patience, self.config.evaluation.batch_tokens)


@dataclass(frozen=True)
class Group:
    """Test examples of one file.

    Attributes:
        task: name of the task.
        role: in_domain or out_of_domain, or guard.
        dataset: stem of the file.
        examples: in a fixed order.
    """

    task: str
    role: Role
    dataset: str
    examples: tuple[Example, ...]


def test_groups(inputs: Inputs) -> list[Group]:
    """Returns all test files as groups, task by task, the guard set last."""
    groups = []
    for task in inputs.tasks:
        if task.test:
            groups.append(Group(task.name, "in_domain", Path(task.test[0].file).stem, task.test))
        groups += [
            Group(task.name, "out_of_domain", name, examples)
            for name, examples in task.out_of_domain.items()
            if examples
        ]
    if inputs.guard:
        groups.append(Group(GUARD, "guard", Path(inputs.guard[0].file).stem, inputs.guard))
    return groups


@dataclass(frozen=True)
class Ready:
    """A model that is prepared for tuning, with everything that the loop needs but the learning rate.

    Attributes:
        config: the settings.
        arm: name in the records.
        loaded: the base.
        moving: what was prepared of it.
        rows: training examples.
        terms: of the loss.
        states: kept states below the lowest moving block, or None.
        note: called with a line for the user.
    """

    config: Config
    arm: str
    loaded: Loaded
    moving: engine.Moving
    rows: Rows
    terms: Sequence[engine.Term]
    states: engine.ActivationCache | None
    note: Callable[[str], None]

    def tuner(self, rate: float) -> engine.Tuner:
        """Returns a tuner at step 0."""
        tuning = self.config.tuning
        recipe = engine.Recipe(
            rate,
            tuning.num_epochs,
            tuning.batch_size,
            tuning.batch_tokens,
            tuning.warmup_fraction,
            tuning.weight_decay,
            tuning.max_grad_norm,
            self.config.seed,
            tuning.regularisation.label_smoothing,
        )
        return engine.Tuner(
            self.moving, self.rows, recipe, arm=self.arm, terms=self.terms, states=self.states, note=self.note
        )

    def release(self) -> None:
        """Lets go of the files of kept states."""
        if self.states is not None:
            self.states.release()


def make_ready(
    bench: Bench,
    arm: str,
    selection: Selection,
    checks: engine.Checks,
    progress: Progress,
    *,
    start: Path | None = None,
) -> Ready:
    """Loads the base and prepares what an arm moves; with `start` from saved weights of the same selection."""
    config, tuning = bench.config, bench.config.tuning
    rows = training_rows(config, bench.inputs, bench.chat)
    loaded = bench.load()
    moving = engine.prepare(
        loaded.model,
        loaded.family,
        selection,
        lora_rank=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        seed=config.seed,
        mask=mask_of(bench.run, arm, selection),
    )
    states = kept_states(config, loaded, moving, rows, checks.validation, bench.device, progress)
    terms = loss_terms(config, bench.inputs, bench.chat, moving, states)
    if start is not None:  # after the terms, which hold on to the base model
        engine.load_saved(moving, start)
    return Ready(config, arm, loaded, moving, rows, terms, states, progress.note)


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


def measure_arm(bench: Bench, arm: str, cost: Forecast, progress: Progress, *, weights: Path | None = None) -> Forecast:
    """Answers all test examples with one arm, writes ``arms/<arm>/answers.jsonl``, and returns the cost with what that took.

    The weights are those of the run's own arm, or of the folder `weights`.
    """
    name = f"arms/{arm}/measured.json"
    if bench.run.has(name):
        return Forecast.from_dict(bench.run.read_json(name)["cost"])
    settings = bench.config.evaluation
    groups = test_groups(bench.inputs)
    beside = Beside(bench.config, bench.inputs.tasks)
    progress.stage(f"{arm}: measure", sum(len(g.examples) for g in groups) + beside.count + settings.latency_requests)
    loaded = bench.load()
    if weights is None and arm in TUNED:
        weights = bench.run.path / "weights" / arm
    change = engine.weight_change(loaded, weights, arm=arm) if weights else None
    model = tuned_model(bench, loaded, weights) if weights else loaded.model
    with engine.Meter(bench.device) as meter:
        rows: list[dict[str, Any]] = []
        for task in bench.inputs.tasks:
            how = answering(bench, task.name, arm)
            mine = [g for g in groups if g.task == task.name]
            # One call for all files of a task: rows of similar length share a batch, and the prefix is computed once.
            examples = [e for group in mine for e in group.examples]
            answers = iter(evaluate.answer(model, bench.chat, examples, how, done=ticker(progress)))
            rows += [
                {"task": g.task, "role": g.role, "dataset": g.dataset, "answer": next(answers).to_dict()}
                for g in mine
                for _ in g.examples
            ]
        if bench.inputs.guard:
            losses = models.mean_losses(
                model, encode_all(bench.chat, bench.inputs.guard), batch_tokens=settings.batch_tokens
            )
            group = groups[-1]
            rows += [
                {"task": GUARD, "role": "guard", "dataset": group.dataset, "answer": Answer("", float(x)).to_dict()}
                for x in losses
            ]
            progress.advance(len(losses))
        asked_beside = beside.ask(
            arm,
            [Answer.from_dict(row["answer"]) for row in rows if row["role"] != "guard"],
            lambda task, examples: evaluate.answer(
                model, bench.chat, examples, answering(bench, task, arm), done=ticker(progress)
            ),
        )
    timed = evaluate.latencies(model, bench.chat, _requests(bench, arm))
    progress.advance(settings.latency_requests)
    cost = dataclasses.replace(
        cost,
        evaluation_seconds=meter.seconds,
        peak_memory_bytes=max(cost.peak_memory_bytes, meter.peak_memory_bytes),
        latency_p50_seconds=timed[0] if timed else None,
        latency_p95_seconds=timed[1] if timed else None,
    )
    bench.run.write_jsonl(f"arms/{arm}/answers.jsonl", rows)
    bench.run.write_json(
        name, {"cost": cost.to_dict(), "weight_change": change.to_dict() if change else None, **asked_beside}
    )
    return cost


def tuned_model(bench: Bench, loaded: Loaded, weights: Path) -> Any:
    """Returns the model with saved weights on it: an adapter or changed weights on the base just loaded, or a whole model."""
    if (weights / "config.json").is_file():
        located = models.locate(str(weights))
        return models.load_located(located, dtype=bench.config.dtype, device=bench.device).model
    return engine.attach(loaded, weights)


def answering(bench: Bench, task_name: str, arm: str) -> evaluate.Answering:
    """Returns how an arm answers a task."""
    task = next(t for t in bench.inputs.tasks if t.name == task_name)
    settings = bench.config.evaluation
    shown = at_test(bench.config, task, arm)
    others = {label for t in bench.inputs.tasks if t.name != task_name for label in t.labels or ()}
    return evaluate.Answering(task.metric, task.labels, shown, others, settings.max_new_tokens, settings.batch_tokens)


def _requests(bench: Bench, arm: str) -> list[tuple[Example, evaluate.Answering]]:
    """Test examples in turn from every task, the same for all arms."""
    hows = {task.name: answering(bench, task.name, arm) for task in bench.inputs.tasks}
    rounds = [
        (t.test[i], hows[t.name])
        for i in range(bench.config.evaluation.latency_requests)
        for t in bench.inputs.tasks
        if i < len(t.test)
    ]
    return rounds[: bench.config.evaluation.latency_requests]


def read_scored(bench: Bench, arms: Sequence[str]) -> list[evaluate.Scored]:
    """Reads the answers of all arms back, file by file."""
    answers = {
        arm: iter([Answer.from_dict(row["answer"]) for row in bench.run.read_jsonl(f"arms/{arm}/answers.jsonl")])
        for arm in arms
    }
    guard = Task(GUARD, GUARD, "loss", test=bench.inputs.guard)
    tasks = {task.name: task for task in (*bench.inputs.tasks, guard)}
    scored = []
    for group in test_groups(bench.inputs):
        task = tasks[group.task]
        scored.append(
            evaluate.Scored(
                task=group.task,
                role=group.role,
                dataset=group.dataset,
                metric=task.metric,
                labels=task.labels,
                references=tuple(e.targets[0] for e in group.examples),
                answers={arm: [next(answers[arm]) for _ in group.examples] for arm in arms},
                version=task.version,
            )
        )
    return scored


def remove_scratch(run: RunFolder) -> None:
    """Removes what only a resume needs, once everything is in the run's own files."""
    shutil.rmtree(run.path / "arms", ignore_errors=True)


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
