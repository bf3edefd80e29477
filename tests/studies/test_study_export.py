"""Exported weights are what was tuned, and load with the tools of other people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunescope import engine, models
from tunescope.config import load
from tunescope.errors import ModelError, RunError
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.studies import export, tune

Tune = Callable[[str], RunFolder]
IDS = torch.tensor([[257, 64, 65, 66, 70, 80, 90, 100, 256]])


@pytest.fixture(scope="module")
def tuned(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Tune:
    """Tunes the selected blocks in float32, with adapters or the weights themselves; once each."""
    done: dict[str, RunFolder] = {}

    def once(method: str) -> RunFolder:
        if method not in done:
            folder = tmp_path_factory.mktemp(method)
            fixed = ["dtype=float32", "tuning.learning_rate=5e-3", "tuning.num_epochs=1", f"tuning.method={method}"]
            done[method] = tune.run(load(study, [f"output_dir={folder / 'run'}", *fixed]), "selected")
        return done[method]

    return once


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["lora", "weights"])
def test_a_merged_model_is_the_tuned_one_in_one_piece(method: str, tuned: Tune, model: Path, tmp_path: Path) -> None:
    run = tuned(method)
    target = export.run(run.path, "selected", tmp_path / "out" / "merged")
    base = models.load(str(model), dtype="float32")
    untuned = logits(base.model)
    expected = logits(engine.attach(base, run.path / "weights" / "selected"))
    merged = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    assert not torch.allclose(untuned, expected, atol=1e-2)
    assert AutoTokenizer.from_pretrained(target).chat_template == AutoTokenizer.from_pretrained(model).chat_template
    assert "tuned from" in (target / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]
    reloaded = models.load(str(target), dtype="float32")  # and tunescope takes it as a model again
    assert torch.allclose(logits(reloaded.model), logits(merged), atol=1e-4)


def test_an_exported_adapter_is_the_one_that_was_tuned(tuned: Tune, model: Path, tmp_path: Path) -> None:
    run = tuned("lora")
    (tmp_path / "adapter").mkdir()  # an empty folder may be there
    target = export.run(run.path, "selected", tmp_path / "adapter", form="adapter")
    source = run.path / "weights" / "selected"
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), target)
    expected = engine.attach(models.load(str(model), dtype="float32"), source)
    assert torch.allclose(logits(adapted), logits(expected), atol=1e-5)


def test_an_export_is_noted_in_the_ledger_with_its_hash(tuned: Tune, tmp_path: Path) -> None:
    run = tuned("lora")
    before = ledger.verify(run.path / "ledger.jsonl").n
    target = export.run(run.path, "selected", tmp_path / "noted", form="adapter")
    assert ledger.verify(run.path / "ledger.jsonl").n == before + 1
    last = run.read_jsonl("ledger.jsonl")[-1]
    assert last["event"] == "export" and last["details"]["to"] == str(target)
    assert last["details"]["sha256"] == {
        "adapter_model.safetensors": models.sha256_of(target / "adapter_model.safetensors")
    }


def test_the_arm_full_is_a_whole_model_already(run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    target = export.run(copy.path, "full", tmp_path / "whole")
    measured = AutoModelForCausalLM.from_pretrained(run.path / "weights" / "full", dtype=torch.float32)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)), logits(measured))
    with pytest.raises(ModelError, match=r"there is no adapter; use --format merged"):
        export.run(copy.path, "full", tmp_path / "adapter", form="adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("selectde", r"did you mean selected"),
        ("nothing", r"there are: selected"),
        ("../selected", r"no weights of arm"),
    ],
)
def test_an_arm_without_weights_is_refused(arm: str, said: str, tuned: Tune, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=said):
        export.run(tuned("lora").path, arm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_holds_something_is_left_alone(tuned: Tune, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RunError, match="not an empty folder"):
            export.run(tuned("lora").path, "selected", target)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_adapter_is_not_merged_into_other_base_weights(
    tuned: Tune, study: Path, model: Path, tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(tuned("lora").path, tmp_path / "run")))
    facts = run.read_json("environment.json")
    run.write_json("environment.json", facts | {"model": facts["model"] | {"sha256": "0" * 64}})
    with pytest.raises(ModelError, match="not those of the run"):
        export.run(run.path, "selected", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        export.run(tmp_path / "nowhere", "selected", tmp_path / "out")
    (tmp_path / "status.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RunError, match="newer tunescope"):
        export.run(tmp_path, "selected", tmp_path / "out")
