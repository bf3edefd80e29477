"""Tuning goes on from saved weights exactly where they ended, for everything that may move, and not with weights of something else."""

import json

import pytest
import torch
from tiny_runs import DTYPES, N_LAYERS, RECIPE, SELECTIONS, assert_same, make_moving, make_rows, weights_of

from tunescope import select
from tunescope.engine import Tuner, load_saved, prepare, save, saved_selection, to_inference
from tunescope.errors import IntegrityError, ModelError
from tunescope.models import FAMILIES, family_of
from tunescope.testing import byte_tokenizer, tiny_model


def tuned(moving):
    for _ in zip(range(3), Tuner(moving, make_rows(), RECIPE).steps(), strict=False):
        pass
    return moving


def write(moving, folder):
    to_inference(moving)
    save(moving, byte_tokenizer(), folder, card="# Card\n", base="the-base")
    return folder


def sparse_moving(*, share=0.05, seed=0):
    """Single entries of two blocks, one matrix of them dense enough to be stored whole."""
    model = tiny_model(n_layers=N_LAYERS)
    scores = {
        name: torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
        for name, weight in select.weight_matrices(model, FAMILIES[0]).items()
        if name in ("block.1.q", "block.3.up", "block.3.v")
    }
    entries = {name: score < (0.9 if name == "block.3.v" else share) for name, score in scores.items()}
    mask = select.Mask(entries, total=sum(s.numel() for s in scores.values()), granularity="entry")
    wanted = select.selection_of(mask, method="sparse", why="test")
    return prepare(model, FAMILIES[0], wanted, mask=mask)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("kind", SELECTIONS)
def test_everything_that_may_move_comes_back_bit_by_bit(kind, family, tmp_path):
    first = tuned(make_moving(kind, family))
    expected = weights_of(first)
    folder = write(first, tmp_path / "weights")
    second = make_moving(kind, family, seed=5)
    load_saved(second, folder)
    assert_same(weights_of(second), expected)


def test_sparse_changes_come_back_bit_by_bit_and_those_of_a_whole_matrix_as_its_difference(tmp_path):
    first = tuned(sparse_moving())
    expected = weights_of(first)
    folder = write(first, tmp_path / "weights")
    assert "block.3.v" not in json.dumps(json.loads((folder / "adapter_config.json").read_text())["target_modules"])
    second = sparse_moving()
    load_saved(second, folder)
    found = weights_of(second)
    assert list(found) == list(expected)
    for name, values in expected.items():
        if name.startswith("block.3.v"):  # added to the weights and taken off again: once rounded
            assert torch.allclose(found[name], values, atol=1e-7) and not torch.equal(values, torch.zeros_like(values))
        else:
            assert torch.equal(found[name], values)


@pytest.mark.parametrize("kind", ["weights of parts", "full"])
def test_moved_weights_go_on_from_what_was_measured(kind, tmp_path):
    first = tuned(make_moving(kind, dtype="bfloat16"))
    folder = write(first, tmp_path / "weights")
    second = make_moving(kind, dtype="bfloat16")
    load_saved(second, folder)
    for name, values in weights_of(second).items():
        assert values.dtype == torch.float32
        assert torch.equal(values, first.parameters[name].detach().to(DTYPES["bfloat16"]).float())


def test_a_second_tuning_starts_at_the_end_of_the_first_and_not_at_the_base(tmp_path):
    first = tuned(make_moving())
    folder = write(first, tmp_path / "weights")
    second = make_moving()
    load_saved(second, folder)
    onward = next(Tuner(second, make_rows(), RECIPE).steps())
    fresh = next(Tuner(make_moving(), make_rows(), RECIPE).steps())
    assert onward.loss < fresh.loss


def test_what_moved_is_read_back(tmp_path):
    for kind in ("lora on some blocks", "weights of blocks"):
        folder = write(make_moving(kind), tmp_path / kind)
        found, wanted = saved_selection(folder), SELECTIONS[kind]
        assert (found.method, found.layers, found.modules) == (wanted.method, wanted.layers, wanted.modules)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"kind": "lora on one block"}, "selection with which it was tuned"),
        ({"kind": "weights of parts"}, "missing or damaged|holds nothing|not a tunescope checkpoint|damaged"),
        ({"rank": 2}, "lora_rank 4 and lora_alpha 8, and the settings say 2 and 4"),
    ],
)
def test_weights_of_something_else_are_refused_and_nothing_is_changed(other, said, tmp_path):
    folder = write(tuned(make_moving()), tmp_path / "weights")
    second = make_moving(**other)
    before = weights_of(second)
    with pytest.raises((ModelError, IntegrityError), match=said):
        load_saved(second, folder)
    assert_same(weights_of(second), before)


def test_an_adapter_of_a_wider_model_is_refused(tmp_path):
    folder = write(tuned(make_moving()), tmp_path / "weights")
    wide = prepare(
        tiny_model(n_layers=N_LAYERS, d_model=64),
        family_of("llama"),
        SELECTIONS["lora on some blocks"],
        lora_rank=4,
        lora_alpha=8,
    )
    with pytest.raises(ModelError, match="which is to go on as"):
        load_saved(wide, folder)


def test_another_mask_is_refused(tmp_path):
    folder = write(tuned(sparse_moving()), tmp_path / "weights")
    with pytest.raises(ModelError, match="other entries of block"):
        load_saved(sparse_moving(seed=1), folder)


@pytest.mark.parametrize(
    ("file", "error"), [("adapter_model.safetensors", IntegrityError), ("adapter_config.json", IntegrityError)]
)
def test_damaged_files_are_refused(file, error, tmp_path):
    folder = write(tuned(make_moving()), tmp_path / "weights")
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(error, match="damaged"):
        load_saved(make_moving(), folder)


def test_a_folder_without_weights_or_without_its_selection_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no selection\.json"):
        saved_selection(tmp_path)
    (tmp_path / "selection.json").write_text("[")
    with pytest.raises(IntegrityError, match="damaged"):
        saved_selection(tmp_path)
    with pytest.raises((ModelError, IntegrityError)):
        load_saved(make_moving("full"), tmp_path)
