"""Whole runs that need nothing of each other, as a study over several seeds has them: in turn, or each in a process of a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import models
from tunescope.config import Config
from tunescope.errors import ConfigError
from tunescope.studies.cluster import cluster_of
from tunescope.studies.machine import release_memory
from tunescope.studies.pieces import Piece, run_pieces
from tunescope.studies.progress import Progress


@dataclass(frozen=True)
class Run:
    """One of them.

    Attributes:
        name: of its folder.
        work: called as ``work(*arguments, progress)``; goes on where it was interrupted.
        arguments: sent to the process, with settings from `alone`.
    """

    name: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


def do_runs(config: Config, runs: Sequence[Run], progress: Progress) -> None:
    """Does all of them; every one writes into its own folder in ``config.output_dir``, so what they leave does not depend on where.

    Args:
        config: the settings that all of them share; where, model and data.
        runs: each with a name of its own.
        progress: told what happens.

    Raises:
        ConfigError: ``engine.ray.workers`` is not 1: a run here is one process.
        TunescopeError: see `cluster_of` and what the runs raise.
    """
    settings = config.engine
    if settings.backend == "ray" and settings.ray.workers > 1:
        raise ConfigError(
            f"engine.ray.workers: got {settings.ray.workers}, and this study gives each of its {len(runs)} runs one process; set it to 1"
        )
    located = models.locate(config.model, revision=config.revision)
    with cluster_of(config, progress, located, needed=data_files(config)) as cluster:
        if cluster is None:
            for run in runs:
                run.work(*run.arguments, progress)
                release_memory()
            return
        pieces = [Piece(run.name, run.work, run.arguments) for run in runs]
        run_pieces(cluster, config.output_dir.absolute(), pieces, f"{len(runs)} runs on the cluster", progress)
        shutil.rmtree(config.output_dir / "arms", ignore_errors=True)


def alone(config: Config) -> Config:
    """Returns the settings of one of the runs: it computes in its own process, wherever that is."""
    return config.model_copy(update={"engine": config.engine.model_copy(update={"backend": "local"})})


def data_files(config: Config) -> list[Path]:
    """Returns the data files that the settings name: a run reads them where it computes."""
    files = [*config.guard, *config.tuning.regularisation.kl_examples]
    for task in config.tasks:
        files += [file for file in (task.train, task.test, *task.out_of_domain) if file is not None]
    return files
