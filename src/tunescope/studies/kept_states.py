"""From settings to the states that tuning keeps: the output of the blocks that do not move, computed once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tunescope import engine, models
from tunescope.config import Config
from tunescope.data import Encoded
from tunescope.models import PACKED_ATTENTION, Loaded
from tunescope.studies.progress import Progress
from tunescope.studies.regularisation import Rows


def kept_states(
    config: Config,
    loaded: Loaded,
    moving: engine.Moving,
    rows: Rows,
    held_out: Sequence[Encoded],
    device: str,
    progress: Progress,
) -> engine.ActivationCache | None:
    """Returns where the states below the lowest moving block are kept, or None where that saves nothing; either is said in a note.

    Args:
        config: the settings.
        loaded: the base.
        moving: what was prepared of it.
        rows: the training examples.
        held_out: the rows of the held-out checks.
        device: torch device.
        progress: told whether states are kept, and why.
    """
    settings, lowest = config.engine, moving.selection.lowest_layer
    if not settings.keep_states or lowest <= 0:
        return None
    if callable(rows):
        progress.note("kept states: not used, since the prompts differ from epoch to epoch")
        return None
    folder = settings.cache or engine.default_root()
    cache = engine.open_cache(
        folder,
        base_sha256=loaded.info.sha256,
        dtype=moving.dtype,
        d_model=models.bare(moving.model).config.hidden_size,
        budget_bytes=settings.cache_bytes,
        numerics=engine.numerics_of(device, PACKED_ATTENTION),
        keep_free_bytes=settings.keep_free_bytes,
        note=progress.note,
    )
    different = list({(row.prompt_ids, row.target_ids): row for row in (*rows, *held_out)}.values())
    absent = set(cache.missing(different, lowest))
    pays, why = engine.worth_caching(
        sum(map(len, different)),
        _uses(config, len(rows)),
        d_model=cache.d_model,
        dtype=cache.dtype,
        lowest_block=lowest,
        budget_bytes=settings.cache_bytes,
        free_bytes=_free_bytes(folder) - settings.keep_free_bytes,
        cached_tokens=sum(len(row) for i, row in enumerate(different) if i not in absent),
    )
    progress.note(f"kept states: {why}" if pays else f"kept states: not used, since {why}")
    return cache if pays else None


def _uses(config: Config, n_rows: int) -> float:
    """How often each training example is read: in the epochs, and in the races for the learning rate."""
    tuning = config.tuning
    if tuning.learning_rate != "auto":
        return tuning.num_epochs
    steps = -(-n_rows // tuning.batch_size)
    raced = engine.race_steps(steps * tuning.num_epochs) / steps
    return tuning.num_epochs + raced * len(engine.CANDIDATES[tuning.method])


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk that the folder is, or will be, on."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free
