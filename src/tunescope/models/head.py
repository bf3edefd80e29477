"""The language-model head in chunks: logits are by far the largest tensor of a pass, and never exist for all targets at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from tunescope.models.family import bare, head_logits

_LOGIT_BYTES = 1 << 26


def head_chunks(model: Any, n_targets: int) -> list[slice]:
    """Cuts targets so that the float32 logits of a chunk stay below 64 MiB; the backward pass needs about three times that.

    Args:
        model: the model, PEFT-wrapped or not.
        n_targets: how many there are.

    Returns:
        Slices, in order, that together cover all of them; they differ by at most one in length.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> head_chunks(tiny_model(), 100_000)  # 260 tokens of 4 bytes each
        [slice(0, 50000, None), slice(50000, 100000, None)]
    """
    d_vocab = bare(model).get_output_embeddings().weight.shape[0]
    most = max(1, _LOGIT_BYTES // (4 * d_vocab))
    count = -(-n_targets // most)
    ends = [round(i * n_targets / count) for i in range(count + 1)] if count else []
    return [slice(first, stop) for first, stop in pairwise(ends)]


@torch.no_grad()
def target_losses(model: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every target token, without a graph.

    Args:
        model: the model, PEFT-wrapped or not.
        states: (n_targets, d_model) after the final norm.
        targets: (n_targets,) tokens.

    Returns:
        (n_targets,) negative log-likelihoods in nats, float32.
    """
    losses = [
        functional.cross_entropy(head_logits(model, states[where]), targets[where], reduction="none")
        for where in head_chunks(model, len(targets))
    ]
    return torch.cat(losses) if losses else states.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def target_logprobs(model: Any, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the log-probability of every target token, and whether it is the likeliest token there.

    Args:
        model: the model, PEFT-wrapped or not.
        states: (n_targets, d_model) after the final norm.
        targets: (n_targets,) tokens.

    Returns:
        (n_targets,) in nats, float64, and (n_targets,) booleans.
    """
    logs = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    likeliest = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    for where in head_chunks(model, len(targets)):
        logits = head_logits(model, states[where])
        logs[where] = logits.log_softmax(-1).gather(1, targets[where, None])[:, 0].double()
        likeliest[where] = logits.argmax(-1) == targets[where]
    return logs, likeliest


def backward_from_head(
    model: Any,
    states: torch.Tensor,
    value: Callable[[torch.Tensor, slice], torch.Tensor],
    *,
    compute: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> torch.Tensor:
    """Runs the head, a function of its logits, and the backward pass through both, chunk by chunk; then that through the model.

    The same gradients as of the whole at once, summed in another order. Nothing is computed twice.

    Args:
        model: the model, PEFT-wrapped or not.
        states: (n_targets, d_model) after the final norm, with the graph that made them.
        value: of the logits of a chunk, (chunk, d_vocab) float32, and of the slice of the targets that it is, a scalar; the values of
            all chunks are summed.
        compute: what the head runs in, such as autocast.

    Returns:
        The sum of the values, () and without a graph.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> states = torch.ones(3, 32, requires_grad=True)
        >>> total = backward_from_head(tiny_model(), states, lambda logits, where: logits.sum())
        >>> states.grad.shape
        torch.Size([3, 32])
    """
    total = torch.zeros((), device=states.device)
    gradients = []
    for where in head_chunks(model, len(states)):
        leaf = states[where].detach().requires_grad_(states.requires_grad)
        with compute():
            found = value(head_logits(model, leaf), where)
        found.backward()
        total += found.detach()
        if leaf.grad is not None:
            gradients.append(leaf.grad)
    if (
        states.requires_grad
    ):  # without a target too: where blocks are cut over processes, all of them run the same passes
        states.backward(torch.cat(gradients) if gradients else torch.zeros_like(states))
    return total
