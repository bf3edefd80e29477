"""The plan of a run: what is going to be tuned, why and at what price, as a file that a person reads, edits and approves.

``plan.yaml`` is the only file of a run that is meant to be edited. Its sha256 is taken over what it says, not over how it is
written: comments, blanks, quotes and ``block.2-3`` instead of ``block.2, block.3`` make no difference.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from tunescope.runs.records import SCHEMA_VERSION, Record, Selection

PlanState = Literal["proposed", "approved", "not required"]
Basis = Literal["measured", "estimated"]

WHOLE_MODEL = "all weights"
WHOLE_BLOCKS = "whole blocks"
_APPROVAL = ("state", "approved_by", "approved_at", "approved_sha256")
_WIDTH = 110
_COMMENT_AT = 46


@dataclasses.dataclass(frozen=True)
class Price(Record):
    """What something is expected to cost.

    Attributes:
        tuning_seconds: wall time of tuning, learning-rate race included.
        evaluation_seconds: wall time of measuring it on the test data.
        peak_memory_bytes: resident memory of the process (CPU) or allocated memory (GPU) at most.
        machine_cost: of both times, in the plan's currency.
        basis: ``measured``: real steps with exactly these weights moving; ``estimated``: from the steps of others.
    """

    tuning_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    peak_memory_bytes: int = 0
    machine_cost: float = 0.0
    basis: Basis = "measured"


@dataclasses.dataclass(frozen=True)
class PlannedArm(Record):
    """What one arm moves, why, and its price.

    Attributes:
        arm: name of the arm.
        why: one line a person can read.
        method: ``lora``, ``weights`` or ``sparse``.
        layers: canonical block names, ascending; all of them where `whole_model` is set.
        modules: canonical part names inside a block; for ``weights``, empty = whole block.
        whole_model: all weights move, embeddings and head included.
        matrices: single matrices, where the parts differ from block to block; not for editing in the file.
        mask_sha256: of the entries that move, for ``sparse``; not for editing in the file.
        trainable_parameters: number of parameters that move.
        scores: block -> score that chose it; empty where no score did.
        forecast: the price.
    """

    arm: str
    why: str
    method: Literal["lora", "weights", "sparse"]
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    whole_model: bool = False
    matrices: tuple[str, ...] = ()
    mask_sha256: str = ""
    trainable_parameters: int = 0
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    forecast: Price = Price()

    @property
    def moves(self) -> tuple[object, ...]:
        """What may move, without reasons and numbers: two arms with equal `moves` tune the same weights."""
        return (self.method, self.layers, self.modules, self.whole_model, self.matrices, self.mask_sha256)

    @property
    def fixed(self) -> bool:
        """Whether its blocks and modules cannot be edited: they follow from single matrices or entries, or are the whole model."""
        return self.whole_model or bool(self.matrices or self.mask_sha256)

    def selection(self) -> Selection:
        """Returns what the engine needs to know of it; an arm that is `fixed` keeps the selection that it was made from."""
        return Selection(self.method, self.layers, self.modules, self.why, self.whole_model, matrices=self.matrices)


@dataclasses.dataclass(frozen=True)
class Alternative(Record):
    """Something else that could be tuned, for comparison; the run does not do it.

    Attributes:
        name: what it is, in words.
        layers: canonical block names; all of them for the whole model.
        whole_model: all weights move.
        trainable_parameters: number of parameters that would move.
        forecast: its price.
    """

    name: str
    layers: tuple[str, ...]
    whole_model: bool = False
    trainable_parameters: int = 0
    forecast: Price = Price()


@dataclasses.dataclass(frozen=True)
class Plan(Record):
    """What a run is going to tune.

    Attributes:
        arms: the arms that tune something, in the order of the config.
        alternatives: what else there is, with its price.
        rests_on: name -> sha256 of the model, the data and the settings that the plan was made with.
        currency: of the prices.
        state: ``proposed``, ``approved`` or ``not required``.
        approved_by: name of the person, or empty.
        approved_at: time in UTC, or empty.
        approved_sha256: `sha256` of the plan that was approved, or empty.
    """

    arms: tuple[PlannedArm, ...]
    alternatives: tuple[Alternative, ...] = ()
    rests_on: Mapping[str, str] = dataclasses.field(default_factory=dict)
    currency: str = "EUR"
    state: PlanState = "proposed"
    approved_by: str = ""
    approved_at: str = ""
    approved_sha256: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Builds the plan from `to_dict`'s output."""

        def part(kind: Any, row: Mapping[str, Any]) -> Any:
            lists = {key: tuple(row[key]) for key in ("layers", "modules", "matrices") if key in row}
            return kind.from_dict({**row, **lists, "forecast": Price.from_dict(row["forecast"])})

        names = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in values.items() if key in names}
        given["arms"] = tuple(part(PlannedArm, row) for row in values["arms"])
        given["alternatives"] = tuple(part(Alternative, row) for row in values["alternatives"])
        return cls(**given)

    def arm(self, name: str) -> PlannedArm | None:
        """Returns an arm by its name, or None."""
        return next((arm for arm in self.arms if arm.arm == name), None)

    @property
    def sha256(self) -> str:
        """Hash of everything the plan says but its approval: what a person approves."""
        content = {key: value for key, value in self.to_dict().items() if key not in _APPROVAL}
        content["schema_version"] = SCHEMA_VERSION
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def ranges(layers: Sequence[str]) -> list[str]:
    """Returns block names with neighbours joined, as a person would write them.

    Example:
        >>> ranges(["block.0", "block.2", "block.3", "block.4"])
        ['block.0', 'block.2-4']
    """
    runs: list[list[int]] = []
    for number in sorted({int(name.removeprefix("block.")) for name in layers}):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [f"block.{first}" if first == last else f"block.{first}-{last}" for first, last in runs]


def duration(seconds: float) -> str:
    """Returns a time in words.

    Example:
        >>> duration(4.24), duration(84), duration(7500)
        ('4.2 s', '1 min 24 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(n_bytes: float) -> str:
    """Returns an amount of memory in words.

    Example:
        >>> size(1.24e9), size(3.2e8)
        ('1.2 GB', '320 MB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 0.95e9 else f"{n_bytes / 1e6:.0f} MB"


def moves_text(arm: PlannedArm | Alternative) -> str:
    """Returns in short what moves: block ranges, or all weights."""
    return WHOLE_MODEL if arm.whole_model else ", ".join(ranges(arm.layers))


def plan_text(plan: Plan, *, run: str, n_layers: int, resume: str) -> str:
    """Returns ``plan.yaml``.

    Args:
        plan: the plan.
        run: the run folder, as a person would type it.
        n_layers: number of blocks of the model.
        resume: the command that goes on.
    """
    lines = [
        "# The plan of this run: which weights will move, why, and what that should cost on this machine.",
        "#",
        "# You may change `layers` and `modules` of the arms selected and random, change `modules` of lora-all, say in `why`",
        "# what moved you, and delete a whole arm. Everything else is written anew by tunescope.",
        *_fixed_note(plan),
        f'#   layers    block.0 (next to the input) to block.{n_layers - 1}; also block.0-{n_layers - 1}, or "block.1?" for a pattern',
        "#   modules   q, k, v, o (attention), gate, up, down (MLP)",
        *_control_note(plan),
        "# The backward pass runs from the last block down to the lowest one that moves, so that one sets most of the price.",
        "#",
        "# Then:",
        *_commands(plan, run, resume),
        "",
        f"schema_version: {SCHEMA_VERSION}",
    ]
    lines += _pair("state", plan.state, "proposed, approved or not required; `tunescope approve` sets it")
    if plan.state == "approved":
        lines += [f"approved_by: {_quoted(plan.approved_by)}", f'approved_at: "{plan.approved_at}"']
        lines += [
            "# The hash of what this file says. If it is changed from here on, tuning is refused until it is approved again."
        ]
        lines += [f"approved_sha256: {_quoted(plan.approved_sha256)}"]
    lines += ["", "arms:"]
    for arm in plan.arms:
        lines += _arm_lines(arm, plan.currency, n_layers)
    lines += [
        "# What else could be tuned, for comparison; this run does not do it. To take one, copy its blocks to an arm above,"
    ]
    lines += ["# or set selection.budget or arms in the config and plan again in another output_dir."]
    lines += ["alternatives:" if plan.alternatives else "alternatives: []"]
    for other in plan.alternatives:
        lines += [f"  - name: {_quoted(other.name)}"]
        lines += [f"    layers: {WHOLE_MODEL}"] if other.whole_model else _listed("    layers", ranges(other.layers))
        lines += _pair("    trainable_parameters", other.trainable_parameters, f"{other.trainable_parameters:,}")
        lines += _price_lines(other.forecast, plan.currency)
    lines += ["", "# What the plan was made with. Not for editing: tuning something else needs another plan."]
    lines += [f"currency: {_quoted(plan.currency)}", "rests_on:"]
    lines += [f"  {name}: {_quoted(digest)}" for name, digest in plan.rests_on.items()]
    return "\n".join(lines) + "\n"


def _fixed_note(plan: Plan) -> list[str]:
    fixed = [arm.arm for arm in plan.arms if arm.fixed and not arm.whole_model]
    if not fixed:
        return []
    return [
        f"# {', '.join(fixed)}: single matrices or entries move, which cannot be edited here; `selection` in the config sets them."
    ]


def _control_note(plan: Plan) -> list[str]:
    if plan.arm("top-third") is None:
        return [
            "# `random` is the control of `selected`: it needs as many blocks and the same modules. Give both, or delete random."
        ]
    return [
        "# `random` and `top-third` are controls of `selected`: they need as many blocks and the same modules; those of top-third",
        "# are the ones next to the output. Change all of them, or delete a control.",
    ]


def _commands(plan: Plan, run: str, resume: str) -> list[str]:
    approve = f'tunescope approve {run} --by "YOUR NAME"'
    optional = [f"#   {approve}"] if plan.state == "proposed" else []
    return [*optional, f"#   {resume}"]


def _arm_lines(arm: PlannedArm, currency: str, n_layers: int) -> list[str]:
    lines = [f"  {arm.arm}:", *_text("    why", arm.why), f"    method: {arm.method}"]
    if arm.whole_model:
        lines += [f"    layers: {WHOLE_MODEL}"]
    else:
        depth = n_layers - min(int(name.removeprefix("block.")) for name in arm.layers)
        comment = f"{len(arm.layers)} of {n_layers} blocks; the backward pass runs through {depth}"
        lines += _listed("    layers", ranges(arm.layers), comment)
        lines += _listed("    modules", arm.modules) if arm.modules else [f"    modules: {WHOLE_BLOCKS}"]
    lines += _listed("    matrices", arm.matrices) if arm.matrices else []
    lines += [f"    mask_sha256: {_quoted(arm.mask_sha256)}"] if arm.mask_sha256 else []
    lines += _pair("    trainable_parameters", arm.trainable_parameters, f"{arm.trainable_parameters:,} weights move")
    if arm.scores:
        lines += ["    scores:                                   # why these blocks, highest score first"]
        lines += [
            f"      {block}: {score:.4g}" for block, score in sorted(arm.scores.items(), key=lambda item: -item[1])
        ]
    return [*lines, *_price_lines(arm.forecast, currency), ""]


def _price_lines(price: Price, currency: str) -> list[str]:
    said = "from real steps on this machine" if price.basis == "measured" else "worked out from the steps of others"
    return [
        "    forecast:",
        *_pair("      tuning_seconds", price.tuning_seconds, duration(price.tuning_seconds)),
        *_pair("      evaluation_seconds", price.evaluation_seconds, duration(price.evaluation_seconds)),
        *_pair("      peak_memory_bytes", price.peak_memory_bytes, size(price.peak_memory_bytes)),
        *_pair("      machine_cost", price.machine_cost, currency),
        *_pair("      basis", price.basis, said),
    ]


def _pair(key: str, value: object, comment: str) -> list[str]:
    comment = "".join(c if c.isprintable() else " " for c in comment)
    return [f"{f'{key}: {value}':<{_COMMENT_AT - 1}} # {comment}"]


def _listed(key: str, names: Sequence[str], comment: str = "") -> list[str]:
    """A list in brackets on one line, or one entry a line where that is too long; block and part names need no quotes."""
    line = f"{key}: [{', '.join(names)}]"
    if len(line) <= _WIDTH - 24:
        return _pair(line.partition(": ")[0], line.partition(": ")[2], comment) if comment else [line]
    indent = " " * (len(key) - len(key.lstrip()) + 2)
    return [f"{key}:{f'  # {comment}' if comment else ''}", *(f"{indent}- {name}" for name in names)]


def _text(key: str, text: str) -> list[str]:
    """A text on one line, or folded over several where it is long; folding puts one blank where a line ends."""
    words = text.split(" ")
    foldable = all(words) and text.isprintable()
    if len(key) + len(text) + 4 <= _WIDTH or not foldable:
        return [f"{key}: {_quoted(text)}"]
    indent = " " * (len(key) - len(key.lstrip()) + 2)
    wrapped = textwrap.wrap(text, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
    return [f"{key}: >-", *(indent + line for line in wrapped)]


def _quoted(text: str) -> str:
    """A text in double quotes on one line; PyYAML escapes what would otherwise be read as a line end."""
    written: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)
    return written.rstrip("\n")
