"""Causal check of a layer map: put blocks of a tuned model back to the base's weights and see how much each task's loss rises.

A similarity map says where states changed; this says where the change matters. Only blocks are put back: embeddings, final norm and
head stay the tuned model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunescope.errors import ModelError, UserError
from tunescope.layers.swap import adapter_changes, giving, replaced, states_at, weight_changes
from tunescope.models import Row, block_names, blocks, mean_losses, passes
from tunescope.runs.records import LayerScores

Floats = NDArray[np.float64]
Window = tuple[int, int]


def windows(n_layers: int, width: int, stride: int = 1) -> list[Window]:
    """Returns windows of consecutive blocks, (first, one past the last); together they cover every block.

    Args:
        n_layers: blocks of the model.
        width: blocks in a window.
        stride: blocks between the starts of two windows, at most `width`. The last window ends with the last block, and so may
            start sooner after the one before.

    Raises:
        UserError: the width or the stride is out of range.

    Example:
        >>> windows(6, 3, 2)
        [(0, 3), (2, 5), (3, 6)]
    """
    if not 1 <= width <= n_layers:
        raise UserError(f"window of {width} blocks: the model has {n_layers}; allowed: 1 to {n_layers}")
    if not 1 <= stride <= width:
        raise UserError(f"stride {stride}: allowed is 1 to the width {width}, or blocks would lie in no window")
    starts = [*range(0, n_layers - width, stride), n_layers - width]
    return [(start, start + width) for start in starts]


def put_back(
    tuned: Any,
    base: Any,
    windows: Sequence[Window],
    rows_by_task: Mapping[str, Sequence[Row]],
    *,
    batch_tokens: int = 2048,
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    seed: int = 0,
    done: Callable[[int], None] = lambda n: None,
) -> list[LayerScores]:
    """Scores every block by how much the loss rises when it goes back to the base's weights.

    It is `put_back_rises` task by task, and `causal_scores` of the result; call these where a long check is to be interrupted and
    continued.

    Args:
        tuned: the tuned model, in evaluation mode. It is the same afterwards, bit for bit, also after an error or Ctrl-C.
        base: the base model of the same architecture; None for a model with PEFT adapters, whose own are switched off.
        windows: (first, one past the last) block of each window, as `windows` makes them; every block must lie in one.
        rows_by_task: task -> encoded examples, at least one each.
        batch_tokens: tokens per forward pass; see `put_back_losses` for the memory.
        confidence: level of the intervals.
        n_bootstrap: resamples behind the interval over all tasks.
        seed: of these.
        done: called with the number of rows after each pass; (windows + 1) · rows in all.

    Returns:
        See `causal_scores`.

    Raises:
        UserError: a task without rows, a window outside the model, or a block in no window.
        ModelError: as `put_back_losses`.

    Source:
        Liu, Hsiung, Yang & Yan (2025), arXiv 2506.00382: layers of a fine-tuned model are replaced by those from before. Ours takes
        windows, measures each task on its own rows, and gives intervals.

    Example:
        >>> from tunescope.data import ChatFormat, Example
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> row = ChatFormat(byte_tokenizer()).encode(Example("1", "t", "Say hi", "", ("hi",)))
        >>> base, tuned = tiny_model(), tiny_model()
        >>> _ = tuned.model.layers[1].mlp.down_proj.weight.mul_(2)
        >>> scores = put_back(tuned, base, windows(2, 1), {"greet": [row]})[0]
        >>> scores.layers, scores.values[0]
        (('block.0', 'block.1'), 0.0)
    """
    if not rows_by_task or not all(rows_by_task.values()):
        empty = [task for task, rows in rows_by_task.items() if not rows]
        raise UserError(f"putting blocks back needs rows of every task, got none for {', '.join(empty) or 'any task'}")
    rises = {
        task: put_back_rises(tuned, base, windows, rows, batch_tokens=batch_tokens, done=done)
        for task, rows in rows_by_task.items()
    }
    return causal_scores(rises, confidence=confidence, n_bootstrap=n_bootstrap, seed=seed)


def put_back_rises(
    tuned: Any,
    base: Any,
    windows: Sequence[Window],
    rows: Sequence[Row],
    *,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> Floats:
    """Returns how much each row's loss rises per block that goes back to the base's weights.

    A window's rise is divided evenly among its blocks; a block gets the mean of its shares over the windows that contain it.
    So overlapping windows blur a sharp effect over `width` blocks to both sides. One block at a time (width 1) does not, but misses
    what neighbours can do for each other.

    Args:
        tuned: the tuned model, in evaluation mode; see `put_back`.
        base: the base model, or None.
        windows: (first, one past the last) block of each window; every block must lie in one.
        rows: encoded examples of one task.
        batch_tokens: tokens per forward pass.
        done: called with the number of rows after each pass.

    Returns:
        (n_layers, n_rows) in nats per target token and block, positive where the tuned block helps.

    Raises:
        UserError: a window outside the model, or a block in no window.
        ModelError: as `put_back_losses`.

    Example:
        >>> from tunescope.data import ChatFormat, Example
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> row = ChatFormat(byte_tokenizer()).encode(Example("1", "t", "Say hi", "", ("hi",)))
        >>> base, tuned = tiny_model(), tiny_model()
        >>> _ = tuned.model.layers[1].mlp.down_proj.weight.mul_(2)
        >>> (put_back_rises(tuned, base, windows(2, 1), [row]) == 0).ravel().tolist()
        [True, False]
    """
    shares = _shares(windows, len(blocks(tuned)))
    losses = put_back_losses(tuned, base, windows, rows, batch_tokens=batch_tokens, done=done)
    return np.asarray(shares @ (losses[1:] - losses[0]))


def causal_scores(
    rises: Mapping[str, Floats], *, confidence: float = 0.95, n_bootstrap: int = 200, seed: int = 0
) -> list[LayerScores]:
    """Makes scores of the rises of all tasks.

    Over all tasks stands the **median** of the tasks' means, as everywhere in a map. Rises have a heavy tail: one task whose answers
    fall apart without a block rises by nats where the others rise by hundredths, and a mean would be that task's alone.

    Args:
        rises: task -> (n_layers, n_rows), from `put_back_rises`.
        confidence: level of the intervals.
        n_bootstrap: resamples behind the interval over all tasks.
        seed: of these.

    Returns:
        One record per task, in order, and a last one with task ``*``. Values in nats per target token and block. The interval of a task
        is Student's t of its rows' differences; that of ``*`` is the percentile interval of resampled tasks with resampled rows.
        None with one row, of that task and of ``*``.

    Raises:
        UserError: no tasks, a task without rows, tasks with different numbers of blocks, or a setting out of range.

    Example:
        >>> rises = {name: np.full((2, 3), rise) for name, rise in (("a", 0.125), ("b", 0.25), ("c", 9.0))}
        >>> causal_scores(rises)[-1].values
        (0.25, 0.25)
    """
    if not rises or not all(table.ndim == 2 and table.size for table in rises.values()):
        raise UserError("causal scores need a table (n_layers, n_rows) of every task, with at least one row")
    if len({len(table) for table in rises.values()}) > 1:
        raise UserError(f"causal scores of tasks with different numbers of blocks: {[len(t) for t in rises.values()]}")
    if n_bootstrap < 1 or not 0 < confidence < 1:
        raise UserError(
            f"n_bootstrap {n_bootstrap} and confidence {confidence}: wanted at least 1, and above 0, below 1"
        )
    scores = []
    for task, table in rises.items():
        low = high = None
        if table.shape[1] > 1:
            half = _half_width(table, confidence)
            low, high = table.mean(axis=1) - half, table.mean(axis=1) + half
        scores.append(_record(task, table.mean(axis=1), low, high, table.shape[1]))
    means = np.stack([table.mean(axis=1) for table in rises.values()])
    low = high = None
    if all(table.shape[1] > 1 for table in rises.values()):
        tail = (1 - confidence) / 2
        low, high = np.quantile(_resampled_medians(list(rises.values()), n_bootstrap, seed), [tail, 1 - tail], axis=0)
    n_rows = sum(table.shape[1] for table in rises.values())
    return [*scores, _record("*", np.median(means, axis=0), low, high, n_rows)]


@torch.no_grad()
def put_back_losses(
    tuned: Any,
    base: Any,
    windows: Sequence[Window],
    rows: Sequence[Row],
    *,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> Floats:
    """Returns each row's loss with nothing put back, and with each window put back.

    Blocks below a window see what they see in the tuned model, so their part is computed once for all windows: the residual stream at
    the start of each window is kept. That is exact, saves about half of the work, and holds one state of (batch_tokens, d_model) for
    every start. A window in which tuned and base do not differ costs nothing.

    Args:
        tuned: the tuned model, in evaluation mode.
        base: the base model, or None for a model with PEFT adapters.
        windows: (first, one past the last) block of each window.
        rows: encoded examples.
        batch_tokens: tokens per forward pass.
        done: called with the number of rows after each pass.

    Returns:
        (n_windows + 1, n_rows) in nats per target token; first the tuned model as it is. Equal bit for bit to `mean_losses` of the
        tuned model, of the base where all blocks are put back (and nothing else was tuned), and of the swapped model in between.

    Raises:
        UserError: a window outside the model.
        ModelError: the two models differ in architecture, number format or device, or in no block; no adapters, or merged ones; the
            tuned model is in training mode; or a loss is not finite.

    Example:
        >>> from tunescope.data import ChatFormat, Example
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> row = ChatFormat(byte_tokenizer()).encode(Example("1", "t", "Say hi", "", ("hi",)))
        >>> put_back_losses(tiny_model(seed=1), tiny_model(seed=2), [(0, 2), (1, 2)], [row]).shape
        (3, 1)
    """
    mine = blocks(tuned)
    _check_windows(windows, len(mine))
    if tuned.training:
        raise ModelError("the tuned model is in training mode, in which dropout changes the losses: call .eval() first")
    changes = adapter_changes(tuned) if base is None else weight_changes(tuned, base)
    starts = [next((i for i in range(*window) if changes[i]), None) for window in windows]
    result = np.zeros((len(windows) + 1, len(rows)))
    for batch in passes(rows, batch_tokens):
        together = [rows[i] for i in batch]  # again one batch for `mean_losses`, in this order
        with states_at(mine, {start for start in starts if start}) as states:
            result[0, batch] = mean_losses(tuned, together, batch_tokens=batch_tokens)
        done(len(batch))
        for i, (window, start) in enumerate(zip(windows, starts, strict=True), 1):
            if start is None:
                result[i, batch] = result[0, batch]
            else:
                below = [(mine[j], "forward", giving(states[start])) for j in range(start)]
                with replaced([*below, *(change for j in range(*window) for change in changes[j])]):
                    result[i, batch] = mean_losses(tuned, together, batch_tokens=batch_tokens)
            done(len(batch))
    bad = np.argwhere(~np.isfinite(result))
    if len(bad):
        which, row = bad[0]
        state = "as tuned" if which == 0 else f"with {windows[which - 1][0]}-{windows[which - 1][1] - 1} put back"
        raise ModelError(
            f"the loss of row {row} is {result[which, row]} {state}: look for NaN in the weights or rows without target"
        )
    return result


def _shares(windows: Sequence[Window], n_layers: int) -> Floats:
    """(n_layers, n_windows): what a block gets of a window's rise, 1 / width, over the number of windows that contain the block."""
    _check_windows(windows, n_layers)
    inside = np.array([[start <= i < stop for start, stop in windows] for i in range(n_layers)])
    outside = np.flatnonzero(~inside.any(axis=1)) if len(windows) else np.arange(n_layers)
    if len(outside):
        raise UserError(
            f"{len(outside)} blocks lie in no window, the first is block.{outside[0]}: add windows that cover them"
        )
    widths = np.array([stop - start for start, stop in windows])
    return np.asarray(inside / widths / inside.sum(axis=1, keepdims=True), dtype=np.float64)


def _half_width(table: Floats, confidence: float) -> Floats:
    """Half of Student's t interval of the mean over the rows, (n_layers,); 0 where all rows are the same."""
    from scipy.stats import t

    n_rows = table.shape[1]
    return np.asarray(t.ppf(0.5 + confidence / 2, n_rows - 1) * table.std(axis=1, ddof=1) / np.sqrt(n_rows))


def _resampled_medians(tables: Sequence[Floats], n_bootstrap: int, seed: int) -> Floats:
    """Medians over tasks (n_bootstrap, n_layers): tasks drawn anew, and of each one drawn its rows."""
    rng = np.random.default_rng([seed, 0xCA05A])
    drawn = rng.integers(len(tables), size=(n_bootstrap, len(tables)))
    means = np.empty((*drawn.shape, len(tables[0])))
    for task, table in enumerate(tables):
        here = drawn == task
        rows = rng.integers(table.shape[1], size=(int(here.sum()), table.shape[1]))
        means[here] = table[:, rows].mean(axis=2).T
    return np.asarray(np.median(means, axis=1))


def _record(task: str, values: Floats, low: Floats | None, high: Floats | None, n: int) -> LayerScores:
    return LayerScores(
        name="causal",
        unit="nats per target token per block put back",
        layers=block_names(len(values)),
        values=tuple(values.tolist()),
        n=n,
        higher_means="the loss rises more when the block goes back to the base's weights",
        low=None if low is None else tuple(low.tolist()),
        high=None if high is None else tuple(high.tolist()),
        task=task,
    )


def _check_windows(windows: Sequence[Window], n_layers: int) -> None:
    for start, stop in windows:
        if not 0 <= start < stop <= n_layers:
            raise UserError(
                f"window ({start}, {stop}): wanted 0 <= first < one past the last <= {n_layers}, the model's blocks"
            )
