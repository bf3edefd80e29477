"""Tuning one arm and measuring saved weights agree with the proof of concept; a preview keeps nothing."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_study import ALL_ARMS, TUNED_ARMS, save_model, write_jsonl

from tunescope import engine, models
from tunescope.config import Config, load
from tunescope.errors import ConfigError, DataError, IntegrityError, ModelError, RunError
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast, Selection
from tunescope.studies import evaluate, poc, tune

ADAPTER = "adapter_model.safetensors"


def with_settings(study: Path, folder: Path, *overrides: str) -> Config:
    """The shared study with other settings and a run folder of its own."""
    return load(study, [f"output_dir={folder / 'own'}", *overrides])


def weights_of(run: RunFolder, arm: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / "weights" / arm).glob("*.safetensors")}


@pytest.mark.parametrize("arm", TUNED_ARMS)
def test_one_arm_alone_gets_the_weights_that_the_whole_study_gave_it(
    arm: str, study: Path, run: RunFolder, tmp_path: Path
) -> None:
    alone = tune.run(with_settings(study, tmp_path), arm)
    assert weights_of(alone, arm) == weights_of(run, arm) != {}
    assert [path.name for path in (alone.path / "weights").iterdir()] == [arm]
    assert not (alone.path / "arms").exists() and not alone.has("results.json") and not alone.has("verdict.json")
    assert [row["step"] for row in alone.read_jsonl("steps.jsonl")] == list(range(1, 11))
    assert alone.read_json("status.json")["state"] == "done"
    (cost,) = alone.read_json("costs.json")["actual"]
    assert cost["arm"] == arm and cost["steps"] == 10
    assert [row["event"] for row in alone.read_jsonl("ledger.jsonl")] == ["data accepted", "plan proposed"]
    assert ledger.verify(alone.path / "ledger.jsonl").n == 2


@pytest.mark.parametrize("arm", ["nothing", "prompt", "lora", ""])
def test_an_arm_that_is_not_tuned_is_refused_before_anything_is_written(arm: str, study: Path, tmp_path: Path) -> None:
    config = with_settings(study, tmp_path)
    with pytest.raises(ConfigError, match=r"is not tuned; allowed: selected, random, top-third, lora-all, full"):
        tune.run(config, arm)
    assert not config.output_dir.exists()


def changed_parameters(run: RunFolder, arm: str, model: Path) -> dict[str, Any]:
    """Names of the weights that differ from the base model, with those before and after."""
    base, own = (models.load(str(model), dtype="float32") for _ in range(2))
    tuned = engine.attach(own, run.path / "weights" / arm)
    before = dict(base.model.named_parameters())
    return {name: (before[name], p) for name, p in tuned.named_parameters() if not before[name].equal(p)}


@pytest.mark.parametrize(
    ("overrides", "layers", "parts"),
    [
        (["selection.blocks=[block.1]"], {1}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "input_layernorm"}),
        (["selection.blocks=['2-3']", "tuning.target_modules=[v, down]"], {2, 3}, {"v_proj", "down_proj"}),
    ],
)
def test_the_weights_of_the_blocks_named_by_hand_move_and_no_others(
    overrides: list[str], layers: set[int], parts: set[str], study: Path, model: Path, tmp_path: Path
) -> None:
    fixed = ["dtype=float32", "tuning.method=weights", "tuning.learning_rate=1e-3", "tuning.num_epochs=1"]
    config = with_settings(study, tmp_path, *fixed, *overrides)
    run = tune.run(config, "selected")
    names = list(changed_parameters(run, "selected", model))
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in names} == layers
    moved = {part for name in names for part in name.split(".")}
    assert parts <= moved
    assert len(parts) > 2 or {name.split(".")[-2] for name in names} == parts
    selection = Selection.from_dict(run.read_json("layers.json")["selections"]["selected"])
    assert set(selection.layers) == {f"block.{i}" for i in layers} and "by hand" in selection.why


# Measuring.


@pytest.fixture(scope="module")
def measured(study: Path, run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The weights of the finished run, measured again, all arms in one go."""
    config = with_settings(study, tmp_path_factory.mktemp("measured"))
    return evaluate.run(config, [run.path / "weights" / arm for arm in TUNED_ARMS])


def test_saved_weights_score_as_they_did_in_the_study_that_made_them(measured: RunFolder, run: RunFolder) -> None:
    def comparable(
        folder: RunFolder,
    ) -> list[dict[str, Any]]:  # the seed is that of the tuning, of which it knows nothing
        return [row | {"seed": None} for row in folder.read_json("results.json")["results"]]

    assert comparable(measured) == comparable(run)
    assert (measured.path / "samples.jsonl").read_bytes() == (run.path / "samples.jsonl").read_bytes()
    assert (measured.path / "risk.json").read_bytes() == (run.path / "risk.json").read_bytes()


def test_a_measurement_tunes_nothing_and_writes_no_weights(measured: RunFolder, run: RunFolder) -> None:
    assert not (measured.path / "weights").exists() and not (measured.path / "arms").exists()
    assert not measured.has("steps.jsonl")
    costs = [Forecast.from_dict(row) for row in measured.read_json("costs.json")["actual"]]
    assert [cost.arm for cost in costs] == ALL_ARMS
    assert all(cost.tuning_seconds == 0 for cost in costs)
    sizes = {row["arm"]: row["adapter_bytes"] for row in run.read_json("costs.json")["actual"]}
    assert {cost.arm: cost.adapter_bytes for cost in costs} == sizes
    rows = measured.read_jsonl("ledger.jsonl")
    assert [row["event"] for row in rows] == ["data accepted", "weights to measure", "verdict"]
    assert set(rows[1]["details"]) == set(TUNED_ARMS)


def test_without_weights_the_untuned_arms_are_measured(study: Path, run: RunFolder, tmp_path: Path) -> None:
    found = evaluate.run(with_settings(study, tmp_path, "arms=[nothing]"))
    rows = [row for row in run.read_json("results.json")["results"] if row["arm"] == "nothing"]
    assert found.read_json("results.json")["results"] == rows


def test_a_measurement_is_resumed_with_the_same_weights_only(
    study: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(run.path / "weights" / "selected", tmp_path / "mine"))
    config = with_settings(study, tmp_path, "arms=[nothing]")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "write_results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(config, [own])
    for weights in ([], [run.path / "weights" / "random"]):
        with pytest.raises(IntegrityError, match="measures other weights"):
            evaluate.run(config, weights, resume=True)
    damaged = bytearray((own / ADAPTER).read_bytes())
    damaged[-1] ^= 1
    whole = (own / ADAPTER).read_bytes()
    (own / ADAPTER).write_bytes(damaged)
    with pytest.raises(IntegrityError, match="they changed since"):
        evaluate.run(config, [own], resume=True)
    (own / ADAPTER).write_bytes(whole)
    done = evaluate.run(config, [own], resume=True)
    values = {row["arm"]: row["value"] for row in done.read_json("results.json")["results"] if row["role"] == "guard"}
    expected = {r["arm"]: r["value"] for r in run.read_json("results.json")["results"] if r["role"] == "guard"}
    assert values == {"nothing": expected["nothing"], "mine": expected["selected"]}
    before = (done.path / "results.json").stat().st_mtime_ns
    assert evaluate.run(config, [own], resume=True).path == done.path
    assert (done.path / "results.json").stat().st_mtime_ns == before
    with pytest.raises(IntegrityError, match="measures other weights"):
        evaluate.run(config, [], resume=True)


def other_weights(folder: Path, kind: str, run: RunFolder) -> Path:
    """A folder that `evaluate` must refuse."""
    good = run.path / "weights" / "selected"
    if kind == "missing":
        return folder / "nowhere"
    if kind == "a run":
        return run.path
    own = Path(shutil.copytree(good, folder / "weights"))
    if kind == "pickled":
        (own / ADAPTER).rename(own / "adapter_model.bin")
    elif kind == "cut off":
        (own / ADAPTER).write_bytes((own / ADAPTER).read_bytes()[:-100])
    elif kind == "no header":
        (own / ADAPTER).write_bytes(b"\xff" * 64)
    elif kind == "wider":
        save_model(folder / "wide", d_model=32)
        config = load(run.path / "config.yaml", [f"model={folder / 'wide'}", f"output_dir={folder / 'tuned'}"])
        config = config.model_copy(update={"tuning": config.tuning.model_copy(update={"learning_rate": 1e-3})})
        return tune.run(config, "selected").path / "weights" / "selected"
    elif kind == "deeper":
        from safetensors.torch import load_file, save_file

        tensors = load_file(own / ADAPTER)
        save_file({name.replace(".layers.", ".layers.9"): t for name, t in tensors.items()}, own / ADAPTER)
    elif kind == "empty":
        shutil.rmtree(own)
        own.mkdir()
    return own


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("missing", ConfigError, "no such folder"),
        ("empty", ModelError, "holds neither"),
        ("a run", ModelError, "weights/full"),
        ("pickled", ModelError, "pickled adapters are not read"),
        ("cut off", IntegrityError, "damaged"),
        ("no header", IntegrityError, "damaged"),
        ("wider", ModelError, "another base model"),
        ("deeper", ModelError, "another base model"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(
    kind: str, error: type[Exception], said: str, study: Path, run: RunFolder, tmp_path: Path
) -> None:
    config = with_settings(study, tmp_path)
    with pytest.raises(error, match=said):
        evaluate.run(config, [other_weights(tmp_path, kind, run)])
    assert not config.output_dir.exists()


def test_folders_of_the_same_name_are_told_apart_by_their_run(tmp_path: Path) -> None:
    def named(names: Sequence[str]) -> dict[str, Path]:
        paths = [tmp_path / name for name in names]
        for path in paths:
            path.mkdir(parents=True, exist_ok=True)
        return evaluate.name_arms(paths)

    assert list(named(["one/weights/selected", "two/weights/selected"])) == ["one-selected", "two-selected"]
    assert list(named(["one/weights/selected", "two/weights/full"])) == ["selected", "full"]
    assert list(named(["one/weights/nothing"])) == ["one-nothing"]
    assert list(named(["one/weights/<b>x"])) == ["_b_x"]
    with pytest.raises(ConfigError, match="give each folder once"):
        named(["one/weights/full", "one/weights/full"])


# Before anything runs.


@pytest.mark.parametrize("kind", ["poc", "tune", "evaluate"])
def test_a_preview_forecasts_every_arm_and_writes_nothing(
    kind: str, study: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_settings(study, tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = sorted(study.parent.rglob("*"))
    if kind == "poc":
        forecasts, selections = poc.preview(config)
        assert [f.arm for f in forecasts] == ALL_ARMS and list(selections) == TUNED_ARMS
        planned = run.read_json("layers.json")["selections"]
        assert {arm: list(s.layers) for arm, s in selections.items()} == {a: s["layers"] for a, s in planned.items()}
    elif kind == "tune":
        forecasts, selections = tune.preview(config, "random")
        assert [f.arm for f in forecasts] == list(selections) == ["random"]
        assert forecasts[0].tuning_seconds > 0
    else:
        forecasts, selections = evaluate.preview(config, [run.path / "weights" / "full"])
        assert [f.arm for f in forecasts] == ["nothing", "prompt", "full"] and selections == {}
    assert all(f.evaluation_seconds > 0 for f in forecasts)
    assert not config.output_dir.exists() and sorted(study.parent.rglob("*")) == before
    assert list(scratch.iterdir()) == []


NO_TRAIN = "tasks.0.train=null"


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (
            ["selection.blocks=[block.9, block.1]"],
            ConfigError,
            [r"selection.blocks: layer pattern 'block.9' matches nothing"],
        ),
        (
            ["tuning.target_modules=[q, qq]"],
            ConfigError,
            [r"tuning.target_modules: part 'qq' is not known \(did you mean q"],
        ),
        (["data.validation_fraction=0"], ConfigError, ["learning_rate is auto"]),
        ([NO_TRAIN], ConfigError, ["arm prompt: task 'routing' has no training example"]),
        (
            [NO_TRAIN, "tasks.1.train=null", "tasks.2.train=null", "arms=[selected]"],
            ConfigError,
            ["arms selected: nothing to tune on"],
        ),
        (["tasks.0.test=null", "tasks.1.test=null", "tasks.2.test=null"], DataError, ["no task has a `test` file"]),
        (["tasks.0.test=null", "tasks.0.train=null"], ConfigError, ["neither `train` nor `test`"]),
        (["tasks.0.name=guard"], ConfigError, ["cannot be named 'guard'"]),
        (["data.max_length=40"], DataError, [r"summary\.train\.jsonl:\d+: prompt \d+ \+ answer"]),
        (["evaluation.max_new_tokens=4090"], ConfigError, ["task 'summary'.*reads at most 4096"]),
        (["device='cuda:7'"], ConfigError, ["device cuda:7"]),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    overrides: list[str], error: type[Exception], said: list[str], study: Path, tmp_path: Path
) -> None:
    config = with_settings(study, tmp_path, *overrides)
    with pytest.raises(error) as caught:
        poc.run(config)
    assert all(re.search(pattern, str(caught.value)) for pattern in said)
    assert not config.output_dir.exists()


def test_all_settings_that_cannot_work_are_named_at_once(study: Path, tmp_path: Path) -> None:
    config = with_settings(
        study, tmp_path, "selection.blocks=[x]", "tuning.target_modules=[y]", "data.validation_fraction=0", NO_TRAIN
    )
    with pytest.raises(ConfigError) as caught:
        poc.run(config)
    assert len(caught.value.problems) == 4


def test_a_test_example_that_the_prompt_would_show_is_refused_by_line(study: Path, tmp_path: Path) -> None:
    data = study.parent / "data"
    same = shutil.copyfile(data / "routing.train.jsonl", tmp_path / "same.jsonl")
    overrides = [f"tasks.0.test={same}", "data.drop_duplicates=false", "evaluation.demonstrations=3"]
    config = with_settings(study, tmp_path, *overrides)
    with pytest.raises(ConfigError, match=r"same\.jsonl:\d+: arm prompt shows this example") as caught:
        poc.run(config)
    assert len(caught.value.problems) == 3 and not config.output_dir.exists()


def test_two_out_of_domain_files_of_one_name_are_refused(study: Path, tmp_path: Path) -> None:
    row = {"instruction": "Desk?", "input": "zzz", "output": "it"}
    twin = write_jsonl(tmp_path / "routing.plant_b.jsonl", [row])
    first = study.parent / "data" / "routing.plant_b.jsonl"
    config = with_settings(study, tmp_path, f"tasks.0.out_of_domain=[{first}, {twin}]")
    with pytest.raises(ConfigError, match=r"2 out_of_domain files are named 'routing.plant_b'"):
        poc.run(config)
    assert not config.output_dir.exists()


def test_an_answer_that_is_no_json_object_is_an_error_with_its_line(study: Path, tmp_path: Path) -> None:
    config = with_settings(study, tmp_path, "tasks.2.metric=json_fields")
    with pytest.raises(DataError, match=r"summary\.train\.jsonl:1: ") as caught:
        poc.run(config)
    assert len(caught.value.problems) == 14 + 8 + 5


def test_a_folder_that_is_not_empty_is_refused_before_the_data_are_read(study: Path, tmp_path: Path) -> None:
    config = with_settings(study, tmp_path, "tasks.0.train=nowhere.jsonl")
    config.output_dir.mkdir()
    (config.output_dir / "thesis.docx").write_text("mine")
    for start in (poc.run, lambda c: tune.run(c, "selected"), evaluate.run):
        with pytest.raises(RunError, match="not empty and is not a run"):
            start(config)
    assert [path.name for path in config.output_dir.iterdir()] == ["thesis.docx"]
