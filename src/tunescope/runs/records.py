"""The plain records that cross packages: analysis, tuning and report meet only here.

All are frozen dataclasses of plain values, so that each can be saved as JSON, read back and edited by a person.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

SCHEMA_VERSION = 1

Role = Literal["in_domain", "out_of_domain", "guard"]
Severity = Literal["error", "warning", "info"]


@dataclasses.dataclass(frozen=True)
class Record:
    """Base of the records: to and from plain dictionaries."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), ensure_ascii=False))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds the record from `to_dict`'s output; unknown keys are left out (they come from a newer minor version)."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in names})


@dataclasses.dataclass(frozen=True)
class Finding(Record):
    """One thing found in a data file.

    Attributes:
        code: what kind, for example ``duplicate_exact``, ``leakage``, ``label_unknown``, ``target_truncated``, ``personal_email``.
        severity: an ``error`` stops the run (exit 2), a ``warning`` is reported, an ``info`` is for the record.
        file: path as the user wrote it.
        line: 1-based line (JSONL, CSV) or 1-based row number (JSON, Parquet); None for a whole file.
        message: one line: what is wrong, what was got, what is allowed, what to do.
        task: name of the task, or None.
    """

    code: str
    severity: Severity
    file: str
    line: int | None
    message: str
    task: str | None = None


@dataclasses.dataclass(frozen=True)
class Result(Record):
    """One measured number.

    Attributes:
        arm: name of the arm.
        task: name of the task; ``guard`` for the guard set; ``*`` for the mean over tasks.
        role: in_domain, out_of_domain or guard.
        metric: name of the metric; ``loss`` is in nats per target token.
        value: the number; scores are in [0, 1].
        low: lower end of the bootstrap interval.
        high: upper end of it.
        n: number of examples.
        higher_is_better: direction.
        difference: value minus the value of the arm ``nothing`` on the same examples; None for ``nothing`` itself.
        difference_low: lower end of the paired interval of the difference.
        difference_high: upper end of it.
        noise_floor: half width of the paired interval: a smaller difference decides nothing.
        task_version: hash of the examples, labels and metric that were scored.
        seed: seed of the tuning, None where nothing was tuned.
        dataset: name of the test file (its stem).
    """

    arm: str
    task: str
    role: Role
    metric: str
    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool = True
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    noise_floor: float | None = None
    task_version: str = ""
    seed: int | None = None
    dataset: str = ""


@dataclasses.dataclass(frozen=True)
class StepRecord(Record):
    """One optimiser step, or one held-out check (then ``validation_loss`` is set).

    Attributes:
        arm: name of the arm.
        step: optimiser steps done, from 1.
        epoch: passes over the data done so far, fractional.
        loss: mean loss of the step over its target tokens, in nats.
        learning_rate: at this step.
        grad_norm: before clipping.
        tokens: tokens read in this step, padding excluded.
        target_tokens: tokens with a loss in this step.
        seconds: wall time of the step.
        validation_loss: mean loss per target token of the held-out slice after this step, or None.
    """

    arm: str
    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    target_tokens: int
    seconds: float
    validation_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class LayerScores(Record):
    """One number per transformer block.

    Attributes:
        name: what the number is, for example ``gradient_norm``.
        unit: its unit.
        layers: canonical names, ``block.0`` first.
        values: one number a layer.
        low: lower ends of the intervals, or None.
        high: upper ends, or None.
        n: number of examples behind each number.
        higher_means: what a high number says.
        task: name of the task, or ``*`` for all together.
        null: what chance gives, one number a layer (95th percentile under permuted rows), or None where there is no null.
    """

    name: str
    unit: str
    layers: tuple[str, ...]
    values: tuple[float, ...]
    n: int
    higher_means: str
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    task: str = "*"
    null: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Bands(Record):
    """Where shared, transition and refinement blocks begin and end, or why that cannot be said.

    Attributes:
        found: whether a transition band was found.
        why: one line: what the bands rest on, or what was missing.
        layers: all blocks by canonical name, ``block.0`` first.
        boundaries: index of the first transition block and of the first refinement block; None where nothing was found.
        low: lower ends of the bootstrap intervals of the two boundaries, or None.
        high: upper ends, or None.
        stability: for each boundary the share of bootstrap resamples in which it lies within one block, or None.
        n_tasks: tasks behind it.
    """

    found: bool
    why: str
    layers: tuple[str, ...]
    boundaries: tuple[int, int] | None = None
    low: tuple[int, int] | None = None
    high: tuple[int, int] | None = None
    stability: tuple[float, float] | None = None
    n_tasks: int = 0

    @property
    def shared(self) -> tuple[str, ...]:
        """Blocks below the transition; empty if none was found."""
        return tuple(self.layers[: self.boundaries[0]]) if self.boundaries else ()

    @property
    def transition(self) -> tuple[str, ...]:
        """Blocks of the transition; empty if none was found."""
        return tuple(self.layers[self.boundaries[0] : self.boundaries[1]]) if self.boundaries else ()

    @property
    def refinement(self) -> tuple[str, ...]:
        """Blocks above the transition; empty if none was found."""
        return tuple(self.layers[self.boundaries[1] :]) if self.boundaries else ()


@dataclasses.dataclass(frozen=True)
class Selection(Record):
    """Exactly which weights may move.

    Attributes:
        method: ``lora`` (adapters), ``weights``, or ``sparse`` (single entries of matrices, through a mask).
        layers: canonical block names, ascending.
        modules: canonical part names inside a block (q, k, v, o, gate, up, down); for ``weights``, empty = whole block.
        whole_model: all weights move, embeddings and head included (arm ``full``).
        why: one line a person can read.
        trainable_parameters: number of parameters that move.
        total_parameters: number of parameters of the base model.
        lowest_layer: lowest moving block; the backward pass stops there. -1 when the embeddings move.
        matrices: canonical names (``block.3.q``) where the parts differ from block to block; then `layers` and `modules` say which blocks
            and parts occur in them. Empty: every part of `modules` in every block of `layers`.
        granularity: what was chosen as one piece in making a mask (``entry``, ``row``, ``tile`` ...); empty without a mask.
        mask_sha256: hash of the mask that says which entries move, for ``sparse``.
        counts: canonical name of a matrix -> number of its entries that move, for ``sparse``.
    """

    method: Literal["lora", "weights", "sparse"]
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    why: str
    whole_model: bool = False
    trainable_parameters: int = 0
    total_parameters: int = 0
    lowest_layer: int = 0
    matrices: tuple[str, ...] = ()
    granularity: str = ""
    mask_sha256: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Forecast(Record):
    """What an arm will cost, from a few calibrated steps on this machine; or did cost.

    Attributes:
        arm: name of the arm.
        tuning_seconds: wall time of tuning, learning-rate probe included; 0 where nothing is tuned.
        evaluation_seconds: wall time of measuring it.
        peak_memory_bytes: resident memory of the process (CPU) or allocated memory (GPU) at most.
        adapter_bytes: what has to be stored and shipped on top of the base model.
        trainable_parameters: number of parameters that move.
        energy_kwh: measured energy, or None where the machine does not tell.
        latency_p50_seconds: median time of one request, or None.
        latency_p95_seconds: 95th percentile, or None.
        learning_rate: the one used, or None.
        learning_rate_why: how it was chosen.
        steps: optimiser steps.
        tokens: tokens read in tuning.
    """

    arm: str
    tuning_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    peak_memory_bytes: int = 0
    adapter_bytes: int = 0
    trainable_parameters: int = 0
    energy_kwh: float | None = None
    latency_p50_seconds: float | None = None
    latency_p95_seconds: float | None = None
    learning_rate: float | None = None
    learning_rate_why: str = ""
    steps: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Answer(Record):
    """What one arm answered to one example.

    Attributes:
        text: the answer (the chosen label, or the generated text).
        score: of this answer, in [0, 1]; for the guard set the loss in nats per token.
        confidence: probability of the chosen label among the labels; None for generated text.
        probabilities: label -> probability, None for generated text.
        flags: instruction-unrelated output: ``empty``, ``label_of_other_task``, ``copies_demonstration``, ``copies_prompt``, ``wrong_script``,
            ``endless``.
        answered_by: model and address of the server that generated it; None: the model here.
    """

    text: str
    score: float
    confidence: float | None = None
    probabilities: Mapping[str, float] | None = None
    flags: tuple[str, ...] = ()
    answered_by: str | None = None


@dataclasses.dataclass(frozen=True)
class Sample(Record):
    """One test example and every arm's answer to it (a row of ``samples.jsonl``).

    Attributes:
        id: the example's id.
        task: its task.
        role: in_domain, out_of_domain or guard.
        dataset: stem of its file.
        prompt: the user's text (instruction and input), not the rendered template.
        references: the right answers.
        answers: arm -> `Answer` as a dictionary.
    """

    id: str
    task: str
    role: Role
    dataset: str
    prompt: str
    references: tuple[str, ...]
    answers: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class MoneyLine(Record):
    """What one arm is worth over the horizon, in the user's currency.

    Attributes:
        arm: name of the arm.
        benefit_per_request: expected value of one answer: p·value − (1−p)·cost.
        benefit_low: the same at the lower end of the quality interval.
        benefit_high: the same at the upper end.
        fixed_cost: once: tuning on the machine, people.
        running_cost_per_request: machine time of one answer.
        net_over_horizon: everything together over the horizon.
        net_low: at the lower end.
        net_high: at the upper end.
        break_even_requests: requests after which the arm beats the best untuned arm; 0 if at once, None if never.
    """

    arm: str
    benefit_per_request: float
    benefit_low: float
    benefit_high: float
    fixed_cost: float
    running_cost_per_request: float
    net_over_horizon: float
    net_low: float
    net_high: float
    break_even_requests: float | None


@dataclasses.dataclass(frozen=True)
class Sensitivity(Record):
    """How the verdict changes when one assumption changes.

    Attributes:
        assumption: name of the setting (``requests_per_month`` ...).
        base: its value in the config.
        factor: what it was multiplied with.
        decision: the decision then.
        arm: the recommended arm then, or None.
        net_over_horizon: of that arm against the best untuned one.
    """

    assumption: str
    base: float
    factor: float
    decision: str
    arm: str | None
    net_over_horizon: float


@dataclasses.dataclass(frozen=True)
class Verdict(Record):
    """What the numbers say a person should do.

    Attributes:
        decision: ``tune``, ``do_not_tune`` (an untuned arm is as good or worth more) or ``not_enough_evidence``.
        arm: the recommended arm, or None.
        confidence: how sure, in [0, 1]: share of paired bootstrap resamples in which the recommended arm is worth more
            than the best untuned one; None without evidence.
        reasons: codes with their numbers, most important first: ``{"code": "gain", "value": .., ...}``; the report words them.
        next_steps: codes of what to do next, with their numbers.
        money: one line per arm.
        sensitivity: how the decision changes with the assumptions.
        selected_beats_random: paired difference selected − random: {"difference","low","high"}, or None.
        against_top_third: for ``selected`` and ``random`` the same against the arm ``top-third``; empty where that did not run.
    """

    decision: Literal["tune", "do_not_tune", "not_enough_evidence"]
    arm: str | None
    confidence: float | None
    reasons: tuple[Mapping[str, Any], ...]
    next_steps: tuple[Mapping[str, Any], ...]
    money: tuple[MoneyLine, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    selected_beats_random: Mapping[str, float] | None = None
    against_top_third: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Risk(Record):
    """How far an arm's confidence can be trusted, on the label tasks of one role.

    Attributes:
        arm: name of the arm.
        role: in_domain or out_of_domain.
        n: examples.
        ece: expected calibration error over 10 equal-mass bins, in [0, 1].
        coverage: shares of answers kept, most confident first.
        risk: error rate among the kept answers at each coverage.
        area: area under the risk–coverage curve (AURC).
        human_share: share of the checked answers that go to a person under the rule "hand over what is less sure than ``threshold``"; None
            where no threshold reaches ``target_error``.
        target_error: the wanted error rate of the automatic answers.
        checked_error: error rate of the automatic answers among those checked, or None where there are none.
        collapse_rate: share of generated answers that are a label of another task.
        unrelated_rate: share of generated answers that are instruction-unrelated by any rule.
        threshold: lowest confidence at which an answer stays automatic; the same in both roles, or None.
        chosen_on: on what the threshold was chosen: ``validation`` (the held-out slice), ``half`` (a random half of the in-domain test
            examples, the other half checks it), or empty. Never on out-of-domain examples.
        n_chosen: examples that it was chosen on.
        n_checked: automatic answers behind ``checked_error``.
        checked_low: lower end of the Wilson interval of ``checked_error``, or None.
        checked_high: upper end of it, or None.
    """

    arm: str
    role: Role
    n: int
    ece: float | None
    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float | None
    human_share: float | None
    target_error: float
    checked_error: float | None
    collapse_rate: float | None
    unrelated_rate: float | None
    threshold: float | None = None
    chosen_on: str = ""
    n_chosen: int = 0
    n_checked: int = 0
    checked_low: float | None = None
    checked_high: float | None = None
