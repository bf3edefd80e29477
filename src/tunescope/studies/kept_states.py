"""From settings to the states that tuning keeps: the output of the blocks that do not move, computed once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tunescope import engine, models
from tunescope.config import Config
from tunescope.data import Encoded
from tunescope.models import PACKED_ATTENTION, Loaded
from tunescope.studies.base_model import is_streamed
from tunescope.studies.bench import Bench
from tunescope.studies.progress import Progress
from tunescope.studies.regularisation import Rows


def kept_states(
    bench: Bench,
    loaded: Loaded,
    moving: engine.Moving,
    rows: Rows,
    held_out: Sequence[Encoded],
    progress: Progress,
) -> engine.ActivationCache | None:
    """Returns where the states below the lowest moving block are kept, or None where that saves nothing; either is said in a note.

    Those of a base that is not held in memory are all computed at once, one block after the other.

    Args:
        bench: what all arms share.
        loaded: the base.
        moving: what was prepared of it.
        rows: the training examples.
        held_out: the rows of the held-out checks.
        progress: told whether states are kept, and why.

    Raises:
        ConfigError: the states of a base that is not held do not fit in the cache.
        RunError: they cannot be written.
        KeyboardInterrupt: the user asked to stop meanwhile; what was computed is kept.
    """
    config, device = bench.config, bench.device
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
    if is_streamed(loaded):
        _fill(bench, cache, different, lowest, progress)
        return cache
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


def _fill(
    bench: Bench, cache: engine.ActivationCache, rows: Sequence[Encoded], lowest: int, progress: Progress
) -> None:
    """Computes the states of all examples with one block in memory at a time."""
    if not cache.missing(rows, lowest):
        return
    progress.stage(f"read the base up to block.{lowest - 1}", 100)
    shown = 0

    def done(fraction: float) -> None:
        nonlocal shown
        now = int(100 * fraction)
        progress.advance(now - shown)
        shown = now
        if progress.stopping():
            raise KeyboardInterrupt

    base = models.StreamedBase(bench.located, dtype=bench.config.dtype, device=bench.device)
    filled = engine.fill(base, rows, lowest, cache, batch_tokens=bench.config.tuning.batch_tokens, done=done)
    progress.note(
        f"kept states: {filled.n_tokens:,} tokens at block.{lowest}, with one block in memory at a time; the base was read "
        f"{'once' if filled.rounds == 1 else f'{filled.rounds} times'}"
    )


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
