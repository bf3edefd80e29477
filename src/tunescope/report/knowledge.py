"""The knowledge study as the report reads it from ``knowledge.json``: checked records in place of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunescope.errors import RunError
from tunescope.report.checked import mapping, record, records
from tunescope.runs.records import Record

ALL = "*"
ROLES = ("homo", "in_domain", "out_of_domain")


@dataclass(frozen=True)
class Share(Record):
    """A number with its interval; all None where there is nothing to count."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class ChanceRow(Record):
    """One domain of the base against guessing."""

    domain: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    chance: float
    p_adjusted: float
    state: str
    mean_confidence: float


@dataclass(frozen=True)
class GroupRow(Record):
    """Questions of a domain that are harmonious, incompatible, unsure."""

    domain: str
    harmonious: int
    incompatible: int
    unsure: int


@dataclass(frozen=True)
class Calibration(Record):
    """How far the base's confidence can be trusted."""

    n: int
    accuracy: float
    confidence: float
    ece: float
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


@dataclass(frozen=True)
class TransitionRow(Record):
    """What became of the questions of a domain."""

    domain: str
    n: int
    kept: int
    lost: int
    learned: int
    still_unknown: int
    p_value: float
    lost_share: Mapping[str, Any]
    learned_share: Mapping[str, Any]
    change: Mapping[str, Any]


@dataclass(frozen=True)
class AgreementRow(Record):
    """How near base and tuned model are in a domain; KL is None where it is infinite."""

    domain: str
    n: int
    consistency: float
    base_accuracy: float
    tuned_accuracy: float
    kl: float | None = None


@dataclass(frozen=True)
class SetRow(Record):
    """One tuned set on one test."""

    set: str
    seed: int
    test: str
    n: int
    consistency: float
    base_accuracy: float
    tuned_accuracy: float
    kl: float | None = None


@dataclass(frozen=True)
class Before:
    """The probe of the base.

    Attributes:
        by_text: answers were judged by their text, without the choices being shown; otherwise by letters.
        demonstrations: shown before each question.
        threshold: above it an answer counts as sure.
        chance: role (``*`` for all) -> rows per domain, all together last.
        groups: role -> the same.
        calibration: role -> calibration.
        advice: codes with their numbers.
    """

    by_text: bool
    demonstrations: int
    threshold: float
    chance: Mapping[str, tuple[ChanceRow, ...]]
    groups: Mapping[str, tuple[GroupRow, ...]]
    calibration: Mapping[str, Calibration]
    advice: tuple[Mapping[str, Any], ...]

    @property
    def overall(self) -> ChanceRow:
        """All questions together."""
        return self.chance[ALL][-1]


@dataclass(frozen=True)
class After:
    """The tuned model against the base.

    Attributes:
        transitions: role (``*`` for all, where there are several) -> rows per domain, all together last.
        agreement: role -> the same.
        decision: code of the judgement.
        balance: what the judgement rests on.
        reasons: codes with their numbers.
        partial: partial Spearman over domains, or None.
        style: shares of tokens, or None where nothing was written.
        written: answers in words beside scored ones, or None.
        raw: the whole object.
    """

    transitions: Mapping[str, tuple[TransitionRow, ...]]
    agreement: Mapping[str, tuple[AgreementRow, ...]]
    decision: str
    balance: Share
    reasons: tuple[Mapping[str, Any], ...]
    partial: float | None
    style: Mapping[str, Any] | None
    written: Mapping[str, Any] | None
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overall(self) -> TransitionRow:
        """All questions together."""
        return self.transitions.get(ALL, next(iter(self.transitions.values())))[-1]

    @property
    def agreed(self) -> AgreementRow:
        """Agreement over all questions."""
        return self.agreement.get(ALL, next(iter(self.agreement.values())))[-1]


@dataclass(frozen=True)
class Intervention:
    """The intervention study.

    Attributes:
        facts: sizes.
        rows: a row per set, seed and test.
        sets: names of the sets, those of the expected order first.
        tests: names of the tests.
        accuracy: (set, test) -> accuracy over the seeds.
        differences: (first, second, test) -> difference of accuracy; test ``*`` is the mean over tests.
        order: expected order of the groups.
        order_holds: test -> whether it holds.
        order_probability: test -> share of the resamples in which it does.
        partial: partial Spearman over sets and tests, or None.
        base: test -> accuracy of the base with demonstrations.
        raw: the whole object.
    """

    facts: Mapping[str, Any]
    rows: tuple[SetRow, ...]
    sets: tuple[str, ...]
    tests: tuple[str, ...]
    accuracy: Mapping[tuple[str, str], Share]
    differences: Mapping[tuple[str, str, str], Share]
    order: tuple[str, ...]
    order_holds: Mapping[str, bool]
    order_probability: Mapping[str, float]
    partial: float | None
    base: Mapping[str, float]
    raw: Mapping[str, Any] = field(default_factory=dict)

    def against(self, name: str, other: str, test: str = ALL) -> Share | None:
        """Returns the accuracy of one set minus that of another, whichever way round it is stored."""
        found = self.differences.get((name, other, test))
        if found is not None:
            return found
        turned = self.differences.get((other, name, test))
        if turned is None or turned.value is None or turned.low is None or turned.high is None:
            return None
        return Share(-turned.value, -turned.high, -turned.low, turned.n)


@dataclass(frozen=True)
class Knowledge:
    """A knowledge study.

    Attributes:
        asked: what was asked, in numbers.
        before: the probe of the base.
        after: the tuned model against it, or None.
        intervention: or None.
    """

    asked: Mapping[str, Any]
    before: Before
    after: After | None = None
    intervention: Intervention | None = None


def read_knowledge(values: Mapping[str, Any], path: Path) -> Knowledge | None:
    """Returns the knowledge study in the content of a ``knowledge.json``, or None where it is empty.

    Args:
        values: the object in the file.
        path: of the file, for messages.

    Raises:
        RunError: a part is lacking or does not fit.
    """
    if not values:
        return None
    before = mapping(values.get("before"), path)
    after, intervention = mapping(values.get("after"), path), mapping(values.get("intervention"), path)
    return Knowledge(
        mapping(values.get("asked"), path),
        _before(before, path),
        _after(after, path) if after else None,
        _intervention(intervention, path) if intervention else None,
    )


def share(values: Any, path: Path) -> Share:
    """Returns a number with its interval.

    Raises:
        RunError: it is none.
    """
    return record(Share, dict(mapping(values, path)), path, "of an interval")


def _by_role(kind: Any, values: Any, path: Path, name: str) -> dict[str, Any]:
    found = {role: records(kind, rows, path) for role, rows in mapping(values, path).items()}
    if not found or any(not rows or rows[-1].domain != ALL for rows in found.values()):
        raise RunError(f"{path}: {name} has no row over all domains ({ALL}); run the study again")
    return found


def _before(values: Mapping[str, Any], path: Path) -> Before:
    chance = _by_role(ChanceRow, values.get("chance"), path, "before.chance")
    groups = _by_role(GroupRow, values.get("groups"), path, "before.groups")
    calibration = {
        role: record(Calibration, row, path, role) for role, row in mapping(values.get("calibration"), path).items()
    }
    for name, found in (("chance", chance), ("groups", groups), ("calibration", calibration)):
        if ALL not in found or found.keys() != chance.keys():
            raise RunError(f"{path}: before.{name} lacks a role that was asked; run the study again")
    return Before(
        values.get("how") == "text",
        int(_number(values, "demonstrations", path)),
        _number(values, "threshold", path),
        chance,
        groups,
        calibration,
        _codes(values.get("advice"), path),
    )


def _after(values: Mapping[str, Any], path: Path) -> After:
    judged = mapping(values.get("judgement"), path)
    partial = mapping(values.get("partial_spearman"), path).get("value")
    return After(
        _by_role(TransitionRow, values.get("transitions"), path, "after.transitions"),
        _by_role(AgreementRow, values.get("agreement"), path, "after.agreement"),
        str(judged.get("decision", "")),
        share(judged.get("balance"), path),
        _codes(judged.get("reasons"), path),
        partial if isinstance(partial, float | int) else None,
        mapping(values.get("style"), path) or None,
        mapping(values.get("written"), path) or None,
        values,
    )


def _intervention(values: Mapping[str, Any], path: Path) -> Intervention:
    compared, facts = mapping(values.get("comparison"), path), mapping(values.get("facts"), path)
    tests = tuple(mapping(facts.get("tests"), path))
    sets = tuple(mapping(compared.get("n_seeds"), path))
    accuracy = {
        (name, test): share(row, path)
        for test, rows in mapping(compared.get("accuracy"), path).items()
        for name, row in mapping(rows, path).items()
    }
    if not tests or any((name, test) not in accuracy for name in sets for test in tests):
        raise RunError(f"{path}: the intervention study lacks a set or a test; run the study again")
    order = tuple(str(name) for name in compared.get("order") or ())
    partial = mapping(values.get("partial"), path).get("value")
    return Intervention(
        facts=facts,
        rows=records(SetRow, values.get("rows"), path),
        sets=(*order, *(name for name in sets if name not in order)),
        tests=tests,
        accuracy=accuracy,
        differences={
            (str(row.get("first")), str(row.get("second")), str(row.get("test"))): share(row.get("difference"), path)
            for row in (mapping(row, path) for row in compared.get("differences") or ())
        },
        order=order,
        order_holds={k: bool(v) for k, v in mapping(compared.get("order_holds"), path).items()},
        order_probability={k: float(v) for k, v in mapping(compared.get("order_probability"), path).items()},
        partial=partial if isinstance(partial, float | int) else None,
        base={k: float(v) for k, v in mapping(values.get("base_accuracy"), path).items()},
        raw=values,
    )


def _codes(rows: Any, path: Path) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise RunError(f"{path}: expected a list of codes, got {type(rows).__name__}; run the study again")
    return tuple(mapping(row, path) for row in rows)


def _number(values: Mapping[str, Any], name: str, path: Path) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RunError(f"{path}: before.{name} is {str(value)[:60]!r}, expected a number; run the study again")
    return value
