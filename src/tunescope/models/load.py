"""Load a model from an alias, a hub id, a local folder or a GGUF file."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tunescope.errors import ModelError, did_you_mean
from tunescope.models import package
from tunescope.models.attention import register
from tunescope.models.family import Family, blocks, family_of

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded, for ``environment.json``.

    Attributes:
        name: as the user wrote it.
        source: ``package``, ``hub``, ``folder`` or ``gguf``.
        folder: the folder that was read, or the hub id.
        revision: commit of a hub model, else None.
        sha256: hash over the sha256 of all weight files.
        family: canonical family.
        n_layers: number of transformer blocks.
        parameters: number of weights, tied ones counted once.
        weight_bytes: size of the weights as loaded.
        license: licence, if known.
    """

    name: str
    source: Literal["package", "hub", "folder", "gguf"]
    folder: str
    revision: str | None
    sha256: str
    family: str
    n_layers: int
    parameters: int
    weight_bytes: int
    license: str | None


@dataclass(frozen=True)
class Loaded:
    """A model ready to use.

    Attributes:
        model: the Hugging Face model, in evaluation mode, nothing requires a gradient.
        tokenizer: its tokenizer.
        family: where its parts are.
        info: what was loaded.
    """

    model: Any
    tokenizer: Any
    family: Family
    info: ModelInfo


@dataclass(frozen=True)
class Located:
    """Where a model's files are: everything `load` needs, found once so that loading again is cheap."""

    name: str
    source: Literal["package", "hub", "folder", "gguf"]
    path: str
    revision: str | None = None
    sha256: str = ""
    license: str | None = None


def load(name: str, *, revision: str | None = None, dtype: str = "bfloat16", device: str = "cpu") -> Loaded:
    """Loads a model and its tokenizer.

    Args:
        name: an alias (``smollm2-135m-instruct``), a hub id (``owner/model``), a local folder or a ``.gguf`` file.
        revision: branch, tag or commit of a hub id.
        dtype: ``float32`` or ``bfloat16``; stated, never guessed.
        device: a torch device.

    Returns:
        The model in evaluation mode with no gradient required, the tokenizer, and what was loaded.

    Raises:
        ModelError: it cannot be found or read, has pickled weights only, lacks weights, or is of an unknown family.
        IntegrityError: a converted copy in the cache does not match its manifest.
    """
    return load_located(locate(name, revision=revision), dtype=dtype, device=device)


def locate(name: str, *, revision: str | None = None) -> Located:
    """Finds a model's files, fetching or converting them where that is needed.

    Raises:
        ModelError: it cannot be found or fetched.
        IntegrityError: a converted copy in the cache does not match its manifest.
    """
    quiet()
    if (alias := package.find_alias(name)) is not None:
        folder = package.pull(alias)
        return Located(name, "package", str(folder), None, _combined(package.verify_copy(folder)), alias.licence)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _locate_gguf(name, path)
    if path.is_dir():
        return _locate_folder(name, path)
    if path.exists():
        raise ModelError(f"{name}: is a file but not .gguf; a model is an alias, a hub id, a folder or a .gguf file")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _locate_hub(name, revision)
    aliases = [model.alias for model in package.ALIASES]
    raise ModelError(
        f"model {name!r}: no such alias, folder or .gguf file{did_you_mean(name, aliases)}; aliases: {', '.join(aliases)}; "
        "a hub id has the form owner/model"
    )


def read_config(located: Located) -> Any:
    """Reads what a model's files say of its sizes, without its weights.

    Returns:
        Its Hugging Face config.

    Raises:
        ModelError: ``config.json`` is missing or not readable.
    """
    from transformers import AutoConfig

    quiet()
    try:
        return AutoConfig.from_pretrained(located.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{located.path}: config.json is missing or not readable ({_first_line(error)})") from None


def load_located(located: Located, *, dtype: str = "bfloat16", device: str = "cpu") -> Loaded:
    """Loads from files that `locate` found.

    Raises:
        ModelError: the files cannot be read as a model of a known family.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is not known; allowed: {', '.join(_DTYPES)}")
    config = read_config(located)
    common = {"local_files_only": True, "trust_remote_code": False}
    family = family_of(config.model_type)
    try:
        # On a CPU plain attention is faster at these lengths than SDPA and, in bfloat16, independent of padding and batch size.
        attention = register() if torch.device(device).type == "cpu" else "sdpa"
        model, report = AutoModelForCausalLM.from_pretrained(
            located.path,
            dtype=_DTYPES[dtype],
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
        tokenizer = AutoTokenizer.from_pretrained(located.path, **common)
    except Exception as error:  # safetensors, tokenizers and transformers each raise their own kinds
        raise ModelError(f"{located.path}: cannot be loaded ({_first_line(error)})") from None
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing:
        raise ModelError(
            f"{located.path}: {len(missing)} weights are missing or of another shape, the first is {missing[0]}; "
            "the files are incomplete or belong to another model"
        )
    model.to(device)
    model.requires_grad_(False)
    model.eval()
    unique = {id(p): p for p in model.parameters()}.values()
    info = ModelInfo(
        name=located.name,
        source=located.source,
        folder=located.path,
        revision=located.revision,
        sha256=located.sha256,
        family=family.name,
        n_layers=len(blocks(model)),
        parameters=sum(p.numel() for p in unique),
        weight_bytes=sum(p.numel() * p.element_size() for p in unique),
        license=located.license,
    )
    return Loaded(model, tokenizer, family, info)


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """Loads the tokenizer alone.

    Raises:
        ModelError: the model cannot be found, or has no readable tokenizer.
        IntegrityError: a converted copy in the cache does not match its manifest.
    """
    from transformers import AutoTokenizer

    located = locate(name, revision=revision)
    try:
        return AutoTokenizer.from_pretrained(located.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers and transformers each raise their own kinds
        raise ModelError(f"{located.path}: has no readable tokenizer ({_first_line(error)})") from None


def quiet() -> None:
    """Keeps transformers and the hub client from printing bars and notes of their own."""
    # transformers 5 warns of its own attribute whenever PEFT wraps a model; to be removed when it no longer does.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _locate_gguf(name: str, path: Path) -> Located:
    if not path.is_file():
        raise ModelError(f"{name}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{name}: not a GGUF file (it does not begin with the letters GGUF)")
    digest = package.sha256_of(path)
    target = package.cached_copy(digest)
    if not package.is_complete(target):
        with package.locked(target):
            if not package.is_complete(target):
                package.convert_gguf(path, target, digest=digest, source=path.name, licence=None)
    return Located(name, "gguf", str(target), None, _combined(package.verify_copy(target)))


def _locate_folder(name: str, path: Path) -> Located:
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern)]
        if pickled:
            raise ModelError(
                f"{name}: has only pickled weights ({pickled[0]}), which can run code when read; convert them to safetensors first"
            )
        if (path / "adapter_config.json").is_file():
            raise ModelError(f"{name}: is an adapter, not a model; name its base model here")
        raise ModelError(f"{name}: has no *.safetensors weights")
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError(f"{name}: is an adapter, not a model; name its base model here")
        raise ModelError(f"{name}: has no config.json")
    if package.is_converted(path):
        package.verify_copy(path)
    for weight in weights:
        _check_safetensors(weight)
    return Located(
        name, "folder", str(path.resolve()), None, _combined({w.name: package.sha256_of(w) for w in weights})
    )


def _check_safetensors(path: Path) -> None:
    """Reads the header and compares the length, so that a truncated file is named before anything is loaded."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # "pt" would claim memory for the whole file, which a limit may not allow
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged or not a safetensors file ({_first_line(error)}); fetch it again") from None


def _locate_hub(name: str, revision: str | None) -> Located:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r}{f' revision {revision!r}' if revision else ''} cannot be fetched from the hub and is not in its cache "
            f"({_first_line(error)}); without a hub use an alias (`tunescope models list`), a folder or a .gguf file"
        ) from None
    found = _locate_folder(name, folder)
    return Located(name, "hub", found.path, folder.name, found.sha256)


def _combined(hashes: dict[str, str]) -> str:
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(hashes.items()) if name.endswith(".safetensors"))
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
