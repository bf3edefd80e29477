"""The mean absolute change of saved weights is that of the merged model, weight by weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_runs import N_LAYERS, RECIPE, SELECTIONS, make_rows

from tunescope import models
from tunescope.engine import Tuner, attach, prepare, save, to_inference, weight_change
from tunescope.errors import ModelError, UserError
from tunescope.models import canonical_name
from tunescope.select import Budget, Context, Mask, masks, score, selection_of, weight_matrices
from tunescope.testing import byte_tokenizer, save_tiny

KINDS = [*SELECTIONS, "sparse"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: save_tiny(folder / name, family=name, n_layers=N_LAYERS) for name in ("llama", "gemma3_text")}


def tune(base: Path, kind: str, folder: Path, dtype: str = "float32", *, steps: int = 3) -> Path:
    loaded = models.load(str(base), dtype=dtype)
    mask: Mask | None = None
    if kind == "sparse":
        weights = weight_matrices(loaded.model, loaded.family)
        mask = masks(score("random", weights, context=Context(seed=0)), granularity="entry", budget=Budget(share=0.1))
    selection = selection_of(mask, method="sparse", why="") if mask else SELECTIONS[kind]
    moving = prepare(loaded.model, loaded.family, selection, lora_rank=4, lora_alpha=8, mask=mask)
    records = Tuner(moving, make_rows(), RECIPE).steps()
    for _ in range(steps):
        next(records)
    to_inference(moving)
    save(moving, byte_tokenizer(), folder, card="", base="base")
    return folder


def merged(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Every weight of the tuned model in float32, merged by PEFT itself."""
    if (folder / "config.json").is_file():
        return dict(models.load(str(folder), dtype="float32").model.named_parameters())
    model = attach(models.load(str(base), dtype="float32"), folder)
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return dict(model.named_parameters())


def naive(base: Path, folder: Path) -> dict[str, Any]:
    """The same numbers by comparing two whole models, one weight after the other."""
    before, after = models.load(str(base), dtype="float32"), merged(base, folder)
    gaps = {n: (after[n].detach() - p.detach()).abs().double() for n, p in before.model.named_parameters()}
    blocks: dict[str, list[torch.Tensor]] = {}
    for name, gap in gaps.items():
        canonical = canonical_name(name, before.family)
        place = ".".join(canonical.split(".")[:2]) if canonical.startswith("block.") else ""
        blocks.setdefault(place, []).append(gap.flatten())
    every = torch.cat([g for found in blocks.values() for g in found])
    means = {place: float(torch.cat(found).mean()) for place, found in blocks.items()}
    return {
        "mean": float(every.mean()),
        "outside": means.pop(""),
        "blocks": means,
        "changed": float((every > 0).double().mean()),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_it_is_that_of_the_merged_model(bases: dict[str, Path], kind: str, family: str, tmp_path: Path) -> None:
    folder = tune(bases[family], kind, tmp_path / "arm")
    found = weight_change(models.load(str(bases[family]), dtype="float32"), folder, arm="mine")
    expected = naive(bases[family], folder)
    assert found.arm == "mine" and found.why == ""
    assert found.mean_abs == pytest.approx(expected["mean"], rel=1e-4) and expected["mean"] > 0
    assert found.outside == pytest.approx(expected["outside"], rel=1e-4)
    assert list(found.blocks) == [f"block.{i}" for i in range(N_LAYERS)]
    assert found.blocks == pytest.approx(expected["blocks"], rel=1e-3, abs=1e-12)
    assert found.changed_fraction == pytest.approx(expected["changed"], abs=0.02)


def test_only_the_chosen_blocks_have_moved(bases: dict[str, Path], tmp_path: Path) -> None:
    found = weight_change(models.load(str(bases["llama"])), tune(bases["llama"], "lora on some blocks", tmp_path / "a"))
    assert [name for name, value in found.blocks.items() if value] == ["block.1", "block.3"]
    assert found.outside == 0
    assert found.mean_abs is not None and max(found.blocks.values()) > found.mean_abs


def test_small_changes_are_not_lost_in_the_rounding_of_bfloat16(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tune(bases["llama"], "lora on all blocks", tmp_path / "a")
    fine, coarse = (weight_change(models.load(str(bases["llama"]), dtype=d), folder) for d in ("float32", "bfloat16"))
    assert fine == coarse


def test_the_base_model_is_left_as_it_is(bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = models.load(str(bases["llama"]), dtype="float32")
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    for kind in KINDS:
        weight_change(loaded, tune(bases["llama"], kind, tmp_path / kind.replace(" ", "-")))
    assert all(torch.equal(before[name], p) for name, p in loaded.model.named_parameters())


def test_weights_that_did_not_move_have_changed_by_nothing(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tune(bases["llama"], "lora on all blocks", tmp_path / "a", steps=1)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: t * 0 if "lora_B" in n else t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    found = weight_change(models.load(str(bases["llama"])), folder)
    assert found.mean_abs == 0 and found.changed_fraction == 0 and set(found.blocks.values()) == {0.0}


def plain_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter as somebody else makes one with PEFT alone."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **settings)
    get_peft_model(models.load(str(base), dtype="float32").model, config).save_pretrained(
        folder, save_embedding_layers=False
    )
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 16}},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["rank-stabilised", "patterns", "a module stored whole", "embeddings"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on tied embeddings, which these adapters touch on purpose
def test_adapters_of_others_are_told_too(settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = bases["llama"]
    config = LoraConfig(
        **({"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | settings)
    )
    wrapped = get_peft_model(models.load(str(base), dtype="float32").model, config)
    if "modules_to_save" in settings:
        wrapped.base_model.model.model.norm.modules_to_save["default"].weight.data += 0.01
    wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    found = weight_change(models.load(str(base), dtype="float32"), tmp_path / "a")
    after = dict(wrapped.merge_and_unload().named_parameters())
    before = models.load(str(base), dtype="float32").model
    gaps = [(after[n].detach() - p.detach()).abs().sum().double() for n, p in before.named_parameters()]
    assert found.mean_abs == pytest.approx(float(sum(gaps)) / sum(p.numel() for p in before.parameters()), rel=1e-4)


def test_an_adapter_whose_change_is_no_plain_sum_says_so(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = plain_adapter(bases["llama"], tmp_path / "a", use_dora=True)
    found = weight_change(models.load(str(bases["llama"])), folder)
    assert found.mean_abs is None and "no plain sum" in found.why and found.blocks == {}


def test_weights_of_another_model_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "wide", n_layers=N_LAYERS, d_model=64)
    for kind in ("lora on all blocks", "full", "weights of blocks", "sparse"):
        folder = tune(other, kind, tmp_path / kind.replace(" ", "-"))
        with pytest.raises(UserError):
            weight_change(models.load(str(bases["llama"])), folder)
    with pytest.raises(ModelError, match="holds neither"):
        weight_change(models.load(str(bases["llama"])), tmp_path)


def test_its_record_can_be_saved_and_read_back(bases: dict[str, Path], tmp_path: Path) -> None:
    found = weight_change(models.load(str(bases["llama"])), tune(bases["llama"], "sparse", tmp_path / "a"))
    assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found
