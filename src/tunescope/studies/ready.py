"""A model that is prepared for tuning: what moves, the rows, the terms of the loss, the kept states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunescope import engine
from tunescope.config import Config
from tunescope.models import Loaded
from tunescope.runs.records import Selection
from tunescope.studies.base_model import load_ends
from tunescope.studies.bench import Bench
from tunescope.studies.kept_states import kept_states
from tunescope.studies.mask_files import mask_of
from tunescope.studies.progress import Progress
from tunescope.studies.regularisation import Rows, loss_terms, training_rows


@dataclass(frozen=True)
class Ready:
    """A model that is prepared for tuning, with everything that the loop needs but the learning rate.

    Attributes:
        config: the settings.
        arm: name in the records.
        loaded: the base.
        moving: what was prepared of it.
        rows: training examples.
        terms: of the loss.
        states: kept states below the lowest moving block, or None.
        note: called with a line for the user.
    """

    config: Config
    arm: str
    loaded: Loaded
    moving: engine.Moving
    rows: Rows
    terms: Sequence[engine.Term]
    states: engine.ActivationCache | None
    note: Callable[[str], None]

    def tuner(self, rate: float) -> engine.Tuner:
        """Returns a tuner at step 0."""
        tuning = self.config.tuning
        recipe = engine.Recipe(
            rate,
            tuning.num_epochs,
            tuning.batch_size,
            tuning.batch_tokens,
            tuning.warmup_fraction,
            tuning.weight_decay,
            tuning.max_grad_norm,
            self.config.seed,
            tuning.regularisation.label_smoothing,
            self.config.engine.checkpointing,
        )
        return engine.Tuner(
            self.moving, self.rows, recipe, arm=self.arm, terms=self.terms, states=self.states, note=self.note
        )

    def release(self) -> None:
        """Lets go of the files of kept states."""
        if self.states is not None:
            self.states.release()


def make_ready(
    bench: Bench,
    arm: str,
    selection: Selection,
    checks: engine.Checks,
    progress: Progress,
    *,
    start: Path | None = None,
    workers: engine.Workers = engine.ALONE,
) -> Ready:
    """Loads the base and prepares what an arm moves; with `start` from saved weights of the same selection."""
    config, tuning = bench.config, bench.config.tuning
    rows = training_rows(config, bench.inputs, bench.chat)
    loaded, base = load_ends(config, bench.located, bench.device) if workers.sharded else (bench.load(), None)
    if base is None:
        engine.check_tail(loaded.model, selection)
    moving = engine.prepare(
        loaded.model,
        loaded.family,
        selection,
        lora_rank=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        seed=config.seed,
        mask=mask_of(bench.run, arm, selection),
        workers=workers,
        base=base,
    )
    states = kept_states(bench, loaded, moving, rows, checks.validation, progress)
    terms = loss_terms(config, bench.inputs, bench.chat, moving, states)
    if start is not None:  # after the terms, which hold on to the base model
        engine.load_saved(moving, start)
    return Ready(config, arm, loaded, moving, rows, terms, states, progress.note)
