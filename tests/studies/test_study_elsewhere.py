"""Whole studies on a device that is not the processor: they come to the same ends as on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_questions
from tiny_stream import stream
from tiny_study import write_study

from tunescope.config import load
from tunescope.runs.folder import RunFolder
from tunescope.studies import knowledge, learn, machine, poc, setup, tune
from tunescope.studies import map as layer_map

FLOAT32 = "dtype=float32"
ARMS = ["nothing", "prompt", "selected", "top-third", "full"]
SMALL = {"n_bootstrap": 20, "n_permutations": 20, "causal_examples": 2, "specialist": {"steps": 3}, "mode": "mossa"}
Both = Callable[[Callable[[Path], RunFolder]], tuple[RunFolder, RunFolder]]


@pytest.fixture
def both(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Both:
    """Does the same on the processor and on the device, each with a folder and a cache of its own."""

    def run(study: Callable[[Path], RunFolder]) -> tuple[RunFolder, RunFolder]:
        done = []
        for name, place in (("here", "cpu"), ("there", device)):
            monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / name / "cache"))
            for module in (machine, setup, knowledge):
                monkeypatch.setattr(module, "pick_device", lambda wanted, place=place: place)
            done.append(study(tmp_path / name))
        assert done[1].read_json("environment.json")["device"] == device
        return done[0], done[1]

    return run


def assert_alike(found: Any, wanted: Any, what: str = "", *, tolerance: float = 2e-3) -> None:
    """The same values at the same places; numbers within a tolerance."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), what
        for key in wanted:
            assert_alike(found[key], wanted[key], f"{what}.{key}", tolerance=tolerance)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), what
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_alike(one, other, f"{what}[{i}]", tolerance=tolerance)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=tolerance, rel=tolerance), what
    else:
        assert found == wanted, what


def steps_of(run: RunFolder) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("arm", "step", "loss", "grad_norm")} for row in run.read_jsonl("steps.jsonl")]


def test_the_proof_of_concept(both: Both, model: Path) -> None:
    def study(folder: Path) -> RunFolder:
        config = load(write_study(folder, model, arms=ARMS), [FLOAT32, "tuning.learning_rate=1e-3"])
        return poc.run(config)

    here, there = both(study)
    assert_alike(steps_of(there), steps_of(here))
    assert_alike(there.read_jsonl("samples.jsonl"), here.read_jsonl("samples.jsonl"), tolerance=1e-2)
    values = [[row["value"] for row in run.read_json("results.json")["results"]] for run in (there, here)]
    assert_alike(*values)


def test_a_search_over_kept_states(both: Both, model: Path) -> None:
    pytest.importorskip("optuna")

    def study(folder: Path) -> RunFolder:
        config = load(write_study(folder, model), [FLOAT32, "tuning.num_epochs=1", "data.validation_fraction=0.25"])
        return tune.run(config, "top-third", trials=2)

    here, there = both(study)
    tried = [
        [(t["values"], t["held_out_loss"]) for t in run.read_json("search.json")["trials"]] for run in (there, here)
    ]
    assert_alike([list(t) for t in tried[0]], [list(t) for t in tried[1]])


def test_the_layer_map(both: Both, model: Path) -> None:
    def study(folder: Path) -> RunFolder:
        return layer_map.run(load(write_study(folder, model, arms=["nothing"], map=SMALL), [FLOAT32]))

    here, there = both(study)
    for row, other in zip(*(run.read_json("layers.json")["scores"] for run in (there, here)), strict=True):
        assert (row["name"], row["task"], row["n"]) == (other["name"], other["task"], other["n"])
        assert_alike(row["values"], other["values"], f"{other['name']} {other['task']}")


def test_a_stream_of_tasks(both: Both, model: Path) -> None:
    here, there = both(lambda folder: learn.run(stream(_made(folder), model, "run", ("routing", "mood"), FLOAT32)))
    assert_alike(steps_of(there), steps_of(here))


def test_what_a_model_knows_and_learns(both: Both, model: Path) -> None:
    def study(folder: Path) -> RunFolder:
        settings = tiny_questions.write_study(_made(folder), model)
        return knowledge.run(tiny_questions.config_of(settings, folder / "run", FLOAT32), intervention=True)

    here, there = both(study)
    assert_alike(steps_of(there), steps_of(here))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
