"""LoRA layers of PEFT, computed in fewer passes over memory.

PEFT computes ``base(x) + B(A(x)) * scaling``: beside the matrix products, four more tensors of the size of the output or the input are
written and read. Here they are added inside the products. What is moved, saved and loaded stays PEFT's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

_ADAPTER = "default"


def plain_lora_layers(model: Any) -> list[Any]:
    """Returns PEFT's LoRA layers whose arithmetic is known here: a linear layer with one plain adapter and no dropout.

    Args:
        model: a PEFT model.

    Returns:
        The layers, in the order of the model; layers of another kind, such as DoRA, are left to PEFT.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from tunescope.testing import tiny_model
        >>> len(plain_lora_layers(get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))))
        2
        >>> plain_lora_layers(get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], use_dora=True)))
        []
    """
    from peft.tuners.lora.layer import Linear

    return [module for module in model.modules() if type(module) is Linear and _is_plain(module)]


@contextlib.contextmanager
def fused_lora(layers: Sequence[Any]) -> Iterator[None]:
    """Makes LoRA layers compute base product, adapter and scaling in one go; adapters that are off stay off.

    Args:
        layers: from `plain_lora_layers`.
    """
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _forward(layer, layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _is_plain(layer: Any) -> bool:
    return (
        list(layer.lora_A) == [_ADAPTER]
        and list(layer.active_adapters) == [_ADAPTER]
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and type(layer.base_layer) is nn.Linear
        and isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and layer.lora_A[_ADAPTER].bias is None
        and layer.lora_B[_ADAPTER].bias is None
    )


def _forward(layer: Any, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if layer.disable_adapters or layer.merged or arguments or named:
            return original(x, *arguments, **named)
        base = layer.base_layer
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        wide = [None if t is None else t.to(dtype) for t in (x.flatten(0, -2), base.weight, base.bias)]
        narrow = [matrix[_ADAPTER].weight.to(dtype) for matrix in (layer.lora_A, layer.lora_B)]
        found: torch.Tensor = _Lora.apply(*wide, *narrow, float(layer.scaling[_ADAPTER]))
        return found.view(*x.shape[:-1], -1)

    return forward


class _Lora(torch.autograd.Function):
    """The function x W^T + bias + scale (x A^T) B^T, with W frozen or not."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            inner = x @ a.T
            found = torch.nn.functional.linear(x, weight, bias)
            found.addmm_(inner, b.T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        above = gradients[0]
        x, weight, a, b, inner = ctx.saved_tensors
        d_inner = (above @ b).mul_(ctx.scale)
        d_x = (above @ weight).addmm_(d_inner, a) if ctx.needs_input_grad[0] else None
        d_weight = above.T @ x if ctx.needs_input_grad[1] else None
        d_bias = above.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias, d_inner.T @ x, (above.T @ inner).mul_(ctx.scale), None
