"""The settings of the layer map."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tunescope.config.settings import FilePath, Settings


class SpecialistSettings(Settings):
    """How mode `mossa` tunes one model per task: briefly, LoRA on q and v, for its states and not for use."""

    steps: int = Field(32, ge=1, le=100_000, description="Optimiser steps per task at most: the budget.")
    num_epochs: int = Field(
        3,
        ge=1,
        le=1000,
        description="Passes over a task's training examples at most; fewer where the budget is used up.",
    )
    learning_rate: float = Field(5e-4, gt=0, le=10, description="Peak learning rate; falls to 0 as a half cosine.")
    batch_size: int = Field(8, ge=1, le=4096, description="Examples per optimiser step.")
    lora_rank: int = Field(8, ge=1, le=1024, description="Rank of the LoRA matrices.")
    lora_alpha: float = Field(16, gt=0, description="LoRA scale.")


class MapSettings(Settings):
    """What `tunescope map` reads and compares; see the page on the layer map."""

    mode: Literal["base", "pair", "mossa"] = Field(
        "base",
        description="base: the model alone; pair: against `tuned`; mossa: against one specialist per task, tuned here.",
    )
    tuned: FilePath | None = Field(
        None,
        description="Folder with an adapter, changed weights or a whole tuned model; needed by pair, used by mossa where given.",
    )
    examples: Literal["train", "test"] = Field(
        "train", description="Which prompts are read; train keeps the test data out of every choice."
    )
    prompts: int = Field(
        100, ge=4, le=20_000, description="Prompts per task at most; memory grows with the square (5,000: about 2 GB)."
    )
    states: Literal["last", "mean"] = Field(
        "last", description="State of the last prompt token, or the mean over the prompt."
    )
    estimator: Literal["debiased", "biased"] = Field(
        "debiased", description="Of CKA. biased is what most papers report; it is far above 0 for unrelated states."
    )
    n_bootstrap: int = Field(200, ge=20, le=10_000, description="Resamples of the prompts for each interval.")
    n_permutations: int = Field(100, ge=20, le=10_000, description="Permutations of the prompts for each null.")
    causal_examples: int = Field(
        8, ge=0, le=10_000, description="Examples per task for putting blocks back to the base; 0 = do not."
    )
    causal_window: int | None = Field(
        None, ge=1, le=1000, description="Blocks put back together; default: a tenth of them."
    )
    cache: FilePath | None = Field(
        None, description="Folder that keeps specialists for other runs; default: in the user's cache."
    )
    rebuild_cache: bool = Field(False, description="Tune a specialist again whose file in the cache is damaged.")
    specialist: SpecialistSettings = SpecialistSettings()

    @model_validator(mode="after")
    def _pair_has_two(self) -> Self:
        if self.mode == "pair" and self.tuned is None:
            raise ValueError("mode pair compares the base with a tuned model: set map.tuned to its folder")
        return self
