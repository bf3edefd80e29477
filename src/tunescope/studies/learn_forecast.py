"""What a stream will cost: a few real steps and answers, scaled to the examples of every stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tunescope.runs.records import Forecast, Selection
from tunescope.studies.bench import Bench, test_groups
from tunescope.studies.forecast import forecast_arms
from tunescope.studies.learn_stage import tuning_bench
from tunescope.studies.learn_stream import BASE, START, Stream
from tunescope.studies.progress import Progress

FORECAST = "arms/forecast.json"


def forecast_stream(
    bench: Bench, stream: Stream, arm: str, selection: Selection, kept: Mapping[str, int], progress: Progress
) -> list[Forecast]:
    """Returns a forecast per row of the score matrix: before the first stage, if that is measured, and of every stage.

    Tuning is measured on the training examples of all new tasks together and scaled by how many examples a stage reads; what is repeated
    counts as examples of average length. Experts are not in it. On resume the first forecast is read back.

    Args:
        bench: the whole study.
        stream: the stream.
        arm: whose mask is used for sparse entries.
        selection: what moves at every stage.
        kept: earlier task -> examples in memory before the first stage.
        progress: told what happens.
    """
    if bench.run.has(FORECAST):
        return [Forecast.from_dict(row) for row in bench.run.read_json(FORECAST)["forecast"]]
    everything = tuning_bench(bench, [name for stage in stream.stages for name in stage.learns], {})
    answered, tuned = forecast_arms(everything, [BASE, arm], {arm: selection}, progress)
    per_example = tuned.tuning_seconds / max(1, len(everything.inputs.train))
    per_answer = answered.evaluation_seconds / max(1, sum(_answers(everything).values()))
    tests = _answers(bench)
    what = bench.config.replay.evaluate

    def measuring(place: int) -> float:
        return per_answer * sum(tests[name] for name in stream.measured(place, what))

    forecasts = []
    if stream.earlier or what != "seen":
        name = START if stream.earlier else BASE
        forecasts.append(dataclasses.replace(answered, arm=name, evaluation_seconds=measuring(-1)))
    sizes = {task.name: len(task.train) for task in bench.inputs.tasks} | dict(kept)
    for place, stage in enumerate(stream.stages):
        before = stream.before(stage)
        budget = bench.config.replay.budget_per_task * len(before) if bench.config.replay.policy != "none" else 0
        repeated = min(budget, sum(sizes.get(name, 0) for name in before))
        learned = sum(sizes[name] for name in stage.learns)
        share = (learned + repeated) / max(1, len(everything.inputs.train))
        forecasts.append(
            dataclasses.replace(
                tuned,
                arm=stage.arm,
                tuning_seconds=per_example * (learned + repeated),
                evaluation_seconds=measuring(place),
                steps=round(tuned.steps * share),
                tokens=round(tuned.tokens * share),
            )
        )
    bench.run.write_json(FORECAST, {"forecast": [f.to_dict() for f in forecasts]})
    return forecasts


def _answers(bench: Bench) -> dict[str, int]:
    """Task -> test examples, those out of domain included."""
    counts: dict[str, int] = {}
    for group in test_groups(bench.inputs):
        if group.role != "guard":
            counts[group.task] = counts.get(group.task, 0) + len(group.examples)
    return counts
