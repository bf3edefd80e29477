"""The number format of a run: measured once, kept, and shared by runs that are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_study import write_study

from tunescope import engine, models
from tunescope.config import Config, load
from tunescope.studies import number_format, tune
from tunescope.studies.number_format import settled


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Config:
    quick = {"num_epochs": 1, "batch_size": 8, "lora_rank": 2, "learning_rate": 1e-3}
    study = write_study(tmp_path, model, tuning=quick)
    return load(study, ["dtype=auto", f"output_dir={tmp_path / 'runs/a'}"])


def says(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """The measurement of this machine is settled in advance."""
    faster = {"float32": (0.1, 0.2), "bfloat16": (0.2, 0.1)}[dtype]
    seconds = dict(zip(("float32", "bfloat16"), faster, strict=True))
    found = engine.calibrate.choose_format(seconds, {"float32": 1.0, "bfloat16": 1.0})
    monkeypatch.setattr(number_format, "_measured", lambda *_: found)


def tuned(config: Config, *, resume: bool = False) -> dict[str, Any]:
    return tune.run(config, arm="lora-all", resume=resume).read_json("environment.json")


def test_what_is_measured_is_used_and_stated(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "float32")
    found = tuned(config)
    assert found["dtype"] == "float32" == found["number_format"]["dtype"]
    assert found["number_format"]["seconds"] == {"float32": 0.1, "bfloat16": 0.2}
    assert "bfloat16 is only 0.50 times" in found["number_format"]["why"]


def test_the_measurement_is_real(config: Config) -> None:
    located = models.locate(config.model)
    chosen, found = settled(config, located, "cpu", 1)
    assert found is not None and chosen.dtype == found.dtype and found.repeats > 1
    assert min(found.seconds.values()) > 0 and min(found.matmul_gflops.values()) > 0
    assert settled(config, located, "cpu", 1)[1] is found  # once per process


def test_a_named_format_is_not_measured(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_format, "_measured", lambda *_: pytest.fail("measured"))
    named = config.model_copy(update={"dtype": "float32"})
    assert settled(named, models.locate(config.model), "cpu", 1) == (named, None)


def test_a_run_that_goes_on_keeps_what_it_began_with(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "float32")
    before = tuned(config)
    for name in ("costs.json", "results.json"):
        (config.output_dir / name).unlink(missing_ok=True)
    says(monkeypatch, "bfloat16")
    assert tuned(config, resume=True)["dtype"] == before["dtype"] == "float32"
    assert settled(config, models.locate(config.model), "cuda", 7)[0].dtype == "float32"


def test_runs_beside_each_other_are_comparable(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    says(monkeypatch, "float32")
    tuned(config)
    says(monkeypatch, "bfloat16")
    located = models.locate(config.model)

    def of(folder: str, threads: int = 1) -> str:
        return settled(config.model_copy(update={"output_dir": tmp_path / folder}), located, "cpu", threads)[0].dtype

    assert of("runs/b") == "float32"
    assert of("runs/b", threads=2) == of("elsewhere/b") == "bfloat16"
    path = config.output_dir / "environment.json"
    kept = path.read_text(encoding="utf-8")
    for change in (
        {"cpu": "another"},
        {"gpu": "another"},
        {"model": None},
        {"number_format": {"dtype": "float32"}},
        {"number_format": 3},
    ):
        path.write_text(json.dumps(json.loads(kept) | change), encoding="utf-8")
        assert of("runs/b") == "bfloat16", change
    path.write_text("{", encoding="utf-8")
    assert of("runs/b") == "bfloat16"
