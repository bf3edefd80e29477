"""Every score tunes with every method that takes it; sparse arms move the entries of their mask alone, and survive kill, export and edits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_study import StopsAfter, write_study

from tunescope import engine, models
from tunescope.config import BLOCK_SCORES, Config, load
from tunescope.errors import IntegrityError, RunError, TunescopeError
from tunescope.models import canonical_name
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Selection
from tunescope.select import Mask
from tunescope.studies import evaluate, export, plan, poc, tune

SPARSE = ["tuning.method=sparse", "selection.granularity=entry", "selection.score=snip", "selection.budget=0.02"]
FAST = ["tuning.learning_rate=1e-2", "tuning.num_epochs=1", "dtype=float32", "selection.rank=2"]
WEIGHT_SCORES = ("magnitude", "gradient", "fisher", "snip", "low_rank_magnitude")
ARMS = ("selected", "random", "top-third")


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings with one task, so that many combinations are quick."""
    folder = tmp_path_factory.mktemp("small")
    path = write_study(folder, model, arms=["selected"], guard=[])
    return path


def settings(study: Path, folder: Path, *overrides: str) -> Config:
    return load(study, [f"output_dir={folder / 'own'}", "arms=[selected, random, top-third]", *overrides])


def changed(run: RunFolder, arm: str, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """Canonical name of every weight that differs from the base -> where it does; as plain PEFT loads what was saved."""
    located = run.read_json("environment.json")["model"]["folder"]
    base, own = (models.load(located, dtype=dtype) for _ in range(2))
    tuned = engine.attach(own, run.path / "weights" / arm)
    before = {canonical_name(name, base.family): p for name, p in base.model.named_parameters()}
    after = {canonical_name(name, base.family): p for name, p in tuned.named_parameters()}
    assert before.keys() == after.keys()
    return {name: before[name] != p for name, p in after.items() if not torch.equal(before[name], p)}


def written_mask(run: RunFolder, arm: str) -> Mask:
    return Mask.load(run.path / "masks" / f"{arm}.safetensors")


# Every score with every method.


METHODS = {"block": ("lora", "weights"), "module": ("lora", "weights"), "entry": ("sparse",), "row": ("sparse",)}


@pytest.mark.parametrize(
    ("score", "method", "granularity"),
    [
        (score, method, granularity)
        for granularity, methods in METHODS.items()
        for method in methods
        for score in (*BLOCK_SCORES, *WEIGHT_SCORES)
        if method != "sparse" or score not in BLOCK_SCORES
    ],
)
def test_every_score_tunes_with_every_method_that_takes_it(
    score: str, method: str, granularity: str, small: Path, tmp_path: Path
) -> None:
    quick_map = ["map.n_bootstrap=20", "map.n_permutations=20", "map.specialist.steps=1", "map.causal_examples=1"]
    if score == "causal":
        quick_map += ["map.mode=mossa", f"map.cache={tmp_path / 'cache'}"]
    asked = [f"selection.score={score}", f"tuning.method={method}", f"selection.granularity={granularity}"]
    only = ["arms=[selected, random]", "selection.budget=0.3", *FAST, *quick_map]
    run = tune.run(settings(small, tmp_path, *only, *asked), "selected")
    selection = Selection.from_dict(run.read_json("layers.json")["selections"]["selected"])
    assert selection.method == method and selection.trainable_parameters > 0
    assert run.read_json("layers.json")["scores"][0]["name"] == score
    assert ("map" in run.read_json("layers.json")) is (score in ("layer_map", "causal"))
    assert run.read_json("costs.json")["actual"][0]["trainable_parameters"] == selection.trainable_parameters
    if method == "sparse":
        mask = written_mask(run, "selected")
        moved = changed(run, "selected")
        assert moved and set(moved) <= {f"{name}.weight" for name in mask.entries}
        assert all(not where[~mask.entries[name.removesuffix(".weight")]].any() for name, where in moved.items())
        assert sum(int(where.sum()) for where in moved.values()) > 0.5 * mask.count
    elif method == "weights":
        moved = changed(run, "selected")
        blocks = {".".join(name.split(".")[:2]) for name in moved}
        assert blocks == set(selection.layers)


# A whole comparison with sparse arms.


@pytest.fixture(scope="module")
def compared(small: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Base, selected, random and top-third, all sparse, in bfloat16 as by default."""
    arms = "arms=[nothing, selected, random, top-third]"
    return poc.run(settings(small, tmp_path_factory.mktemp("compared"), *SPARSE, arms, "tuning.weight_decay=0.1"))


def test_all_sparse_arms_move_the_same_number_of_entries(compared: RunFolder) -> None:
    masks = {arm: written_mask(compared, arm) for arm in ARMS}
    assert len({mask.count for mask in masks.values()}) == 1
    assert len({mask.sha256 for mask in masks.values()}) == 3
    chosen = compared.read_json("layers.json")["selections"]
    plan_text = (compared.path / "plan.yaml").read_text()
    for arm, mask in masks.items():
        assert chosen[arm]["mask_sha256"] == mask.sha256 and mask.sha256 in plan_text
        assert chosen[arm]["trainable_parameters"] == mask.count == sum(chosen[arm]["counts"].values())
    results = compared.read_json("results.json")["results"]
    assert {row["arm"] for row in results} == {"nothing", *ARMS}
    assert compared.read_json("status.json")["state"] == "done" and not (compared.path / "arms").exists()


@pytest.mark.parametrize("arm", ARMS)
def test_weights_outside_the_mask_are_bit_identical_weight_decay_included(arm: str, compared: RunFolder) -> None:
    mask = written_mask(compared, arm)
    moved = changed(compared, arm, dtype="bfloat16")
    assert moved
    for name, where in moved.items():
        assert not where[~mask.entries[name.removesuffix(".weight")]].any(), name


def test_a_sparse_arm_is_plain_peft_and_exports_whole(compared: RunFolder, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = compared.path / "weights" / "selected"
    located = compared.read_json("environment.json")["model"]["folder"]
    with torch.sparse.check_sparse_tensor_invariants(False):
        base = AutoModelForCausalLM.from_pretrained(located, dtype=torch.bfloat16)
        plain = PeftModel.from_pretrained(base, source).merge_and_unload()
    merged = export.run(compared.path, "selected", tmp_path / "merged")
    exported = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16)
    ours = engine.attach(models.load(located, dtype="bfloat16"), source)
    for (name, a), b, c in zip(
        plain.named_parameters(), exported.parameters(), dict(ours.named_parameters()).values(), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a, c), name
    adapter = export.run(compared.path, "selected", tmp_path / "adapter", form="adapter")
    assert (adapter / "adapter_model.safetensors").read_bytes() == (source / "adapter_model.safetensors").read_bytes()


def test_a_sparse_arm_measured_again_scores_the_same(compared: RunFolder, small: Path, tmp_path: Path) -> None:
    config = settings(small, tmp_path, *SPARSE)
    again = evaluate.run(config, [compared.path / "weights" / arm for arm in ("selected", "random")])

    def values(run: RunFolder) -> dict[tuple[str, ...], float]:
        rows = run.read_json("results.json")["results"]
        return {(r["arm"], r["task"], r["role"]): r["value"] for r in rows if r["arm"] in ("selected", "random")}

    assert values(again) == values(compared) != {}


def test_without_a_rate_the_race_is_run_among_rates_for_sparse_entries(compared: RunFolder) -> None:
    for row in compared.read_json("costs.json")["actual"]:
        assert row["arm"] == "nothing" or row["learning_rate"] in engine.CANDIDATES["sparse"]


# Kill, resume, damage.


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_stopped_and_resumed_it_ends_with_the_same_weights(steps: int, small: Path, tmp_path: Path) -> None:
    fixed = [*SPARSE, "tuning.learning_rate=2e-3", "selection.score=fisher"]
    whole = tune.run(settings(small, tmp_path / "whole", *fixed), "selected")
    config = settings(small, tmp_path / "parts", *fixed)
    with pytest.raises(KeyboardInterrupt):
        tune.run(config, "selected", progress=StopsAfter(steps))
    mask = (config.output_dir / "masks" / "selected.safetensors").read_bytes()
    parts = tune.run(config, "selected", resume=True)
    name = "weights/selected/adapter_model.safetensors"
    assert (parts.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert (parts.path / "masks" / "selected.safetensors").read_bytes() == mask
    assert [row["loss"] for row in parts.read_jsonl("steps.jsonl")] == [
        row["loss"] for row in whole.read_jsonl("steps.jsonl")
    ]


@pytest.fixture(scope="module")
def stopped(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = settings(
        small, tmp_path_factory.mktemp("stopped"), *SPARSE, "tuning.learning_rate=2e-3", "arms=[selected, random]"
    )
    with pytest.raises(KeyboardInterrupt):
        poc.run(config, progress=StopsAfter(2))
    return config


@pytest.fixture
def masks(stopped: Config) -> Iterator[Path]:
    """The folder of masks of a stopped run; put back afterwards."""
    folder = stopped.output_dir / "masks"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    layers = (stopped.output_dir / "layers.json").read_bytes()
    yield folder
    for path, content in kept.items():
        path.write_bytes(content)
    (stopped.output_dir / "layers.json").write_bytes(layers)


def refused(config: Config) -> str:
    with pytest.raises(IntegrityError) as caught:
        poc.run(config, resume=True)
    assert caught.value.exit_code == 5
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


@pytest.mark.parametrize("arm", ["selected", "random"])
def test_a_changed_byte_of_a_mask_is_refused(arm: str, stopped: Config, masks: Path) -> None:
    path = masks / f"{arm}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x10
    path.write_bytes(content)
    assert f"{path}: the mask does not match its hash" in refused(stopped)


def test_a_mask_that_is_cut_off_or_gone_is_refused(stopped: Config, masks: Path) -> None:
    path = masks / "selected.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert "no mask, or a damaged one" in refused(stopped)
    path.unlink()
    assert "no mask, or a damaged one" in refused(stopped)


def test_another_whole_mask_is_refused(stopped: Config, masks: Path) -> None:
    shutil.copyfile(masks / "random.safetensors", masks / "selected.safetensors")
    assert "is another mask" in refused(stopped)


def test_a_forged_mask_with_its_hash_in_the_layers_is_refused_by_the_plan(stopped: Config, masks: Path) -> None:
    forged = Mask.load(masks / "random.safetensors")
    shutil.copyfile(masks / "random.safetensors", masks / "selected.safetensors")
    path = stopped.output_dir / "layers.json"
    values = json.loads(path.read_text())
    values["selections"]["selected"] |= {"mask_sha256": forged.sha256, "counts": forged.counts}
    path.write_text(json.dumps(values))
    assert "the mask of selected is not the one of the plan" in refused(stopped)


def test_a_run_whose_masks_were_put_back_goes_on(stopped: Config, tmp_path: Path) -> None:
    own = Path(shutil.copytree(stopped.output_dir, tmp_path / "run"))
    shutil.rmtree(stopped.output_dir)
    shutil.copytree(own, stopped.output_dir)
    assert poc.run(stopped, resume=True).read_json("status.json")["state"] == "done"


def test_an_adapter_of_another_mask_is_what_it_says_it_is(compared: RunFolder, tmp_path: Path) -> None:
    """The file of changes names its entries itself: exchanged indices are exchanged weights, not a silent mix."""
    own = Path(shutil.copytree(compared.path / "weights" / "selected", tmp_path / "own"))
    tensors = load_file(own / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("shira_indices"))
    tensors[name] = tensors[name] + 100_000
    save_file(tensors, own / "adapter_model.safetensors", metadata={"format": "pt"})
    loaded = models.load(compared.read_json("environment.json")["model"]["folder"], dtype="bfloat16")
    with pytest.raises(TunescopeError, match="outside"):
        engine.attach(loaded, own)


# The plan of a sparse arm.


@pytest.mark.parametrize(
    ("old", "new"),
    [("layers: [block.0-3]", "layers: [block.1-3]"), ("modules: [q, k, v, o, gate, up, down]", "modules: [q, v]")],
)
def test_a_person_cannot_edit_what_a_sparse_arm_moves(old: str, new: str, small: Path, tmp_path: Path) -> None:
    config = settings(small, tmp_path, *SPARSE, "tuning.learning_rate=2e-3", "selection.per_matrix=true")
    run, proposed = plan.run(config, "selected")
    assert [arm.method for arm in proposed.arms] == ["sparse"]
    path = run.path / "plan.yaml"
    text = path.read_text()
    assert "selected: single matrices or entries move, which cannot be edited here" in text
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RunError) as caught:
        tune.run(config, "selected", resume=True)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert "arms.selected moves single entries, which cannot be edited here" in problem and "\n" not in problem
    path.write_text(text.replace("mask_sha256: ", "mask_sha256: x", 1))
    with pytest.raises(TunescopeError):
        tune.run(config, "selected", resume=True)
    path.write_text(text)
    assert tune.run(config, "selected", resume=True).read_json("status.json")["state"] == "done"


def test_an_arm_can_be_deleted_from_a_sparse_plan(small: Path, tmp_path: Path) -> None:
    arms = "arms=[nothing, selected, random, top-third]"
    config = settings(small, tmp_path, *SPARSE, "tuning.learning_rate=2e-3", arms)
    run, _ = plan.run(config)
    text = (run.path / "plan.yaml").read_text()
    head, _, rest = text.partition("  top-third:\n")
    tail = rest[rest.index("# What else could be tuned") :]
    (run.path / "plan.yaml").write_text(head + tail)
    done = poc.run(config, resume=True)
    assert {row["arm"] for row in done.read_json("results.json")["results"]} == {"nothing", "selected", "random"}


def test_a_control_cannot_stay_where_the_choice_it_was_made_for_is_edited(small: Path, tmp_path: Path) -> None:
    config = settings(small, tmp_path, "selection.names=[block.3.q, block.3.v]", "tuning.learning_rate=2e-3")
    run, proposed = plan.run(config)
    selected = proposed.arm("selected")
    assert selected is not None and not selected.fixed  # block 3 with q and v, which a person may edit
    path = run.path / "plan.yaml"
    text = path.read_text()
    assert text.count("layers: [block.3]") >= 1
    path.write_text(text.replace("layers: [block.3]", "layers: [block.2]", 1))
    with pytest.raises(RunError) as caught:
        poc.run(config, resume=True)
    assert any("random was made for the single matrices" in problem for problem in caught.value.problems)


def test_the_top_third_follows_the_number_of_blocks_of_selected(small: Path, tmp_path: Path) -> None:
    config = settings(small, tmp_path, "tuning.learning_rate=2e-3", "selection.blocks=[block.0, block.1]")
    run, _ = plan.run(config)
    path = run.path / "plan.yaml"
    text = path.read_text()
    assert "# `random` and `top-third` are controls of `selected`" in text
    path.write_text(text.replace("layers: [block.0-1]", "layers: [block.0]", 1))
    with pytest.raises(RunError) as caught:
        poc.run(config, resume=True)
    problems = "\n".join(caught.value.problems)
    assert "top-third moves 2 block(s) and selected 1" in problems
    assert "write layers: [block.3] (those next to the output), or delete top-third" in problems
    head, _, tail = text.partition("  top-third:\n")
    assert "layers: [block.2-3]" in tail
    path.write_text(f"{head}  top-third:\n{tail.replace('layers: [block.2-3]', 'layers: [block.1-2]', 1)}")
    with pytest.raises(RunError, match="top-third moves the blocks next to the output; write layers"):
        poc.run(config, resume=True)
