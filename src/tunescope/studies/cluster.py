"""A Ray cluster for the time of a study: joined or started, looked over, and left as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunescope.config import Config
from tunescope.errors import ConfigError
from tunescope.studies.cluster_nodes import Node, alive, look_over, places
from tunescope.studies.progress import Progress

if TYPE_CHECKING:  # the cluster is asked before torch is imported
    from tunescope.models import Located

# Read when Ray is imported or started. Usage statistics would go to Ray's makers; nothing that we start calls home. And Ray tells of lost
# processes on stdout, where a study may print one JSON object; the study tells of them itself.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_ASK = """
import logging, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
print("joined")
"""


@dataclass(frozen=True)
class Cluster:
    """What a study may use.

    Attributes:
        ray: version of Ray.
        own: whether this study started it.
        nodes: machines with room for a process of the study.
        cpus: CPUs of one process, and its threads.
        gpus: GPUs of one process.
        workers: processes that tune one arm together.
        sharding: none or fsdp2.
        max_failures: how often a piece goes on after its process died.
    """

    ray: str
    own: bool
    nodes: tuple[Node, ...]
    cpus: int
    gpus: float
    workers: int
    sharding: str
    max_failures: int

    @property
    def places(self) -> int:
        """Processes that fit at the same time."""
        return places(self.nodes, self.cpus, self.gpus)

    @property
    def device(self) -> str:
        """Torch device of a process: Ray shows it its own GPUs alone."""
        return "cuda" if self.gpus else "cpu"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for the ledger."""
        return asdict(self) | {"nodes": [asdict(node) for node in self.nodes]}


@contextlib.contextmanager
def cluster_of(
    config: Config,
    progress: Progress,
    located: Located,
    *,
    shared: Sequence[Path] = (),
    needed: Sequence[Path] = (),
) -> Iterator[Cluster | None]:
    """Gives the cluster that the settings ask for, for the time of the context; None with ``engine: local``.

    Before it is given, every machine that will work is asked whether it runs the same versions and sees the same files.

    Args:
        config: the settings.
        progress: told which machines there are.
        located: files of the model, which every machine has to see.
        shared: folders that all machines write into, besides ``output_dir``.
        needed: files that every machine has to see besides. Data need not be among them where it is read here and sent.

    Raises:
        ConfigError: Ray is not installed, nothing answers at the address, or the machines are too small.
        RunError: a machine has other versions, or does not see the model, the run folder or what else is shared.
    """
    if config.engine.backend != "ray":
        yield None
        return
    ray = _ray(config)
    with _joined(ray, config) as own:
        cluster = _fitting(ray, config, own=own)
        look_over(ray, cluster.nodes, [config.output_dir, *shared], [Path(located.path), *needed])
        shown = ", ".join(f"{n.name}: {n.cpus} CPUs, {n.gpus} GPUs" for n in cluster.nodes)
        progress.note(
            f"Ray {cluster.ray}: {'started here' if cluster.own else 'joined'}, room for {cluster.places} processes of {cluster.cpus} CPUs "
            f"and {cluster.gpus:g} GPUs each on {len(cluster.nodes)} machine(s): {shown}"
        )
        yield cluster


def _ray(config: Config) -> Any:
    """The module, imported so that it calls nobody."""
    os.environ.update(_QUIET)
    try:
        import ray

        if config.engine.ray.workers > 1:
            import ray.train.torch
    except ImportError as error:
        raise ConfigError(
            f"engine: ray needs the extra ray ({str(error).splitlines()[0][:120]}); install it with: pip install 'tunescope[ray]'"
        ) from None
    return ray


@contextlib.contextmanager
def _joined(ray: Any, config: Config) -> Iterator[bool]:
    """Joins the cluster, or starts one, and says which; at the end leaves it, or stops what was started."""
    if ray.is_initialized():  # from a notebook, say: whoever joined it leaves it
        yield False
        return
    address = config.engine.ray.address
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        how |= {"address": "local", "num_cpus": available}
        how |= {"include_dashboard": False}
    else:
        _answers(address)
        how["address"] = address
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**how)
        if threading.current_thread() is threading.main_thread():
            for (
                number,
                handler,
            ) in before.items():  # Ray puts one of its own there; whoever asks this study to stop is heard by the study
                signal.signal(number, handler)
    except Exception as error:  # Ray raises plain ones, too, such as where a node did not start in time
        ray.shutdown()
        raise ConfigError(_refused(address, error)) from None
    try:
        yield address is None
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Refuses an address where nothing answers as Ray; joining there would wait for ever, so a process that can be ended tries first."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise ConfigError(_refused(address, error)) from None
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, address], capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            _refused(address, TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s; is it the port of Ray's head?"))
        ) from None
    if "joined" not in done.stdout:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(_refused(address, RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")))


def _refused(address: str | None, error: Exception) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:240]
    if address is None:
        return f"engine.ray: no cluster could be started on this machine ({said}); see docs/scale.md"
    return (
        f"engine.ray.address: no Ray cluster at {address} ({said}); start one with `ray start --head` and give the address that it shows, "
        "or leave the address out to start one on this machine"
    )


def _fitting(ray: Any, config: Config, *, own: bool) -> Cluster:
    """What one process takes, and the machines with room for it.

    Raises:
        ConfigError: there is no such machine, or not enough room for the workers of one tuning.
    """
    settings, nodes = config.engine.ray, alive(ray)
    gpus = settings.gpus_per_task
    if gpus is None:
        gpus = 1.0 if config.device != "cpu" and any(node.gpus for node in nodes) else 0.0
    if config.device.startswith("cuda") and not gpus:
        raise ConfigError(
            f"device {config.device}: the cluster has no GPU for a process (engine.ray.gpus_per_task {gpus:g}); use device: cpu or auto, or add one"
        )
    with_gpu = [node for node in nodes if node.gpus >= gpus]
    cpus = settings.cpus_per_task or config.threads
    if cpus is None:
        shares = [int(n.cpus // max(1, n.gpus / gpus)) if gpus else n.cpus for n in with_gpu if n.cpus]
        cpus = max(1, min(shares, default=1))
    working = tuple(node for node in with_gpu if node.cpus >= cpus)
    found = Cluster(
        ray.__version__,
        own,
        working,
        cpus,
        gpus,
        settings.workers,
        settings.sharding,
        settings.max_failures,
    )
    if found.places < settings.workers:
        raise ConfigError(too_small(nodes, found))
    return found


def too_small(nodes: Sequence[Node], wanted: Cluster) -> str:
    """Returns the line that says what is missing."""
    most_cpus, most_gpus = max((n.cpus for n in nodes), default=0), max((n.gpus for n in nodes), default=0)
    there = f"the {len(nodes)} machine(s) of the cluster have at most {most_cpus} CPUs and {most_gpus} GPUs each"
    room = places(nodes, wanted.cpus, wanted.gpus)
    if wanted.workers > 1:
        return (
            f"engine.ray.workers: {wanted.workers} processes of {wanted.cpus} CPUs and {wanted.gpus:g} GPUs each, and there is room for {room}: "
            f"{there}; lower workers, cpus_per_task or gpus_per_task, or add machines with `ray start --address`"
        )
    return (
        f"engine.ray: a process takes {wanted.cpus} CPUs and {wanted.gpus:g} GPUs, and {there}; lower engine.ray.cpus_per_task (or threads) or "
        "gpus_per_task, or add a machine with `ray start --address`"
    )
