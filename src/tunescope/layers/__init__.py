"""Where a task lives in a model, one number per transformer block."""

from tunescope.layers.gradient import gradient_norms

__all__ = ["gradient_norms"]
