"""What a choice of blocks costs, worked out from the calibrated steps of a few others.

A step reads all blocks forward, runs back from the last block down to the lowest one that moves, and updates what moves. So its
cost grows with two numbers: the depth of the backward pass (a scattered set is as deep as its lowest block), and how many blocks
move. The weights of both come from the arms, which are measured, and from one more measurement with the last block alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope import models, select
from tunescope.models import Loaded, block_index
from tunescope.runs.plan import Alternative, Price
from tunescope.runs.records import Forecast, LayerScores, Record, Selection

_FULL_BYTES_PER_WEIGHT = 16  # float32: the weight, its gradient and the two moments of AdamW


@dataclass(frozen=True)
class Point(Record):
    """One measured choice.

    Attributes:
        method: ``lora`` or ``weights``.
        layers: the blocks that moved.
        tuning_seconds: forecast from its steps.
        peak_memory_bytes: while it took them.
    """

    method: str
    layers: tuple[str, ...]
    tuning_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Rates:
    """What one measured quantity costs.

    Attributes:
        base: forward through all blocks, and everything that does not depend on the choice.
        depth: per block that the backward pass runs through.
        moving: per block that moves.
    """

    base: float
    depth: float
    moving: float

    def at(self, layers: Sequence[str], n_layers: int) -> float:
        """Returns the quantity for a set of blocks."""
        return self.base + self.depth * depth_of(layers, n_layers) + self.moving * len(layers)


def depth_of(layers: Sequence[str], n_layers: int) -> int:
    """Returns how many blocks the backward pass runs through: from the last one down to the lowest of the set.

    Example:
        >>> depth_of(["block.1", "block.3"], 4), depth_of(["block.3"], 4)
        (3, 1)
    """
    return n_layers - min(block_index(name) for name in layers)


def fit_rates(points: Sequence[Point], values: Sequence[float], n_layers: int) -> Rates:
    """Finds the rates that explain the measured values best; none is negative.

    Where the points cannot tell depth from number of blocks, the cost is put on the depth.

    Args:
        points: what was measured, at least one.
        values: the quantity of each.
        n_layers: blocks of the model.

    Example:
        >>> points = [Point("lora", ("block.3",), 0, 0), Point("lora", ("block.0", "block.1"), 0, 0), Point("lora", ("block.0",), 0, 0)]
        >>> fit_rates(points, [12.0, 20.0, 18.0], 4)
        Rates(base=8.0, depth=2.0, moving=2.0)
    """
    from scipy.optimize import nnls

    rows = [[1.0, depth_of(p.layers, n_layers) / n_layers, len(p.layers) / n_layers] for p in points]
    scale = max(values) or 1.0
    # Two faint wishes decide what the points leave open: no cost per moving block, a fixed part as large as possible.
    wishes: list[list[float]] = [[0.0, 0.0, 1e-5], [0.0, 1e-6, 0.0]]
    design = np.array(rows + wishes)
    target: NDArray[np.float64] = np.array([*(value / scale for value in values), 0.0, 0.0])
    base, depth, moving = nnls(design, target)[0] * scale
    return Rates(*(float(f"{rate:.6g}") for rate in (base, depth / n_layers, moving / n_layers)))


def parameter_table(loaded: Loaded, rank: int) -> dict[str, dict[str, dict[str, int]]]:
    """Returns block -> part -> {"lora": parameters of its adapters, "weights": its own}; part ``*`` is the whole block.

    Args:
        loaded: the base model.
        rank: of the adapters.
    """
    table: dict[str, dict[str, dict[str, int]]] = {}
    for name in models.block_names(loaded.info.n_layers):
        block = models.blocks(loaded.model)[block_index(name)]
        row = {}
        for part, path in loaded.family.parts.items():
            module: Any = block.get_submodule(path)
            d_out, d_in = module.weight.shape
            row[part] = {"lora": rank * (d_in + d_out), "weights": sum(p.numel() for p in module.parameters())}
        row["*"] = {"lora": 0, "weights": sum(p.numel() for p in block.parameters())}
        table[name] = row
    return table


def count_parameters(table: Mapping[str, Any], method: str, layers: Sequence[str], modules: Sequence[str]) -> int:
    """Returns how many parameters a choice moves, from `parameter_table`.

    Example:
        >>> table = {"block.0": {"q": {"lora": 8, "weights": 64}, "*": {"lora": 0, "weights": 99}}}
        >>> count_parameters(table, "lora", ["block.0"], ["q"]), count_parameters(table, "weights", ["block.0"], [])
        (8, 99)
    """
    return sum(table[name][part][method] for name in layers for part in modules or ("*",))


@dataclass(frozen=True)
class Calibration(Record):
    """What `estimate` needs to price any choice of blocks; saved with the forecast.

    Attributes:
        points: what was measured.
        table: see `parameter_table`.
        n_layers: blocks of the model.
        evaluation_seconds: of measuring a tuned arm.
        seconds_per_token: of reading, for the checks while tuning.
        model_parameters: of the whole model.
        model_bytes: its size as loaded.
    """

    points: tuple[Point, ...]
    table: Mapping[str, Any]
    n_layers: int
    evaluation_seconds: float
    seconds_per_token: float
    model_parameters: int
    model_bytes: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Builds it from `to_dict`'s output."""
        points = tuple(Point.from_dict({**row, "layers": tuple(row["layers"])}) for row in values["points"])
        return cls(**{**{k: v for k, v in values.items() if k in cls.__dataclass_fields__}, "points": points})

    def estimate(self, arm: str, selection: Selection) -> Forecast:
        """Returns the forecast of a choice that was not measured; modules other than the measured ones cost about the same."""
        n_layers, layers = self.n_layers, selection.layers
        same = [p for p in self.points if p.method == selection.method]
        used = same or list(self.points)
        seconds = fit_rates(used, [p.tuning_seconds for p in used], n_layers)
        memory = fit_rates(used, [float(p.peak_memory_bytes) for p in used], n_layers)
        tuning, peak = seconds.at(layers, n_layers), memory.at(layers, n_layers)
        if not same:  # other weights move: what a moving block adds is not known from them
            moving = (
                seconds.depth if selection.method == "weights" else 0.0
            )  # its own gradient costs what passing it on does
            tuning += (moving - seconds.moving) * len(layers)
            peak -= memory.moving * len(layers)
        if selection.whole_model:
            count = self.model_parameters
            peak = memory.base + memory.depth * n_layers + max(0, _FULL_BYTES_PER_WEIGHT * count - self.model_bytes)
        else:
            count = count_parameters(self.table, selection.method, layers, selection.modules)
        return Forecast(
            arm=arm,
            tuning_seconds=tuning,
            evaluation_seconds=self.evaluation_seconds,
            peak_memory_bytes=int(peak),
            trainable_parameters=count,
        )


def alternatives(
    calibration: Calibration,
    chosen: Selection,
    scores: LayerScores | None,
    measured: Mapping[str, tuple[Selection, Forecast]],
    parts: Sequence[str],
    price_per_hour: float,
) -> tuple[Alternative, ...]:
    """Returns what else could be tuned, with its price.

    Args:
        calibration: to price what was not measured.
        chosen: the arm that is proposed first; its method and modules are kept where only the blocks differ.
        scores: of the blocks, or None where no score chose them: then only alternatives by place are named.
        measured: the arms of the run, which are not named again.
        parts: for LoRA on all blocks.
        price_per_hour: of the machine.
    """
    n_layers = calibration.n_layers
    names = models.block_names(n_layers)
    method, modules = chosen.method, chosen.modules
    if chosen.whole_model or chosen.method == "sparse":
        method, modules = "lora", tuple(parts)
    third = select.budget_layers(n_layers, 1 / 3)
    wanted: dict[str, Selection] = {}
    for label, share in {"sixth": 1 / 6, "half": 1 / 2}.items():
        count = select.budget_layers(n_layers, share)
        if scores is not None:
            wanted[f"the {label} of the blocks with the highest scores"] = Selection(
                method, select.choose_top(scores, count), modules, ""
            )
        else:
            wanted[f"the {label} of the blocks next to the output"] = Selection(method, names[-count:], modules, "")
    wanted["the third of the blocks next to the output"] = Selection(method, names[-third:], modules, "")
    wanted["LoRA on all blocks (arm lora-all)"] = Selection("lora", names, tuple(parts), "")
    wanted["all weights of the model (arm full)"] = Selection("weights", names, (), "", whole_model=True)
    known = {_moves(selection) for selection, _ in measured.values()}
    found = []
    for name, selection in wanted.items():
        if _moves(selection) in known:
            continue
        known.add(_moves(selection))
        cost = calibration.estimate(name, selection)
        price = price_of(cost, price_per_hour, measured=False)
        found.append(Alternative(name, selection.layers, selection.whole_model, cost.trainable_parameters, price))
    return tuple(found)


def price_of(cost: Forecast, price_per_hour: float, *, measured: bool) -> Price:
    """Returns a forecast as it stands in a plan: rounded to what it can be trusted for."""
    return Price(
        tuning_seconds=round(cost.tuning_seconds, 1),
        evaluation_seconds=round(cost.evaluation_seconds, 1),
        peak_memory_bytes=int(float(f"{cost.peak_memory_bytes:.4g}")),
        machine_cost=round((cost.tuning_seconds + cost.evaluation_seconds) / 3600 * price_per_hour, 4),
        basis="measured" if measured else "estimated",
    )


def _moves(selection: Selection) -> tuple[object, ...]:
    # Tuples: of a selection read back from JSON these are lists.
    return (
        selection.method,
        tuple(selection.layers),
        frozenset(selection.modules),
        selection.whole_model,
        tuple(selection.matrices),
    )
