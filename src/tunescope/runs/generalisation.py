"""The records of ``generalisation.json`` and ``curve.json``: what tuning did to other tasks, and what more data would bring."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from tunescope.runs.records import Record, Role

Relation = Literal["same", "other", "unknown"]


@dataclasses.dataclass(frozen=True)
class MatrixCell(Record):
    """One cell of the generalisation matrix: an arm on a test file, or on all files that stand to it in one way.

    Attributes:
        arm: name of the arm.
        task: name of the task; ``*`` for the mean over tasks.
        dataset: stem of the test file; empty for the mean.
        role: in_domain or out_of_domain.
        relation: ``same``: the arm was tuned on this task (an untuned arm: any arm was); ``other``: it was not; ``unknown``: the weights do
            not say what they were tuned on.
        metric: name of the metric; ``mean_score`` for the mean.
        n: examples.
        value: score, in [0, 1].
        low: lower end of the bootstrap interval.
        high: upper end of it.
        difference: value minus that of the arm ``nothing`` on the same examples, or None.
        difference_low: lower end of the paired interval.
        difference_high: upper end of it.
        noise_floor: half width of the paired interval: a smaller difference decides nothing.
        collapse_rate: share of the generated answers that are a label of another task; None where labels are scored.
        unrelated_rate: share of the generated answers that have nothing to do with the instruction by any rule; None where labels are scored.
        demonstrations: finished examples before each prompt.
    """

    arm: str
    task: str
    dataset: str
    role: Role
    relation: Relation
    metric: str
    n: int
    value: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    noise_floor: float | None = None
    collapse_rate: float | None = None
    unrelated_rate: float | None = None
    demonstrations: int = 0

    @property
    def beyond_noise(self) -> bool:
        """Whether the difference to the untuned model is outside its noise."""
        low, high = self.difference_low, self.difference_high
        if self.difference is None or low is None or high is None:
            return False
        return (low > 0 or high < 0) and abs(self.difference) > (self.noise_floor or 0.0)


@dataclasses.dataclass(frozen=True)
class WeightChange(Record):
    """How far the weights of an arm moved from those of the base model.

    Attributes:
        arm: name of the arm.
        mean_abs: mean absolute change over all weights of the model, those that did not move counted as 0; None where it cannot be told.
        blocks: canonical block name -> mean absolute change over the weights of the block.
        outside: mean absolute change over the weights outside the blocks (embeddings, last norm, head).
        changed_fraction: share of the weights that changed, in [0, 1].
        why: why it cannot be told; empty where it is told.
    """

    arm: str
    mean_abs: float | None
    blocks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    outside: float = 0.0
    changed_fraction: float = 0.0
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Rewording(Record):
    """What happens to an arm's answers to a test file when the instruction is worded differently.

    Attributes:
        arm: name of the arm.
        task: name of the task.
        dataset: stem of the test file.
        role: in_domain or out_of_domain.
        n: examples that were asked again.
        n_wordings: other wordings.
        consistency: share of the examples whose answer is the same under all wordings, the own one included.
        low: lower end of its interval.
        high: upper end of it.
        value: mean score of these examples under their own wording.
        values: their mean score under each other wording.
    """

    arm: str
    task: str
    dataset: str
    role: Role
    n: int
    n_wordings: int
    consistency: float
    low: float
    high: float
    value: float
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class CurvePoint(Record):
    """Quality with one number of training examples.

    Attributes:
        n_train: training examples of all tasks together.
        share: of those that there are.
        value: mean score over tasks, in [0, 1].
        low: lower end of the bootstrap interval.
        high: upper end of it.
        tuning_seconds: wall time of tuning with them; 0 where it was tuned already.
    """

    n_train: int
    share: float
    value: float
    low: float
    high: float
    tuning_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class DataCurve(Record):
    """Quality over the number of training examples, and what doubling it would probably bring.

    Attributes:
        arm: name of the arm that was tuned.
        role: in_domain or out_of_domain.
        points: fewest examples first.
        untuned: mean score of the arm ``nothing`` on the same examples, or None.
        floor: error that the fitted power law ``floor + scale * n**-exponent`` leaves however much data there is, or None.
        scale: its factor, or None.
        exponent: its exponent, or None.
        gain: gain in score that twice the data would probably bring, or None where it cannot be told.
        gain_low: lower end of its interval, or None.
        gain_high: upper end of it, or None.
        why: why nothing is forecast, as a code; empty where it is.
        details: the numbers behind ``why``.
    """

    arm: str
    role: Role
    points: tuple[CurvePoint, ...]
    untuned: float | None = None
    floor: float | None = None
    scale: float | None = None
    exponent: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    why: str = ""
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)
