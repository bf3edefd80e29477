"""The settings of tuning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunescope.config.search import SearchSettings
from tunescope.config.settings import PathList, Settings


class RegularisationSettings(Settings):
    """What keeps tuning on few examples near the base model, all off by default; see the page on the engine."""

    l2_sp: float = Field(
        0.0,
        ge=0,
        description="Decay towards the base weights: half of this times the squared distance is added to the loss.",
    )
    kl_to_base: float = Field(
        0.0,
        ge=0,
        description="This times the KL divergence from the base model's answers on `kl_examples` is added to the loss.",
    )
    kl_examples: PathList = Field(
        (),
        description="General or earlier examples on which to answer as the base does. Not those of `guard`, which judge it.",
    )
    kl_max_examples: int = Field(
        256, ge=1, description="Use at most this many of them; what the base says is kept in memory."
    )
    kl_batch_size: int = Field(
        4, ge=1, le=4096, description="Of them, at most this many are read at each optimiser step."
    )
    label_smoothing: float = Field(
        0.0, ge=0, le=0.5, description="Share of each target token that is spread evenly over the vocabulary."
    )
    demonstrations: int = Field(
        0,
        ge=0,
        le=16,
        description="Training prompts get from none to this many finished training examples before them.",
    )
    noise_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the training prompts with noise of case or white space in the instruction.",
    )

    @model_validator(mode="after")
    def _kl_has_examples(self) -> Self:
        if self.kl_to_base and not self.kl_examples:
            raise ValueError(
                "kl_to_base needs examples on which to answer as the base model does: give kl_examples a file other than those of guard, "
                "or set kl_to_base to 0"
            )
        return self


class TuningSettings(Settings):
    """How an arm is tuned."""

    method: Literal["lora", "weights", "sparse"] = Field(
        "lora",
        description="What moves: LoRA adapters, whole weights, or single entries of matrices (needs selection.granularity tile, row, column or "
        "entry).",
    )
    lora_rank: int = Field(8, ge=1, le=1024, description="Rank of the LoRA matrices.")
    lora_alpha: float = Field(16, gt=0, description="LoRA scale; the update is multiplied by lora_alpha / lora_rank.")
    target_modules: tuple[str, ...] = Field(
        ("q", "k", "v", "o", "gate", "up", "down"),
        min_length=1,
        description="Parts of a block that move, by canonical name: q, k, v, o (attention), gate, up, down (MLP).",
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = Field(
        "auto", description="Peak learning rate, or auto: probed per arm on the held-out slice."
    )
    num_epochs: int = Field(3, ge=1, le=1000, description="Passes over the training examples.")
    batch_size: int = Field(8, ge=1, le=4096, description="Examples per optimiser step.")
    batch_tokens: int = Field(
        1024,
        ge=1,
        description="Computed tokens per forward and backward pass; a step with more is taken in several. Nothing is padded, and a beginning "
        "that several examples share counts once. Less needs less memory.",
    )
    warmup_fraction: float = Field(0.05, ge=0, le=0.5, description="Share of the steps with rising learning rate.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Decoupled weight decay of the matrices that move; of sparse entries, of them alone.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    patience: int = Field(
        2, ge=0, description="Stop after this many held-out checks without gain; 0 = never stop early."
    )
    checks_per_epoch: int = Field(2, ge=1, le=100, description="Held-out checks, and checkpoints, per epoch.")
    regularisation: RegularisationSettings = RegularisationSettings()
    search: SearchSettings = SearchSettings()
