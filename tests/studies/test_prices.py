"""The price of a choice of blocks that was not measured."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope import engine, models
from tunescope.models import FAMILIES, PARTS, Loaded, ModelInfo, block_names
from tunescope.runs.records import Forecast, LayerScores, Selection
from tunescope.studies.prices import (
    Calibration,
    Point,
    alternatives,
    count_parameters,
    depth_of,
    fit_rates,
    parameter_table,
)
from tunescope.testing import byte_tokenizer, tiny_model

N = 30
NAMES = block_names(N)


def layers(*numbers: int) -> tuple[str, ...]:
    return tuple(f"block.{n}" for n in numbers)


def cost(chosen: tuple[str, ...], base: float = 40.0, depth: float = 2.0, moving: float = 0.5) -> float:
    """A machine on which the rule of the module holds exactly."""
    return base + depth * (N - min(int(name[6:]) for name in chosen)) + moving * len(chosen)


def point(chosen: tuple[str, ...], method: str = "lora") -> Point:
    return Point(method, chosen, cost(chosen), int(1e6 * cost(chosen)))


MEASURED = [layers(29), layers(*range(3, 30, 3)), NAMES, layers(*range(20, 30))]


@given(st.sets(st.integers(0, N - 1), min_size=1))
def test_where_the_rule_holds_the_price_is_exact(numbers: set[int]) -> None:
    chosen = layers(*sorted(numbers))
    rates = fit_rates([point(p) for p in MEASURED], [cost(p) for p in MEASURED], N)
    assert rates.at(chosen, N) == pytest.approx(cost(chosen), rel=1e-3)


def test_a_scattered_set_is_priced_by_its_lowest_block() -> None:
    rates = fit_rates([point(p) for p in MEASURED], [cost(p) for p in MEASURED], N)
    scattered, low, high = layers(0, 10, 20, 29), layers(0, 1, 2, 3), layers(26, 27, 28, 29)
    assert depth_of(scattered, N) == depth_of(low, N) == N and depth_of(high, N) == 4
    assert rates.at(scattered, N) == pytest.approx(rates.at(low, N))
    assert rates.at(scattered, N) - rates.at(high, N) == pytest.approx(2.0 * 26, rel=1e-2)


@given(
    st.lists(st.sets(st.integers(0, N - 1), min_size=1), min_size=1, max_size=5),
    st.lists(st.floats(0, 1e4), min_size=5, max_size=5),
)
def test_no_measurement_makes_more_cost_less(sets: list[set[int]], values: list[float]) -> None:
    points = [point(layers(*sorted(numbers))) for numbers in sets]
    rates = fit_rates(points, values[: len(points)], N)
    assert min(rates.base, rates.depth, rates.moving) >= 0
    assert rates.at(layers(29), N) <= rates.at(layers(5, 29), N) <= rates.at(layers(5, 6, 29), N) <= rates.at(NAMES, N)


def test_two_measurements_give_a_line_over_the_depth() -> None:
    points = [point(layers(29)), point(layers(0, 9, 19))]
    rates = fit_rates(points, [40.0, 98.0], N)
    assert rates.at(layers(29), N) == pytest.approx(40.0, rel=1e-2)
    assert rates.at(layers(0, 9, 19), N) == pytest.approx(98.0, rel=1e-2)
    assert 60 < rates.at(layers(15, 16, 17), N) < 80


# Parameters.


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize(
    ("method", "modules"),
    [("lora", PARTS), ("lora", ("q", "down")), ("weights", ()), ("weights", ("k", "up")), ("weights", PARTS)],
)
def test_parameters_are_counted_as_the_engine_counts_them(family: str, method: str, modules: tuple[str, ...]) -> None:
    found = next(f for f in FAMILIES if family in f.model_types)
    model = tiny_model(family, n_layers=3)
    info = ModelInfo(**{f.name: 3 if f.name == "n_layers" else None for f in dataclasses.fields(ModelInfo)})
    table = parameter_table(Loaded(model, byte_tokenizer(), found, info), rank=4)
    for chosen in (("block.1",), ("block.0", "block.2")):
        selection = Selection(method, chosen, modules, "")  # type: ignore[arg-type]
        counted = count_parameters(table, method, chosen, modules)
        moving = engine.prepare(tiny_model(family, n_layers=3), found, selection, lora_rank=4)
        assert counted == moving.selection.trainable_parameters > 0


# What else could be tuned.

TABLE = {name: {p: {"lora": 10, "weights": 100} for p in PARTS} | {"*": {"lora": 0, "weights": 800}} for name in NAMES}
CALIBRATION = Calibration(tuple(point(p) for p in MEASURED), TABLE, N, 12.0, 0.01, 50_000, 100_000)
SCORES = LayerScores("s", "1", NAMES, tuple(float(v) for v in np.random.default_rng(0).permutation(N)), 8, "")
CHOSEN = Selection("lora", layers(*range(20, 30)), PARTS, "")


def test_other_budgets_lora_everywhere_and_all_weights_are_priced() -> None:
    found = alternatives(CALIBRATION, CHOSEN, SCORES, {}, PARTS, 3.6)
    assert [len(a.layers) for a in found] == [5, 15, 10, 30, 30]
    assert [a.whole_model for a in found] == [False] * 4 + [True]
    by_score = sorted(NAMES, key=lambda name: -SCORES.values[NAMES.index(name)])
    assert set(found[0].layers) == set(by_score[:5]) and set(found[1].layers) == set(by_score[:15])
    for other in found[:4]:
        price = other.forecast
        assert price.basis == "estimated"
        assert price.tuning_seconds == pytest.approx(cost(other.layers), rel=1e-2)
        assert price.peak_memory_bytes == pytest.approx(1e6 * cost(other.layers), rel=1e-2)
        assert price.machine_cost == pytest.approx((price.tuning_seconds + 12) / 1000, abs=1e-4)
        assert other.trainable_parameters == 70 * len(other.layers)
    assert found[4].trainable_parameters == 50_000
    assert found[4].forecast.tuning_seconds > found[3].forecast.tuning_seconds
    assert found[4].forecast.peak_memory_bytes > 16 * 50_000 - 100_000


def test_what_the_run_does_anyway_is_no_alternative() -> None:
    everywhere = Selection("lora", NAMES, PARTS[::-1], "")
    measured = {"selected": (CHOSEN, Forecast("selected")), "lora-all": (everywhere, Forecast("lora-all"))}
    found = alternatives(CALIBRATION, CHOSEN, SCORES, measured, PARTS, 1.0)
    assert len(found) == 3 and not any("lora-all" in a.name or "third" in a.name for a in found)


def test_without_scores_the_alternatives_are_by_place() -> None:
    found = alternatives(CALIBRATION, CHOSEN, None, {}, PARTS, 1.0)
    assert found[0].layers == NAMES[-5:] and found[1].layers == NAMES[-15:]
    assert all("scores" not in a.name for a in found)


def test_weights_of_blocks_cost_more_than_adapters_where_only_adapters_were_measured() -> None:
    for chosen in (CHOSEN.layers, NAMES, layers(0, 29)):
        lora = CALIBRATION.estimate("a", Selection("lora", chosen, PARTS, ""))
        weights = CALIBRATION.estimate("a", Selection("weights", chosen, (), ""))
        assert weights.tuning_seconds > lora.tuning_seconds
        assert weights.trainable_parameters == 800 * len(chosen)


def test_a_calibration_is_saved_and_read_back() -> None:
    assert Calibration.from_dict(CALIBRATION.to_dict()) == CALIBRATION
    pairs = itertools.combinations(CALIBRATION.points, 2)
    assert all(a != b for a, b in pairs)
    assert models.block_index(CALIBRATION.points[0].layers[0]) == 29
