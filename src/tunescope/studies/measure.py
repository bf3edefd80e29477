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
from tunescope.studies.asking import Asker, answering
from tunescope.studies.base_model import is_streamed
from tunescope.studies.bench import TUNED, Bench, Group, test_groups
from tunescope.studies.beside import Beside
from tunescope.studies.inputs import GUARD, encode_all
from tunescope.studies.progress import Progress


def measure_arm(bench: Bench, arm: str, cost: Forecast, progress: Progress, *, weights: Path | None = None) -> Forecast:
    """Answers all test examples with one arm, writes ``arms/<arm>/answers.jsonl``, and returns the cost with what that took.

    The weights are those of the run's own arm, or of the folder `weights`. Answers are noted as they come: repeated after a kill it asks
    only what is missing, and ends with the same bytes.

    Raises:
        ModelError: a server answers for the arm, and it cannot be reached, refuses, or answers nonsense.
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
    asker = Asker(bench, arm, model, progress)
    _say_who_answers(bench, arm, asker, progress, streamed=is_streamed(loaded))
    with engine.Meter(bench.device) as meter:
        rows = _test_rows(bench, asker, groups)
        own = [Answer.from_dict(row["answer"]) for row in rows]
        rows += _guard_rows(bench, model, groups, progress)
        asked_beside = beside.ask(arm, own, asker.ask)
    timed = evaluate.latencies(model, bench.chat, _requests(bench, arm))
    progress.advance(settings.latency_requests)
    cost = dataclasses.replace(
        cost,
        evaluation_seconds=asker.seconds_before + meter.seconds,
        peak_memory_bytes=max(cost.peak_memory_bytes, meter.peak_memory_bytes),
        latency_p50_seconds=timed[0] if timed else None,
        latency_p95_seconds=timed[1] if timed else None,
    )
    bench.run.write_jsonl(f"arms/{arm}/answers.jsonl", rows)
    bench.run.write_json(
        name, {"cost": cost.to_dict(), "weight_change": change.to_dict() if change else None, **asked_beside}
    )
    asker.close()
    return cost


def _test_rows(bench: Bench, asker: Asker, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The answers to all test examples, file by file."""
    rows = []
    for task in bench.inputs.tasks:
        mine = [g for g in groups if g.task == task.name]
        # One call for all files of a task: rows of similar length share a batch, and the prefix is computed once.
        answers = iter(asker.ask(task.name, [e for group in mine for e in group.examples]))
        rows += [
            {"task": g.task, "role": g.role, "dataset": g.dataset, "answer": next(answers).to_dict()}
            for g in mine
            for _ in g.examples
        ]
    return rows


def _guard_rows(bench: Bench, model: Any, groups: Sequence[Group], progress: Progress) -> list[dict[str, Any]]:
    """The losses on the guard set."""
    if not bench.inputs.guard:
        return []
    rows = encode_all(bench.chat, bench.inputs.guard)
    losses = models.mean_losses(model, rows, batch_tokens=bench.config.evaluation.batch_tokens)
    progress.advance(len(losses))
    shared = {"task": GUARD, "role": "guard", "dataset": groups[-1].dataset}
    return [shared | {"answer": Answer("", float(loss)).to_dict()} for loss in losses]


def _say_who_answers(bench: Bench, arm: str, asker: Asker, progress: Progress, *, streamed: bool) -> None:
    """Says it where a server is set: no arm may be answered elsewhere than a reader thinks. And where generating here takes long."""
    if all(task.labels for task in bench.inputs.tasks):
        return
    if streamed and asker.server is None:
        progress.note(
            f"{arm}: free answers are generated from a base that is read from disk once for every token; a server takes far less time "
            "(generation.endpoint)"
        )
    if bench.config.generation.endpoint is None:
        return
    if asker.server is not None:
        progress.note(f"{arm}: free answers come from {asker.server.name}")
    else:
        progress.note(f"{arm}: free answers are generated here, since generation names no model for this arm")


def tuned_model(bench: Bench, loaded: Loaded, weights: Path) -> Any:
    """Returns the model with saved weights on it: an adapter or changed weights on the base just loaded, or a whole model."""
    if (weights / "config.json").is_file():
        located = models.locate(str(weights))
        return models.load_located(located, dtype=bench.config.dtype, device=bench.device).model
    return engine.attach(loaded, weights)


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
