"""The whole proof of concept on a tiny model: what its run folder holds, and that it holds together."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from tiny_study import ALL_ARMS, TUNED_ARMS
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunescope.config import Config, dump, load
from tunescope.data import ChatFormat, Example
from tunescope.engine import CANDIDATES
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import (
    Answer,
    Finding,
    Forecast,
    LayerScores,
    Result,
    Risk,
    Sample,
    Selection,
    StepRecord,
    Verdict,
)

N_TEST, N_PLANT_B, N_TASKS, N_GUARD = 8, 5, 3, 4
FILES = {
    "config.yaml",
    "environment.json",
    "data.json",
    "steps.jsonl",
    "layers.json",
    "plan.yaml",
    "results.json",
    "risk.json",
    "generalisation.json",
    "samples.jsonl",
    "costs.json",
    "verdict.json",
    "ledger.jsonl",
    "ledger.head",
    "status.json",
    "report.html",
    "report.json",
    "weights",
    ".lock",
}


@pytest.fixture(scope="module")
def results(run: RunFolder) -> list[Result]:
    return [Result.from_dict(row) for row in run.read_json("results.json")["results"]]


@pytest.fixture(scope="module")
def samples(run: RunFolder) -> list[Sample]:
    return [Sample.from_dict(row) for row in run.read_jsonl("samples.jsonl")]


@pytest.fixture(scope="module")
def selections(run: RunFolder) -> dict[str, Selection]:
    return {arm: Selection.from_dict(s) for arm, s in run.read_json("layers.json")["selections"].items()}


@pytest.fixture(scope="module")
def steps(run: RunFolder) -> list[StepRecord]:
    return [StepRecord.from_dict(row) for row in run.read_jsonl("steps.jsonl")]


@pytest.fixture(scope="module")
def costs(run: RunFolder) -> dict[str, Forecast]:
    return {row["arm"]: Forecast.from_dict(row) for row in run.read_json("costs.json")["actual"]}


def test_the_folder_holds_every_file_and_no_scratch(run: RunFolder) -> None:
    assert {path.name for path in run.path.iterdir()} == FILES
    assert {path.name for path in (run.path / "weights").iterdir()} == set(TUNED_ARMS)
    for path in run.path.glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["schema_version"] == 1
    status = run.read_json("status.json")
    assert (status["state"], status["study"], status["error"]) == ("done", "poc", None)
    assert status["command"] == "tunescope poc study.yaml"
    assert status["started"] <= status["finished"]


def test_the_saved_settings_are_the_resolved_ones(run: RunFolder, config: Config) -> None:
    assert load(run.path / "config.yaml") == config
    assert (run.path / "config.yaml").read_text(encoding="utf-8") == dump(config)


def test_the_environment_names_model_files_and_machine(run: RunFolder, model: Path, study: Path) -> None:
    environment = run.read_json("environment.json")
    assert environment["model"]["family"] == "llama" and environment["model"]["n_layers"] == 4
    assert environment["dtype"] == "bfloat16" and environment["seed"] == 3 and environment["threads"] == 1
    assert set(environment["packages"]) >= {"torch", "transformers", "peft"}
    assert environment["score_batch_noise"] == 0
    expected = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (study.parent / "data").iterdir()}
    assert set(environment["files"].values()) == expected and len(expected) == 10
    reloaded = AutoModelForCausalLM.from_pretrained(model)
    assert environment["model"]["parameters"] == sum(p.numel() for p in reloaded.parameters())
    assert run.read_json("costs.json")["base_model_bytes"] == 2 * environment["model"]["parameters"]


def test_the_data_file_says_what_was_read_and_shows_a_row_with_its_loss_mask(run: RunFolder) -> None:
    data = run.read_json("data.json")
    assert {(f["task"], f["role"], f["rows"], f["used"]) for f in data["files"] if f["task"] == "mood"} == {
        ("mood", "train", 14, 14),
        ("mood", "test", N_TEST, N_TEST),
        ("mood", "out_of_domain", N_PLANT_B, N_PLANT_B),
    }
    assert all(0 < f["prompt_tokens"]["p50"] <= f["prompt_tokens"]["max"] < 160 for f in data["files"])
    assert all(Finding.from_dict(f).severity != "error" for f in data["findings"])
    for by_file in data["label_counts"].values():
        assert all(sum(counts.values()) in (14, N_TEST, N_PLANT_B) for counts in by_file.values())
    tokens = data["example"]["tokens"]
    prompt = "".join(text for text, has_loss in tokens if not has_loss)
    target = "".join(text for text, has_loss in tokens if has_loss)
    assert prompt.startswith("<user>") and prompt.endswith("<assistant>")
    assert target.removesuffix("<end>") in ("it", "hr", "ops") and target.endswith("<end>")


def test_every_arm_is_measured_on_every_file_and_on_the_mean_over_tasks(results: list[Result]) -> None:
    assert len(results) == len({(r.arm, r.task, r.role) for r in results})
    for arm in ALL_ARMS:
        mine = [r for r in results if r.arm == arm]
        counts = {(r.task, r.role): r.n for r in mine}
        expected = {(task, "in_domain"): N_TEST for task in ("routing", "mood", "summary")}
        expected |= {(task, "out_of_domain"): N_PLANT_B for task in ("routing", "mood", "summary")}
        expected |= {("guard", "guard"): N_GUARD, ("*", "in_domain"): 3 * N_TEST, ("*", "out_of_domain"): 3 * N_PLANT_B}
        assert counts == expected
        assert all((r.difference is None) == (arm == "nothing") for r in mine)
        assert all((r.seed is None) == (arm in ("nothing", "prompt")) for r in mine)
        assert all(r.low <= r.value <= r.high for r in mine)
    assert {r.metric for r in results} == {"accuracy", "macro_f1", "rouge_l", "loss", "mean_score"}


def test_the_numbers_can_be_counted_again_from_the_samples(results: list[Result], samples: list[Sample]) -> None:
    checked = 0
    for result in results:
        rows = [s for s in samples if s.role == result.role and result.task in (s.task, "*")]
        scores = {
            task: [s.answers[result.arm]["score"] for s in rows if s.task == task] for task in {s.task for s in rows}
        }
        if result.metric == "macro_f1":
            texts = [s.answers[result.arm]["text"] for s in rows]
            wanted = f1_score([s.references[0] for s in rows], texts, labels=["good", "bad"], average="macro")
        else:
            wanted = np.mean([np.mean(values) for values in scores.values()])
        assert result.value == pytest.approx(wanted, abs=1e-12)
        checked += 1
    assert checked == len(ALL_ARMS) * 9


def test_every_sample_has_an_answer_of_every_arm(samples: list[Sample]) -> None:
    assert len(samples) == len({(s.task, s.dataset, s.id) for s in samples}) == N_TASKS * (N_TEST + N_PLANT_B) + N_GUARD
    for sample in samples:
        assert list(sample.answers) == ALL_ARMS and sample.references
        for answer in (Answer.from_dict(a) for a in sample.answers.values()):
            if sample.task in ("routing", "mood"):
                assert answer.probabilities is not None and sum(answer.probabilities.values()) == pytest.approx(
                    1, abs=1e-5
                )
                assert answer.confidence == pytest.approx(max(answer.probabilities.values()), abs=1e-5)
                assert answer.score == float(answer.text == sample.references[0])
            elif sample.task == "summary":
                assert answer.probabilities is None and 0 <= answer.score <= 1 and len(answer.text.encode()) <= 18


def test_the_arms_really_differ(samples: list[Sample]) -> None:
    answers = {arm: [s.answers[arm] for s in samples if s.task == "routing"] for arm in ALL_ARMS}
    for i, one in enumerate(ALL_ARMS):
        for other in ALL_ARMS[i + 1 :]:
            assert answers[one] != answers[other], f"{one} answers exactly as {other}"


def test_random_moves_other_blocks_at_the_same_budget(selections: dict[str, Selection]) -> None:
    selected, random = selections["selected"], selections["random"]
    assert len(selected.layers) == len(random.layers) == 2
    assert set(selected.layers) != set(random.layers)
    assert selected.trainable_parameters == random.trainable_parameters > 0
    assert selected.modules == random.modules and selected.method == random.method == "lora"
    assert selections["lora-all"].trainable_parameters == 2 * selected.trainable_parameters
    full = selections["full"]
    assert full.trainable_parameters == full.total_parameters and full.whole_model


def test_selected_moves_the_blocks_with_the_largest_gradient(run: RunFolder, selections: dict[str, Selection]) -> None:
    (scores,) = (LayerScores.from_dict(s) for s in run.read_json("layers.json")["scores"])
    assert scores.name == "gradient_norm" and scores.n == 6 and scores.low is not None
    ranked = sorted(zip(scores.values, scores.layers, strict=True), reverse=True)
    assert {layer for _, layer in ranked[:2]} == set(selections["selected"].layers)
    assert "gradient norm" in selections["selected"].why


@pytest.mark.parametrize("arm", TUNED_ARMS)
def test_every_step_of_an_arm_is_recorded_once_and_in_order(
    arm: str, steps: list[StepRecord], costs: dict[str, Forecast]
) -> None:
    mine = [s for s in steps if s.arm == arm]
    assert [s.step for s in mine] == list(range(1, len(mine) + 1))
    assert len(mine) == costs[arm].steps == 10  # 38 examples in batches of 8, twice
    assert mine[-1].epoch == 2 and mine[-1].validation_loss is not None
    assert all(math.isfinite(s.loss) and s.grad_norm > 0 and s.tokens > s.target_tokens > 0 for s in mine)
    assert max(s.learning_rate for s in mine) == costs[arm].learning_rate
    assert sum(s.validation_loss is not None for s in mine) == 5  # every second step


def test_arms_are_tuned_one_after_the_other(steps: list[StepRecord]) -> None:
    assert list(dict.fromkeys(s.arm for s in steps)) == TUNED_ARMS
    assert [s.arm for s in steps] == [arm for arm in TUNED_ARMS for _ in range(10)]


def test_tuning_lowers_the_loss_and_starts_alike_in_all_arms(steps: list[StepRecord]) -> None:
    first = {s.arm: s.loss for s in steps if s.step == 1}
    assert max(first.values()) - min(first.values()) < 0.05  # bfloat16 against float32
    for arm in TUNED_ARMS:  # every epoch reads every example once
        one, two = (np.mean([s.loss for s in steps if s.arm == arm and e < s.epoch <= e + 1]) for e in (0, 1))
        assert two < one


def test_costs_are_told_before_and_after(run: RunFolder, costs: dict[str, Forecast]) -> None:
    forecasts = {row["arm"]: Forecast.from_dict(row) for row in run.read_json("costs.json")["forecast"]}
    assert list(costs) == list(forecasts) == ALL_ARMS
    for arm, cost in costs.items():
        tuned = arm in TUNED_ARMS
        assert (cost.tuning_seconds > 0) == (forecasts[arm].tuning_seconds > 0) == tuned
        assert (cost.adapter_bytes > 0) == (cost.trainable_parameters > 0) == tuned
        assert cost.evaluation_seconds > 0 and cost.peak_memory_bytes > 10_000_000
        assert 0 < cost.latency_p50_seconds <= cost.latency_p95_seconds  # type: ignore[operator]
        if tuned:
            assert cost.trainable_parameters == forecasts[arm].trainable_parameters
            assert cost.learning_rate in CANDIDATES["weights" if arm == "full" else "lora"]
            assert "held-out loss" in cost.learning_rate_why
            size = sum(f.stat().st_size for f in (run.path / "weights" / arm).glob("*.safetensors"))
            assert cost.adapter_bytes == size
    plan = yaml.safe_load((run.path / "plan.yaml").read_text(encoding="utf-8"))
    assert list(plan["arms"]) == TUNED_ARMS and plan["state"] == "not required"
    for arm, planned in plan["arms"].items():
        assert planned["trainable_parameters"] == costs[arm].trainable_parameters
        assert planned["forecast"]["tuning_seconds"] == round(forecasts[arm].tuning_seconds, 1)


def test_the_verdict_the_risks_and_the_ledger_read_back(run: RunFolder) -> None:
    verdict = Verdict.from_dict(run.read_json("verdict.json"))
    assert verdict.decision in ("tune", "do_not_tune", "not_enough_evidence") and verdict.reasons
    assert [line["arm"] for line in run.read_json("verdict.json")["money"]] == ALL_ARMS
    risks = [Risk.from_dict(row) for row in run.read_json("risk.json")["risks"]]
    assert [(r.arm, r.role) for r in risks] == [(a, r) for r in ("in_domain", "out_of_domain") for a in ALL_ARMS]
    assert {r.n for r in risks} == {2 * N_TEST, 2 * N_PLANT_B}
    assert ledger.verify(run.path / "ledger.jsonl").n == 3
    rows = run.read_jsonl("ledger.jsonl")
    assert [row["event"] for row in rows] == ["data accepted", "plan proposed", "verdict"]
    assert rows[-1]["details"]["decision"] == verdict.decision


def test_the_report_is_one_page_without_a_network(run: RunFolder) -> None:
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "<svg" in page
    assert all(arm in page for arm in ALL_ARMS)
    assert "<script src" not in page and "<link" not in page


# The weights, read by the tools that other people use.


def guard_losses(model: Any, run: RunFolder, samples: list[Sample]) -> list[float]:
    """The loss on the guard set as transformers itself computes it."""
    chat = ChatFormat(AutoTokenizer.from_pretrained(run.read_json("environment.json")["model"]["folder"]))
    losses = []
    for sample in (s for s in samples if s.role == "guard"):
        row = chat.encode(Example(sample.id, "guard", sample.prompt, "", sample.references))
        ids = torch.tensor([[*row.prompt_ids, *row.target_ids]])
        labels = torch.tensor([[-100] * len(row.prompt_ids) + list(row.target_ids)])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return losses


@pytest.mark.parametrize("arm", ["nothing", *TUNED_ARMS])
def test_plain_peft_and_transformers_load_what_was_measured(
    arm: str, run: RunFolder, samples: list[Sample], model: Path
) -> None:
    folder = run.path / "weights" / arm
    if arm == "full":
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert (
            AutoTokenizer.from_pretrained(folder)("é")["input_ids"]
            == AutoTokenizer.from_pretrained(model)("é")["input_ids"]
        )
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    if arm in ("selected", "random", "lora-all"):
        loaded = PeftModel.from_pretrained(loaded, folder)
    measured = [s.answers[arm]["score"] for s in samples if s.role == "guard"]
    untuned = [s.answers["nothing"]["score"] for s in samples if s.role == "guard"]
    assert guard_losses(loaded.eval(), run, samples) == pytest.approx(measured, abs=0.02)  # bfloat16
    assert arm == "nothing" or max(abs(a - b) for a, b in zip(measured, untuned, strict=True)) > 0.005


@pytest.mark.parametrize("arm", ["selected", "random", "lora-all"])
def test_an_adapter_holds_the_chosen_blocks_and_no_other(
    arm: str, run: RunFolder, selections: dict[str, Selection]
) -> None:
    folder = run.path / "weights" / arm
    tensors = load_file(folder / "adapter_model.safetensors")
    blocks = {f"block.{name.split('.layers.')[1].split('.')[0]}" for name in tensors}
    assert blocks == set(selections[arm].layers)
    assert sum(t.numel() for t in tensors.values()) == selections[arm].trainable_parameters
    assert all(torch.any(t != 0) for t in tensors.values())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert selections[arm].why in card and run.read_json("environment.json")["model"]["sha256"] in card
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
