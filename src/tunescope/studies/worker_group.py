"""One arm tuned by several processes: Ray Train starts them, puts them into a process group, and starts them again if one dies."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunescope import engine
from tunescope.errors import TunescopeError, WorkerError
from tunescope.runs.folder import write_text
from tunescope.runs.records import Selection
from tunescope.studies.arms import recorded_cost, tune_arm
from tunescope.studies.bench import Bench
from tunescope.studies.cluster import Cluster
from tunescope.studies.machine import set_threads
from tunescope.studies.pieces import alone, closed, opened
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.told import Telling

_GROUP_SECONDS = (
    600  # without an answer of a worker until its group is started again; reading a large model takes minutes
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What the workers of one arm need to know.

    Attributes:
        bench: what all arms share, as it was sent.
        arm: its name.
        selection: what it moves.
        cluster: resources of a worker, and how the model is cut.
    """

    bench: Bench
    arm: str
    selection: Selection
    cluster: Cluster

    @property
    def folder(self) -> Path:
        """Of the arm, while it is tuned."""
        return self.bench.run.path / "arms" / self.arm

    @property
    def error(self) -> Path:
        """Where a worker leaves an error that a new start would only repeat."""
        return self.folder / "worker_error.json"


def tune_with_workers(job: Job, progress: Progress) -> dict[str, Any]:
    """Tunes one arm with several processes; runs where no piece computes, and directs.

    Args:
        job: what is tuned.
        progress: the first worker tells its own.

    Returns:
        The cost as plain values, as `tune_arm` gives it.

    Raises:
        KeyboardInterrupt: the user asked to stop, and the workers have written a checkpoint.
        TunescopeError: what a worker raised; or the workers died too often.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    if job.bench.run.has(f"arms/{job.arm}/tuned.json"):
        return recorded_cost(job.bench, job.arm).to_dict()
    job.error.unlink(missing_ok=True)
    os.environ.setdefault(
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_GROUP_SECONDS)
    )  # a busy machine needs more than its minute
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if job.cluster.gpus else "gloo", timeout_s=_GROUP_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.cluster.workers,
            use_gpu=bool(job.cluster.gpus),
            resources_per_worker={"CPU": job.cluster.cpus, **({"GPU": 1} if job.cluster.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{secrets.token_hex(4)}",  # a name that was there before would be gone on with, in Ray Train's own way
            storage_path=str(job.folder),
            failure_config=ray.train.FailureConfig(max_failures=job.cluster.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    failed: Exception | None = None
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failed = error
    if job.error.is_file():
        opened(json.loads(job.error.read_text(encoding="utf-8")))
    if failed is not None:
        raise TunescopeError(
            f"{job.arm}: its workers died {job.cluster.max_failures + 1} times, and engine.ray.max_failures is {job.cluster.max_failures} "
            f"({_why(failed)}); most often memory is short (more workers with sharding fsdp2, fewer tokens per pass); then run the same command "
            "with --resume"
        )
    if not job.bench.run.has(f"arms/{job.arm}/tuned.json"):
        raise KeyboardInterrupt
    return recorded_cost(job.bench, job.arm).to_dict()


def _work(config: dict[str, Any]) -> None:
    """What every worker does; an error of ours is left in a file, since Ray Train would only try again."""
    job: Job = config["job"]
    if job.error.is_file():
        return
    workers = engine.join_workers(job.cluster.sharding)
    try:
        with _told(job, workers) as progress:
            set_threads(job.cluster.cpus)
            bench = dataclasses.replace(job.bench, device=_device(job.cluster))
            tune_arm(bench, job.arm, job.selection, progress, live=False, workers=workers)
    except KeyboardInterrupt:
        return
    except WorkerError:
        raise
    except (TunescopeError, OSError) as error:
        if not job.error.is_file():
            write_text(job.error, json.dumps(closed(error, job.arm)))
        raise


@contextlib.contextmanager
def _told(job: Job, workers: engine.Workers) -> Iterator[Progress]:
    """The progress of the first worker, which alone writes in the arm's folder; the others listen whether to stop."""
    if not workers.main:
        yield Silent()
        return
    with alone(job.folder / ".lock-workers", job.arm):
        yield Telling(job.bench.run.path, job.arm, begins=False)


def _device(cluster: Cluster) -> str:
    if not cluster.gpus:
        return "cpu"
    from ray.train.torch import get_device

    return str(get_device())


def _why(error: Exception) -> str:
    """The last line that says something of what Ray Train tells."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
