"""The setting that puts finished examples before a task's prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from tunescope.config.settings import Settings


class DemonstrationSettings(Settings):
    """Finished examples before every prompt of the task, in tuning and at test; see the page on generalisation."""

    count: int = Field(2, ge=1, le=64, description="Finished examples before a prompt.")
    choice: Literal["first", "random", "nearest"] = Field(
        "first",
        description="first: the first rows of the training file, and at test of the test file itself, the same before every prompt and kept "
        "out of tuning and scoring; random or nearest: training examples drawn for, or most like, the one that is asked.",
    )
    at: tuple[Literal["train", "test"], ...] = Field(
        ("train", "test"),
        description="Where they are shown. Empty: nowhere, but with choice first the same rows are kept out, for a comparison on equal rows.",
    )

    @field_validator("at")
    @classmethod
    def _places_differ(cls, at: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(at)) != len(at):
            raise ValueError("a place is listed twice")
        return at
