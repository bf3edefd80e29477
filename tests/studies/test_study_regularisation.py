"""A study with everything against overfitting on: read, checked, tuned, continued after a stop, and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_study_resume import StopsIn
from tiny_study import settings, write_jsonl, write_study

from tunescope import data, engine, models, report
from tunescope.config import Config, load
from tunescope.errors import ConfigError, DataError, IntegrityError
from tunescope.runs.folder import RunFolder
from tunescope.studies import poc, tune
from tunescope.studies.inputs import read_inputs
from tunescope.studies.regularisation import longest, loss_terms, rows_of, training_rows

REGULARISATION = {
    "l2_sp": 0.1,
    "kl_to_base": 2.0,
    "kl_examples": ["data/general.jsonl"],
    "kl_max_examples": 3,
    "kl_batch_size": 2,
    "label_smoothing": 0.05,
    "demonstrations": 2,
    "noise_fraction": 0.3,
}


def regularised(
    folder: Path, model: Path, *, templates: tuple[str, ...] = ("In short: {instruction}",), **changes: Any
) -> Config:
    """The tiny study with all of it on and a file of general examples, one of which stands in the guard set too."""
    values = settings(model)
    values["tasks"][0]["templates"] = list(templates)
    tuning = values["tuning"] | {
        "learning_rate": 5e-3,
        "weight_decay": 0.01,
        "regularisation": REGULARISATION | changes,
    }
    path = write_study(folder, model, tasks=values["tasks"], tuning=tuning, arms=["nothing", "selected", "random"])
    guard = [json.loads(line) for line in (folder / "data/guard.jsonl").read_text().splitlines()]
    general = [
        {"instruction": f"Name the number {n} in words, please.", "output": n} for n in ("one", "seven", "forty")
    ]
    write_jsonl(folder / "data/general.jsonl", [guard[1], *general])
    return load(path)


@pytest.fixture(scope="module")
def config(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return regularised(tmp_path_factory.mktemp("regularised"), model)


@pytest.fixture(scope="module")
def finished(config: Config) -> RunFolder:
    return poc.run(config)


def weights_of(run: RunFolder, arm: str) -> bytes:
    return (run.path / "weights" / arm / "adapter_model.safetensors").read_bytes()


def test_the_general_file_is_read_recorded_and_kept_apart_from_the_guard_set(
    config: Config, finished: RunFolder
) -> None:
    (general,) = (f for f in finished.read_json("data.json")["files"] if f["role"] == "replay")
    assert general["path"].endswith("general.jsonl")
    assert (general["rows"], general["used"]) == (4, 3) and general["prompt_tokens"]["max"] > 10
    (leaked,) = (f for f in finished.read_json("data.json")["findings"] if f["code"] == "leakage")
    assert leaked["task"] == "replay" and leaked["line"] == 1 and "guard.jsonl:2" in leaked["message"]
    assert any(path.endswith("general.jsonl") for path in finished.read_json("environment.json")["files"])
    inputs = read_inputs(config)
    assert len(inputs.replay) == 3 and not {e.instruction for e in inputs.replay} & {
        e.instruction for e in inputs.guard
    }


def test_it_ends_and_is_reported(finished: RunFolder) -> None:
    assert finished.read_json("status.json")["state"] == "done"
    assert "general.jsonl" in report.build(finished.path).read_text(encoding="utf-8")
    (cost,) = (c for c in finished.read_json("costs.json")["forecast"] if c["arm"] == "selected")
    assert cost["tuning_seconds"] > 0


def test_a_stopped_run_continues_to_the_same_weights(model: Path, finished: RunFolder, tmp_path: Path) -> None:
    again = regularised(tmp_path, model)
    with pytest.raises(KeyboardInterrupt):
        poc.run(again, progress=StopsIn("selected: tune"))
    assert (again.output_dir / "arms/selected/checkpoint.safetensors").is_file()
    run = poc.run(again, resume=True)
    for arm in ("selected", "random"):
        assert weights_of(run, arm) == weights_of(finished, arm)
    steps = [[{**row, "seconds": 0} for row in r.read_jsonl("steps.jsonl")] for r in (run, finished)]
    assert steps[0] == steps[1] != []


def test_another_general_file_is_refused_on_resume(model: Path, tmp_path: Path) -> None:
    config = regularised(tmp_path, model)
    with pytest.raises(KeyboardInterrupt):
        poc.run(config, progress=StopsIn("selected: tune"))
    write_jsonl(tmp_path / "data/general.jsonl", [{"instruction": "Name another number.", "output": "ten"}])
    with pytest.raises(IntegrityError, match=r"general.jsonl: changed since this run began"):
        poc.run(config, resume=True)


@pytest.mark.parametrize(
    "off",
    [
        {"l2_sp": 0.0},
        {"kl_to_base": 0.0},
        {"label_smoothing": 0.0},
        {"demonstrations": 0},
        {"noise_fraction": 0.0},
        {"templates": ()},
    ],
    ids=lambda off: next(iter(off)),
)
def test_every_setting_reaches_the_weights(
    off: dict[str, Any], model: Path, finished: RunFolder, tmp_path: Path
) -> None:
    run = tune.run(regularised(tmp_path, model, **off), "selected")
    assert weights_of(run, "selected") != weights_of(finished, "selected")


def test_the_weights_stay_nearer_to_the_base(model: Path, finished: RunFolder, tmp_path: Path) -> None:
    """Strong terms, measured in the saved weights."""

    def size(run: RunFolder) -> float:
        loaded = models.load(str(model), dtype="float32")
        tuned = engine.attach(loaded, run.path / "weights" / "selected").merge_and_unload()
        base = models.load(str(model), dtype="float32").model
        pairs = zip(tuned.parameters(), base.parameters(), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    strong = tune.run(regularised(tmp_path, model, l2_sp=50.0, kl_to_base=50.0), "selected")
    assert 0 < size(strong) < 0.5 * size(finished)


# What is encoded.


@pytest.fixture(scope="module")
def chat(model: Path) -> data.ChatFormat:
    return data.ChatFormat(models.load_tokenizer(str(model)))


def test_rows_of_an_epoch_have_the_targets_of_the_examples(config: Config, chat: data.ChatFormat) -> None:
    inputs = read_inputs(config)
    rows = training_rows(config, inputs, chat)
    plain = [chat.encode(example) for example in inputs.train]
    epochs = [rows_of(rows, epoch) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    for found in epochs:
        assert [row.target_ids for row in found] == [row.target_ids for row in plain]
        assert max(map(len, found)) <= config.data.max_length
        assert sum(map(len, found)) > sum(map(len, plain))
    assert longest(config, inputs, chat, rows) == max(len(row) for found in epochs for row in found)


def test_with_nothing_on_the_rows_are_the_plain_ones(model: Path, tmp_path: Path, chat: data.ChatFormat) -> None:
    config = load(write_study(tmp_path, model))
    inputs = read_inputs(config)
    rows = training_rows(config, inputs, chat)
    assert not callable(rows) and rows_of(rows, 5) == [chat.encode(example) for example in inputs.train]
    assert inputs.replay == () and loss_terms(config, inputs, chat, None) == []  # type: ignore[arg-type]


def test_a_template_that_would_drop_the_case_is_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    config = regularised(tmp_path, model)
    path = tmp_path / "data/routing.train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [row | {"instruction": f"Desk {i}?"} for i, row in enumerate(rows)])
    config = load(tmp_path / "study.yaml", ["tasks.0.templates=[Sort it.]"])
    with pytest.raises(DataError, match=r"'Sort it.' has no {instruction}, but instructions differ"):
        poc.run(config)
    assert not config.output_dir.exists()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("Please " * 40 + "{instruction}", r"the example has \d+ tokens, allowed: 160"),
        ("<end> {instruction}", "control token"),
    ],
)
def test_a_template_that_does_not_fit_the_model_is_refused_before_anything_is_written(
    template: str, said: str, model: Path, tmp_path: Path
) -> None:
    config = regularised(tmp_path, model, templates=(template,))
    with pytest.raises(ConfigError, match=said):
        poc.run(config)
    assert not config.output_dir.exists()


def test_a_task_cannot_take_the_name_of_the_general_examples(model: Path, tmp_path: Path) -> None:
    values = settings(model)
    values["tasks"][2]["name"] = "replay"
    with pytest.raises(ConfigError, match="cannot be named 'replay'"):
        read_inputs(load(write_study(tmp_path, model, tasks=values["tasks"])))
