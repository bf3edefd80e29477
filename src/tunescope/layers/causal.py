"""Causal check of a layer map: put blocks of a tuned model back to the base's weights and see how much each task's loss rises.

A similarity map says where states changed; this says where the change matters. Only blocks are put back: embeddings, final norm and
head stay the tuned model's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tunescope.errors import ModelError, UserError
from tunescope.models import bare, block_names, blocks, length_batches, mean_losses
from tunescope.models.loss import Row
from tunescope.runs.records import LayerScores

Floats = NDArray[np.float64]
Window = tuple[int, int]
Change = tuple[Any, str, Any]  # owner, name of its attribute, the base's value

_N_PERMUTATIONS = 9999
_SAME = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


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
    done: Callable[[int], None] = lambda n: None,
) -> list[LayerScores]:
    """Scores every block by how much the loss rises when it goes back to the base's weights.

    A window's rise is divided evenly among its blocks; a block's score is the mean of its shares over the windows that contain it.
    So overlapping windows blur a sharp effect over `width` blocks to both sides. One block at a time (width 1) does not, but misses
    what neighbours can do for each other.

    Args:
        tuned: the tuned model, in evaluation mode. It is the same afterwards, bit for bit, also after an error or Ctrl-C.
        base: the base model of the same architecture; None for a model with PEFT adapters, whose own are switched off.
        windows: (first, one past the last) block of each window, as `windows` makes them; every block must lie in one.
        rows_by_task: task -> encoded examples, at least one each.
        batch_tokens: tokens per forward pass; see `put_back_losses` for the memory.
        confidence: level of the intervals.
        done: called with the number of rows after each pass; (windows + 1) · rows in all.

    Returns:
        One record per task, in order, and a last one with task ``*``: the mean over tasks. Values in nats per target token and
        block, positive where the tuned block helps. Intervals are paired over rows (Student's t of the differences; for ``*``
        Welch's degrees of freedom, tasks taken as given); None with one row.

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
    n_layers = len(blocks(tuned))
    shares = _shares(windows, n_layers)
    rows = [row for task in rows_by_task.values() for row in task]
    losses = put_back_losses(tuned, base, windows, rows, batch_tokens=batch_tokens, done=done)
    per_block = shares @ (losses[1:] - losses[0])
    ends = np.cumsum([len(task) for task in rows_by_task.values()])[:-1]
    groups = np.split(per_block, ends, axis=1)
    named = [*zip(rows_by_task, ([group] for group in groups), strict=True), ("*", groups)]
    return [_scores(task, parts, n_layers, confidence) for task, parts in named]


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
    changes = _adapter_changes(tuned) if base is None else _weight_changes(tuned, base)
    starts = [next((i for i in range(*window) if changes[i]), None) for window in windows]
    result = np.zeros((len(windows) + 1, len(rows)))
    for batch in length_batches([len(r.prompt_ids) + len(r.target_ids) for r in rows], batch_tokens=batch_tokens):
        together = [rows[i] for i in batch]  # again one batch for `mean_losses`, in this order
        with _states_at(mine, {start for start in starts if start}) as states:
            result[0, batch] = mean_losses(tuned, together, batch_tokens=batch_tokens)
        done(len(batch))
        for i, (window, start) in enumerate(zip(windows, starts, strict=True), 1):
            if start is None:
                result[i, batch] = result[0, batch]
            else:
                below = [(mine[j], "forward", _giving(states[start])) for j in range(start)]
                with _replaced([*below, *(change for j in range(*window) for change in changes[j])]):
                    result[i, batch] = mean_losses(tuned, together, batch_tokens=batch_tokens)
            done(len(batch))
    bad = np.argwhere(~np.isfinite(result))
    if len(bad):
        which, row = bad[0]
        state = (
            "as tuned" if which == 0 else "with {}-{} put back".format(windows[which - 1][0], windows[which - 1][1] - 1)
        )
        raise ModelError(
            f"the loss of row {row} is {result[which, row]} {state}: look for NaN in the weights or rows without target"
        )
    return result


@dataclass(frozen=True)
class RankAgreement:
    """How far two rankings of the blocks agree.

    Attributes:
        correlation: Spearman's, in [-1, 1], ties at their mean rank.
        p_value: two-sided, from random permutations of the blocks. Too small where both maps change slowly over the depth, since
            neighbours are then no independent observations.
        shift_p_value: share of the cyclic shifts of one map against the other that correlate at least as strongly: keeps what
            neighbours have in common, but is never below 1 / n.
        n: blocks.
    """

    correlation: float
    p_value: float
    shift_p_value: float
    n: int


def rank_agreement(
    scores_a: LayerScores | Sequence[float], scores_b: LayerScores | Sequence[float], *, seed: int = 0
) -> RankAgreement:
    """Compares a map with the causal effect (or any two maps) by the order in which they put the blocks.

    Args:
        scores_a: one number per block.
        scores_b: one number per block, the same blocks in the same order.
        seed: of the permutations.

    Returns:
        Correlation and p-values. A map in which low means "matters" (a similarity) correlates negatively.

    Raises:
        UserError: other blocks, fewer than 3, a number that is not finite, or the same number for every block.

    Source:
        Spearman (1904); permutation p as Phipson & Smyth (2010), which never is 0. The cyclic shifts are our addition.

    Example:
        >>> rank_agreement([1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 6, 5]).correlation.__round__(3)
        0.886
    """
    from scipy.stats import rankdata

    if isinstance(scores_a, LayerScores) and isinstance(scores_b, LayerScores) and scores_a.layers != scores_b.layers:
        raise UserError(
            f"scores {scores_a.name} and {scores_b.name} are of different blocks: compare maps of one model"
        )
    ranks = []
    for which, scores in (("first", scores_a), ("second", scores_b)):
        values = np.asarray(scores.values if isinstance(scores, LayerScores) else scores, dtype=np.float64)
        if values.ndim != 1 or len(values) < 3:
            raise UserError(
                f"the {which} scores have shape {values.shape}: one number per block is needed, for at least 3 blocks"
            )
        if not np.isfinite(values).all():
            raise UserError(f"the {which} scores are not finite at block.{int(np.argmin(np.isfinite(values)))}")
        if np.ptp(values) == 0:
            raise UserError(f"the {which} scores are {values[0]} in every block: they put the blocks in no order")
        centred = rankdata(values) - (len(values) + 1) / 2
        ranks.append(centred / np.linalg.norm(centred))
    a, b = ranks
    if len(a) != len(b):
        raise UserError(f"got scores of {len(a)} and of {len(b)} blocks: compare maps of one model")
    correlation = float(a @ b)
    limit = abs(correlation) - 1e-9  # equal up to the order of summation is equal
    shuffled = np.random.default_rng([seed, 0x5BEA2]).permuted(np.tile(b, (_N_PERMUTATIONS, 1)), axis=1) @ a
    shifted = np.stack([np.roll(b, shift) for shift in range(len(b))]) @ a
    return RankAgreement(
        correlation=correlation,
        p_value=float(1 + (np.abs(shuffled) >= limit).sum()) / (1 + _N_PERMUTATIONS),
        shift_p_value=float((np.abs(shifted) >= limit).mean()),
        n=len(a),
    )


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


def _scores(task: str, parts: Sequence[Floats], n_layers: int, confidence: float) -> LayerScores:
    """One record from the rises per block and row, (n_layers, n_rows) for each of its tasks."""
    from scipy.stats import t

    values = np.mean([part.mean(axis=1) for part in parts], axis=0)
    low = high = None
    if all(part.shape[1] > 1 for part in parts):
        variances = np.stack([part.var(axis=1, ddof=1) / part.shape[1] for part in parts]) / len(parts) ** 2
        total = variances.sum(axis=0)
        freedom = np.array([[part.shape[1] - 1] for part in parts])
        spread = np.where(total > 0, (variances**2 / freedom).sum(axis=0), 1)
        degrees = np.where(total > 0, total**2 / np.where(spread > 0, spread, 1), 1)
        half = t.ppf(0.5 + confidence / 2, degrees) * np.sqrt(total)
        low, high = tuple((values - half).tolist()), tuple((values + half).tolist())
    return LayerScores(
        name="put_back_rise",
        unit="nats per target token per block put back",
        layers=block_names(n_layers),
        values=tuple(values.tolist()),
        n=sum(part.shape[1] for part in parts),
        higher_means="the loss rises more when the block goes back to the base's weights",
        low=low,
        high=high,
        task=task,
    )


def _check_windows(windows: Sequence[Window], n_layers: int) -> None:
    for start, stop in windows:
        if not 0 <= start < stop <= n_layers:
            raise UserError(
                f"window ({start}, {stop}): wanted 0 <= first < one past the last <= {n_layers}, the model's blocks"
            )


def _adapter_changes(tuned: Any) -> list[list[Change]]:
    """Per block, what switches its adapters off: each wrapped module answers as the module that it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    changes: list[list[Change]] = []
    for i, block in enumerate(blocks(tuned)):
        changes.append([])
        for name, module in block.named_modules():
            if isinstance(module, BaseTunerLayer):
                if module.merged:
                    raise ModelError(
                        f"the adapters of block.{i} {name} are merged into its weights and cannot be switched off: unmerge them, or "
                        "pass the base model and the merged model"
                    )
                changes[i].append((module, "forward", module.get_base_layer().forward))
            elif isinstance(module, ModulesToSaveWrapper):
                changes[i].append((module, "forward", module.original_module.forward))
    if not any(changes):
        raise ModelError("the tuned model has no adapters in its blocks: pass the base model that it was tuned from")
    config = getattr(tuned, "peft_config", {})
    biased = [name for name, settings in config.items() if getattr(settings, "bias", "none") != "none"]
    if biased:
        raise ModelError(
            f"adapter {biased[0]!r} also tuned biases of the base, which switching off leaves tuned: use bias='none'"
        )
    return changes


def _weight_changes(tuned: Any, base: Any) -> list[list[Change]]:
    """Per block, its parameters that differ from the base's, with the base's values (no copies)."""
    mine, theirs = bare(tuned).config, bare(base).config
    differing = [
        f"{name} {a} and {b}"
        for name in _SAME
        if (a := getattr(mine, name, None)) != (b := getattr(theirs, name, None))
    ]
    if differing:
        raise ModelError(
            f"tuned and base model are of different architectures: {', '.join(differing)}; give the base it was tuned from"
        )
    changes: list[list[Change]] = []
    for i, (block, source) in enumerate(zip(blocks(tuned), blocks(base), strict=True)):
        values = dict(source.named_parameters())
        found = dict(block.named_parameters())
        if found.keys() != values.keys():
            name = sorted(found.keys() ^ values.keys())[0]
            raise ModelError(
                f"block.{i} {name} is in only one of the models: for a model with adapters leave the base out (None)"
            )
        for name, parameter in found.items():
            value = values[name]
            if (parameter.shape, parameter.dtype, parameter.device) != (value.shape, value.dtype, value.device):
                raise ModelError(
                    f"block.{i} {name} is {tuple(parameter.shape)} {parameter.dtype} on {parameter.device} in the tuned model and "
                    f"{tuple(value.shape)} {value.dtype} on {value.device} in the base: load both alike"
                )
        changes.append(
            [(p, "data", values[name].data) for name, p in found.items() if not torch.equal(p, values[name])]
        )
    if not any(changes):
        raise ModelError("no block of the tuned model differs from the base: was the base given twice?")
    return changes


@contextlib.contextmanager
def _replaced(changes: Sequence[Change]) -> Iterator[None]:
    """Sets the attributes for the time of the context. The tensors themselves are never written to, so nothing can be half restored."""
    before = [(owner, name, getattr(owner, name), name in vars(owner)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value, own in before:
            if isinstance(owner, nn.Module) and not own:
                vars(owner).pop(name, None)  # the class's method shows again
            else:
                setattr(owner, name, value)


@contextlib.contextmanager
def _states_at(modules: nn.ModuleList, starts: set[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Collects the input of these blocks."""
    states: dict[int, torch.Tensor] = {}

    def collector(start: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[start] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [modules[i].register_forward_pre_hook(collector(i), with_kwargs=True) for i in sorted(starts)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _giving(state: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda *_args, **_kwargs: state
