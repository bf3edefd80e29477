"""The layer map as a study: what it reads, what it writes, what it refuses, and what it keeps."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from map_worker import outcome
from tiny_study import write_jsonl, write_study
from workers import SIGKILLED

from tunescope import engine, layers, models, report
from tunescope.config import Config, load
from tunescope.data import ChatFormat
from tunescope.errors import ConfigError, DataError, IntegrityError, ModelError, RunError, TunescopeError
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Selection
from tunescope.studies import layer_map as parts
from tunescope.studies import map as study
from tunescope.studies import specialist_cache, specialists
from tunescope.studies.progress import Silent
from tunescope.studies.setup import begin, check
from tunescope.testing import save_tiny

TASKS = ("routing", "mood", "summary")
SMALL = {"n_bootstrap": 20, "n_permutations": 20, "causal_examples": 2, "specialist": {"steps": 3}}
KEYS = {
    "mode", "estimator", "states", "tasks", "d_model", "bands", "clusters", "agreement", "proposals", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def paths(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and settings for maps."""
    folder = tmp_path_factory.mktemp("maps")
    write_study(folder, model, map=SMALL, arms=["nothing"])
    return folder


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on all blocks that changes what the model does."""
    return save_adapter(model, tmp_path_factory.mktemp("adapter") / "lora", scale=0.3)


def save_adapter(model: Path, folder: Path, *, scale: float, first: int = 0) -> Path:
    loaded = models.load(str(model), dtype="bfloat16")
    names = models.block_names(loaded.info.n_layers)[first:]
    moving = engine.prepare(
        loaded.model, loaded.family, Selection("lora", names, ("q", "v", "down"), "test"), lora_rank=2
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in moving.parameters.items():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn_like(parameter))
    engine.to_inference(moving)
    engine.save(moving, loaded.tokenizer, folder, card="", base=str(model), base_sha256=loaded.info.sha256)
    return folder


@pytest.fixture
def config(paths: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings with their own run folder and their own cache."""

    def make(*overrides: str) -> Config:
        return load(
            paths / "study.yaml", [f"output_dir={tmp_path / 'run'}", f"map.cache={tmp_path / 'cache'}", *overrides]
        )

    return make


def scores_of(run: RunFolder) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["name"], row["task"]): row for row in run.read_json("layers.json")["scores"]}


def prompts_of(config: Config) -> dict[str, list[tuple[int, ...]]]:
    checked = check(config, Silent(), needs_test=False)
    return {t.name: [checked.chat.encode(e).prompt_ids for e in t.train] for t in checked.inputs.tasks}


def without_times(run: RunFolder) -> dict[str, Any]:
    values = run.read_json("layers.json")
    values["map"].pop("seconds")
    return values


# What a map holds


def test_mode_base_compares_each_block_with_its_input_as_a_naive_loop_does(config: Callable[..., Config]) -> None:
    settings = config()
    run = study.run(settings)
    rows = scores_of(run)
    loaded = models.load(settings.model, dtype="bfloat16")
    for task, prompts in prompts_of(settings).items():
        states = layers.capture(loaded.model, prompts)
        pairs = [(states.mean[0], states.mean[1]), *((states.last[i], states.last[i + 1]) for i in (1, 2, 3))]
        row = rows["cka_in_out", task]
        np.testing.assert_allclose(row["values"], [layers.cka(x, y) for x, y in pairs], rtol=1e-5)
        for place, (x, y) in enumerate(pairs):
            resampled = layers.cka_bootstrap(x, y, n_bootstrap=20, seed=3)
            null = layers.permutation_null(x, y, n_permutations=20, seed=3)
            assert row["low"][place] == pytest.approx(np.quantile(resampled, 0.025), rel=1e-4)
            assert row["high"][place] == pytest.approx(np.quantile(resampled, 0.975), rel=1e-4)
            assert row["null"][place] == pytest.approx(np.quantile(null, 0.95), rel=1e-4)
        assert row["n"] == len(prompts) == 13
    separability = {task for name, task in rows if name == "separability"}
    assert separability == {"routing", "mood", "*"}  # summary has no labels
    assert rows["separability", "*"]["null"] == pytest.approx([1 / 3] * 4)
    assert {name for name, _ in rows} == {"cka_in_out", "spread:cka_in_out", "separability"}
    change = next(p for p in run.read_json("layers.json")["map"]["proposals"] if p["name"] == "top_change")
    assert "block.0" not in change["layers"] and "block.0 behind all others" in change["why"]


def test_the_file_has_the_keys_that_the_report_reads(config: Callable[..., Config]) -> None:
    run = study.run(config())
    values = run.read_json("layers.json")
    assert set(values) == {"schema_version", "scores", "selections", "map"} and values["selections"] == {}
    facts = values["map"]
    assert set(facts) == KEYS
    assert (facts["mode"], facts["estimator"], facts["states"], facts["d_model"]) == ("base", "debiased", "last", 16)
    assert facts["tasks"][0] == {"name": "routing", "family": "classification", "n_prompts": 13}
    assert set(facts["seconds"]) == {"capture", "specialists", "similarity", "causal"}
    assert facts["bands"]["found"] is False and "4 blocks, at least 12" in facts["bands"]["why"]
    assert facts["clusters"]["names"] == list(TASKS) and facts["agreement"] is None
    assert [p["name"] for p in facts["proposals"]] == ["top_change", "top_third"]
    assert set(facts["proposals"][0]) == {
        "name", "layers", "why", "trainable_parameters", "relative_cost", "memory_bytes",
    }  # fmt: skip
    assert run.read_json("status.json")["state"] == "done"
    assert run.read_json("environment.json")["model"]["n_layers"] == 4
    assert run.read_json("costs.json")["peak_memory_bytes"] > 0
    assert [row["event"] for row in run.read_jsonl("ledger.jsonl")] == ["data accepted", "map made"]
    ledger.verify(run.path / "ledger.jsonl")
    assert not (run.path / "arms").exists()


def test_mode_pair_compares_block_by_block_and_puts_blocks_back(config: Callable[..., Config], adapter: Path) -> None:
    settings = config("map.mode=pair", f"map.tuned={adapter}")
    run = study.run(settings)
    rows = scores_of(run)
    base = models.load(settings.model, dtype="bfloat16")
    other = models.load(settings.model, dtype="bfloat16")
    tuned = engine.attach(other, adapter)
    for task, prompts in prompts_of(settings).items():
        x, y = layers.capture(base.model, prompts).last, layers.capture(tuned, prompts).last
        expected = [layers.cka(x[i], y[i]) for i in range(1, 5)]
        np.testing.assert_allclose(rows["cka_base_tuned", task]["values"], expected, rtol=1e-5)
        assert min(expected) < 0.999
    examples = {t.name: t.train[:2] for t in check(settings, Silent(), needs_test=False).inputs.tasks}
    chat = ChatFormat(base.tokenizer)
    encoded = {task: [chat.encode(e) for e in mine] for task, mine in examples.items()}
    expected_rise = layers.put_back(tuned, None, layers.windows(4, 1), encoded)
    for row in expected_rise:
        np.testing.assert_allclose(rows["causal", row.task]["values"], row.values, rtol=1e-4, atol=1e-7)
    assert max(abs(v) for v in rows["causal", "*"]["values"]) > 0
    facts = run.read_json("layers.json")["map"]
    assert -1 <= facts["agreement"]["correlation"] <= 1
    assert [p["name"] for p in facts["proposals"]] == ["top_change", "top_causal", "top_third"]
    assert "compares with" in [row["event"] for row in run.read_jsonl("ledger.jsonl")]


def test_an_adapter_that_changes_nothing_is_alike_everywhere_and_has_no_effect(
    config: Callable[..., Config], model: Path, tmp_path: Path
) -> None:
    idle = save_adapter(model, tmp_path / "idle", scale=0)
    rows = scores_of(study.run(config("map.mode=pair", f"map.tuned={idle}")))
    for task in (*TASKS, "*"):
        assert rows["cka_base_tuned", task]["values"] == [1.0] * 4
        assert rows["causal", task]["values"] == [0.0] * 4


@pytest.mark.parametrize("form", ["model", "changed", "merged"])
def test_a_tuned_model_in_any_form_gives_the_map_of_its_weights(
    form: str, config: Callable[..., Config], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / form
    loaded = models.load(str(model), dtype="bfloat16")
    if form == "changed":
        moving = engine.prepare(loaded.model, loaded.family, Selection("weights", ("block.2",), (), "test"))
        with torch.no_grad():
            for parameter in moving.parameters.values():
                parameter.mul_(1.5)
        engine.to_inference(moving)
        engine.save(moving, loaded.tokenizer, folder, card="", base=str(model))
    else:
        for parameter in models.blocks(loaded.model)[2].parameters():
            parameter.data.mul_(1.5)
        loaded.model.save_pretrained(folder)
        if form == "model":
            loaded.tokenizer.save_pretrained(folder)
        else:
            shutil.copy(model / "tokenizer.json", folder)
            shutil.copy(model / "tokenizer_config.json", folder)
    rows = scores_of(study.run(config("map.mode=pair", f"map.tuned={folder}")))
    values = rows["cka_base_tuned", "*"]["values"]
    assert values[:2] == [1.0, 1.0]  # nothing below the change differs
    assert values[2] < 1
    assert rows["causal", "*"]["values"][0] == 0 and rows["causal", "*"]["values"][2] != 0


def test_mode_mossa_compares_base_and_tuned_with_each_tasks_specialist(
    config: Callable[..., Config], adapter: Path
) -> None:
    run = study.run(config("map.mode=mossa", f"map.tuned={adapter}"))
    rows = scores_of(run)
    names = {name for name, _ in rows}
    assert {"cka_base_specialist", "cka_tuned_specialist", "gain", "causal", "spread:cka_tuned_specialist"} <= names
    for place in range(4):
        gains = [
            rows["cka_tuned_specialist", t]["values"][place] - rows["cka_base_specialist", t]["values"][place]
            for t in TASKS
        ]
        assert rows["gain", "*"]["values"][place] == pytest.approx(np.median(gains), abs=2e-5)
    assert all(rows["cka_base_specialist", t]["values"][3] < 1 for t in TASKS)
    facts = run.read_json("layers.json")["map"]
    assert [p["name"] for p in facts["proposals"]] == ["top_gain", "top_causal", "top_third"]


# The base model, and how often it is read


@pytest.mark.parametrize("mode", ["base", "pair", "mossa"])
def test_the_base_model_is_afterwards_what_it_was_and_each_model_reads_each_prompt_once(
    mode: str, config: Callable[..., Config], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(f"map.mode={mode}", f"map.tuned={adapter}", "map.causal_examples=1")
    checked = check(settings, Silent(), needs_test=False)
    run = RunFolder.create(settings.output_dir, "", study="map", command="")
    bench = begin(checked, run, "", Silent())
    before = copy.deepcopy(checked.loaded.model.state_dict())
    kinds = [type(module) for module in checked.loaded.model.modules()]
    read: list[tuple[int, int]] = []
    original = layers.capture_each

    def counted(readers: Any, prompts: Any, **more: Any) -> Any:
        read.append((len(readers), len(prompts)))
        return original(readers, prompts, **more)

    monkeypatch.setattr(layers, "capture_each", counted)
    study.layer_map(bench, checked.loaded, Silent())
    after = checked.loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in checked.loaded.model.modules()] == kinds
    assert not any(p.requires_grad for p in checked.loaded.model.parameters())
    assert read == [({"base": 1, "pair": 2, "mossa": 3}[mode], 13)] * 3
    # Another study may wrap the same model: PEFT would warn if the first wrapping were still there.
    engine.prepare(checked.loaded.model, checked.loaded.family, Selection("lora", ("block.1",), ("q",), "test"))


def test_blocks_below_those_of_an_adapter_are_read_once_for_both_models(
    config: Callable[..., Config], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper = save_adapter(model, tmp_path / "upper", scale=0.3, first=1)
    maps = []
    for name, common in (("shared", True), ("apart", False)):
        settings = config("map.mode=pair", f"map.tuned={upper}", "map.causal_examples=1")
        settings = settings.model_copy(update={"output_dir": tmp_path / name})
        checked = check(settings, Silent(), needs_test=False)
        bench = begin(checked, RunFolder.create(settings.output_dir, "", study="map", command=""), "", Silent())
        n_layers = checked.loaded.info.n_layers
        ran: list[int] = []
        said: list[str] = []

        class Noting(Silent):
            def note(self, text: str, said: list[str] = said) -> None:
                said.append(text)

        hooks = [
            block.register_forward_hook(lambda *_, i=i, ran=ran: ran.append(i))
            for i, block in enumerate(models.blocks(checked.loaded.model))
        ]
        with monkeypatch.context() as patch:
            patch.setattr(parts, "put_back_scores", lambda *_, **__: [])
            if not common:
                patch.setattr(layers, "first_changed_block", lambda *_: 0)
            maps.append(parts.layer_map(bench, checked.loaded, Noting()))
        for hook in hooks:
            hook.remove()
        wanted = [3, *[6] * (n_layers - 1)] if common else [6] * n_layers  # three tasks, a pass each
        assert [ran.count(i) for i in range(n_layers)] == wanted
        note = "the tuned model is the base below block.1: read once for both, and no bands are looked for"
        assert (note in said) is common
    shared, apart = ([dataclasses.asdict(row) for row in found.scores] for found in maps)
    assert shared == apart


def test_where_tuning_began_is_not_taken_for_a_boundary(
    config: Callable[..., Config], model: Path, tmp_path: Path
) -> None:
    upper = save_adapter(model, tmp_path / "upper", scale=0.3, first=2)
    for mode in ("pair", "mossa"):
        run = study.run(config(f"map.mode={mode}", f"map.tuned={upper}", f"output_dir={tmp_path / mode}"))
        found = run.read_json("layers.json")["map"]
        assert found["bands"]["found"] is False and found["bands"]["boundaries"] is None
        assert found["bands"]["why"] == "no transition band found: the tuned model is the base below block.2"
        assert found["agreement"] is None  # two blocks that differ have no order
        proposed = {proposal["name"]: proposal["layers"] for proposal in found["proposals"]}
        assert {"upper_cut", "refinement"}.isdisjoint(proposed)
        assert set(proposed["top_causal"]) <= {"block.2", "block.3"}
    page = report.build(run.path).read_text(encoding="utf-8")
    assert "below block 2 the tuned model is the base itself" in page


# Specialists and their cache


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tasks for which a specialist was tuned, in order."""
    seen: list[str] = []
    original = specialists.Specialists.tune

    def counted(self: Any, one: Any, progress: Any) -> None:
        seen.append(one.task)
        original(self, one, progress)

    monkeypatch.setattr(specialists.Specialists, "tune", counted)
    return seen


def test_a_second_map_takes_the_specialists_from_the_cache(
    config: Callable[..., Config], tuned: list[str], tmp_path: Path, adapter: Path
) -> None:
    first = study.run(config("map.mode=mossa"))
    assert tuned == list(TASKS)
    again = study.run(config("map.mode=mossa", f"output_dir={tmp_path / 'again'}"))
    study.run(config("map.mode=mossa", f"output_dir={tmp_path / 'third'}", "map.states=mean", f"map.tuned={adapter}"))
    assert tuned == list(TASKS)
    assert without_times(first) == without_times(again)


@pytest.mark.parametrize("change", ["map.specialist.steps=2", "map.specialist.lora_rank=3", "seed=4", "dtype=float32"])
def test_other_settings_are_other_specialists(
    change: str, config: Callable[..., Config], tuned: list[str], tmp_path: Path
) -> None:
    study.run(config("map.mode=mossa", "map.causal_examples=0"))
    study.run(config("map.mode=mossa", "map.causal_examples=0", change, f"output_dir={tmp_path / 'again'}"))
    assert tuned == list(TASKS) * 2


def test_the_budget_of_a_specialist_is_in_steps_and_in_epochs(config: Callable[..., Config]) -> None:
    assert specialist_cache.steps_of(config(), 1000) == 3
    assert specialist_cache.steps_of(config("map.specialist.steps=100"), 20) == 8  # three epochs of 20 in steps of 8
    run = study.run(config("map.mode=mossa", "map.causal_examples=0", "map.specialist.steps=4"))
    for file in (run.path.parent / "cache").glob("*.safetensors"):
        assert engine.read_tensors(file)[1]["steps"] == 4


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_damaged_specialist_is_refused_and_tuned_again_only_when_asked(
    config: Callable[..., Config], tuned: list[str], tmp_path: Path
) -> None:
    first = study.run(config("map.mode=mossa"))
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    damage(files[0])
    with pytest.raises(IntegrityError, match=r"cached specialist of task '\w+' .*map\.rebuild_cache") as raised:
        study.run(config("map.mode=mossa", f"output_dir={tmp_path / 'again'}"))
    assert raised.value.exit_code == 5 and str(files[0]) in str(raised.value)
    assert len(tuned) == 3
    again = study.run(config("map.mode=mossa", f"output_dir={tmp_path / 'more'}", "map.rebuild_cache=true"))
    assert len(tuned) == 4
    assert without_times(first) == without_times(again)


def test_a_specialist_of_something_else_under_the_right_name_is_refused(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    study.run(config("map.mode=mossa", "map.causal_examples=0"))
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    shutil.copy(files[1], files[0])
    with pytest.raises(IntegrityError, match="belongs to other data or settings"):
        study.run(config("map.mode=mossa", f"output_dir={tmp_path / 'again'}"))


def test_a_run_that_ended_with_a_damaged_or_full_cache_goes_on_with_another_one(
    config: Callable[..., Config], tuned: list[str], tmp_path: Path
) -> None:
    first = study.run(config("map.mode=mossa", f"output_dir={tmp_path / 'first'}"))
    damage(sorted((tmp_path / "cache").glob("*.safetensors"))[0])
    with pytest.raises(IntegrityError, match="rebuild_cache"):
        study.run(config("map.mode=mossa"))
    settings = (tmp_path / "run" / "config.yaml").read_text()
    again = study.run(config("map.mode=mossa", "map.rebuild_cache=true"), resume=True)
    assert without_times(again) == without_times(first)
    assert len(tuned) == 4 and (tmp_path / "run" / "config.yaml").read_text() == settings
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can be written; then run the same command with"):
        study.run(config("map.mode=mossa", f"map.cache={tmp_path / 'file' / 'below'}"))
    assert without_times(study.run(config("map.mode=mossa"), resume=True)) == without_times(first)
    with pytest.raises(RunError, match="settings differ from the run's own"):
        study.run(config("map.mode=mossa", "map.specialist.steps=2"), resume=True)


def test_a_window_larger_than_the_model_is_refused_before_anything_is_written(
    config: Callable[..., Config], adapter: Path
) -> None:
    settings = config("map.mode=pair", f"map.tuned={adapter}", "map.causal_window=5")
    with pytest.raises(ConfigError, match=r"map.causal_window: got 5, the model has 4 blocks; allowed are 1 to 4"):
        study.run(settings)
    assert not settings.output_dir.exists()


def test_a_model_with_nan_in_its_weights_is_the_users_matter(
    config: Callable[..., Config], model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    next(tensor for name, tensor in weights.items() if "layers.2.mlp.up" in name)[0, 0] = float("nan")
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"nan: the model gives probabilities that are not finite on task 'routing'"):
        study.run(config(f"model={tmp_path / 'nan'}"))


def test_a_cache_that_cannot_be_written_is_one_clear_line(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cache of specialists cannot be written .*map\.cache") as raised:
        study.run(config("map.mode=mossa", f"map.cache={tmp_path / 'file' / 'cache'}"))
    assert len(raised.value.problems) == 1


def test_a_full_disk_is_one_clear_line_and_leaves_no_half_file(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors
    import safetensors.torch

    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(RunError, match=r"No space left .*map\.cache") as raised:
            study.run(config("map.mode=mossa"))
    assert len(raised.value.problems) == 1
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    run = study.run(config("map.mode=mossa"), resume=True)
    assert run.read_json("status.json")["state"] == "done"


# Interruption


def test_killed_at_random_moments_and_resumed_it_ends_the_same(paths: Path, adapter: Path, tmp_path: Path) -> None:
    how = ["map.mode=mossa", f"map.tuned={adapter}"]
    whole = study.run(
        load(paths / "study.yaml", [*how, f"output_dir={tmp_path / 'whole'}", f"map.cache={tmp_path / 'one'}"])
    )
    overrides = [*how, f"output_dir={tmp_path / 'run'}", f"map.cache={tmp_path / 'two'}"]
    dice, killed = random.Random(4), 0
    for _ in range(6):
        killed += outcome(paths / "study.yaml", overrides, dice.randrange(8, 60)) == SIGKILLED
    assert killed >= 3
    assert outcome(paths / "study.yaml", overrides) == 0
    run = RunFolder.open(tmp_path / "run")
    assert without_times(run) == without_times(whole)
    assert run.read_json("status.json")["state"] == "done"
    events = [row["event"] for row in run.read_jsonl("ledger.jsonl")]
    assert sorted(events) == ["compares with", "data accepted", "map made"]
    assert not (run.path / "arms").exists()
    assert not list((tmp_path / "two").glob("*.part"))


@pytest.mark.parametrize("mode", ["pair", "mossa"])
def test_a_causal_check_killed_between_two_tasks_goes_on_with_the_next(
    mode: str, paths: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = [f"map.mode={mode}", f"map.cache={tmp_path / 'cache'}"] + [f"map.tuned={adapter}"] * (mode == "pair")
    whole = study.run(load(paths / "study.yaml", [*how, f"output_dir={tmp_path / 'whole'}"]))
    overrides = [*how, f"output_dir={tmp_path / 'run'}"]
    assert outcome(paths / "study.yaml", overrides, after=("causal-", 2)) == SIGKILLED
    kept = sorted((tmp_path / "run" / study.SCRATCH).glob("causal-*.safetensors"))
    assert len(kept) == 2
    original, checked = layers.put_back_rises, []

    def counted(tuned: Any, base: Any, windows: Any, rows: Any, **more: Any) -> Any:
        checked.append(rows[0].example.task)
        return original(tuned, base, windows, rows, **more)

    monkeypatch.setattr(layers, "put_back_rises", counted)
    run = study.run(load(paths / "study.yaml", overrides), resume=True)
    assert checked == [TASKS[-1]]
    assert without_times(run) == without_times(whole)


def test_a_damaged_task_of_an_interrupted_causal_check_is_refused(
    config: Callable[..., Config], paths: Path, adapter: Path, tmp_path: Path
) -> None:
    how = ["map.mode=pair", f"map.tuned={adapter}", f"output_dir={tmp_path / 'run'}", f"map.cache={tmp_path / 'cache'}"]
    assert outcome(paths / "study.yaml", how, after=("causal-", 1)) == SIGKILLED
    (kept,) = (tmp_path / "run" / study.SCRATCH).glob("causal-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-3] + b"abc")
    with pytest.raises(IntegrityError, match="causal-"):
        study.run(config(*how), resume=True)


def test_stopped_by_the_user_it_goes_on_where_it_was(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tuned: list[str]
) -> None:
    class Stopping(Silent):
        left = 5

        def stopping(self) -> bool:
            self.left -= 1
            return self.left < 0

    with pytest.raises(KeyboardInterrupt):
        study.run(config("map.mode=mossa"), progress=Stopping())
    assert RunFolder.open(config().output_dir).read_json("status.json")["error"] == "stopped by the user"
    before = list(tuned)
    study.run(config("map.mode=mossa"), resume=True)
    assert before[-1] == tuned[len(before)]  # the one that was interrupted, from its checkpoint
    assert sorted(set(tuned)) == sorted(TASKS) and len(tuned) == 4


def test_tasks_that_were_read_are_not_read_again(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = parts._read_one, []

    def failing(bench: Any, loaded: Any, one: Any, *more: Any) -> Any:
        calls.append(one.task.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(bench, loaded, one, *more)

    monkeypatch.setattr(parts, "_read_one", failing)
    with pytest.raises(KeyboardInterrupt):
        study.run(config())
    study.run(config(), resume=True)
    assert calls == ["routing", "mood", "summary", "summary"]
    assert study.run(config(), resume=True).read_json("status.json")["state"] == "done"
    assert len(calls) == 4  # a finished map is not made again


def test_on_resume_the_tuned_weights_must_be_those_of_the_first_time(
    config: Callable[..., Config], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "mine")
    settings = config("map.mode=pair", f"map.tuned={tmp_path / 'mine'}")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "layer_map", stop)
        with pytest.raises(KeyboardInterrupt):
            study.run(settings)
    shutil.rmtree(tmp_path / "mine")
    save_adapter(model, tmp_path / "mine", scale=0.7)
    with pytest.raises(IntegrityError, match="tuned weights changed since this map began"):
        study.run(settings, resume=True)


def test_a_preview_says_what_it_would_take_and_keeps_nothing(config: Callable[..., Config], tmp_path: Path) -> None:
    forecast = study.preview(config("map.mode=mossa"))
    assert (forecast.tasks, forecast.prompts, forecast.models, forecast.specialists) == (3, 39, 2, 3)
    assert all(seconds > 0 for seconds in forecast.seconds.values())
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
    study.run(config("map.mode=mossa", "map.causal_examples=0"))
    again = study.preview(config("map.mode=mossa"))
    assert (again.specialists, again.cached, again.seconds["specialists"]) == (0, 3, 0)


# Refusals: one clear line each, and no run folder


def refused(settings: Config, error: type[TunescopeError], *says: str) -> None:
    with pytest.raises(error) as raised:
        study.run(settings)
    assert type(raised.value) is error
    assert len(raised.value.problems) == 1, raised.value
    for text in says:
        assert text in str(raised.value)
    assert not settings.output_dir.exists()


def test_tasks_with_too_few_prompts_are_all_named(config: Callable[..., Config], tmp_path: Path) -> None:
    for name in ("routing", "mood"):
        rows = [
            {"instruction": "Desk?", "input": f"{name} {i}{c * 9}", "output": "it good"} for i, c in enumerate("xyz")
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    settings = config(
        *(f"tasks.{i}.train={tmp_path / name}.jsonl" for i, name in enumerate(("routing", "mood"))),
        *(f"tasks.{i}.{key}" for i in (0, 1) for key in ("labels=null", "metric=rouge_l")),
    )
    refused(
        settings, DataError, "2 of 3 tasks have fewer than 4", "'routing' (3)", "'mood' (3)", "leave these tasks out"
    )


def test_prompts_that_are_all_the_same_are_refused(config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [{"instruction": "Say a word.", "output": word} for word in ("red", "green", "blue", "black", "white")]
    write_jsonl(tmp_path / "same.jsonl", rows)
    settings = config(
        f"tasks.2.train={tmp_path / 'same.jsonl'}", "data.validation_fraction=0", "data.drop_duplicates=false"
    )
    refused(settings, DataError, "1 tasks are all the same: 'summary'", "constant")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"n_layers": 5}, "5 blocks of width 16"),
        ({"d_model": 32}, "4 blocks of width 32"),
        ({"family": "qwen2"}, "a qwen2 model"),
    ],
)
def test_a_tuned_model_of_another_shape_is_refused(
    shape: dict[str, Any], says: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    save_tiny(tmp_path / "other", **({"n_layers": 4, "d_model": 16} | shape))
    refused(config("map.mode=pair", f"map.tuned={tmp_path / 'other'}"), ModelError, says, "block by block")


def test_a_tuned_model_with_another_tokenizer_is_refused(
    config: Callable[..., Config], tmp_path: Path, model: Path
) -> None:
    shutil.copytree(model, tmp_path / "other")
    text = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(text))
    refused(
        config("map.mode=pair", f"map.tuned={tmp_path / 'other'}"),
        ModelError,
        "tokenizer",
        "2 of them not as in the base",
    )


def test_an_adapter_for_another_base_is_refused(config: Callable[..., Config], tmp_path: Path) -> None:
    wide = save_tiny(tmp_path / "wide", n_layers=4, d_model=32)
    other = save_adapter(wide, tmp_path / "adapter", scale=0.1)
    refused(config("map.mode=pair", f"map.tuned={other}"), ModelError, "adapter is for another base model")


def test_an_adapter_for_another_base_of_the_same_shapes_is_refused_where_it_is_known_and_noted_where_not(
    config: Callable[..., Config], model: Path, tmp_path: Path
) -> None:
    twin = save_tiny(tmp_path / "twin", n_layers=4, d_model=16, seed=9)
    theirs = save_adapter(twin, tmp_path / "theirs", scale=0.3)
    for settings in (config("map.mode=pair", f"map.tuned={theirs}"), config("map.mode=mossa", f"map.tuned={theirs}")):
        with pytest.raises(ModelError, match="made for another base model"):
            study.run(settings)
        with pytest.raises(ModelError, match="made for another base model"):
            study.preview(settings)
    (theirs / "base.json").unlink()
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    study.run(config("map.mode=pair", f"map.tuned={theirs}"), progress=Noting())
    assert [note for note in notes if "cannot be compared" in note]


def test_a_folder_that_is_not_there_or_holds_no_weights_is_refused(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    refused(config("map.mode=pair", f"map.tuned={tmp_path / 'none'}"), ConfigError, "no such folder")
    (tmp_path / "empty").mkdir()
    refused(config("map.mode=pair", f"map.tuned={tmp_path / 'empty'}"), ModelError, "holds neither adapter_config.json")


def test_states_that_are_not_finite_name_task_model_and_place(
    config: Callable[..., Config], tmp_path: Path, model: Path
) -> None:
    broken = save_adapter(model, tmp_path / "broken", scale=float("nan"))
    with pytest.raises(DataError, match=r"routing: tuned model: the output of block\.0 is not finite") as raised:
        study.run(config("map.mode=pair", f"map.tuned={broken}"))
    assert len(raised.value.problems) == 1


def test_specialists_need_training_data(config: Callable[..., Config]) -> None:
    settings = config("map.mode=mossa", "map.examples=test", "tasks.1.train=null", "tasks.2.train=null")
    with pytest.raises(ConfigError, match="2 tasks have no training examples: 'mood', 'summary'"):
        study.run(settings)
