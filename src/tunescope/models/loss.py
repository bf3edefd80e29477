"""The loss on target tokens: the head runs only where there is a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tunescope.models.decode import length_batches
from tunescope.models.family import bare, decoder, head_logits

IGNORED = -100


class Row(Protocol):
    """What is read of an encoded example."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens before the answer."""

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Tokens of the answer, its end included."""


def pad_right(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stacks rows for a forward pass.

    Args:
        rows: encoded examples.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each (batch, pos) and int64; labels are -100 except on target tokens.
        Padding is marked by position: the pad token of many models is their end-of-turn token, which has a loss.
    """
    width = max(len(row.prompt_ids) + len(row.target_ids) for row in rows)
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        ids = torch.tensor(row.prompt_ids + row.target_ids)
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        labels[i, len(row.prompt_ids) : len(ids)] = ids[len(row.prompt_ids) :]
    return input_ids, attention_mask, labels


def target_states(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the last hidden state from which every target token is predicted; differentiable.

    Args:
        model: the model, PEFT-wrapped or not.
        input_ids: (batch, pos).
        attention_mask: (batch, pos), 1 on real tokens.
        labels: (batch, pos), -100 where there is no loss.

    Returns:
        (n_targets, d_model) states after the final norm, (n_targets,) target tokens, and (n_targets,) the row each belongs to.
    """
    hidden = decoder(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    rows, positions = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    # The state at position p predicts the token at p + 1.
    wanted = hidden.flatten(0, 1).index_select(0, rows * hidden.shape[1] + positions)
    return wanted, labels[rows, positions + 1], rows


def token_losses(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of every target token; differentiable.

    Args:
        model: the model, PEFT-wrapped or not.
        input_ids: (batch, pos).
        attention_mask: (batch, pos), 1 on real tokens.
        labels: (batch, pos), -100 where there is no loss.

    Returns:
        (n_targets,) negative log-likelihoods in nats, float32, and (n_targets,) the row each belongs to.
    """
    states, targets, rows = target_states(model, input_ids, attention_mask, labels)
    return functional.cross_entropy(head_logits(model, states), targets, reduction="none"), rows


@torch.no_grad()
def mean_losses(model: Any, rows: Sequence[Row], *, batch_tokens: int = 2048) -> NDArray[np.float64]:
    """Returns each row's mean loss per target token.

    Args:
        model: the model, PEFT-wrapped or not.
        rows: encoded examples.
        batch_tokens: tokens per forward pass.

    Returns:
        (n_rows,) in nats per token.
    """
    result = np.zeros(len(rows))
    device = next(bare(model).parameters()).device
    for batch in length_batches([len(r.prompt_ids) + len(r.target_ids) for r in rows], batch_tokens=batch_tokens):
        tensors = [t.to(device) for t in pad_right([rows[i] for i in batch])]
        losses, owner = token_losses(model, *tensors)
        sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owner.cpu(), losses.double().cpu())
        counts = torch.bincount(owner.cpu(), minlength=len(batch))
        result[batch] = (sums / counts).numpy()
    return result
