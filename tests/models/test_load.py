"""Loading: what was asked for and nothing else, or one line that says what is wrong."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from contract import DTYPES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tunescope import models
from tunescope.errors import IntegrityError, ModelError
from tunescope.testing import byte_tokenizer, save_tiny, tiny_model

IDS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(0))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    """A tiny llama on disk."""
    return save_tiny(tmp_path / "tiny")


def refused(name, *said, kind=ModelError, **settings):
    """Asserts one line that holds all of `said`."""
    with pytest.raises(kind) as caught:
        models.load(str(name), **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for text in said:
        assert text in message
    return message


# --- what is loaded ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_gives_the_model_that_was_saved(family, dtype, tmp_path):
    loaded = models.load(str(save_tiny(tmp_path / "tiny", family=family)), dtype=dtype)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=DTYPES[dtype], attn_implementation="eager")
    torch.testing.assert_close(
        loaded.model(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-5 if dtype == "float32" else 0.25
    )
    assert {p.dtype for p in loaded.model.parameters()} == {DTYPES[dtype]}
    for (name, mine), (_, other) in zip(
        loaded.model.named_parameters(), tiny_model(family).named_parameters(), strict=True
    ):
        assert torch.equal(mine, other.to(DTYPES[dtype])), name


def test_nothing_is_in_training_mode_and_nothing_requires_a_gradient(family, tmp_path):
    loaded = models.load(str(save_tiny(tmp_path / "tiny", family=family)))
    assert not any(module.training for module in loaded.model.modules())
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_what_was_loaded_is_stated(family, tmp_path):
    place = save_tiny(tmp_path / "tiny", family=family, n_layers=3)
    loaded = models.load(str(place), dtype="bfloat16")
    info = loaded.info
    assert (info.name, info.source, info.folder, info.revision) == (str(place), "folder", str(place), None)
    assert info.n_layers == 3
    assert loaded.family is models.family_of(family)
    assert info.family == loaded.family.name
    stored = sum(t.numel() for t in load_file(place / "model.safetensors").values())  # the tied head is stored once
    assert info.parameters == stored
    assert info.weight_bytes == 2 * stored


def test_the_hash_follows_the_weights_alone(folder, tmp_path):
    first = models.locate(str(folder)).sha256
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert models.locate(str(copy)).sha256 == first
    save_tiny(copy, seed=1)
    assert models.locate(str(copy)).sha256 != first


def test_an_untied_head_is_counted(tmp_path):
    model = tiny_model()
    tied = sum(p.numel() for p in model.parameters())
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), dtype="float32")
    assert loaded.info.parameters == tied + model.lm_head.weight.numel()
    torch.testing.assert_close(loaded.model(IDS).logits, model(IDS).logits)


def test_the_tokenizer_alone_can_be_loaded(folder):
    assert models.load_tokenizer(str(folder))("Tür <end>")["input_ids"] == byte_tokenizer()("Tür <end>")["input_ids"]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no readable tokenizer"):
        models.load_tokenizer(str(folder))


# --- what is refused ---


def test_an_unknown_name_lists_what_is_allowed():
    refused("smollm2-135m-instrct", "did you mean smollm2-135m-instruct?", "a hub id has the form owner/model")
    refused("nothing-like-it", "no such alias, folder or .gguf file", "aliases: smollm2-135m-instruct")
    refused("./no/folder", "no such alias, folder")


def test_a_family_that_is_not_supported_is_named(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "model type 'gpt2' is not supported", "supported: llama", "Family entry")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "no *.safetensors weights")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    refused(folder, f"only pickled weights ({name})", "safetensors")


def test_pickled_weights_beside_good_ones_do_not_disturb(folder):
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert models.load(str(folder), dtype="float32").info.n_layers == 2


@pytest.mark.parametrize("with_weights", [True, False])
def test_an_adapter_is_not_a_model(tmp_path, with_weights):
    (tmp_path / "adapter_config.json").write_text("{}")
    if with_weights:
        save_file({"lora_A": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "is an adapter, not a model; name its base model")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_weight_file_is_named(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "model.safetensors", "damaged or not a safetensors file", "fetch it again")


def test_a_file_of_another_kind_under_the_name_of_weights_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + b"\0" * 500)
    refused(folder, "model.safetensors", "damaged or not a safetensors file")


def test_missing_weights_are_named_and_never_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "1 weights are missing", "layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, str(folder))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"llama"', "{}", '{"model_type": 3}', '{"model_type": "no-such-type"}', "\x00\xff"]
)
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, str(folder))


def test_a_config_that_is_missing_is_named(folder):
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_a_missing_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, str(folder))


def test_an_unknown_number_format_lists_the_known_ones(folder):
    refused(folder, "dtype 'float16' is not known", "float32, bfloat16", dtype="float16")


def test_code_inside_a_model_folder_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('was run')")
    refused(folder, str(folder))


# --- GGUF files ---


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    for name, content in (("a.gguf", b"GGML" + b"\0" * 99), ("b.gguf", b"")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not a GGUF file")
    refused(tmp_path / "c.gguf", "no such file")
    (tmp_path / "d.bin").write_bytes(b"GGUF")
    refused(tmp_path / "d.bin", "is a file but not .gguf")


# --- the hub ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline hub client whose cache holds owner/tiny."""
    snapshots = tmp_path / "hub" / "models--owner--tiny" / "snapshots"
    save_tiny(snapshots / COMMIT)
    refs = snapshots.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_model_in_the_cache_is_loaded_offline_with_its_commit(revision):
    loaded = models.load("owner/tiny", revision=revision, dtype="float32")
    assert (loaded.info.source, loaded.info.revision) == ("hub", COMMIT)
    torch.testing.assert_close(loaded.model(IDS).logits, tiny_model()(IDS).logits)


@pytest.mark.usefixtures("hub")
def test_a_hub_model_that_is_not_in_the_cache_says_what_works_without_a_hub():
    refused("owner/other", "model 'owner/other' cannot be fetched", "alias", ".gguf")
    refused("owner/tiny", "revision 'v9'", revision="v9")
    refused("owner/bad name!", "cannot be fetched")


def test_a_converted_copy_that_was_changed_is_an_integrity_error(folder):
    digest = models.sha256_of(folder / "model.safetensors")
    (folder / "manifest.json").write_text(json.dumps({"gguf_sha256": "0", "sha256": {"model.safetensors": digest}}))
    assert models.load(str(folder), dtype="float32").info.source == "folder"
    save_tiny(folder, seed=5)
    refused(folder, "model.safetensors", "changed since it was converted", kind=IntegrityError)


def test_a_manifest_of_another_program_does_not_disturb(folder):
    for text in ('{"name": "something else"}', "[1, 2]", "not json"):
        (folder / "manifest.json").write_text(text)
        assert models.load(str(folder), dtype="float32").info.source == "folder"
