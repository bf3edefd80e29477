"""Tune on one task, test on all: what each model is tuned on and asked, what is compared, and that a kill costs one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunescope.config import Config, load
from tunescope.errors import ConfigError
from tunescope.runs.folder import RunFolder
from tunescope.studies import matrix

SHOWN = [f"tasks.{i}.demonstrations={{count: 1}}" for i in range(3)]
QUICK = ["arms=[lora-all]", "tuning.num_epochs=1", "tuning.learning_rate=2e-3", "evaluation.latency_requests=0"]
QUICK += ["data.max_length=300", "data.max_train_examples=12", "tasks.2.train=null"]


def small(study: Path, folder: Path, *more: str) -> Config:
    return load(study, [f"output_dir={folder / 'matrix'}", *QUICK, *SHOWN, *more])


@pytest.fixture(scope="module")
def config(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small(study, tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def found(config: Config) -> dict[str, Any]:
    return matrix.run(config, seeds=[1, 2], half=["mood"])


def folder(config: Config, name: str) -> RunFolder:
    return RunFolder(config.output_dir / name)


def test_there_is_a_model_per_task_way_and_seed_each_tuned_on_its_own_task(
    config: Config, found: dict[str, Any]
) -> None:
    names = {p.name for p in config.output_dir.iterdir() if p.is_dir()}
    tuned = {f"{t}-{m}-{s}" for t in ("routing", "mood") for m in ("ft", "fticl") for s in (1, 2)}
    assert names == {"base", "mood-half-1", "mood-half-2"} | tuned
    for name in tuned:
        told = json.loads((config.output_dir / name / "weights" / "lora-all" / "training.json").read_text())
        assert told["tasks"] == [name.split("-")[0]] and told["seed"] == int(name[-1])
        assert told["demonstrations"][told["tasks"][0]]["at"] == (["train", "test"] if "fticl" in name else [])
        assert not (config.output_dir / name / "arms").exists()
    assert found["families"] == {"routing": "classification", "mood": "classification", "summary": "generation"}


def test_all_models_are_asked_the_same_examples_in_the_same_order(config: Config, found: dict[str, Any]) -> None:
    asked = {
        name: [(r["dataset"], r["id"]) for r in folder(config, name).read_jsonl("samples.jsonl")]
        for name in ("base", "routing-ft-1", "routing-fticl-2", "mood-ft-2")
    }
    assert len(set(map(str, asked.values()))) == 1
    assert len(asked["base"]) == 3 * (7 + 4)  # the first row of every file is a demonstration
    arms = {name: set(folder(config, name).read_jsonl("samples.jsonl")[0]["answers"]) for name in asked}
    assert arms == {
        "base": {"nothing", "prompt"},
        "routing-ft-1": {"zero-shot", "few-shot"},
        "mood-ft-2": {"zero-shot", "few-shot"},
        "routing-fticl-2": {"few-shot"},
    }


def test_a_cell_is_the_mean_of_what_was_answered_and_compares_with_the_base_asked_alike(
    config: Config, found: dict[str, Any]
) -> None:
    def scores(name: str, arm: str) -> Any:
        rows = folder(config, name).read_jsonl("samples.jsonl")
        return np.array(
            [r["answers"][arm]["score"] for r in rows if (r["task"], r["role"]) == ("summary", "in_domain")]
        )

    cell = next(
        c
        for c in found["cells"]
        if (c["tuned_on"], c["mode"], c["shots"], c["task"], c["role"]) == ("mood", "ft", "few", "summary", "in_domain")
    )
    by_seed = [scores(f"mood-ft-{seed}", "few-shot").mean() for seed in (1, 2)]
    assert cell["by_seed"] == pytest.approx(by_seed) and cell["value"] == pytest.approx(np.mean(by_seed))
    assert cell["difference"] == pytest.approx(np.mean(by_seed) - scores("base", "prompt").mean())
    assert cell["low"] <= cell["difference"] <= cell["high"] and cell["relation"] == "other"
    assert cell["collapse_rate"] is not None
    labels = [c for c in found["cells"] if c["task"] != "summary"]
    assert labels and all(c["collapse_rate"] is None for c in labels)
    assert (
        len(found["cells"]) == 6 * (2 + 2 * (2 + 1)) + 1
    )  # base two ways, two sources, FT two ways, FTICL one; a half


def test_the_six_findings_are_answered_one_by_one(found: dict[str, Any]) -> None:
    assert [f["number"] for f in found["findings"]] == [1, 2, 3, 4, 5, 6]
    by_number = {f["number"]: f for f in found["findings"]}
    assert by_number[3]["answer"] == "cannot tell" and by_number[3]["effect"] is None  # one generation task alone
    assert by_number[2]["effect"] is not None and by_number[5]["effect"] is not None
    moved = {(row["task"], row["mode"]): row["by_seed"] for row in found["weight_change"]}
    assert set(moved) == {(t, m) for t in ("routing", "mood") for m in ("ft", "fticl")} | {("mood", "half")}
    assert all(len(v) == 2 and min(v) > 0 for v in moved.values())
    assert by_number[4]["details"]["mood, ft"] == pytest.approx(np.mean(moved["mood", "ft"]))


def test_half_of_the_data_is_half(config: Config, found: dict[str, Any]) -> None:
    counts = [
        json.loads((config.output_dir / name / "weights/lora-all/training.json").read_text())["examples"]["mood"]
        for name in ("mood-half-1", "mood-ft-1")
    ]
    assert counts == [5, 11]  # of 6 and 12, a tenth held out


def test_called_again_it_reads_everything_back(config: Config, found: dict[str, Any]) -> None:
    files = {p: p.stat().st_mtime_ns for p in config.output_dir.rglob("*.safetensors")}
    assert matrix.run(config, seeds=[1, 2], half=["mood"]) == found
    assert {p: p.stat().st_mtime_ns for p in config.output_dir.rglob("*.safetensors")} == files


def test_stopped_in_a_model_it_goes_on_with_that_model(
    study: Path, tmp_path: Path, config: Config, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, original, calls = small(study, tmp_path), matrix.measure_arm, []

    def stops_once(*args: Any, **more: Any) -> Any:
        calls.append(args[1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args, **more)

    monkeypatch.setattr(matrix, "measure_arm", stops_once)
    with pytest.raises(KeyboardInterrupt):
        matrix.run(mine, seeds=[1])
    matrix.run(mine, seeds=[1])
    for name in ("base", "routing-ft-1", "routing-fticl-1", "mood-ft-1", "mood-fticl-1"):
        assert (folder(mine, name).path / "samples.jsonl").read_bytes() == (
            folder(config, name).path / "samples.jsonl"
        ).read_bytes()
    assert calls.count("nothing") == 1


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (["tasks.1.demonstrations=null"], {}, "task 'mood' has no demonstrations"),
        (["arms=[nothing, prompt]"], {}, "list one"),
        (["tasks.0.train=null", "tasks.1.train=null"], {}, "no task has train data"),
        ([], {"seeds": []}, "seeds: got none"),
        ([], {"seeds": [1, 1]}, "each once"),
        ([], {"half": ["summary"]}, "allowed are the tasks with train data: routing, mood"),
    ],
)
def test_what_cannot_be_a_matrix_is_refused(
    change: list[str], arguments: dict[str, Any], said: str, study: Path, tmp_path: Path
) -> None:
    mine = small(study, tmp_path, *change)
    with pytest.raises(ConfigError, match=said):
        matrix.run(mine, **arguments)
    assert not mine.output_dir.exists()
