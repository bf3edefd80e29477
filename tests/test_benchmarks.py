"""The comparisons' own arithmetic: ratios by pairs, time to the same quality, the settings that are borrowed, the table."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("benchmarks", reason="the folder benchmarks/ is in the repository, not in the package")

import benchmarks.__main__ as run
from benchmarks import pairs, profile_step, table, work

from tunescope import models
from tunescope.data import ChatFormat
from tunescope.testing import save_tiny

ROOT = Path(__file__).parents[1]
QUIET = Console(quiet=True)


class Fake:
    """A side whose rounds take the seconds that are planted for it."""

    planted: dict[str, list[float]]
    asked: list[str]

    def __init__(self, row: str, side: str) -> None:
        self.side = side
        self.warm_up = self.round()

    def round(self) -> dict[str, Any]:
        self.asked.append(self.side)
        seconds = self.planted[self.side].pop(0)
        return {"seconds": seconds, "done": {"tokens": 5}, "quality": {"loss": 1.0}, "peak_bytes": int(100 * seconds)}

    def close(self) -> None: ...


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.planted, Fake.asked = {}, []
    monkeypatch.setattr(pairs, "Worker", Fake)
    return Fake


def test_ratios_are_of_pairs_and_neither_side_is_always_first(fake: type[Fake]) -> None:
    fake.planted = {"a": [9, 1, 2, 4], "b": [9, 2, 8, 4]}
    found = pairs.interleave("row", "a", "b", 3, QUIET)
    assert fake.asked == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert found["ratio"] == {"median": 2, "low": 1, "high": 4, "n_pairs": 3}
    assert found["seconds"] == {"a": 2, "b": 4} and found["peak_bytes"] == {"a": 400, "b": 800}
    assert found["memory_ratio"] == 0.5 and found["to_same_quality"] is None


def test_a_hopeless_setting_is_not_tried_twice(fake: type[Fake]) -> None:
    fake.planted = {"slow": [50, 40], "fast": [12, 10], "hopeless": [21]}
    assert pairs.fastest("row", ["slow", "fast", "hopeless"], QUIET) == {"slow": 40, "fast": 10, "hopeless": 21}


def test_time_to_the_same_quality_ends_where_both_got() -> None:
    def rounds(*curve: tuple[float, float]) -> list[dict[str, Any]]:
        points = [{"seconds": s, "held-out loss": loss} for s, loss in curve]
        return [{"quality": {"held-out loss": points[-1]["held-out loss"], "curve": points}}]

    ours, theirs = rounds((1, 3.0), (2, 2.0), (3, 1.0)), rounds((10, 2.5), (20, 1.9), (30, 1.8))
    found = pairs._to_same_quality(ours, theirs)
    assert found == {"held-out loss": 1.8, "median": 10, "low": 10, "high": 10}  # 30 s against 3 s


@pytest.mark.parametrize(
    ("changed", "borrowed"), [({}, True), ({"processor": "other"}, False), ({"packages": {"trl": "2"}}, False)]
)
def test_settings_are_borrowed_from_the_same_machine_and_packages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], borrowed: bool
) -> None:
    machine = {"processor": "this", "packages": {"trl": "1"}}
    before = {"peer_settings_seconds": {"x": 2.0, "y": 1.0}, "environment": machine | {"cores": 2} | changed}
    (tmp_path / "tuning.json").write_text(json.dumps(before))
    monkeypatch.setattr(run, "_RESULTS", tmp_path)
    monkeypatch.setattr(run, "fastest", lambda row, peers, _console: dict.fromkeys(peers, 7.0) | {"row": row})
    found = run._tried("tail", "tuning", ("x", "y"), machine, QUIET)
    assert found == ({"x": 2.0, "y": 1.0} if borrowed else {"x": 7.0, "y": 7.0, "row": "tuning"})
    assert run._tried("tail", None, ("x",), machine, QUIET) == {}


def test_the_readme_holds_the_table_of_the_results(tmp_path: Path) -> None:
    results = [ROOT / "benchmarks" / "results" / f"{row}.json" for row in run.ROWS]
    copy = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    copy.write_text(text, encoding="utf-8")
    table.write_table(results, copy)
    assert copy.read_text(encoding="utf-8") == text
    assert len(re.findall(r"^\| .*(✓|missed)", text, re.MULTILINE)) >= len([r for r in results if r.is_file()])
    with pytest.raises(SystemExit, match="the marks"):
        copy.write_text("nothing", encoding="utf-8")
        table.write_table(results, copy)


@pytest.mark.parametrize("row", run.ROWS)
def test_every_row_says_what_it_compares(row: str) -> None:
    module = importlib.import_module(f"benchmarks.rows.{row}")
    sides = set(module.SIDES)
    assert module.OURS in sides and set(module.PEERS) <= sides and module.TITLE and module.TARGET > 1
    assert all(name in sides and target > 0 for name, target in getattr(module, "BESIDE", {}).items())


FEW = {"_N_TRAIN": 8, "_N_HELD_OUT": 4, "_PER_TASK": 5, "_QUESTIONS": 4, "_SHOWN_TOKENS": 20}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model in the place of the real one."""
    folder = str(save_tiny(tmp_path / "tiny", n_layers=3))

    def load(dtype: str = "bfloat16") -> tuple[models.Loaded, ChatFormat]:
        loaded = models.load(folder, dtype=dtype, device=work.DEVICE)
        return loaded, ChatFormat(loaded.tokenizer)

    monkeypatch.setattr(work, "load", load)


@pytest.mark.parametrize("row", [row for row in run.ROWS if row != "layer_map_top"])
def test_a_row_computes_where_it_is_told_and_comes_to_the_same(
    row: str, tiny: None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"benchmarks.rows.{row}")
    for name, value in FEW.items():
        monkeypatch.setattr(module, name, value, raising=False)
    sides = [side for side in module.SIDES if not side.startswith(("trl", "lm-eval")) and "every row" not in side]
    for side in sides:
        rounds = []
        for place in (device, "cpu"):
            monkeypatch.setattr(work, "DEVICE", place)
            rounds.append(module.SIDES[side]()())
        there, here = rounds
        assert there.seconds > 0 and there.done == here.done
        numbers = [{k: v for k, v in one.quality.items() if isinstance(v, float)} for one in rounds]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02), side
    assert work.peak_bytes() > 0


def test_the_rate_of_products_is_measured_where_the_model_is(
    tiny: None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "DEVICE", device)
    model = models.bare(work.load("float32")[0].model)
    for module in model.model.layers[0].modules():  # wide enough to count
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(torch.ones(80, 80, device=device))
    assert profile_step.product_rate(model, 8, seconds=0.01) > 0
