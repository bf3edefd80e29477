"""Gradient statistics of single weights: what the scores by gradient, Fisher information and SNIP are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.errors import ModelError, TunescopeError, UserError, did_you_mean
from tunescope.models import PARTS, Family, Row, bare, block_names, blocks, device_of, pad_right, token_losses
from tunescope.select.choose import match_layers


@dataclass(frozen=True)
class GradientStatistics:
    """Sums over examples taken one at a time, for every weight of some matrices.

    Attributes:
        total: canonical matrix name -> sum of the gradients, float32, shaped like the matrix.
        squares: canonical matrix name -> sum of the squared gradients, float32, not negative.
        n: examples behind the sums.
    """

    total: Mapping[str, torch.Tensor]
    squares: Mapping[str, torch.Tensor]
    n: int


def weight_matrices(
    model: Any, family: Family, *, parts: Sequence[str] = PARTS, layers: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Returns the weight matrices that may be chosen from, by canonical name (``block.3.q``), in the order of the model.

    Embeddings, head, norms and biases are not among them: a mask goes over matrices inside blocks.

    Args:
        model: the base model.
        family: where its parts are.
        parts: canonical parts (q, k, v, o, gate, up, down).
        layers: names or patterns of blocks, as for `match_layers`; None for all.

    Returns:
        Name -> the weight itself, (d_out, d_in), detached; it shares memory with the model.

    Raises:
        ModelError: a part or a block does not exist.

    Example:
        >>> from tunescope.models import FAMILIES
        >>> from tunescope.testing import tiny_model
        >>> found = weight_matrices(tiny_model(), FAMILIES[0], parts=["q", "v"], layers=["block.1"])
        >>> {name: tuple(weight.shape) for name, weight in found.items()}
        {'block.1.q': (32, 32), 'block.1.v': (16, 32)}
    """
    return {name: weight.detach() for name, weight in _parameters(model, family, parts, layers).items()}


def collect(
    model: Any,
    family: Family,
    rows: Sequence[Row],
    *,
    parts: Sequence[str] = PARTS,
    layers: Sequence[str] | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> GradientStatistics:
    """Sums the gradients of the loss, and their squares, over examples one at a time.

    The loss of an example is the mean over its target tokens, so that a long answer counts as much as a short one. One example at a
    time, because the square of a mean over a batch is not the mean of the squares. The backward pass ends at the lowest chosen block.

    Args:
        model: the base model; its gradient flags are restored afterwards.
        family: where its parts are.
        rows: encoded calibration examples.
        parts: canonical parts (q, k, v, o, gate, up, down).
        layers: names or patterns of blocks; None for all.
        done: called with 1 after every example.

    Returns:
        Sums in float32, whatever the number format of the model: two numbers for every weight.

    Raises:
        UserError: no examples.
        ModelError: a part or a block does not exist.
        TunescopeError: a loss or a gradient is not finite.

    Source:
        The squares are the empirical Fisher information of the FISH mask (arXiv 2111.09839): with the target tokens of the data, not
        with labels drawn from the model.

    Example:
        >>> from tunescope.data import ChatFormat, Example
        >>> from tunescope.models import FAMILIES
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> row = ChatFormat(byte_tokenizer()).encode(Example("1", "t", "Say hi", "", ("hi",)))
        >>> found = collect(tiny_model(), FAMILIES[0], [row], parts=["v"])
        >>> found.n, list(found.squares), bool((found.squares["block.0.v"] >= 0).all())
        (1, ['block.0.v', 'block.1.v'], True)
    """
    if not rows:
        raise UserError("gradient statistics need at least one calibration example, got none")
    inner = bare(model)
    weights = _parameters(model, family, parts, layers)
    device = device_of(inner)
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    squares = {name: torch.zeros_like(sums) for name, sums in total.items()}
    before = [(p, p.requires_grad) for p in inner.parameters()]
    inner.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for number, row in enumerate(rows, 1):
            losses, _ = token_losses(model, *(t.to(device) for t in pad_right([row])))
            gradients = torch.autograd.grad(losses.mean(), list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                if not torch.isfinite(gradient).all():
                    raise TunescopeError(
                        f"calibration example {number} of {len(rows)}: the gradient of {name} is not finite (loss "
                        f"{float(losses.detach().mean()):g}); only finite numbers can be scored; check the example or use dtype float32"
                    )
                exact = gradient.float()
                total[name].add_(exact)
                squares[name].addcmul_(exact, exact)
            done(1)
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
    return GradientStatistics(total, squares, len(rows))


def _parameters(
    model: Any, family: Family, parts: Sequence[str], layers: Sequence[str] | None
) -> dict[str, torch.nn.Parameter]:
    unknown = [
        f"part {part!r} is not known{did_you_mean(part, PARTS)}; allowed: {', '.join(PARTS)}"
        for part in parts
        if part not in PARTS
    ]
    if unknown or not parts:
        raise ModelError(unknown or f"no part given, so there is nothing to choose from; allowed: {', '.join(PARTS)}")
    names = block_names(len(blocks(model)))
    chosen = names if layers is None else match_layers(layers, names)
    return {
        f"{name}.{part}": block.get_submodule(path).get_parameter("weight")
        for name, block in zip(names, blocks(model), strict=True)
        if name in chosen
        for part, path in family.parts.items()
        if part in parts
    }
