"""One specialist per task, tuned briefly for its states and kept for other maps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from tunescope import engine, models
from tunescope.errors import IntegrityError
from tunescope.models import Loaded, bare
from tunescope.runs.records import Selection
from tunescope.studies.bench import Bench
from tunescope.studies.cluster import Cluster
from tunescope.studies.machine import trim_heap
from tunescope.studies.pieces import Piece, run_pieces, sent
from tunescope.studies.progress import Progress
from tunescope.studies.specialist_cache import PARTS, Wanted, alone, cache_written, missing, read_cached

_STAGE = "tune the specialists"
_CHECKPOINT_STEPS = 16
_STEPS_PER_TRIM = 8


class Specialists:
    """The base model with the adapters of one specialist at a time.

    Attributes:
        model: the base model, wrapped; `put_on` says whose adapters are on.
    """

    def __init__(self, bench: Bench, loaded: Loaded, wanted: Sequence[Wanted]) -> None:
        settings = bench.config.map.specialist
        names = models.block_names(loaded.info.n_layers)
        self._bench = bench
        self._wanted = {one.task: one for one in wanted}
        self._attention = loaded.model.config._attn_implementation
        self._moving = engine.prepare(
            loaded.model,
            loaded.family,
            Selection("lora", names, PARTS, "specialist of one task"),
            lora_rank=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            seed=bench.config.seed,
        )
        self._start = {f"weight.{name}": p.detach().clone() for name, p in self._moving.parameters.items()}
        self.model: Any = self._moving.model

    def put_on(self, task: str) -> Any:
        """Returns the model as the specialist of a task."""
        one = self._wanted[task]
        tensors = read_cached(one)
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self._start.items()}:
            raise IntegrityError(
                f"{one.file}: the cached specialist of task {task!r} has other matrices than this model; set map.rebuild_cache=true"
            )
        engine.load_weights(self._moving, tensors)
        self.model.requires_grad_(False)
        return self.model

    @contextlib.contextmanager
    def worn(self, task: str) -> Iterator[None]:
        """The model is the specialist of a task inside, and what it is next afterwards."""
        self.put_on(task)
        yield

    def tune(self, one: Wanted, progress: Progress) -> None:
        """Tunes a specialist and puts it into the cache; interrupted, it goes on from the last checkpoint.

        Raises:
            RunError: the cache cannot be written.
            IntegrityError: the checkpoint of an interrupted specialist is damaged.
        """
        with cache_written(one), alone(one):
            if one.file.is_file():  # another process was faster
                progress.advance(self.steps(one))
                return
            for parameter in self._moving.parameters.values():
                parameter.requires_grad_(True)
            engine.load_weights(self._moving, self._start)
            try:
                fit = self._fit(one, progress)
                progress.advance(fit.tuner.step)
                for record in fit:
                    if record.step % _STEPS_PER_TRIM == 0:
                        trim_heap()
                    progress.advance()
            finally:
                bare(self.model).set_attn_implementation(self._attention)
                self.model.requires_grad_(False)
            tensors = {f"weight.{name}": p for name, p in self._moving.parameters.items()}
            engine.write_tensors(one.file, tensors, {"key": one.key, "steps": fit.tuner.step})
            shutil.rmtree(one.scratch, ignore_errors=True)

    def _fit(self, one: Wanted, progress: Progress) -> engine.Fit:
        config, settings = self._bench.config, self._bench.config.map.specialist
        recipe = engine.Recipe(
            settings.learning_rate,
            num_epochs=1,
            batch_size=settings.batch_size,
            batch_tokens=config.tuning.batch_tokens,
            max_grad_norm=config.tuning.max_grad_norm,
            seed=config.seed,
        )
        tuner = engine.Tuner(self._moving, one.rows, recipe, arm=f"specialist of {one.task}")
        checks = engine.Checks((), _CHECKPOINT_STEPS)
        try:
            return engine.Fit(tuner, checks, folder=one.scratch, should_stop=progress.stopping)
        except IntegrityError:
            if not config.map.rebuild_cache:
                raise IntegrityError(
                    f"{one.scratch}: the checkpoint of the specialist of task {one.task!r} is damaged; set map.rebuild_cache=true to start "
                    "this specialist again"
                ) from None
            shutil.rmtree(one.scratch, ignore_errors=True)
            return engine.Fit(tuner, checks, folder=one.scratch, should_stop=progress.stopping)

    def steps(self, one: Wanted) -> int:
        """Returns the optimiser steps of a specialist."""
        return math.ceil(len(one.rows) / self._bench.config.map.specialist.batch_size)


@contextlib.contextmanager
def specialists(bench: Bench, loaded: Loaded, wanted: Sequence[Wanted]) -> Iterator[Specialists]:
    """Wraps the base model for the time of the context; afterwards it is what it was."""
    found = Specialists(bench, loaded, wanted)
    try:
        yield found
    finally:
        found.model.unload()


def tune_missing(
    bench: Bench, opened: Specialists, wanted: Sequence[Wanted], progress: Progress, *, rebuild: bool
) -> int:
    """Tunes what the cache lacks; with a cluster, as many at the same time as it has places.

    Args:
        bench: the settings and the cluster.
        opened: the base model of this process, for those that are tuned here.
        wanted: all that a map needs.
        progress: told what happens.
        rebuild: tune damaged ones again.

    Returns:
        How many were tuned.

    Raises:
        IntegrityError: a cached file is damaged and `rebuild` is False.
        RunError: the cache cannot be written.
    """
    lacking = missing(wanted, rebuild=rebuild)
    if lacking and bench.cluster is not None:
        _tune_on_cluster(bench, bench.cluster, lacking, progress)
    elif lacking:
        progress.stage(_STAGE, sum(opened.steps(one) for one in lacking))
        for one in lacking:
            opened.tune(one, progress)
    return len(lacking)


def _tune_on_cluster(bench: Bench, cluster: Cluster, lacking: Sequence[Wanted], progress: Progress) -> None:
    """Each process of the cluster reads the model once and tunes its share, of every so many one, into the cache that all machines see."""
    n = min(cluster.places, len(lacking))
    shares = [tuple(dataclasses.replace(one, file=one.file.absolute()) for one in lacking[i::n]) for i in range(n)]
    there = sent(bench, cluster)
    run_pieces(
        cluster,
        bench.run.path,
        [Piece(f"specialists-{i + 1}", tune_share, (there, share)) for i, share in enumerate(shares)],
        f"{_STAGE} on the cluster",
        progress,
    )


def tune_share(bench: Bench, wanted: Sequence[Wanted], progress: Progress) -> int:
    """What a process of the cluster does: tunes specialists into the cache and returns how many there are now."""
    loaded = bench.load()
    with specialists(bench, loaded, wanted) as opened:
        progress.stage(f"{_STAGE} of {', '.join(one.task for one in wanted)}", sum(opened.steps(one) for one in wanted))
        for one in wanted:
            opened.tune(one, progress)
            if progress.stopping():
                raise KeyboardInterrupt
    return len(wanted)
