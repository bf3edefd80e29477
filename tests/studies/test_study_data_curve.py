"""How much data: nested parts, the whole data reused, a kill survived, and a forecast only where the points carry one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tunescope.config import Config, load
from tunescope.errors import ConfigError
from tunescope.runs.folder import RunFolder
from tunescope.runs.generalisation import CurvePoint, DataCurve
from tunescope.studies import data_curve, many_arms, poc
from tunescope.studies.inputs import read_inputs

QUICK = ["arms=[nothing, lora-all]", "tuning.num_epochs=1", "evaluation.latency_requests=0"]
SHARES = "evaluation.curve=[0.25, 0.5]"


def with_curve(study: Path, folder: Path, *more: str) -> Config:
    return load(study, [f"output_dir={folder / 'own'}", *QUICK, "tuning.learning_rate=2e-3", SHARES, *more])


def curves(run: RunFolder) -> dict[str, DataCurve]:
    found = {}
    for row in run.read_json("curve.json")["curves"]:
        points = tuple(CurvePoint.from_dict(p) for p in row["points"])
        found[row["role"]] = dataclasses.replace(DataCurve.from_dict(row), points=points)
    return found


@pytest.fixture(scope="module")
def curved(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return poc.run(with_curve(study, tmp_path_factory.mktemp("curved")))


def test_every_part_holds_the_smaller_ones_and_all_have_the_same_held_out_and_test_examples(study: Path) -> None:
    inputs = read_inputs(load(study))
    small, large = data_curve.sizes(inputs, "full", [0.25, 0.5])
    for one, two, whole in zip(small.inputs.tasks, large.inputs.tasks, inputs.tasks, strict=True):
        assert whole.train[: len(one.train)] == one.train == two.train[: len(one.train)]
        assert len(one.train) == round(0.25 * len(whole.train)) and len(two.train) == round(0.5 * len(whole.train))
        assert one.validation == two.validation == whole.validation and one.version == whole.version
    assert small.name == f"full-on-{len(small.inputs.train)}"


def test_the_last_point_is_the_arm_that_was_tuned_already(curved: RunFolder) -> None:
    results = {(r["arm"], r["role"]): r for r in curved.read_json("results.json")["results"] if r["task"] == "*"}
    for role, curve in curves(curved).items():
        *parts, whole = curve.points
        assert curve.arm == "lora-all" and [p.share for p in curve.points] == [0.25, 0.5, 1.0]
        assert (whole.value, whole.low, whole.high) == pytest.approx(
            tuple(results["lora-all", role][key] for key in ("value", "low", "high"))
        )
        assert whole.tuning_seconds == 0 and all(p.tuning_seconds > 0 for p in parts)
        assert curve.untuned == pytest.approx(results["nothing", role]["value"])
        assert [p.n_train for p in curve.points] == sorted({p.n_train for p in curve.points})


def test_three_sizes_are_too_few_for_a_forecast_and_that_is_said(curved: RunFolder) -> None:
    for curve in curves(curved).values():
        assert curve.gain is None and curve.why == "too_few_sizes"
        assert curve.details == {"have": 3, "need": 4}


def test_the_rest_of_the_run_is_what_it_is_without_a_curve(curved: RunFolder, study: Path, tmp_path: Path) -> None:
    plain = poc.run(load(study, [f"output_dir={tmp_path / 'own'}", *QUICK, "tuning.learning_rate=2e-3"]))
    assert not plain.has("curve.json")
    for name in ("results.json", "samples.jsonl", "generalisation.json", "risk.json"):
        assert (plain.path / name).read_bytes() == (curved.path / name).read_bytes()
    assert [p.name for p in (curved.path / "weights").iterdir()] == ["lora-all"]
    assert {row["arm"] for row in curved.read_jsonl("steps.jsonl")} == {"lora-all"}
    assert not (curved.path / "arms").exists()
    times = [run.read_json("costs.json") for run in (plain, curved)]
    assert times[1]["total_seconds"] > sum(a["tuning_seconds"] for a in times[1]["actual"])


def test_a_run_that_is_stopped_within_the_curve_goes_on_with_the_next_size(
    curved: RunFolder, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_curve(study, tmp_path)
    tuned: list[str] = []
    original = many_arms.measure_arm

    def stops_once(bench: Any, arm: str, *args: Any, **more: Any) -> Any:
        if "-on-" in arm:  # a size of the curve
            tuned.append(arm)
        if len(tuned) == 2 and "-on-" in arm:
            raise KeyboardInterrupt
        return original(bench, arm, *args, **more)

    monkeypatch.setattr(many_arms, "measure_arm", stops_once)
    with pytest.raises(KeyboardInterrupt):
        poc.run(config)
    resumed = poc.run(config, resume=True)
    for role, curve in curves(resumed).items():
        assert [(p.n_train, p.value) for p in curve.points] == [
            (p.n_train, p.value) for p in curves(curved)[role].points
        ]


@pytest.mark.parametrize("method", ["sparse", "weights"])
def test_other_ways_of_tuning_have_a_curve_too(method: str, study: Path, tmp_path: Path) -> None:
    more = ["arms=[nothing, selected]", f"tuning.method={method}"]
    if method == "sparse":
        more += ["selection.score=magnitude", "selection.granularity=entry", "selection.budget=0.1"]
    found = curves(poc.run(with_curve(study, tmp_path, "guard=[]", *more)))
    assert [len(curve.points) for curve in found.values()] == [3, 3]


def test_four_sizes_can_carry_a_forecast(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study hands the fit what it measured: the errors of the points and resamples of the same examples."""
    seen: list[tuple[Any, ...]] = []
    original = data_curve.metrics.forecast_gain

    def spy(counts: Any, errors: Any, resamples: Any, **more: Any) -> Any:
        seen.append((counts, errors, resamples))
        return original(counts, errors, resamples, **more)

    monkeypatch.setattr(data_curve.metrics, "forecast_gain", spy)
    run = poc.run(with_curve(study, tmp_path, "guard=[]", "evaluation.curve=[0.125, 0.25, 0.5]"))
    for (counts, errors, resamples), curve in zip(seen, curves(run).values(), strict=True):
        assert [1 - p.value for p in curve.points] == pytest.approx(errors) and counts == [
            p.n_train for p in curve.points
        ]
        assert resamples.shape == (4, 200)
        assert resamples.mean(axis=1) == pytest.approx(errors, abs=0.06)
        assert curve.why != "too_few_sizes" and curve.exponent is not None


def test_without_a_tuned_arm_there_is_no_curve(study: Path, tmp_path: Path) -> None:
    run = poc.run(with_curve(study, tmp_path, "arms=[nothing]"))
    assert not run.has("curve.json")


@pytest.mark.parametrize("shares", ["[0.5, 0.25]", "[0.5, 0.5]", "[0, 0.5]", "[0.5, 1]", "[2]", "[a]"])
def test_shares_that_are_no_nested_parts_are_refused(shares: str, study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.curve"):
        with_curve(study, tmp_path, f"evaluation.curve={shares}")


def test_two_shares_of_the_same_number_of_examples_are_refused_before_anything_is_written(
    study: Path, tmp_path: Path
) -> None:
    config = with_curve(study, tmp_path, "evaluation.curve=[0.01, 0.02]")
    with pytest.raises(ConfigError, match=r"share 0\.01 of \d+ training examples is 3, and so is the next larger one"):
        poc.run(config)
    assert not config.output_dir.exists()


def test_the_forecast_of_its_cost_grows_with_the_shares(study: Path, tmp_path: Path) -> None:
    config = with_curve(study, tmp_path)
    forecasts, _ = poc.preview(config)
    seconds = data_curve.forecast_curve(config, forecasts)
    lora = next(f for f in forecasts if f.arm == "lora-all")
    assert seconds == pytest.approx(0.75 * lora.tuning_seconds + 2 * lora.evaluation_seconds)
    assert data_curve.forecast_curve(load(study), forecasts) == 0
