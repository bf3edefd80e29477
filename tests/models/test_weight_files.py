"""Weights read one by one are those that safetensors reads, and files that are damaged are refused."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunescope.errors import ModelError
from tunescope.models import weight_files
from tunescope.models.weight_files import WeightFiles


@pytest.fixture
def weights():
    return {
        "a.weight": torch.randn(7, 5),
        "a.bias": torch.randn(5).to(torch.bfloat16),
        "b.weight": torch.randn(3, 4, 2).to(torch.float16),
        "scale": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.empty(0, 4),
    }


@pytest.fixture
def folder(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def write(folder, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [8, 1 << 25])
def test_a_weight_is_what_safetensors_reads(folder, dtype, chunk, monkeypatch):
    monkeypatch.setattr(weight_files, "_CHUNK_BYTES", chunk)
    files = WeightFiles(folder)
    reference = load_file(folder / "model.safetensors")
    assert files.weights.keys() == reference.keys()
    for name, weight in reference.items():
        found = files.read(name, dtype=dtype)
        assert found.dtype == dtype
        assert torch.equal(found, weight.to(dtype)), name


def test_shards_are_found_through_the_index(tmp_path, weights):
    names = list(weights)
    save_file({n: weights[n] for n in names[:2]}, tmp_path / "model-1.safetensors")
    save_file({n: weights[n] for n in names[2:]}, tmp_path / "model-2.safetensors")
    listed = {n: f"model-{1 + (n in names[2:])}.safetensors" for n in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    save_file({"other": torch.ones(1)}, tmp_path / "consolidated.safetensors")  # some folders hold the weights twice
    files = WeightFiles(tmp_path)
    assert files.weights.keys() == set(names)
    assert torch.equal(files.read("b.weight", dtype=torch.float32), weights["b.weight"].float())


def test_an_index_cannot_point_outside_its_folder(tmp_path, weights):
    (tmp_path / "inner").mkdir()
    save_file(weights, tmp_path / "outside.safetensors")
    listed = dict.fromkeys(weights, "../outside.safetensors")
    (tmp_path / "inner" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(ModelError, match=r"inner/outside.safetensors: cannot be read \(No such file"):
        WeightFiles(tmp_path / "inner")


def test_a_weight_that_the_index_promises_and_no_file_has_is_named(folder, weights):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    listed = dict.fromkeys([*weights, "c.weight"], "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(ModelError, match=r"1 weights of the index are in none of its files, the first is c.weight"):
        WeightFiles(folder)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index.json: missing or damaged"):
        WeightFiles(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model.safetensors: cannot be read \(No such file"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
    ],
    ids=str,
)
def test_a_header_that_does_not_describe_its_file_is_refused(tmp_path, header):
    write(tmp_path, header, bytes(8))
    with pytest.raises(ModelError, match=r"damaged or not a safetensors file .*; fetch it again"):
        WeightFiles(tmp_path)


@given(st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    save_file({"a": torch.ones(9), "b": torch.ones(3)}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelError):
        WeightFiles(folder)


def test_a_quantised_format_is_named(tmp_path):
    write(tmp_path, {"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}}, bytes(8))
    with pytest.raises(ModelError, match=r"a is stored as I8, which cannot be read weight by weight; allowed: F32"):
        WeightFiles(tmp_path)


def test_a_file_that_becomes_shorter_is_not_read_as_zeros(folder):
    files = WeightFiles(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ModelError, match="ends before its weights do"):
        for name in files.weights:
            files.read(name, dtype=torch.float32)


def test_equality_is_of_bits_and_of_formats(tmp_path):
    one = torch.randn(4, 4)
    other = one.clone()
    other[3, 3] += 1
    save_file(
        {"one": one, "same": one.clone(), "other": other, "flat": one.flatten().clone(), "rounded": one.bfloat16()},
        tmp_path / "model.safetensors",
    )
    files = WeightFiles(tmp_path)
    assert {name: files.equal("one", name) for name in files.weights} == {
        "one": True,
        "same": True,
        "other": False,
        "flat": False,
        "rounded": False,
    }
