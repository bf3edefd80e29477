"""The settings: the only place where a default or a help text lives.

`tunescope config schema` and the table in ``docs/configuration.md`` are generated from these classes.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from tunescope.config.demonstrations import DemonstrationSettings
from tunescope.config.engine import EngineChoice, EngineSettings
from tunescope.config.evaluation import EvaluationSettings
from tunescope.config.generation import GenerationSettings
from tunescope.config.knowledge import KnowledgeSettings
from tunescope.config.layer_map import MapSettings
from tunescope.config.replay import ReplaySettings
from tunescope.config.settings import FilePath, PathList, Settings
from tunescope.config.tuning import TuningSettings
from tunescope.errors import did_you_mean

NAME_PATTERN = r"^[\w][\w.\-]*$"
BLOCK_SCORES = ("gradient_norm", "layer_map", "causal", "top_third")
"""Scores of `selection.score` that give one number per block; the others give one per weight."""


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
    TOP_THIRD = "top-third"
    LORA_ALL = "lora-all"
    FULL = "full"


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
    templates: tuple[str, ...] = Field(
        (),
        description="Other wordings of the instruction, for training alone: every epoch reads one of them or the row's own; "
        "{instruction} in one stands for the row's own.",
    )
    paraphrases: tuple[str, ...] = Field(
        (),
        description="Other wordings of the instruction, for testing alone: how often does an answer stay the same? Written like templates.",
    )
    demonstrations: DemonstrationSettings | None = Field(
        None, description="Finished examples before every prompt (tuning with in-context learning)."
    )

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

    @field_validator("templates", "paraphrases")
    @classmethod
    def _templates_are_instructions(cls, templates: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if any(not template.strip() for template in templates):
            raise ValueError("a template is empty")
        if wrong := [template for template in templates if "{input}" in template]:
            raise ValueError(f"{wrong[0]!r} names {{input}}, which always follows the instruction: leave it out")
        if info.field_name == "paraphrases" and len(set(templates)) != len(templates):
            raise ValueError("a wording is listed twice")
        return templates

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


class SelectionSettings(Settings):
    """What the arms `selected`, `random` and `top-third` may move; see the page on selection."""

    score: Literal[
        "gradient_norm",
        "layer_map",
        "causal",
        "top_third",
        "magnitude",
        "gradient",
        "fisher",
        "snip",
        "low_rank_magnitude",
    ] = Field("gradient_norm", description="How `selected` is chosen: by a score of the blocks, or of single weights.")
    granularity: Literal["block", "module", "tile", "row", "column", "entry"] = Field(
        "block",
        description="What is chosen as one piece. Pieces of a matrix move with tuning.method sparse, and only they.",
    )
    budget: float = Field(1 / 3, gt=0, le=1, description="Share that may move; of what, says budget_kind.")
    budget_kind: Literal["blocks", "weights", "flops"] | None = Field(
        None,
        description="Share of the transformer blocks, of the weights on offer, or of the cost of tuning all of them. Default: blocks with "
        "granularity block, else weights.",
    )
    weights: int | None = Field(None, ge=1, description="Let at most this many weights move, instead of a share.")
    per_matrix: bool = Field(
        False, description="Every matrix gets its part of the budget; otherwise all pieces of the model compete."
    )
    calibration_examples: int = Field(
        32, ge=1, le=4096, description="Training examples behind the scores that need gradients."
    )
    rank: int = Field(32, ge=1, le=4096, description="Rank of the approximation in the score low_rank_magnitude.")
    blocks: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Tune exactly these blocks instead, by name or pattern: block.20, block.2?, block.20-29.",
    )
    names: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Tune exactly these matrices instead, by name or pattern: block.3.q, block.20-29.*, *.v.",
    )

    @property
    def inside_matrices(self) -> bool:
        """Whether pieces of matrices are chosen, which takes method `sparse`."""
        return self.granularity not in ("block", "module")

    @field_validator("granularity")
    @classmethod
    def _score_tells_pieces_apart(cls, granularity: str, info: ValidationInfo) -> str:
        score = info.data.get("score", "")
        if granularity not in ("block", "module") and score in BLOCK_SCORES:
            raise ValueError(
                f"score {score} gives one number per block, which tells no {granularity} in it from another; use granularity block or "
                "module, or score gradient, fisher, snip, magnitude or low_rank_magnitude"
            )
        return granularity

    @field_validator("budget_kind")
    @classmethod
    def _kind_fits_granularity(cls, kind: str | None, info: ValidationInfo) -> str | None:
        granularity = info.data.get("granularity", "block")
        if kind == "blocks" and granularity != "block":
            raise ValueError(
                f"a share of the blocks needs granularity block, got {granularity}; use weights, or leave it out"
            )
        if kind == "flops" and granularity not in ("block", "module"):
            raise ValueError(
                f"the cost depends on which matrices are touched, not on the number of entries, so it cannot bound granularity "
                f"{granularity}; use weights, or granularity block or module"
            )
        return kind

    @field_validator("weights")
    @classmethod
    def _one_budget(cls, weights: int | None, info: ValidationInfo) -> int | None:
        kind = info.data.get("budget_kind")
        if weights is not None and kind in ("blocks", "flops"):
            raise ValueError(
                f"a number of weights and a share of the {kind} are two budgets; leave budget_kind out, or weights"
            )
        return weights

    @field_validator("per_matrix")
    @classmethod
    def _pieces_smaller_than_matrices(cls, per_matrix: bool, info: ValidationInfo) -> bool:
        granularity = info.data.get("granularity", "entry")
        if per_matrix and granularity in ("block", "module"):
            raise ValueError(
                f"granularity {granularity} takes matrices whole, so a part of each is no choice; leave it out, or use granularity tile, row, "
                "column or entry with tuning.method sparse"
            )
        return per_matrix

    @field_validator("blocks", "names")
    @classmethod
    def _by_hand_is_whole(cls, patterns: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        granularity = info.data.get("granularity", "block")
        allowed = ("block",) if info.field_name == "blocks" else ("block", "module")
        if patterns is not None and granularity not in allowed:
            raise ValueError(f"what is named here moves whole, and granularity is {granularity}; leave one of them out")
        if patterns is not None and info.field_name == "names" and info.data.get("blocks") is not None:
            raise ValueError("blocks and names both say what moves; give one (names also takes block.20-29.*)")
        return patterns


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
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of the frozen weights and of inference; what is tuned moves in float32. auto: what a measurement of about a "
        "second at the start finds faster; a run keeps what it began with.",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; default: all cores.")
    data: DataSettings = DataSettings()
    tuning: TuningSettings = TuningSettings()
    selection: SelectionSettings = Field(SelectionSettings(), validate_default=True)
    map: MapSettings = Field(MapSettings(), validate_default=True)
    knowledge: KnowledgeSettings = KnowledgeSettings()
    replay: ReplaySettings = ReplaySettings()
    engine: EngineChoice = EngineSettings()
    evaluation: EvaluationSettings = Field(EvaluationSettings(), validate_default=True)
    generation: GenerationSettings = GenerationSettings()
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

    @field_validator("tuning")
    @classmethod
    def _one_source_of_demonstrations(cls, tuning: TuningSettings, info: ValidationInfo) -> TuningSettings:
        fixed = [t.name for t in info.data.get("tasks", ()) if t.demonstrations and "train" in t.demonstrations.at]
        if fixed and tuning.regularisation.demonstrations:
            raise ValueError(
                f"regularisation.demonstrations draws examples before training prompts, and task {fixed[0]!r} has its own demonstrations; set "
                "regularisation.demonstrations to 0, or leave train out of the task's demonstrations.at"
            )
        return tuning

    @field_validator("evaluation")
    @classmethod
    def _stops_are_of_generated_tasks(cls, evaluation: EvaluationSettings, info: ValidationInfo) -> EvaluationSettings:
        tasks = {task.name: task for task in info.data.get("tasks", ())}
        for name in evaluation.task_stop if tasks else ():
            if name not in tasks:
                raise ValueError(f"task_stop: there is no task {name!r}{did_you_mean(name, list(tasks))}")
            if tasks[name].labels is not None:
                raise ValueError(
                    f"task_stop: task {name!r} has labels, so nothing is generated that could be stopped; leave it out"
                )
        return evaluation

    @field_validator("arms")
    @classmethod
    def _arms_fit(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if len(set(arms)) != len(arms):
            raise ValueError("an arm is listed twice")
        if Arm.RANDOM in arms and Arm.SELECTED not in arms:
            raise ValueError("random is the control of selected: add selected, or drop random")
        if Arm.TOP_THIRD in arms and Arm.SELECTED not in arms:
            raise ValueError("top-third takes its budget from selected: add selected, or drop top-third")
        return arms

    @field_validator("selection")
    @classmethod
    def _method_moves_what_is_chosen(cls, selection: SelectionSettings, info: ValidationInfo) -> SelectionSettings:
        tuning, chosen = info.data.get("tuning"), selection.granularity
        if tuning is not None and selection.inside_matrices and tuning.method != "sparse":
            raise ValueError(
                f"granularity {chosen} moves pieces of matrices and tuning.method {tuning.method} whole ones; set tuning.method to sparse, or "
                "granularity to block or module"
            )
        if tuning is not None and tuning.method == "sparse" and not selection.inside_matrices:
            raise ValueError(
                f"tuning.method sparse moves pieces of matrices, and granularity is {chosen}; set granularity to entry, row, column or tile, "
                "or tuning.method to lora or weights"
            )
        if selection.score == "top_third" and Arm.TOP_THIRD in info.data.get("arms", ()) and not selection.blocks:
            raise ValueError(
                "score top_third makes selected the same as the arm top-third; drop the arm, or use another score"
            )
        return selection

    @field_validator("map")
    @classmethod
    def _map_gives_the_score(cls, layer_map: MapSettings, info: ValidationInfo) -> MapSettings:
        selection = info.data.get("selection")
        if selection is not None and selection.score == "causal" and layer_map.mode == "base":
            raise ValueError(
                "mode base has no tuned model, so selection.score causal has nothing to put back; set map.mode to pair (with map.tuned) or "
                "mossa, or use another score"
            )
        if selection is not None and selection.score == "causal" and layer_map.causal_examples == 0:
            raise ValueError(
                "causal_examples 0 leaves the causal check out, and selection.score is causal; raise it, or use another score"
            )
        return layer_map

    @field_validator("revision")
    @classmethod
    def _revision_of_a_hub_id(cls, revision: str | None, info: ValidationInfo) -> str | None:
        model = Path(info.data.get("model", ""))
        if revision is not None and model.name and (model.suffix == ".gguf" or model.is_dir()):
            raise ValueError(
                f"got {revision!r}, but a revision is for hub ids, and the model is a local file or folder; leave it out"
            )
        return revision
