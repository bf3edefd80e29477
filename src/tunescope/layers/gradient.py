"""Mean gradient norm per block: which blocks the loss pulls at, before anything is tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tunescope.errors import UserError
from tunescope.models import Row, bare, block_names, blocks, device_of, pad_right, token_losses
from tunescope.runs.records import LayerScores


def gradient_norms(
    model: Any, rows: Sequence[Row], *, confidence: float = 0.95, done: Callable[[int], None] = lambda n: None
) -> LayerScores:
    """Scores every block by the gradient of the loss with respect to its weights.

    One example at a time: the L2 norm of the gradient over all weight matrices of a block, then the mean over examples. It says
    where one small step would change the loss most, at the starting point. It does not say where a task is stored, nor where tuning
    to the end helps most; the arm `random` exists to test that.

    Args:
        model: the base model; its gradient flags are restored afterwards.
        rows: encoded calibration examples.
        confidence: level of the interval over examples (normal approximation of the mean).
        done: called with 1 after every example.

    Returns:
        One non-negative number per block, in nats per target token per unit of weight.

    Raises:
        UserError: no examples.

    Source:
        The same quantity that SIFT (arXiv 2312.11875) uses for single weights, here over whole blocks and without sparsity.

    Example:
        >>> from tunescope.data import ChatFormat, Example
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> row = ChatFormat(byte_tokenizer()).encode(Example("1", "t", "Say hi", "", ("hi",)))
        >>> gradient_norms(tiny_model(), [row]).layers
        ('block.0', 'block.1')
    """
    from scipy.stats import norm

    if not rows:
        raise UserError("gradient norms need at least one calibration example, got none")
    inner = bare(model)
    device = device_of(inner)
    weights = [[p for p in block.parameters() if p.ndim == 2] for block in blocks(model)]
    before = [(p, p.requires_grad) for p in inner.parameters()]
    inner.requires_grad_(False)
    for block in weights:
        for weight in block:
            weight.requires_grad_(True)
    norms = np.zeros((len(rows), len(weights)))
    try:
        for i, row in enumerate(rows):
            losses, _ = token_losses(model, *(t.to(device) for t in pad_right([row])))
            grads = torch.autograd.grad(losses.mean(), [w for block in weights for w in block])
            squares = iter(torch.stack([g.float().square().sum() for g in grads]).tolist())
            norms[i] = [sum(next(squares) for _ in block) ** 0.5 for block in weights]
            done(1)
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
    mean = norms.mean(axis=0)
    half = (
        norm.ppf(0.5 + confidence / 2) * norms.std(axis=0, ddof=1) / np.sqrt(len(rows))
        if len(rows) > 1
        else np.zeros_like(mean)
    )
    return LayerScores(
        name="gradient_norm",
        unit="nats per target token per unit of weight",
        layers=block_names(len(weights)),
        values=tuple(mean.tolist()),
        n=len(rows),
        higher_means="one small step there changes the loss more",
        low=tuple((mean - half).tolist()),
        high=tuple((mean + half).tolist()),
    )
