"""The settings of the search for settings of tuning."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tunescope.config.settings import Settings


class SearchSettings(Settings):
    """Among what `tunescope tune --search N` looks for the best settings; one value in a list is not searched."""

    learning_rate: tuple[float, float] | None = Field(
        None,
        description="Lowest and highest peak learning rate, drawn on a log scale; default: around the candidates of the method.",
    )
    lora_rank: tuple[int, ...] = Field((4, 8, 16, 32), min_length=1, description="Ranks; for method lora alone.")
    lora_alpha_per_rank: tuple[float, ...] = Field(
        (1.0, 2.0, 4.0), min_length=1, description="LoRA scale: lora_alpha as a multiple of the rank."
    )
    batch_size: tuple[int, ...] = Field((4, 8, 16), min_length=1, description="Examples per optimiser step.")
    warmup_fraction: tuple[float, ...] = Field(
        (0.0, 0.05, 0.1), min_length=1, description="Shares of the steps with rising learning rate."
    )
    weight_decay: tuple[float, ...] = Field((0.0, 0.01, 0.1), min_length=1, description="Decoupled weight decays.")

    @model_validator(mode="after")
    def _values_are_possible(self) -> Self:
        rates = self.learning_rate
        if rates is not None and not 0 < rates[0] < rates[1] <= 10:
            raise ValueError(
                f"learning_rate: got {rates[0]:g} to {rates[1]:g}; give the lower one first, both above 0 and at most 10, such as [1e-4, 5e-3]"
            )
        limits = {"lora_rank": (1, 1024), "lora_alpha_per_rank": (1e-3, 1e3), "batch_size": (1, 4096)}
        limits |= {"warmup_fraction": (0, 0.5), "weight_decay": (0, 1)}
        for name, (low, high) in limits.items():
            values = getattr(self, name)
            if bad := [value for value in values if not low <= value <= high]:
                raise ValueError(f"{name}: got {bad[0]:g}, allowed: {low:g} to {high:g}")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value stands there twice")
        return self
