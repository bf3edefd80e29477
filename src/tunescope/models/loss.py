"""The loss on target tokens: the head runs only where there is a target."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tunescope.models.family import decoder, head_logits
from tunescope.models.head import target_logprobs, target_losses
from tunescope.models.packed import Row, passes
from tunescope.models.tail import KeptStates, predicting_states

IGNORED = -100


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
def mean_losses(
    model: Any,
    rows: Sequence[Row],
    *,
    batch_tokens: int = 2048,
    cut: int = 0,
    kept: KeptStates | None = None,
    compute: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    batches: Sequence[Sequence[int]] | None = None,
) -> NDArray[np.float64]:
    """Returns each row's mean loss per target token; rows are packed, and a common beginning is computed once.

    Args:
        model: the model, PEFT-wrapped or not, in evaluation mode.
        rows: encoded examples.
        batch_tokens: computed tokens per forward pass.
        cut: as for `predicting_states`.
        kept: states at the cut.
        compute: what the forward pass runs in, such as autocast.
        batches: numbers of the rows of each pass, in the place of passes of `batch_tokens`.

    Returns:
        (n_rows,) in nats per token; NaN for a row without a token that anything predicts, 0 for one in none of the `batches`.
    """
    result = np.zeros(len(rows))
    found = []
    for chosen in passes(rows, batch_tokens) if batches is None else batches:
        batch = list(chosen)
        with compute():
            states, targets, owners = predicting_states(model, [rows[i] for i in batch], cut=cut, kept=kept)
            found.append((batch, owners, target_losses(model, states, targets)))
    for batch, owners, losses in found:  # read after all passes: until then the processor need not wait for the device
        sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owners, losses.double().cpu())
        result[batch] = (sums / torch.bincount(owners, minlength=len(batch))).numpy()
    return result


@torch.no_grad()
def answer_logprobs(
    model: Any,
    rows: Sequence[Row],
    *,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns the log-probability of each row's whole target, and whether greedy decoding would give it.

    Rows are packed, and a common beginning is computed once: many answers to one question, many questions after the same demonstrations.
    Which rows share a beginning depends on `batch_tokens`, and that moves the numbers within the rounding of the model's number format.

    Args:
        model: the model, PEFT-wrapped or not, in evaluation mode.
        rows: with a prompt and a target of at least one token each.
        batch_tokens: computed tokens per forward pass.
        done: called with the number of finished rows after each pass.

    Returns:
        (n_rows,) sums over the target's tokens, in nats, and (n_rows,) flags.

    Example:
        >>> from tunescope.data import ChatFormat, Example
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> row = ChatFormat(byte_tokenizer()).encode(Example("1", "t", "Hi", "", ("yes",)))
        >>> logs, likeliest = answer_logprobs(tiny_model(), [row])
        >>> logs.shape, likeliest.dtype.name
        ((1,), 'bool')
    """
    sums, flags = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    for batch in passes(rows, batch_tokens):
        states, targets, owners = predicting_states(model, [rows[i] for i in batch])
        logs, likeliest = target_logprobs(model, states, targets)
        sums[batch] = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owners, logs.cpu()).numpy()
        missed = torch.zeros(len(batch)).index_add_(0, owners, (~likeliest.cpu()).float())
        flags[batch] = (missed == 0).numpy()
        done(len(batch))
    return sums, flags
