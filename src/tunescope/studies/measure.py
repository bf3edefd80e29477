"""How each arm is measured: its answers to all test examples, and what that costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunescope import engine, evaluate, models
from tunescope.data import Example, Task
from tunescope.models import Loaded
from tunescope.runs.records import Answer, Forecast
from tunescope.studies.bench import TUNED, Bench, test_groups
from tunescope.studies.beside import Beside
from tunescope.studies.demonstrations import at_test
from tunescope.studies.inputs import GUARD, encode_all
from tunescope.studies.progress import Progress, ticker


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
