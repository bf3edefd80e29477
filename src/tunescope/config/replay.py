"""The settings of `tunescope learn`: what is repeated of earlier tasks when the next one is learned."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunescope.config.settings import FilePath, Settings

INSTRUCTION_POLICIES = (
    "inscl",
    "inscl_without_distance",
    "inscl_without_information",
    "prototype_instruction",
    "diverse_instruction",
)
"""Policies that look at instructions: every training example has to have one."""


ORDERS = ("as_given", "reverse", "random")
"""What `replay.order` may be besides the names of the tasks."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=tuple[str, ...] | str)]


class TagSettings(Settings):
    """Where the tags of instructions come from that the policy `inscl` counts; see the page on learning task after task."""

    tagger: Literal["local", "endpoint", "file"] = Field(
        "local",
        description="local: key phrases, found here without a model; endpoint: asked of a server you run; file: read.",
    )
    file: FilePath | None = Field(
        None, description="For tagger file: JSONL with `instruction` and `tags`, a row per distinct instruction."
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="For tagger endpoint: an OpenAI-compatible server, as in http://localhost:8000/v1.",
    )
    model: str | None = Field(None, min_length=1, description="For tagger endpoint: the name of the model there.")

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        if self.tagger == "file" and self.file is None:
            raise ValueError("tagger file reads tags from a file: set file to it, or use tagger local")
        if self.tagger == "endpoint" and (self.url is None or self.model is None):
            raise ValueError("tagger endpoint asks a server: set url and model, or use tagger local")
        return self


class ReplaySettings(Settings):
    """How `tunescope learn` goes through the tasks, and what it repeats of the earlier ones."""

    policy: Literal[
        "inscl",
        "random",
        "none",
        "prototype_data",
        "prototype_instruction",
        "diverse_instruction",
        "inscl_without_distance",
        "inscl_without_information",
        "joint",
    ] = Field("inscl", description="How the examples to repeat are chosen; joint: all tasks at once, the upper bound.")
    budget_per_task: int = Field(
        200, ge=1, le=1_000_000, description="Examples repeated at a stage, for each earlier task on average."
    )
    allocation: Literal["distance", "similarity", "even"] = Field(
        "distance",
        description="Which earlier task gets more of them in policies with distances: the more distant, the more similar, or none.",
    )
    weights: Literal["frequency", "uniform"] = Field(
        "frequency",
        description="Weight of a distinct instruction in the distance: how often it occurs, or the same for all.",
    )
    tags: TagSettings = TagSettings()
    memory_examples: int | None = Field(
        None, ge=1, description="Keep at most this many examples of all tasks together; default: all."
    )
    memory_bytes: int | None = Field(
        None, ge=1024, description="Keep at most this many bytes of examples; default: no limit."
    )
    order: Names = Field(
        ("as_given",),
        min_length=1,
        description="Order in which the tasks are learned: as_given, reverse, random (by seed), or the list of their names.",
    )
    onto: FilePath | None = Field(
        None, description="Finished run of learn, tune or poc on which the tasks of this file are learned in addition."
    )
    arm: Literal["lora-all", "selected", "top-third", "full"] = Field(
        "lora-all",
        description="What moves, the same at every stage; selected is chosen on the first task. With `onto`: what moved there.",
    )
    experts: bool = Field(
        False, description="Tune one expert per task on its own for the relative gain; kept in the user's cache."
    )
    evaluate: Literal["seen", "next", "all"] = Field(
        "next",
        description="What is measured after a stage: the tasks seen so far, the next one as well (for forward transfer), or all.",
    )

    @field_validator("order")
    @classmethod
    def _each_once(cls, order: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(order)) < len(order):
            raise ValueError("a task is named twice")
        if len(order) > 1 and (words := [name for name in order if name in ORDERS]):
            raise ValueError(f"{words[0]} stands alone; give it, or the names of all tasks")
        return order

    @model_validator(mode="after")
    def _one_memory_budget(self) -> Self:
        if self.memory_examples is not None and self.memory_bytes is not None:
            raise ValueError("memory_examples and memory_bytes are two budgets of one memory; give one")
        if self.policy == "joint" and self.onto is not None:
            raise ValueError(
                "policy joint learns all tasks at once from the base model, so there is nothing to learn onto"
            )
        return self
