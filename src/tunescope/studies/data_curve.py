"""How much data: the recommended arm tuned again on parts of the training examples, and what doubling them would probably bring."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from tunescope import metrics
from tunescope.config import Config
from tunescope.data import Task
from tunescope.evaluate import BASE_ARM, Scored
from tunescope.runs.folder import RunFolder
from tunescope.runs.generalisation import CurvePoint, DataCurve
from tunescope.runs.records import Forecast, Role, Selection
from tunescope.studies.bench import Bench
from tunescope.studies.inputs import Inputs
from tunescope.studies.many_arms import ArmWork, do_arms
from tunescope.studies.mask_files import mask_path
from tunescope.studies.measure import read_scored
from tunescope.studies.progress import Progress

CURVE = "curve.json"
_SCRATCH = "arms/curve"
_ROLES: tuple[Role, ...] = ("in_domain", "out_of_domain")


@dataclasses.dataclass(frozen=True)
class _Size:
    """One size: its name as an arm, its share of the examples, and the inputs cut to it."""

    name: str
    share: float
    inputs: Inputs


def draw_curve(
    bench: Bench,
    selections: Mapping[str, Selection],
    costs: Sequence[Forecast],
    recommended: str | None,
    progress: Progress,
) -> float:
    """Writes ``curve.json`` where ``evaluation.curve`` asks for it.

    The arm is the recommended one if it was tuned, else the first tuned one. What it moves, the learning rate and the epochs are those of
    the whole data; with every size it starts from the base model. The sizes are nested: each holds the examples of those below. Repeated
    after a kill it goes on where it was.

    Args:
        bench: what all arms share; every arm is tuned and measured.
        selections: arm -> what it moved.
        costs: of all arms.
        recommended: arm of the verdict, or None.
        progress: told what happens.

    Returns:
        Seconds of tuning and measuring; 0 where nothing is asked for or nothing was tuned.
    """
    tuned = [cost for cost in costs if cost.arm in selections]
    if not bench.config.evaluation.curve or not tuned:
        return 0.0
    whole = next((cost for cost in tuned if cost.arm == recommended), tuned[0])
    if bench.run.has(CURVE):
        return float(bench.run.read_json(CURVE)["seconds"])
    scratch = RunFolder(bench.run.path / _SCRATCH)
    if not scratch.has("layers.json"):
        scratch.write_json("layers.json", {"scores": [], "selections": {}})
    config = _settings(bench.config, whole)
    work: list[tuple[_Size, ArmWork]] = []
    for size in sizes(bench.inputs, whole.arm, bench.config.evaluation.curve):
        if selections[whole.arm].method == "sparse":
            mask_path(scratch, size.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(mask_path(bench.run, whole.arm), mask_path(scratch, size.name))
        part = dataclasses.replace(bench, config=config, inputs=size.inputs, run=scratch)
        weights = scratch.path / "weights" / size.name
        work.append((size, ArmWork(part, size.name, selections[whole.arm], weights=weights, kept=False)))
    points: list[tuple[_Size, Forecast, list[Scored]]] = [
        (size, cost, read_scored(one.bench, [size.name]))
        for (size, one), cost in zip(work, do_arms([one for _, one in work], progress), strict=True)
    ]
    everything = _Size(whole.arm, 1.0, bench.inputs)
    arms = [cost.arm for cost in costs]
    points.append((everything, dataclasses.replace(whole, tuning_seconds=0.0), read_scored(bench, arms)))
    found = [_curve(bench, whole.arm, role, points) for role in _ROLES if _items(points[-1][2], role)]
    seconds = sum(cost.tuning_seconds + cost.evaluation_seconds for size, cost, _ in points[:-1])
    bench.run.write_json(CURVE, {"curves": [curve.to_dict() for curve in found], "seconds": seconds})
    return seconds


def sizes(inputs: Inputs, arm: str, shares: Sequence[float]) -> list[_Size]:
    """Returns the nested parts of the training examples: of every task its first ones, in the order that the seed drew."""
    found = []
    for share in shares:
        tasks = tuple(_cut(task, share) for task in inputs.tasks)
        cut = dataclasses.replace(inputs, tasks=tasks, guard=())
        found.append(_Size(f"{arm}-on-{len(cut.train)}", share, cut))
    return found


def unfit_sizes(config: Config, inputs: Inputs) -> list[str]:
    """Returns what is wrong with ``evaluation.curve``: two shares that come to the same number of examples."""
    counts = [len(size.inputs.train) for size in sizes(inputs, "", config.evaluation.curve)] + [len(inputs.train)]
    return [
        f"evaluation.curve: share {share:g} of {counts[-1]} training examples is {count}, and so is the next larger one; leave one out"
        for share, count, larger in zip(config.evaluation.curve, counts, counts[1:], strict=False)
        if count == larger
    ]


def forecast_curve(config: Config, forecasts: Sequence[Forecast]) -> float:
    """Returns the forecast of the time that the curve takes, from that of the dearest tuned arm."""
    tuned = [f for f in forecasts if f.tuning_seconds]
    if not tuned or not config.evaluation.curve:
        return 0.0
    dearest = max(tuned, key=lambda f: f.tuning_seconds)
    return sum(share * dearest.tuning_seconds + dearest.evaluation_seconds for share in config.evaluation.curve)


def _cut(task: Task, share: float) -> Task:
    return dataclasses.replace(task, train=task.train[: max(1, round(share * len(task.train)))])


def _settings(config: Config, whole: Forecast) -> Config:
    """The settings of every size: the learning rate of the whole data, and nothing measured that no point shows."""
    plain = {"latency_requests": 0}
    return config.model_copy(
        update={
            "tuning": config.tuning.model_copy(update={"learning_rate": whole.learning_rate}),
            "evaluation": config.evaluation.model_copy(update=plain),
            "tasks": tuple(task.model_copy(update={"paraphrases": ()}) for task in config.tasks),
        }
    )


def _items(scored: Sequence[Scored], role: Role) -> list[Scored]:
    return [item for item in scored if item.role == role]


def _scores(scored: Sequence[Scored], role: Role, arm: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([item.scores(arm) for item in _items(scored, role)])


def _curve(bench: Bench, arm: str, role: Role, points: Sequence[tuple[_Size, Forecast, list[Scored]]]) -> DataCurve:
    settings = bench.config.evaluation
    scores = np.stack([_scores(scored, role, size.name) for size, _, scored in points])
    items = _items(points[-1][2], role)
    strata = [item.task for item in items for _ in item.references]
    means = [
        metrics.interval(
            row, strata=strata, n_bootstrap=settings.n_bootstrap, confidence=settings.confidence, seed=bench.config.seed
        )
        for row in scores
    ]
    resamples = 1 - metrics.resampled_means(
        scores, strata=strata, n_bootstrap=settings.n_bootstrap, seed=bench.config.seed
    )
    counts = [len(size.inputs.train) for size, _, _ in points]
    found = metrics.forecast_gain(
        counts, [1 - mean.value for mean in means], resamples, confidence=settings.confidence, seed=bench.config.seed
    )
    untuned = _scores(points[-1][2], role, BASE_ARM) if BASE_ARM in items[0].answers else None
    return DataCurve(
        arm=arm,
        role=role,
        points=tuple(
            CurvePoint(count, size.share, mean.value, mean.low, mean.high, cost.tuning_seconds)
            for count, mean, (size, cost, _) in zip(counts, means, points, strict=True)
        ),
        untuned=None if untuned is None else metrics.interval(untuned, strata=strata, n_bootstrap=200).value,
        floor=found.law.floor if found.law else None,
        scale=found.law.scale if found.law else None,
        exponent=found.law.exponent if found.law else None,
        gain=found.gain,
        gain_low=found.low,
        gain_high=found.high,
        why=found.why,
        details=dict(found.details),
    )
