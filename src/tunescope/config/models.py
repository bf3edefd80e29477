"""The settings: the only place where a default or a help text lives.

`tunescope config schema` and the table in ``docs/configuration.md`` are generated from these classes.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

NAME_PATTERN = r"^[\w][\w.\-]*$"


class Metric(StrEnum):
    """How an answer of a task is scored; every one is in [0, 1], higher is better."""

    ACCURACY = "accuracy"
    MACRO_F1 = "macro_f1"
    EXACT_MATCH = "exact_match"
    TOKEN_F1 = "token_f1"
    ROUGE_L = "rouge_l"
    CHRF = "chrf"
    JSON_FIELDS = "json_fields"


class Arm(StrEnum):
    """One alternative that a proof of concept compares."""

    NOTHING = "nothing"
    PROMPT = "prompt"
    SELECTED = "selected"
    RANDOM = "random"
    LORA_ALL = "lora-all"
    FULL = "full"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _named_path(value: object) -> object:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError(f"got {value!r}, which names no file")
    return value


FilePath = Annotated[Path, BeforeValidator(_named_path)]
PathList = Annotated[tuple[FilePath, ...], BeforeValidator(_as_list, json_schema_input_type=tuple[Path, ...] | str)]


class Settings(BaseModel):
    """Base of all settings: frozen, an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"got {str(value).lower()}; only a setting that is on or off takes true or false")
        return value


class TaskSettings(Settings):
    """One task: its files by role, and how an answer is scored."""

    name: str = Field(pattern=NAME_PATTERN, description="Short name; appears in tables and file names.")
    family: str = Field("general", description="Group of tasks that are alike, for example classification.")
    train: FilePath | None = Field(None, description="Training examples.")
    test: FilePath | None = Field(None, description="Test examples from the same source as the training examples.")
    out_of_domain: PathList = Field(
        (), description="Test files from another source. Never used to choose anything, only to report."
    )
    labels: tuple[str, ...] | None = Field(
        None, description="The allowed answers. With labels, answers are scored, not generated."
    )
    metric: Metric = Field(Metric.ACCURACY, validate_default=True, description="How an answer is scored.")
    instruction: str | None = Field(
        None, description="Instruction for rows that have none of their own (CSV, prompt/completion)."
    )
    columns: dict[Literal["instruction", "input", "output", "id", "system"], str] | None = Field(
        None, description="For CSV and Parquet: which column holds instruction, input, output, id or system."
    )
    attributes: tuple[str, ...] = Field((), description="Extra columns to keep with each example (site, language ...).")

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None:
            if len(labels) < 2:
                raise ValueError(f"got {len(labels)} label(s), a task with labels needs at least 2")
            if len(set(labels)) != len(labels):
                raise ValueError("the labels are not distinct")
            if any(not label.strip() for label in labels):
                raise ValueError("a label is empty")
        return labels

    @field_validator("metric")
    @classmethod
    def _metric_fits_labels(cls, metric: Metric, info: ValidationInfo) -> Metric:
        for_labels = metric in (Metric.ACCURACY, Metric.MACRO_F1)
        labels = info.data.get("labels", ())  # missing if they are wrong themselves: then nothing can be said
        if for_labels and labels is None:
            raise ValueError(
                f"{metric.value} needs labels: list them, or use exact_match, token_f1, rouge_l, chrf or json_fields"
            )
        if labels and not for_labels:
            raise ValueError(f"{metric.value} is for generated answers: with labels use accuracy or macro_f1")
        return metric


class DataSettings(Settings):
    """How data files are read and how much of them is used."""

    max_length: int = Field(1024, ge=16, le=131_072, description="Longest prompt plus answer, in tokens.")
    max_train_examples: int | None = Field(None, ge=1, description="Use at most this many training examples per task.")
    max_test_examples: int | None = Field(None, ge=1, description="Use at most this many examples per test file.")
    validation_fraction: float = Field(
        0.1, ge=0, lt=0.5, description="Share of the training examples held out to choose learning rate and checkpoint."
    )
    drop_duplicates: bool = Field(
        True, description="Leave out training rows that repeat another one, or that stand in a test file (leakage)."
    )
    near_duplicate_threshold: float = Field(
        0.85,
        gt=0.3,
        le=1,
        description="Jaccard similarity of character 5-grams from which two texts count as near duplicates.",
    )


class TuningSettings(Settings):
    """How an arm is tuned."""

    method: Literal["lora", "weights"] = Field(
        "lora", description="What moves in the tuned blocks: LoRA adapters, or the weights themselves."
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
        description="Tokens, padding included, per forward and backward pass; a step with more is taken in pieces. Less needs less memory.",
    )
    warmup_fraction: float = Field(0.05, ge=0, le=0.5, description="Share of the steps with rising learning rate.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of what moves.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    patience: int = Field(
        2, ge=0, description="Stop after this many held-out checks without gain; 0 = never stop early."
    )
    checks_per_epoch: int = Field(2, ge=1, le=100, description="Held-out checks, and checkpoints, per epoch.")


class SelectionSettings(Settings):
    """What the arms `selected` and `random` may move."""

    budget: float = Field(1 / 3, gt=0, le=1, description="Share of the transformer blocks that may move.")
    score: Literal["gradient_norm"] = Field(
        "gradient_norm", description="How blocks are chosen for `selected`: mean gradient norm on calibration examples."
    )
    calibration_examples: int = Field(32, ge=1, le=4096, description="Training examples used to score the blocks.")
    blocks: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Tune exactly these blocks instead, by name or pattern: block.20, block.2?, block.20-29.",
    )


class SpecialistSettings(Settings):
    """How mode `mossa` tunes one model per task: briefly, LoRA on q and v, for its states and not for use."""

    steps: int = Field(32, ge=1, le=100_000, description="Optimiser steps per task at most: the budget.")
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
        None, description="Folder with an adapter, changed weights or a whole tuned model; needed by pair, used by mossa where given."
    )
    examples: Literal["train", "test"] = Field(
        "train", description="Which prompts are read; train keeps the test data out of every choice."
    )
    prompts: int = Field(100, ge=4, le=100_000, description="Prompts per task at most.")
    states: Literal["last", "mean"] = Field(
        "last", description="State of the last prompt token, or the mean over the prompt."
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


class EvaluationSettings(Settings):
    """How every arm is measured."""

    batch_tokens: int = Field(
        4096, ge=1, description="Tokens per forward pass; changes speed and memory, never a score."
    )
    max_new_tokens: int = Field(64, ge=1, le=8192, description="Longest generated answer, in tokens.")
    demonstrations: int = Field(3, ge=1, le=64, description="Examples written into the prompt in the arm `prompt`.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of all intervals.")
    n_bootstrap: int = Field(2000, ge=200, le=100_000, description="Resamples for the intervals.")
    samples: int = Field(24, ge=0, le=1000, description="Examples shown side by side in the report.")
    latency_requests: int = Field(12, ge=0, le=1000, description="Single requests timed per arm; 0 = do not time.")


class BusinessSettings(Settings):
    """What a right and a wrong answer are worth: the assumptions behind the verdict in money."""

    currency: str = Field("EUR", min_length=1, max_length=8, description="Shown with every amount.")
    requests_per_month: float = Field(2000, ge=0, description="How many answers are needed a month.")
    value_of_right_answer: float = Field(0.40, ge=0, description="What a right answer saves.")
    cost_of_wrong_answer: float = Field(0.80, ge=0, description="What a wrong answer costs.")
    machine_cost_per_hour: float = Field(
        0.50, ge=0, description="Price of an hour of the machine that tunes and answers."
    )
    person_cost_per_hour: float = Field(60, ge=0, description="Price of an hour of the people who prepare and check.")
    person_hours: float = Field(8, ge=0, description="Hours of people that a tuned model needs once (data, review).")
    horizon_months: float = Field(12, gt=0, le=120, description="Period over which the benefit is counted.")
    electricity_per_kwh: float = Field(
        0.30, ge=0, description="Price of electricity; used only where energy is measured."
    )


class GateSettings(Settings):
    """What must hold before the verdict may say `tune`."""

    min_gain: float = Field(
        0.0, ge=0, le=1, description="Smallest in-domain gain, as a difference of scores, worth having."
    )
    max_guard_loss: float = Field(
        0.10, ge=0, description="Largest rise of the loss on the guard set that is acceptable, in nats per token."
    )
    min_test_examples: int = Field(
        30, ge=5, description="With fewer test examples in all the verdict is `not enough evidence`."
    )
    fail: bool = Field(False, description="End with exit code 3 when the verdict is not `tune`.")


class Config(Settings):
    """Everything a study needs to know."""

    model: str = Field(
        "smollm2-135m-instruct", min_length=1, description="An alias, a hub id, a local folder, or a .gguf file."
    )
    revision: str | None = Field(None, description="Revision of a hub id.")
    output_dir: FilePath = Field(Path("runs/poc"), description="The run folder.")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of everything random.")
    language: Literal["en", "ja"] = Field("en", description="Language of the report.")
    tasks: tuple[TaskSettings, ...] = Field(min_length=1, description="The tasks; see the table of a task.")
    guard: PathList = Field((), description="General examples on which the tuned model must not get worse.")
    arms: tuple[Arm, ...] = Field(
        (Arm.NOTHING, Arm.PROMPT, Arm.SELECTED, Arm.RANDOM, Arm.LORA_ALL), min_length=1, description="What is compared."
    )
    approval: Literal["required", "not_required"] = Field(
        "not_required", description="Whether a person has to approve the plan before anything is tuned."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Number format of the frozen weights and of inference; what is tuned moves in float32."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; default: all cores.")
    data: DataSettings = DataSettings()
    tuning: TuningSettings = TuningSettings()
    selection: SelectionSettings = SelectionSettings()
    map: MapSettings = MapSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    business: BusinessSettings = BusinessSettings()
    gate: GateSettings = GateSettings()

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: tuple[TaskSettings, ...]) -> tuple[TaskSettings, ...]:
        names = [task.name for task in tasks]
        twice: list[InitErrorDetails] = [
            {
                "type": PydanticCustomError("name_twice", "this task name is used twice"),
                "loc": (i, "name"),
                "input": name,
            }
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        if twice:
            raise ValidationError.from_exception_data("tasks", twice)
        return tasks

    @field_validator("arms")
    @classmethod
    def _arms_fit(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if len(set(arms)) != len(arms):
            raise ValueError("an arm is listed twice")
        if Arm.RANDOM in arms and Arm.SELECTED not in arms:
            raise ValueError("random is the control of selected: add selected, or drop random")
        return arms

    @field_validator("revision")
    @classmethod
    def _revision_of_a_hub_id(cls, revision: str | None, info: ValidationInfo) -> str | None:
        model = Path(info.data.get("model", ""))
        if revision is not None and model.name and (model.suffix == ".gguf" or model.is_dir()):
            raise ValueError(
                f"got {revision!r}, but a revision is for hub ids, and the model is a local file or folder; leave it out"
            )
        return revision
