"""The settings of a server that answers test questions instead of the model here."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from tunescope.config.settings import Settings

FREE_ON_RESUME = ("endpoint", "api_key_variable", "timeout_seconds", "max_attempts", "concurrency")
"""Settings that say how the server is reached and change no answer: a run that goes on may have other ones."""


class GenerationSettings(Settings):
    """A server of yours that writes the free answers to test questions; without an address they are generated here."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Address of an OpenAI-compatible server up to the version, such as http://localhost:8000/v1; without a password in it.",
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="Name of the base model there: it answers for the arms nothing and prompt. Default: these are answered here.",
    )
    arms: dict[str, str] = Field(
        {}, description="Arm -> name of the model there that answers for it. Arms that are not named are answered here."
    )
    api_key_variable: str = Field(
        "TUNESCOPE_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with the key; unset: none is sent. The key itself is never in a file.",
    )
    timeout_seconds: float = Field(
        120, gt=0, le=86_400, description="Wait for an answer at most this long, per attempt."
    )
    max_attempts: int = Field(5, ge=1, le=100, description="Attempts per question, the first included.")
    concurrency: int = Field(4, ge=1, le=256, description="Questions under way at once.")
    template_arguments: dict[str, bool | int | float | str] = Field(
        {},
        description="Sent with every question as chat_template_kwargs, for servers that know it, such as {enable_thinking: false} for Qwen3.",
    )

    @field_validator("endpoint")
    @classmethod
    def _holds_no_secret(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and set("@?#") & set(endpoint):
            raise ValueError(
                "the address must hold no password, query or fragment, since it is written into the run; a key belongs in the environment "
                "variable that api_key_variable names"
            )
        return endpoint

    @model_validator(mode="after")
    def _address_and_names_belong_together(self) -> Self:
        if self.endpoint is not None and self.model is None and not self.arms:
            raise ValueError(
                "endpoint names a server and no model on it: set model to the name of the base model there, or arms to a model per arm"
            )
        if self.endpoint is None and (self.model is not None or self.arms):
            raise ValueError("model and arms name models on a server: set endpoint to its address, or leave them out")
        if empty := [arm for arm, model in self.arms.items() if not arm.strip() or not model.strip()]:
            raise ValueError(f"arms: {empty[0]!r}: {self.arms[empty[0]]!r} leaves arm or model empty; name both")
        return self
