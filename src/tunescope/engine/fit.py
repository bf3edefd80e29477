"""Run a tuner with held-out checks, checkpoints and early stopping; and choose its learning rate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunescope.data import Encoded
from tunescope.engine.checkpoint import read_tensors, write_tensors
from tunescope.engine.divide import own_passes
from tunescope.engine.fsdp import agreed_states, gathered, is_cut
from tunescope.engine.memory import halving
from tunescope.engine.moving import Moving
from tunescope.engine.tuner import Tuner, load_weights
from tunescope.errors import IntegrityError, TunescopeError, WorkerError
from tunescope.models import KeptStates, mean_losses
from tunescope.runs.records import StepRecord

CANDIDATES = {"lora": (2e-4, 6e-4, 2e-3), "weights": (1e-5, 3e-5, 1e-4), "sparse": (5e-5, 2e-4, 8e-4)}
_CHECKPOINT, _BEST = "checkpoint.safetensors", "best.safetensors"
_RACE_FRACTION = 0.15
_MIN_RACE_STEPS = 6


@dataclass(frozen=True)
class Checks:
    """When to look at the held-out examples.

    Attributes:
        validation: held-out examples; empty = no checks, the last weights are kept.
        every: steps between checks.
        patience: checks without gain before stopping; 0 = never stop early.
        batch_tokens: tokens per forward pass of a check.
    """

    validation: Sequence[Encoded]
    every: int
    patience: int = 2
    batch_tokens: int = 2048


@dataclass(frozen=True)
class Outcome:
    """How a fit ended.

    Attributes:
        steps: optimiser steps done.
        best_step: step whose weights are kept.
        best_loss: held-out loss there, or None without checks.
        stopped_early: True if patience ran out.
    """

    steps: int
    best_step: int
    best_loss: float | None
    stopped_early: bool


class Fit:
    """A tuner with checks; iterate over it, then read `outcome`.

    After the last record the model holds the weights of the best check. With a folder it writes ``checkpoint.safetensors`` and
    ``best.safetensors`` there at every check and continues from them: records then start after the checkpoint's step. The file before each
    is kept beside it. A damaged checkpoint is passed over for the one before, and the tuner notes it.

    With several processes all of them run it, with the same folder; the one with rank 0 writes and all read. A checkpoint does not depend on how
    many they are, so that one run may go on with another number of them.

    Args:
        tuner: at step 0, or where it was restored.
        checks: when to look at the held-out examples.
        folder: for checkpoints, or None.
        should_stop: asked after every step; if True, on any process, a checkpoint is written and KeyboardInterrupt raised.
    """

    def __init__(
        self,
        tuner: Tuner,
        checks: Checks,
        *,
        folder: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.tuner = tuner
        self.checks = checks
        self.folder = folder
        self.should_stop = should_stop
        self.outcome: Outcome | None = None
        self._best: dict[str, Any] = {"loss": None, "step": 0, "without_gain": 0, "finished": False}
        self._best_weights: dict[str, Any] | None = None
        self._saved = -1  # the step of the checkpoint that was written last
        self._sound = {_CHECKPOINT: True, _BEST: True}  # files that are worth keeping beside the next
        tuner.workers.agreed(self._restore)
        tuner.workers.check_same(
            f"the checkpoint that was found in {folder}", json.dumps([tuner.step, self._best], sort_keys=True)
        )

    def _restore(self) -> None:
        if self.folder is None:
            return
        last = self.folder / _CHECKPOINT
        if not last.is_file():
            if self.tuner.workers.main:
                remove_checkpoints(self.folder)  # what lies beside a checkpoint that was removed belongs to nothing
            return
        try:
            tensors, facts = read_tensors(last)
        except IntegrityError as error:
            tensors, facts = self._read_before(last, error)
        self.tuner.restore(tensors, facts)
        self._best = facts["best"]
        if self._best["loss"] is not None:
            self._sound[_BEST] = self._is_best(self.folder / _BEST)

    def _read_before(self, damaged: Path, error: IntegrityError) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the checkpoint before a damaged one; if there is none that can be read, the error stands."""
        try:
            tensors, facts = read_tensors(_before(damaged))
        except IntegrityError:
            raise error from None
        self._sound[_CHECKPOINT] = False
        self.tuner.note(
            f"{damaged}: damaged or cut short; going on from the checkpoint before it, after step {facts['step']}"
        )
        return tensors, facts

    def _is_best(self, path: Path) -> bool:
        """Whether a file holds the weights of the best check."""
        try:
            return bool(read_tensors(path)[1].get("step") == self._best["step"])
        except IntegrityError:
            return False

    def __iter__(self) -> Iterator[StepRecord]:
        total = self.tuner.total_steps
        stopped = self._best["finished"] and self.tuner.step < total
        steps = self.tuner.steps()
        while not self._best["finished"] and self.tuner.step < total:
            record = next(steps)
            last = record.step == total
            if last or record.step % self.checks.every == 0:
                record = self._check(record)
                stopped = 0 < self.checks.patience <= self._best["without_gain"] and not last
                self._best["finished"] = last or stopped
                yield record  # before the checkpoint that counts it: a kill in between repeats the step, and no record is lost
                self._save()
            else:
                yield record
            if self.tuner.workers.any(self.should_stop()) and not self._best["finished"]:
                if self._saved != self.tuner.step:  # twice the same would push out the one before
                    self._save()
                raise KeyboardInterrupt
        self._load_best()
        self.outcome = Outcome(self.tuner.step, self._best["step"], self._best["loss"], stopped)

    def _check(self, record: StepRecord) -> StepRecord:
        if not self.checks.validation:
            self._best |= {"step": record.step}
            return record
        loss = validation_loss(self.tuner.moving, self.checks, states=self.tuner.states, note=self.tuner.note)
        if not np.isfinite(loss):
            raise TunescopeError(
                f"arm {self.tuner.arm}: the held-out loss is {loss:g} after step {record.step}; lower the learning rate (now "
                f"{self.tuner.recipe.learning_rate:g}) or use dtype float32"
            )
        best = self._best["loss"]
        if best is None or loss < best:
            self._best |= {"loss": loss, "step": record.step, "without_gain": 0}
            weights = {f"weight.{name}": p.detach() for name, p in self.tuner.moving.parameters.items()}
            if self.folder is None:
                self._best_weights = {name: (p if is_cut(p) else p.cpu()).clone() for name, p in weights.items()}
            else:
                self._write(_BEST, gathered(weights, self.tuner.workers), {"step": record.step})
        else:
            self._best["without_gain"] += 1
        return replace(record, validation_loss=loss)

    def _save(self) -> None:
        if self.folder is not None:
            tensors, facts = self.tuner.state()
            self._write(_CHECKPOINT, tensors, facts | {"best": self._best})
            self._saved = self.tuner.step

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Rank 0 writes, and nobody goes on before the file is there."""
        path, workers = (self.folder or Path()) / name, self.tuner.workers
        before = _before(path) if self._sound[name] else None
        workers.agreed(lambda: write_tensors(path, tensors, facts, before=before) if workers.main else None)
        self._sound[name] = True

    def _load_best(self) -> None:
        if self._best["loss"] is None or self._best["step"] == self.tuner.step:
            return
        self.tuner.workers.agreed(self._read_best)

    def _read_best(self) -> None:
        if self.folder is not None:
            path = self.folder / _BEST
            # Gone back to an earlier checkpoint, a run may come out otherwise at the check whose weights stand here.
            if not self._is_best(path) and self._is_best(_before(path)):
                path = _before(path)
            tensors, facts = read_tensors(path)
            if facts.get("step") != self._best["step"] or set(tensors) != {
                f"weight.{n}" for n in self.tuner.moving.parameters
            }:
                raise IntegrityError(
                    f"{path}: does not belong to the checkpoint beside it; remove both to start this arm again"
                )
            load_weights(self.tuner.moving, tensors)
        elif self._best_weights is not None:
            load_weights(self.tuner.moving, self._best_weights)


def remove_checkpoints(folder: Path) -> None:
    """Removes what a `Fit` left in a folder; without it, a `Fit` starts again there."""
    for name in (_CHECKPOINT, _BEST):
        for path in (folder / name, _before(folder / name)):
            path.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    """Where the file is kept that a file has replaced."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def validation_loss(
    moving: Moving,
    checks: Checks,
    *,
    states: KeptStates | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> float:
    """Returns the mean loss per target token over the held-out examples, each example counting the same, in nats.

    Several processes divide the examples and all get the mean over all of them.

    Args:
        moving: the prepared model.
        checks: the held-out examples.
        states: states at the lowest moving block, as for `Tuner`.
        note: called with a line for the user where memory is short.
    """
    workers, rows = moving.workers, checks.validation

    def losses_of(batch_tokens: int) -> NDArray[np.float64]:
        own = own_passes(rows, batch_tokens, workers)
        found = mean_losses(
            moving.model,
            rows,
            cut=moving.selection.lowest_layer,
            kept=agreed_states(states, workers),
            compute=moving.compute,
            batches=[one.rows for one in own],
        )
        counted = np.zeros(len(rows), dtype=bool)
        counted[[i for one in own if not one.idle for i in one.rows]] = True
        return np.where(counted, found, 0.0)

    losses, _ = halving(
        lambda batch_tokens: workers.together(lambda: losses_of(batch_tokens)),
        checks.batch_tokens,
        tokens=max(len(row) for row in rows),
        note=lambda text: note(f"held-out check: {text}") if workers.main else None,
    )
    if not workers.alone:
        losses = workers.sum_(torch.from_numpy(losses).to(workers.device)).cpu().numpy()
    return float(np.mean(losses))


@dataclass(frozen=True)
class Race:
    """Which learning rate won.

    Attributes:
        learning_rate: the winner.
        losses: candidate -> held-out loss after the race.
        steps: steps that each candidate took.
        seconds: wall time of the race.
        tokens: tokens read in it.
    """

    learning_rate: float
    losses: dict[float, float]
    steps: int
    seconds: float
    tokens: int

    @property
    def why(self) -> str:
        """One line for the report."""
        shown = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in self.losses.items())
        edge = " (at the edge of the candidates)" if self.learning_rate in (min(self.losses), max(self.losses)) else ""
        return f"lowest held-out loss after {self.steps} steps of each candidate{edge}; {shown}"


def race_steps(total_steps: int) -> int:
    """Returns how many steps each candidate takes in a race."""
    return min(total_steps, max(_MIN_RACE_STEPS, round(_RACE_FRACTION * total_steps)))


def race(
    make_tuner: Callable[[float], Tuner],
    checks: Checks,
    candidates: Sequence[float],
    *,
    done: Callable[[StepRecord], None] = lambda r: None,
) -> Race:
    """Tries learning rates for the first steps of the real run and returns the one with the lowest held-out loss.

    Every candidate starts from the same weights, reads the same batches and follows the same schedule, so a race differs from the run
    only in where it ends: after 15 % of the steps, at least 6. Short races favour high rates a little; the held-out checks of the run
    catch one that is too high.

    Args:
        make_tuner: gives a tuner at step 0 for a learning rate. The moving weights are put back to their start before each call.
        checks: the held-out examples.
        candidates: learning rates, ascending.
        done: called with every record.

    Returns:
        The winner; ties go to the lower rate. A candidate whose loss is not finite loses.
    """
    started = time.perf_counter()
    first = make_tuner(candidates[0])
    start = {f"weight.{name}": p.detach().clone() for name, p in first.moving.parameters.items()}
    n_steps = race_steps(first.total_steps)
    losses: dict[float, float] = {}
    tokens = 0
    for rate in candidates:
        tuner = make_tuner(rate)
        load_weights(tuner.moving, start)
        try:
            for record in tuner.steps():
                tokens += record.tokens
                done(record)
                if record.step == n_steps:
                    break
            loss = validation_loss(tuner.moving, checks, states=tuner.states, note=tuner.note)
        except WorkerError:
            raise
        except TunescopeError:  # it diverged; if anything else is wrong, the run itself will say so
            loss = float("inf")
        losses[rate] = loss if np.isfinite(loss) else float("inf")
    load_weights(first.moving, start)
    winner = min(losses, key=lambda rate: (losses[rate], rate))
    return Race(winner, losses, n_steps, time.perf_counter() - started, tokens)
