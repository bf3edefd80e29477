"""The settings of measuring: what ends an answer, how many examples, how sure."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from tunescope.config.settings import Settings


def _is_text(stop: str) -> str:
    if not stop or "\ufffd" in stop:
        raise ValueError(
            f'got {stop!r}, which ends no answer: give a text that an answer can hold, such as a blank line as "\\n\\n"'
        )
    return stop


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _differ(stops: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(stops)) != len(stops):
        raise ValueError("a stop string is listed twice")
    return stops


StopTexts = Annotated[
    tuple[Annotated[str, AfterValidator(_is_text)], ...],
    Field(max_length=16),
    BeforeValidator(_as_list, json_schema_input_type=tuple[str, ...] | str),
    AfterValidator(_differ),
]


class EvaluationSettings(Settings):
    """How every arm is measured."""

    batch_tokens: int = Field(
        4096, ge=1, description="Tokens per forward pass; changes speed and memory, never a score."
    )
    max_new_tokens: int = Field(64, ge=1, le=8192, description="Longest generated answer, in tokens.")
    stop: StopTexts = Field(
        (),
        description="Texts that end a generated answer, which is cut before the first one; for example a blank line.",
    )
    task_stop: dict[str, StopTexts] = Field(
        {}, description="Task -> the texts that end its answers, instead of those of `stop`; an empty list: none."
    )
    demonstrations: int = Field(3, ge=1, le=64, description="Examples written into the prompt in the arm `prompt`.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of all intervals.")
    n_bootstrap: int = Field(2000, ge=200, le=100_000, description="Resamples for the intervals.")
    samples: int = Field(24, ge=0, le=1000, description="Examples shown side by side in the report.")
    latency_requests: int = Field(12, ge=0, le=1000, description="Single requests timed per arm; 0 = do not time.")
    max_error_rate: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Wanted error rate of the answers that no person sees; the report says what share has to go to one for it.",
    )
    paraphrase_examples: int = Field(
        50, ge=1, le=100_000, description="Examples per test file that are asked again in the task's `paraphrases`."
    )
    curve: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (),
        description="Shares of the training examples that the recommended arm is tuned on again, such as [0.125, 0.25, 0.5]: how much would more "
        "data bring? Empty: do not.",
    )

    @field_validator("curve")
    @classmethod
    def _shares_rise(cls, curve: tuple[float, ...]) -> tuple[float, ...]:
        if list(curve) != sorted(set(curve)):
            raise ValueError(
                "the shares must rise and differ, such as [0.125, 0.25, 0.5]; all examples are always the last point"
            )
        return curve
