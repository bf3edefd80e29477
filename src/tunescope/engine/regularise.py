"""Two ways to hold tuning back inside its own step: targets that are not all or nothing, and decay of chosen entries alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from tunescope.engine.moving import Moving
from tunescope.engine.sparse import sparse_layers
from tunescope.models import bare, family_of

_ADAPTER = "default"


def smoothed_losses(
    logits: torch.Tensor, targets: torch.Tensor, *, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of every target token, as it is and with a smoothed target; differentiable.

    With smoothing e the target is the right token with weight 1 - e and every token of the vocabulary, the right one included, with
    e / d_vocab: the model gains nothing from being ever surer. The records and the held-out checks show the loss as it is.

    Args:
        logits: (n_targets, d_vocab).
        targets: (n_targets,) the right tokens.
        smoothing: e, from 0 to below 1.

    Returns:
        (n_targets,) negative log-likelihoods and (n_targets,) cross-entropies with the smoothed targets, in nats, float32. With
        smoothing 0 both are the same tensor.

    Source:
        Szegedy et al. 2016, *Rethinking the Inception Architecture for Computer Vision* (arXiv 1512.00567), section 7.

    Example:
        >>> plain, smoothed = smoothed_losses(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0]), smoothing=0.1)
        >>> [round(float(loss), 3) for loss in (*plain, *smoothed)]
        [0.693, 0.0, 0.693, 0.45]
    """
    if not smoothing:
        plain = functional.cross_entropy(logits, targets, reduction="none")
        return plain, plain
    logprobs = functional.log_softmax(logits, dim=-1)
    plain = -logprobs.gather(1, targets[:, None])[:, 0]
    return plain, (1 - smoothing) * plain - smoothing * logprobs.mean(dim=-1)


def base_entries(moving: Moving) -> dict[str, torch.Tensor]:
    """Returns the base weights of the sparse entries that move: name of the parameter -> (n_entries,), float32; {} for other methods.

    What `decay_entries_` needs, since the parameters of sparse entries are changes and not weights.
    """
    if moving.selection.method != "sparse":
        return {}
    found = {}
    for name, layer in sparse_layers(moving.model, family_of(bare(moving.model).config.model_type)).items():
        rows, columns = layer.shira_indices[_ADAPTER]
        parameter = next(key for key in moving.parameters if key.startswith(f"{name}.shira_weight."))
        found[parameter] = layer.base_layer.weight.detach()[rows, columns].float()
    return found


@torch.no_grad()
def decay_entries_(moving: Moving, base: Mapping[str, torch.Tensor], fraction: float) -> None:
    """Shrinks the sparse entries by a fraction of their weight, base and change together; no other entry is touched.

    That is decoupled weight decay restricted to the mask: base + change becomes (1 - fraction) * (base + change).

    Args:
        moving: a model whose sparse entries move.
        base: from `base_entries`.
        fraction: learning rate x weight decay.
    """
    for name, weights in base.items():
        change = moving.parameters[name]
        change.sub_(weights + change, alpha=fraction)
