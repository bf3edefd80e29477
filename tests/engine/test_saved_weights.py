"""What is measured is what is saved is what is loaded again, here and by the libraries everybody else uses."""

import dataclasses
import json
import resource
import shutil
import stat

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_runs import DTYPES, N_LAYERS, RECIPE, SELECTIONS, make_moving, make_rows
from transformers import AutoModelForCausalLM

from tunescope import models
from tunescope.engine import Tuner, attach, check_base, prepare, save, to_inference, weight_bytes
from tunescope.engine.weights import check_fits
from tunescope.errors import IntegrityError, ModelError, UserError
from tunescope.testing import byte_tokenizer, save_tiny

IDS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """family -> folder of a tiny base model."""
    folders = {}

    def base(family="llama", n_layers=N_LAYERS, **settings):
        key = json.dumps([family, n_layers, settings])
        if key not in folders:
            folders[key] = save_tiny(tmp_path_factory.mktemp("base"), family=family, n_layers=n_layers, **settings)
        return folders[key]

    return base


def tuned(base, kind="lora on some blocks", dtype="float32"):
    """A base from its folder, three steps later, ready for inference."""
    loaded = models.load(str(base), dtype=dtype)
    moving = prepare(loaded.model, loaded.family, SELECTIONS[kind], lora_rank=4, lora_alpha=8)
    steps = Tuner(moving, make_rows(), RECIPE).steps()
    for _ in range(3):
        next(steps)
    to_inference(moving)
    return moving


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def write(moving, folder, card="# Card\n"):
    return save(moving, byte_tokenizer(), folder, card=card, base="the-base")


def reload(base, folder, dtype):
    """As a study loads what was tuned."""
    if (folder / "config.json").is_file():
        return models.load(str(folder), dtype=dtype).model
    return attach(models.load(str(base), dtype=dtype), folder)


# --- the round trip ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_and_loaded_again_it_gives_the_same_bits(bases, family, kind, dtype, tmp_path):
    base = bases(family)
    moving = tuned(base, kind, dtype)
    wanted = logits(moving.model)
    size = write(moving, tmp_path / "arm")
    loaded = models.load(str(base), dtype=dtype)
    untuned = logits(loaded.model)
    check_fits(loaded, tmp_path / "arm")
    assert torch.equal(logits(loaded.model), untuned)
    # As a study loads what was tuned.
    whole = (tmp_path / "arm" / "config.json").is_file()
    model = models.load(str(tmp_path / "arm"), dtype=dtype).model if whole else attach(loaded, tmp_path / "arm")
    assert whole is (kind == "full")
    assert torch.equal(logits(model), wanted)
    assert not torch.allclose(wanted, untuned, atol=1e-3)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert size == weight_bytes(tmp_path / "arm") > 0


def test_an_adapter_loads_with_plain_peft(bases, family, tmp_path):
    moving = tuned(bases(family))
    write(moving, tmp_path / "arm")
    base = AutoModelForCausalLM.from_pretrained(bases(family), dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, tmp_path / "arm")
    torch.testing.assert_close(logits(model), logits(moving.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_full_model_loads_with_plain_transformers(bases, family, dtype, tmp_path):
    moving = tuned(bases(family), "full", dtype)
    wanted = logits(moving.model)
    write(moving, tmp_path / "arm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "arm", dtype=DTYPES[dtype])
    assert {p.dtype for p in model.parameters()} == {DTYPES[dtype]}
    for (name, mine), (_, other) in zip(model.named_parameters(), moving.model.named_parameters(), strict=True):
        assert torch.equal(mine, other), name
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-5 if dtype == "float32" else 0.25)


def test_an_adapter_made_by_plain_peft_can_be_attached(bases, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(bases(), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "foreign", save_embedding_layers=False)
    attached = attach(models.load(str(bases()), dtype="float32"), tmp_path / "foreign")
    torch.testing.assert_close(logits(attached), logits(model), rtol=0, atol=1e-5)


# --- what lies in the folder ---


def test_only_what_moved_is_stored(bases, kind, tmp_path):
    moving = tuned(bases(), kind)
    size = write(moving, tmp_path / "arm")
    values = 4 * moving.selection.trainable_parameters
    assert values <= size < values + 8_000  # names and shapes
    assert not list((tmp_path / "arm").glob("*.bin"))


def test_the_folder_says_what_it_is(bases, kind, tmp_path):
    moving = tuned(bases(), kind)
    write(moving, tmp_path / "arm", card="# Karte 設備\n")
    assert (tmp_path / "arm" / "README.md").read_text(encoding="utf-8") == "# Karte 設備\n"
    assert json.loads((tmp_path / "arm" / "selection.json").read_text()) == moving.selection.to_dict()
    if moving.selection.method == "lora":
        config = json.loads((tmp_path / "arm" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "the-base"
        assert config["inference_mode"] is True
        assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_everyone_who_may_read_the_card_may_read_the_weights(bases, kind, tmp_path):
    """safetensors writes files that their owner alone can read; a server often runs as somebody else."""
    write(tuned(bases(), kind), tmp_path / "arm")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "arm").iterdir()}
    assert set(modes.values()) == {modes["README.md"]}


# --- what is refused ---


@pytest.mark.parametrize("kind", ["lora on all blocks", "weights of blocks"])
@pytest.mark.parametrize("other", [{"n_layers": 2}, {"d_model": 48}], ids=["fewer blocks", "another width"])
def test_weights_for_another_base_are_refused(bases, kind, other, tmp_path):
    write(tuned(bases(), kind), tmp_path / "arm")
    stranger = models.load(str(bases(**other)), dtype="float32")
    before = logits(stranger.model)
    for use in (check_fits, attach):
        with pytest.raises(ModelError) as caught:
            use(stranger, tmp_path / "arm")
        assert str(tmp_path / "arm") in str(caught.value) or "is not in this model" in str(caught.value)
        assert caught.value.exit_code == 2
    assert torch.equal(logits(stranger.model), before)


def test_weights_tuned_from_another_base_of_the_same_shapes_are_refused_by_its_hash(bases, kind, tmp_path):
    mine, twin = (models.load(str(bases(**more)), dtype="float32") for more in ({}, {"seed": 5}))
    assert mine.info.sha256 != twin.info.sha256
    save(tuned(bases(), kind), byte_tokenizer(), tmp_path / "arm", card="", base="first", base_sha256=mine.info.sha256)
    assert check_fits(mine, tmp_path / "arm") == ""
    if (tmp_path / "arm" / "config.json").is_file():  # a whole model needs no base
        assert check_fits(twin, tmp_path / "arm") == ""
        with pytest.raises(ModelError, match="made for another base model, first"):
            check_base(twin, tmp_path / "arm")
        return
    before = logits(twin.model)
    for use in (check_fits, attach, check_base):
        with pytest.raises(
            ModelError, match=r"made for another base model, first \(sha256 .*\. Give the base"
        ) as caught:
            use(twin, tmp_path / "arm")
        assert mine.info.sha256[:12] in str(caught.value) and twin.info.sha256[:12] in str(caught.value)
    assert torch.equal(logits(twin.model), before)
    attach(mine, tmp_path / "arm")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', '{"name": 1, "sha256": "ab"}', "\x00"])
def test_a_damaged_record_of_the_base_is_refused(bases, text, tmp_path):
    write(tuned(bases()), tmp_path / "arm")
    (tmp_path / "arm" / "base.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"base\.json: damaged"):
        attach(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


@pytest.mark.parametrize(
    ("source", "name", "said", "outcome"),
    [
        ("hub", "Org/Some-Model", "Org/Some-Model", ""),
        ("hub", "Org/Some-Model", "mirror/some-model", ""),
        ("package", "some-model", "Org/Some-Model", ""),
        ("folder", "models/x", "models/x", ""),
        ("hub", "Org/Some-Model", "Org/Some-Model-Instruct", None),
        ("package", "some-model", "Org/Other", "cannot be compared"),  # an alias is a name of ours
        ("folder", "models/x", "Org/Some-Model", "cannot be compared"),
        ("hub", "Org/Some-Model", "/data/checkpoints/7", "cannot be compared"),
        ("hub", "Org/Some-Model", "", "nothing says for which base"),
        ("folder", "models/x", None, "nothing says for which base"),
        ("folder", "models/x", 7, "nothing says for which base"),
    ],
)
def test_a_foreign_adapter_is_known_by_the_name_of_its_base_or_a_note_says_so(
    bases, source, name, said, outcome, tmp_path
):
    write(tuned(bases()), tmp_path / "arm")
    file = tmp_path / "arm" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": said}))
    loaded = models.load(str(bases()), dtype="float32")
    loaded = dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, source=source, name=name))
    if outcome is None:
        for use in (check_fits, attach):
            with pytest.raises(ModelError, match=f"names {said}, and the base is {name}"):
                use(loaded, tmp_path / "arm")
        return
    note = check_fits(loaded, tmp_path / "arm")
    assert outcome in note and bool(note) == bool(outcome) and "\n" not in note
    attach(loaded, tmp_path / "arm")


def test_a_base_in_the_same_folder_by_another_path_is_the_same(bases, tmp_path):
    write(tuned(bases()), tmp_path / "arm")
    (tmp_path / "link").symlink_to(bases())
    file = tmp_path / "arm" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(tmp_path / "link")}))
    assert check_base(models.load(str(bases()), dtype="float32"), tmp_path / "arm") == ""


def test_an_adapter_for_parts_that_the_family_lacks_is_refused(bases, tmp_path):
    write(tuned(bases()), tmp_path / "arm")
    file = tmp_path / "arm" / "adapter_model.safetensors"
    renamed = {name.replace("self_attn.q_proj", "attn.qkv"): tensor for name, tensor in load_file(file).items()}
    save_file(renamed, file)
    with pytest.raises(ModelError, match=r"the adapter is for another base model; it adapts block\.1\.attn\.qkv"):
        attach(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


@pytest.mark.parametrize("kind", ["lora on some blocks", "weights of parts", "full"])
@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_truncated_weights_are_refused(bases, kind, keep, tmp_path):
    write(tuned(bases(), kind), tmp_path / "arm")
    (file,) = (tmp_path / "arm").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    error = ModelError if kind == "full" else IntegrityError  # a whole model is refused as any model is
    with pytest.raises(error, match=file.name):
        reload(bases(), tmp_path / "arm", "float32")
    with pytest.raises(error, match=file.name):
        check_fits(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


def test_a_changed_bit_in_changed_weights_is_refused(bases, tmp_path):
    write(tuned(bases(), "weights of parts"), tmp_path / "arm")
    file = tmp_path / "arm" / "changed.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"changed\.safetensors: .*does not match its hash"):
        attach(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"method": "lora"}'])
def test_a_missing_or_damaged_selection_is_refused(bases, text, tmp_path):
    write(tuned(bases(), "weights of parts"), tmp_path / "arm")
    file = tmp_path / "arm" / "selection.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(IntegrityError, match=r"selection\.json: missing or damaged"):
        attach(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"peft_type": "NO_SUCH"}'])
def test_a_damaged_adapter_config_is_refused(bases, text, tmp_path):
    write(tuned(bases()), tmp_path / "arm")
    (tmp_path / "arm" / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match="does not fit"):
        attach(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


def test_pickled_adapters_are_not_read(bases, tmp_path):
    write(tuned(bases()), tmp_path / "arm")
    (tmp_path / "arm" / "adapter_model.safetensors").unlink()
    (tmp_path / "arm" / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing .pickled adapters are not read"):
        attach(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


def test_a_folder_without_weights_is_refused(bases, tmp_path):
    for use in (check_fits, attach):
        with pytest.raises(ModelError, match=r"holds neither adapter_config\.json nor changed\.safetensors"):
            use(models.load(str(bases()), dtype="float32"), tmp_path)


# --- interruptions ---


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["lora on some blocks", "weights of parts", "full"])
@pytest.mark.parametrize("moment", ["weights", "card", "sync", "swap"])
def test_an_interrupted_save_leaves_the_old_folder(bases, kind, moment, tmp_path, monkeypatch):
    from pathlib import Path

    first = tuned(bases(), kind)
    write(first, tmp_path / "arm")
    before = contents(tmp_path / "arm")

    def stop(*_args, **_settings):
        raise KeyboardInterrupt

    second = make_moving(kind)
    with monkeypatch.context() as patch:
        if moment == "weights":
            patch.setattr(type(second.model), "save_pretrained", stop)
            patch.setattr("tunescope.engine.weights.write_tensors", stop)
        elif moment == "card":
            patch.setattr(Path, "write_text", stop)
        elif moment == "sync":
            patch.setattr("tunescope.engine.weights.os.fsync", stop)
        else:
            real = Path.rename
            patch.setattr(Path, "rename", lambda self, to: stop() if self.name == ".arm.part" else real(self, to))
        with pytest.raises(KeyboardInterrupt):
            write(second, tmp_path / "arm")
    assert contents(tmp_path / "arm") == before
    assert [path.name for path in tmp_path.iterdir()] == ["arm"]
    write(second, tmp_path / "arm")
    assert contents(tmp_path / "arm") != before
    assert [path.name for path in tmp_path.iterdir()] == ["arm"]


@pytest.mark.parametrize("kind", ["lora on all blocks", "weights of blocks", "full"])
def test_a_disk_that_takes_no_more_is_the_users_matter(bases, kind, tmp_path):
    moving = tuned(bases(), kind)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written .*free some space"):
            write(moving, tmp_path / "arm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_leftovers_of_a_killed_save_do_not_disturb(bases, tmp_path):
    moving = tuned(bases())
    for name in (".arm.part", ".arm.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"half of it")
    write(moving, tmp_path / "arm")
    assert [path.name for path in tmp_path.iterdir()] == ["arm"]
    assert torch.equal(logits(reload(bases(), tmp_path / "arm", "float32")), logits(moving.model))


def test_saving_twice_gives_equal_bytes(bases, kind, tmp_path):
    moving = tuned(bases(), kind)
    write(moving, tmp_path / "arm")
    first = contents(tmp_path / "arm")
    shutil.rmtree(tmp_path / "arm")
    write(moving, tmp_path / "arm")
    assert contents(tmp_path / "arm") == first
