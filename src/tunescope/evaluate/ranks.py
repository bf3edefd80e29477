"""How likely one model finds each token that another one wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.models import bare, device_of, head_logits, length_batches, pad_right, target_states

_LOGIT_CELLS = 8_000_000  # positions times vocabulary at a time: 32 MB


@dataclass(frozen=True)
class _Row:
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


@torch.no_grad()
def token_ranks(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> list[tuple[int, ...]]:
    """Returns the rank of every answer token under a model that reads the prompt and the answer so far.

    Args:
        model: the model, PEFT-wrapped or not.
        prompts: token ids; none empty.
        answers: token ids of the answer to each prompt; may be empty.
        batch_tokens: tokens per forward pass.
        done: called with the number of finished prompts after each batch.

    Returns:
        A rank per answer token, 1 for the most likely token; tokens that are equally likely share the better rank.

    Source:
        Lin et al. (2024), arXiv 2312.01552, section 2: the rank of an aligned model's token under its base.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> ranks = token_ranks(tiny_model(), [[65, 66]], [[67, 68]])
        >>> len(ranks[0]), all(1 <= rank <= 260 for rank in ranks[0])
        (2, True)
    """
    rows = [_Row(tuple(prompt), tuple(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    found: list[tuple[int, ...]] = [()] * len(rows)
    asked = [i for i, row in enumerate(rows) if row.target_ids]
    done(len(rows) - len(asked))
    device = device_of(model)
    lengths = [len(rows[i].prompt_ids) + len(rows[i].target_ids) for i in asked]
    for batch in length_batches(lengths, batch_tokens=batch_tokens):
        here = [asked[i] for i in batch]
        tensors = [t.to(device) for t in pad_right([rows[i] for i in here])]
        states, targets, owner = target_states(model, *tensors)
        ranks = _ranks(model, states, targets)
        for place, i in enumerate(here):
            found[i] = tuple(ranks[owner == place].tolist())
        done(len(here))
    return found


def _ranks(model: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(n,) ranks; the logits of a few positions at a time, since a vocabulary may have 262,144 entries."""
    step = max(1, _LOGIT_CELLS // int(bare(model).config.vocab_size))
    parts = []
    for start in range(0, len(targets), step):
        logits = head_logits(model, states[start : start + step])
        own = logits.gather(1, targets[start : start + step, None])
        parts.append((logits > own).sum(1) + 1)
    return torch.cat(parts)
