"""Read ``plan.yaml`` as a person left it: every problem in one message, each with its line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunescope import select
from tunescope.config import Arm, plain
from tunescope.config.plain import Location
from tunescope.errors import ConfigError, ModelError, RunError, did_you_mean
from tunescope.models import PARTS, block_names
from tunescope.runs.plan import WHOLE_BLOCKS, WHOLE_MODEL, Alternative, Plan, PlannedArm, Price
from tunescope.runs.records import SCHEMA_VERSION

_TOP = ("schema_version", "state", "approved_by", "approved_at", "approved_sha256", "arms", "alternatives")
_TOP_FIXED = ("currency", "rests_on")
_ARM = ("why", "method", "layers", "modules", "matrices", "mask_sha256", "trainable_parameters", "scores", "forecast")
_FORECAST = ("tuning_seconds", "evaluation_seconds", "peak_memory_bytes", "machine_cost", "basis")
_ALTERNATIVE = ("name", "layers", "trainable_parameters", "forecast")
_STATES = ("proposed", "approved", "not required")


def read_plan(
    path: Path, proposal: Plan, *, n_layers: int, seed: int, note: Callable[[str], None] = lambda line: None
) -> Plan:
    """Reads a plan that a person may have edited, and checks that it can be tuned.

    Only what would be tuned can be refused: the alternatives are there to look at, and one that cannot be read is left out.

    Args:
        path: the file.
        proposal: what was proposed: the arms there are, and what of them is not for editing.
        n_layers: number of blocks of the model.
        seed: of the run, to draw a control that fits where `random` no longer does.
        note: told in one line about each alternative that was left out.

    Returns:
        The plan; block patterns are resolved to names.

    Raises:
        RunError: it is missing, not plain YAML, of a newer schema, has unknown keys or wrong types, names layers or parts that
            the model lacks, or changes what is not for editing; one line per problem.
    """
    if not path.is_file():
        raise RunError(f"{path}: missing; run `tunescope plan` with --resume to have it written again")
    try:
        values, lines, problems = plain.parse(plain.read_text(path), str(path))
    except ConfigError as error:
        raise RunError(_as_plan(problem) for problem in error.problems) from None
    if not isinstance(values, dict):
        raise RunError(f"{path}:1: a plan is a list of `key: value` lines, got {_shown(values)}")
    version = values.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise RunError(
            f"{path}:{lines['schema_version',]}: schema version {version} was written by a newer tunescope; this one reads up to "
            f"{SCHEMA_VERSION}"
        )
    reading = _Reading(str(path), lines, block_names(n_layers), [_as_plan(p) for p in problems])
    plan = _plan(reading, values, proposal)
    if not reading.problems:
        _check_controls(reading, plan, proposal, seed)
    if reading.problems:
        raise RunError(reading.problems)
    for line in reading.notes:
        note(line)
    return plan


@dataclass
class _Reading:
    """One file while it is read: where everything stands, what is wrong so far, and what was only left out."""

    path: str
    lines: Mapping[Location, int | str]
    names: Sequence[str]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, where: Location, problem: str) -> None:
        line = next(self.lines[where[:end]] for end in range(len(where), -1, -1) if where[:end] in self.lines)
        self.problems.append(f"{self.path}:{line}: {problem}")

    def keys(self, where: Location, values: object, allowed: Sequence[str]) -> dict[str, Any]:
        """The mapping at a place, unknown keys named and left out; empty where it is no mapping."""
        if not isinstance(values, dict):
            name = ".".join(map(str, where))
            self.wrong(where, f"{name}: got {_shown(values)}, needs `key: value` lines")
            return {}
        for key in (key for key in values if key not in allowed):
            name = ".".join(map(str, (*where, key)))
            self.wrong(
                (*where, key), f"unknown key {name!r}{did_you_mean(key, allowed)}; allowed: {', '.join(allowed)}"
            )
        return {key: value for key, value in values.items() if key in allowed}

    def text(self, where: Location, value: object) -> str:
        if isinstance(value, str):
            return value
        self.wrong(where, f"{'.'.join(map(str, where))}: got {_shown(value)}, needs text; put a number in quotes")
        return ""

    def number(self, where: Location, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return value
        self.wrong(where, f"{'.'.join(map(str, where))}: got {_shown(value)}, needs a number of at least 0")
        return 0

    def one_of(self, where: Location, value: object, allowed: Sequence[str]) -> str:
        if value in allowed:
            return str(value)
        near = did_you_mean(str(value), allowed)
        self.wrong(where, f"{'.'.join(map(str, where))}: got {_shown(value)}{near}; allowed: {', '.join(allowed)}")
        return allowed[0]

    def items(self, where: Location, value: object) -> list[str]:
        """A list of names; a single one needs no brackets, and blocks may be bare numbers."""
        entries = value if isinstance(value, list) else [value]
        for index, entry in enumerate(entries):
            if not isinstance(entry, str | int) or isinstance(entry, bool):
                self.wrong((*where, index), f"{'.'.join(map(str, where))}: got {_shown(entry)}, needs a list of names")
        return [str(entry).strip() for entry in entries if isinstance(entry, str | int) and not isinstance(entry, bool)]

    def layers(self, where: Location, value: object) -> tuple[str, ...]:
        before = len(self.problems)
        patterns = self.items(where, value)
        if len(self.problems) > before:
            return ()
        chosen: set[str] = set()
        for index, pattern in enumerate(patterns or [None]):
            try:
                chosen.update(select.match_layers([pattern] if pattern is not None else [], self.names))
            except ModelError as error:
                self.wrong((*where, index), f"{'.'.join(map(str, where))}: {error.problems[0]}")
        return tuple(name for name in self.names if name in chosen)


def _plan(reading: _Reading, values: dict[str, Any], proposal: Plan) -> Plan:
    if values.get("schema_version") != SCHEMA_VERSION or isinstance(values.get("schema_version"), bool):
        got = _shown(values.get("schema_version"))
        reading.wrong(("schema_version",), f"schema_version: got {got}, needs {SCHEMA_VERSION}; put it back")
    values = reading.keys((), values, (*_TOP, *_TOP_FIXED))
    for key in _TOP_FIXED:
        if key not in values or values[key] != _fixed(proposal, key):
            reading.wrong((key,), f"{key} is not for editing; put it back, or plan again in another output_dir")
    given = values.get("arms") or {}
    arms = reading.keys(("arms",), given, [arm.arm for arm in proposal.arms])
    if not given:
        reading.wrong(("arms",), "no arm is left, so nothing would be tuned; put one back, or use `tunescope evaluate`")
    return Plan(
        arms=tuple(_arm(reading, arm, arms[arm.arm]) for arm in proposal.arms if arm.arm in arms),
        alternatives=_alternatives(reading, values.get("alternatives") or []),
        rests_on=proposal.rests_on,
        currency=proposal.currency,
        state=reading.one_of(("state",), values.get("state"), _STATES),  # type: ignore[arg-type]
        approved_by=reading.text(("approved_by",), values.get("approved_by", "")),
        approved_at=reading.text(("approved_at",), values.get("approved_at", "")),
        approved_sha256=reading.text(("approved_sha256",), values.get("approved_sha256", "")),
    )


def _arm(reading: _Reading, proposed: PlannedArm, given: object) -> PlannedArm:
    where = ("arms", proposed.arm)
    values = reading.keys(where, given, _ARM)
    if not isinstance(given, dict):
        return proposed
    if values.get("method") != proposed.method:
        reading.wrong(
            (*where, "method"),
            f"arms.{proposed.arm}.method: got {_shown(values.get('method'))}, was {proposed.method}; it is not for editing: set "
            "tuning.method in the config and plan again in another output_dir",
        )
    layers, modules = proposed.layers, proposed.modules
    for key in ("matrices", "mask_sha256"):
        given_here = values.get(key, type(getattr(proposed, key))())
        if given_here != (
            list(proposed.matrices) if key == "matrices" and proposed.matrices else getattr(proposed, key)
        ):
            reading.wrong(
                (*where, key), f"arms.{proposed.arm}.{key} is not for editing; put it back, or delete the arm"
            )
    if not proposed.whole_model:
        layers = reading.layers((*where, "layers"), values.get("layers", []))
        modules = _modules(reading, where, values.get("modules", []), proposed)
    elif values.get("layers") != WHOLE_MODEL or "modules" in values:
        reading.wrong(
            (*where, "layers"), f"arms.{proposed.arm} moves {WHOLE_MODEL}; put it back as it was, or delete the arm"
        )
    if proposed.fixed and not proposed.whole_model and (layers, modules) != (proposed.layers, proposed.modules):
        reading.wrong(
            (*where, "layers"),
            f"arms.{proposed.arm} moves single {'entries' if proposed.mask_sha256 else 'matrices'}, which cannot be edited here; put layers and "
            "modules back, change `selection` in the config and plan again in another output_dir, or delete the arm",
        )
    if proposed.arm == Arm.LORA_ALL and layers and layers != proposed.layers:
        reading.wrong(
            (*where, "layers"), f"arms.{proposed.arm} is LoRA on all blocks; put it back, or use the arm selected"
        )
    scores = reading.keys((*where, "scores"), values.get("scores") or {}, reading.names)
    read = replace(
        proposed,
        why=reading.text((*where, "why"), values.get("why", proposed.why)),
        layers=layers,
        modules=modules,
        trainable_parameters=int(
            reading.number((*where, "trainable_parameters"), values.get("trainable_parameters", 0))
        ),
        scores={block: float(reading.number((*where, "scores", block), score)) for block, score in scores.items()},
        forecast=_price(reading, (*where, "forecast"), values.get("forecast") or {}),
    )
    return read if layers or proposed.whole_model else proposed


def _modules(reading: _Reading, where: Location, value: object, proposed: PlannedArm) -> tuple[str, ...]:
    place, name = (*where, "modules"), f"arms.{proposed.arm}.modules"
    if value == WHOLE_BLOCKS:
        if proposed.method == "lora":
            reading.wrong(place, f"{name}: LoRA adapts parts of a block; list some of {', '.join(PARTS)}")
        return ()
    given = reading.items(place, value)
    for index, part in enumerate(given):
        if part not in PARTS:
            reading.wrong(
                (*place, index),
                f"{name}: part {part!r} is not known{did_you_mean(part, PARTS)}; allowed: {', '.join(PARTS)}",
            )
    if not given:
        reading.wrong(place, f"{name}: no part given, so nothing would move; allowed: {', '.join(PARTS)}")
    # With `weights`, all parts without the norms is not the same as the whole block: what was written counts.
    return tuple(part for part in PARTS if part in given)


def _alternatives(reading: _Reading, given: object) -> tuple[Alternative, ...]:
    """What can be read of the alternatives. Nothing is tuned from them, so a mistake there is a note and stops nothing."""
    read = []
    for index, other in enumerate(given if isinstance(given, list) else [given]):
        aside = _Reading(reading.path, reading.lines, reading.names)
        if isinstance(given, list):
            read.append(_alternative(aside, index, other))
        else:
            aside.wrong(("alternatives",), f"alternatives: got {_shown(given)}, needs a list")
        if aside.problems:
            del read[-1:]
            reading.notes.append(f"{aside.problems[0]} (left out: nothing is tuned from the alternatives)")
    return tuple(read)


def _alternative(reading: _Reading, index: int, given: object) -> Alternative:
    where = ("alternatives", index)
    values = reading.keys(where, given, _ALTERNATIVE)
    whole = values.get("layers") == WHOLE_MODEL
    layers = (
        tuple(reading.names) if whole or not values else reading.layers((*where, "layers"), values.get("layers", []))
    )
    return Alternative(
        name=reading.text((*where, "name"), values.get("name", "")),
        layers=layers,
        whole_model=whole,
        trainable_parameters=int(
            reading.number((*where, "trainable_parameters"), values.get("trainable_parameters", 0))
        ),
        forecast=_price(reading, (*where, "forecast"), values.get("forecast") or {}),
    )


def _price(reading: _Reading, where: Location, given: object) -> Price:
    values = reading.keys(where, given, _FORECAST)

    def number(key: str) -> float:
        return reading.number((*where, key), values.get(key, 0))

    basis = reading.one_of((*where, "basis"), values.get("basis", "measured"), ("measured", "estimated"))
    return Price(
        float(number("tuning_seconds")),
        float(number("evaluation_seconds")),
        int(number("peak_memory_bytes")),
        float(number("machine_cost")),
        basis,  # type: ignore[arg-type]
    )


def _check_controls(reading: _Reading, plan: Plan, proposal: Plan, seed: int) -> None:
    """Refuses a control that no longer has the budget of what it controls, and names one that has."""
    chosen = plan.arm(Arm.SELECTED)
    for name in (Arm.RANDOM.value, Arm.TOP_THIRD.value):
        control = plan.arm(name)
        if control is None:
            continue
        if chosen is None:
            if proposal.arm(Arm.SELECTED) is not None:  # `tune --arm random` never had one
                reading.wrong(
                    ("arms", name),
                    f"{name} is the control of selected, which is gone: delete {name} too, or put selected back",
                )
        elif not (_as_proposed(chosen, proposal) and _as_proposed(control, proposal)):
            _check_control(reading, chosen, control, seed)


def _as_proposed(arm: PlannedArm, proposal: Plan) -> bool:
    first = proposal.arm(arm.arm)
    return first is not None and arm.moves == first.moves


def _check_control(reading: _Reading, chosen: PlannedArm, control: PlannedArm, seed: int) -> None:
    name, count = control.arm, len(chosen.layers)
    where = ("arms", name)
    if control.fixed or chosen.fixed:
        reading.wrong(
            where,
            f"{name} was made for the single matrices of selected that were proposed, and one of the two was changed: delete {name}, or "
            "put both back",
        )
        return
    drawn = (
        select.choose_random(reading.names, count, seed=seed, avoid=chosen.layers)
        if name == Arm.RANDOM
        else tuple(reading.names[-count:])
    )
    if len(control.layers) != count:
        how = f"drawn with seed {seed}" if name == Arm.RANDOM else "those next to the output"
        reading.wrong(
            (*where, "layers"),
            f"{name} moves {len(control.layers)} block(s) and selected {count}, so {name} is no control at the same "
            f"budget; write layers: [{', '.join(drawn)}] ({how}), or delete {name}",
        )
    elif name == Arm.RANDOM and control.layers == chosen.layers and count < len(reading.names):
        reading.wrong(
            (*where, "layers"), "random moves exactly the blocks of selected, so it controls nothing; change one"
        )
    elif name == Arm.TOP_THIRD and control.layers != drawn:
        reading.wrong(
            (*where, "layers"),
            f"top-third moves the blocks next to the output; write layers: [{', '.join(drawn)}], or delete top-third",
        )
    if control.modules != chosen.modules:
        wanted = f"[{', '.join(chosen.modules)}]" if chosen.modules else WHOLE_BLOCKS
        reading.wrong(
            (*where, "modules"),
            f"{name} moves other modules than selected, so it is no control at the same budget; write modules: {wanted}, or "
            f"delete {name}",
        )


def _fixed(proposal: Plan, key: str) -> object:
    value = getattr(proposal, key)
    return dict(value) if isinstance(value, Mapping) else value


def _as_plan(problem: str) -> str:
    """A problem of the reader of settings, in the words of a plan."""
    return problem.replace("a settings file", "a plan").replace("the name of a setting", "a key of a plan")


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
