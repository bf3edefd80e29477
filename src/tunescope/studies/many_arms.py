"""Arms that need nothing of each other: one after the other in this process, or at the same time on a cluster."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast, Selection
from tunescope.studies.arms import merge_arm, tune_arm
from tunescope.studies.bench import Bench
from tunescope.studies.cluster import Cluster
from tunescope.studies.machine import release_memory
from tunescope.studies.measure import measure_arm
from tunescope.studies.pieces import Piece, run_pieces, sent
from tunescope.studies.progress import Progress
from tunescope.studies.worker_group import Job, tune_with_workers


@dataclasses.dataclass(frozen=True)
class ArmWork:
    """One arm to be tuned, measured or both.

    Attributes:
        bench: what it is tuned and measured with.
        arm: its name.
        selection: what it moves; None = it is not tuned.
        measured: whether it answers the test examples.
        weights: what is measured; None = the run's own weights of a tuned arm, else the base model.
        kept: whether these weights stay once they are measured.
    """

    bench: Bench
    arm: str
    selection: Selection | None
    measured: bool = True
    weights: Path | None = None
    kept: bool = True


def do_arms(work: Sequence[ArmWork], progress: Progress) -> list[Forecast]:
    """Tunes and measures arms of one run and returns the cost of each, in order.

    The results are those of doing one after the other: an arm writes only files of its own, and what is shared is put together here.

    Args:
        work: arms of the same run folder, each once.
        progress: told what happens.

    Raises:
        KeyboardInterrupt: the user asked to stop; what was done is kept.
        TunescopeError: see `tune_arm` and `measure_arm`.
    """
    if not work:
        return []
    cluster = work[0].bench.cluster
    if cluster is None:
        return [_here(one, progress) for one in work]
    if cluster.workers == 1:
        return _on_cluster(cluster, work, progress)
    tuned = {cost.arm: cost for cost in _with_workers(cluster, [one for one in work if one.selection], progress)}
    measured = [one for one in work if one.measured]
    costs = tuned | {cost.arm: cost for cost in _on_cluster(cluster, measured, progress)}
    return [costs[one.arm] for one in work]


def planned(cluster: Cluster | None, forecasts: Sequence[Forecast]) -> dict[str, float]:
    """Returns the seconds of the stages that `do_arms` goes through, from the forecast of each arm in one process.

    Several workers are taken to share the work evenly; what they say to each other is not counted.
    """
    if cluster is None:
        return {f"{f.arm}: tune": f.tuning_seconds for f in forecasts if f.tuning_seconds} | {
            f"{f.arm}: measure": f.evaluation_seconds for f in forecasts
        }
    if cluster.workers == 1:
        return {
            _stage(cluster, "measure"): _together(cluster, [f.tuning_seconds + f.evaluation_seconds for f in forecasts])
        }
    groups = max(1, cluster.places // cluster.workers)
    tuning = [f.tuning_seconds / cluster.workers for f in forecasts if f.tuning_seconds]
    return {
        _stage(cluster, "tune"): max(sum(tuning) / groups, max(tuning, default=0.0)),
        _stage(cluster, "measure"): _together(cluster, [f.evaluation_seconds for f in forecasts]),
    }


def _together(cluster: Cluster, seconds: Sequence[float]) -> float:
    return max(sum(seconds) / cluster.places, max(seconds, default=0.0))


def _stage(cluster: Cluster, verb: str) -> str:
    if cluster.workers == 1:
        return "tune and measure the arms on the cluster"
    return f"{verb} the arms on the cluster" + (f" with {cluster.workers} workers each" if verb == "tune" else "")


def _here(one: ArmWork, progress: Progress) -> Forecast:
    _set_stage(one.bench.run, f"arm {one.arm}")
    cost = tune_arm(one.bench, one.arm, one.selection, progress) if one.selection else Forecast(arm=one.arm)
    release_memory()
    if one.measured:
        cost = _measured(one, cost, progress)
        release_memory()
    return cost


def _on_cluster(cluster: Cluster, work: Sequence[ArmWork], progress: Progress) -> list[Forecast]:
    """One process per arm."""
    pieces = [
        Piece(one.arm, _tune_and_measure, (_sent(one, cluster),), then=functools.partial(_merge, one, _order(work)))
        for one in work
    ]
    return _costs(cluster, pieces, work, _stage(cluster, "measure"), progress)


def _with_workers(cluster: Cluster, work: Sequence[ArmWork], progress: Progress) -> list[Forecast]:
    """Several processes per arm."""
    pieces = []
    for one in work:
        assert one.selection is not None
        job = Job(sent(one.bench, cluster), one.arm, one.selection, cluster)
        then = functools.partial(_merge, one, _order(work))
        pieces.append(Piece(one.arm, tune_with_workers, (job,), computes=False, then=then))
    at_once = max(1, cluster.places // cluster.workers)
    return _costs(cluster, pieces, work, _stage(cluster, "tune"), progress, at_once)


def _costs(
    cluster: Cluster,
    pieces: Sequence[Piece],
    work: Sequence[ArmWork],
    stage: str,
    progress: Progress,
    at_once: int | None = None,
) -> list[Forecast]:
    if not pieces:
        return []
    run = work[0].bench.run
    _set_stage(run, f"arms {', '.join(_order(work))}")
    found = run_pieces(cluster, run.path, pieces, stage, progress, at_once=at_once)
    return [Forecast.from_dict(values) for values in found]


def _tune_and_measure(one: ArmWork, progress: Progress) -> dict[str, Any]:
    """What a process of the cluster does with one arm."""
    cost = Forecast(arm=one.arm)
    if one.selection is not None:
        cost = tune_arm(one.bench, one.arm, one.selection, progress, live=False)
        release_memory()
    if one.measured:
        cost = _measured(one, cost, progress)
    return cost.to_dict()


def _measured(one: ArmWork, cost: Forecast, progress: Progress) -> Forecast:
    cost = measure_arm(one.bench, one.arm, cost, progress, weights=one.weights)
    if one.weights is not None and not one.kept:
        shutil.rmtree(one.weights, ignore_errors=True)
    return cost


def _merge(one: ArmWork, order: Sequence[str], _cost: dict[str, Any]) -> None:
    if one.selection is not None:
        merge_arm(one.bench, one.arm, order)


def _set_stage(run: RunFolder, stage: str) -> None:
    if run.has("status.json"):  # a part of a run has none of its own
        run.set_status("running", stage=stage)


def _order(work: Sequence[ArmWork]) -> list[str]:
    return [one.arm for one in work]


def _sent(one: ArmWork, cluster: Cluster) -> ArmWork:
    return dataclasses.replace(one, bench=sent(one.bench, cluster), weights=one.weights and one.weights.absolute())
