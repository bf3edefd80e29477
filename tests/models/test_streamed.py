"""A model of which only some weights are in memory has the modules, names and buffers of the whole one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunescope.errors import ModelError
from tunescope.models import blocks, load_located, locate
from tunescope.models.packed import pack
from tunescope.models.streamed import Sizes, StreamedBase, load_tail, lowest_block
from tunescope.models.tail import run_blocks
from tunescope.testing import save_tiny, tiny_model

DTYPES = ["float32", "bfloat16"]
N_LAYERS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        name: save_tiny(root / name, family=name, n_layers=N_LAYERS)
        for name in ("llama", "qwen2", "qwen3", "gemma3_text")
    }


@pytest.fixture
def located(folders, family):
    return locate(str(folders[family]))


def untie(source, target, *, change=True):
    """A copy of a model with a head of its own."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + (torch.randn(260, 32) if change else 0)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def set_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", range(N_LAYERS + 1))
def test_a_tail_holds_the_weights_of_the_whole_model_and_no_others(located, dtype, k):
    whole, tail = load_located(located, dtype=dtype), load_tail(located, k, dtype=dtype)
    reference, found = dict(whole.model.named_parameters()), dict(tail.model.named_parameters())
    assert list(found) == list(reference)
    absent = tuple(f"model.layers.{i}." for i in range(k))
    for name, parameter in found.items():
        assert parameter.is_meta == name.startswith(absent)
        assert (parameter.shape, parameter.dtype) == (reference[name].shape, reference[name].dtype)
        assert parameter.is_meta or torch.equal(parameter, reference[name]), name
        assert not parameter.requires_grad
    buffers = dict(tail.model.named_buffers())
    assert list(buffers) == list(dict(whole.model.named_buffers()))
    for name, buffer in whole.model.named_buffers():
        assert buffers[name].dtype == buffer.dtype
        assert torch.equal(buffers[name], buffer), name
    assert lowest_block(tail.model) == k
    assert lowest_block(whole.model) == 0
    assert type(tail.model) is type(whole.model)
    assert tail.model.config.to_dict() == whole.model.config.to_dict()
    assert not tail.model.training
    held = sum(p.nbytes for p in found.values() if not p.is_meta)
    assert vars(tail.info) | {"weight_bytes": held} == vars(whole.info) | {"weight_bytes": tail.info.weight_bytes}


def test_tied_embeddings_are_in_memory_once(located):
    model = load_tail(located, 2, dtype="float32").model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_untied_embeddings_are_not_in_memory_where_only_the_head_is_needed(folders, tmp_path):
    folder = untie(folders["llama"], tmp_path / "untied")
    set_config(folder, tie_word_embeddings=False)
    located = locate(str(folder))
    base = StreamedBase(located, dtype="float32")
    tail = load_tail(located, 2, dtype="float32")
    whole = load_located(located, dtype="float32")
    assert tail.model.get_input_embeddings().weight.is_meta
    assert torch.equal(tail.model.get_output_embeddings().weight, whole.model.get_output_embeddings().weight)
    assert base.sizes.head == base.sizes.embedding == 260 * 32 * 4
    assert tail.info.weight_bytes == sum(p.nbytes for p in tail.model.parameters() if not p.is_meta)
    assert not load_tail(located, 0, dtype="float32").model.get_input_embeddings().weight.is_meta


@pytest.mark.parametrize("change", [True, False], ids=["another head", "the same head"])
def test_a_head_in_the_files_of_a_tied_model_counts_as_in_transformers(folders, tmp_path, change):
    located = locate(str(untie(folders["qwen2"], tmp_path / "both", change=change)))
    whole, tail = load_located(located, dtype="float32").model, load_tail(located, 2, dtype="float32").model
    assert torch.equal(tail.get_output_embeddings().weight, whole.get_output_embeddings().weight)
    assert tail.get_input_embeddings().weight.is_meta == change


def test_a_tied_matrix_stored_as_the_head_is_found(folders, tmp_path):
    folder = tmp_path / "swapped"
    shutil.copytree(folders["llama"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tail, whole = load_tail(locate(str(folder)), 3).model, load_located(locate(str(folder))).model
    assert torch.equal(tail.get_output_embeddings().weight, whole.get_output_embeddings().weight)


def test_weights_stored_without_the_prefix_are_found(folders, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(folders["llama"], folder)
    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): weight for name, weight in weights.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    tail, whole = load_tail(locate(str(folder)), 0).model, load_located(locate(str(folder))).model
    for left, right in zip(tail.parameters(), whole.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_model_in_several_files_is_read(tmp_path):
    model = tiny_model(n_layers=N_LAYERS)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shutil.copy(save_tiny(tmp_path / "other") / "tokenizer.json", tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    tail = load_tail(locate(str(tmp_path)), 0, dtype="float32").model
    for left, right in zip(tail.parameters(), model.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_block_at_a_time_is_in_memory_and_nothing_stays(located, dtype):
    base = StreamedBase(located, dtype=dtype)
    whole = load_located(located, dtype=dtype).model

    def in_memory():
        return sum(p.nbytes for p in base.model.parameters() if not p.is_meta)

    assert in_memory() == base.sizes.rest
    for i, block in enumerate(blocks(whole)):
        with base.block(i):
            assert in_memory() == base.sizes.rest + base.sizes.blocks[i]
            for left, right in zip(blocks(base.model)[i].parameters(), block.parameters(), strict=True):
                assert torch.equal(left, right)
        assert in_memory() == base.sizes.rest
    with base.embedding():
        assert in_memory() == base.sizes.rest + base.sizes.embedding
    assert in_memory() == base.sizes.rest
    assert base.sizes.whole == sum(p.nbytes for p in whole.parameters())
    assert base.bytes_read == base.sizes.whole


def test_a_block_leaves_memory_after_an_error(located):
    base = StreamedBase(located)
    with pytest.raises(KeyboardInterrupt), base.block(1):
        raise KeyboardInterrupt
    assert all(p.is_meta for p in blocks(base.model)[1].parameters())


def test_running_what_is_not_in_memory_is_an_error(located, rows):
    tail = load_tail(located, 2, dtype="float32")
    with pytest.raises(ModelError, match=r"DecoderLayer was to run and is not in memory"):
        run_blocks(tail.model, pack(rows))
    with pytest.raises(ModelError, match="reads states at the input of that block instead of tokens"):
        tail.model(torch.tensor([[5, 6, 7]]))


@pytest.fixture
def rows():
    from types import SimpleNamespace

    return [SimpleNamespace(prompt_ids=(5, 6, 7), target_ids=(8, 256))]


def test_the_tail_computes_what_the_whole_model_does(located, rows):
    whole, tail = load_located(located).model, load_tail(located, 2).model
    packed = pack(rows)
    states = run_blocks(whole, packed, stop=2)
    assert torch.equal(
        run_blocks(tail, packed, first=2, states=states), run_blocks(whole, packed, first=2, states=states)
    )


def test_sizes_of_tails():
    tied, untied = Sizes(50, (10, 20, 30), 1, 0), Sizes(50, (10, 20, 30), 1, 45)
    assert [tied.tail(k) for k in range(4)] == [111, 101, 81, 51]
    assert [untied.tail(k) for k in range(1, 4)] == [96, 76, 46]
    assert (tied.whole, untied.whole) == (111, 156)
    assert (tied.largest, Sizes(5, (10, 20), 1, 0).largest, Sizes(5, (), 1, 0).largest) == (50, 20, 5)


def test_what_cannot_be_loaded_is_refused_in_one_line(folders, tmp_path):
    located = locate(str(folders["llama"]))
    with pytest.raises(ModelError, match=r"this model has block.0 to block.3"):
        load_tail(located, 5)
    with pytest.raises(ModelError, match=r"this model has block.0 to block.3"):
        load_tail(located, -1)
    with pytest.raises(ModelError, match=r"dtype 'float16' is not known; allowed: float32, bfloat16"):
        load_tail(located, 1, dtype="float16")
    quantised = tmp_path / "quantised"
    shutil.copytree(folders["llama"], quantised)
    set_config(quantised, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ModelError, match="are quantised, which cannot be read block by block"):
        load_tail(locate(str(quantised)), 1)
    other = tmp_path / "other"
    shutil.copytree(folders["llama"], other)
    set_config(other, num_hidden_layers=6)
    with pytest.raises(ModelError, match=r"18 weights are missing or of another shape, the first is model.layers.4"):
        load_tail(locate(str(other)), 1)
    unknown = tmp_path / "unknown"
    shutil.copytree(folders["llama"], unknown)
    set_config(unknown, model_type="gpt2")
    with pytest.raises(ModelError, match="model type 'gpt2' is not supported"):
        load_tail(locate(str(unknown)), 1)
    (unknown / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json is missing or not readable"):
        load_tail(locate(str(unknown)), 1)
    nameless = tmp_path / "nameless"
    shutil.copytree(folders["llama"], nameless)
    (nameless / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="has no readable tokenizer"):
        load_tail(locate(str(nameless)), 1)
