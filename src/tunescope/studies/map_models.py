"""The models that a layer map compares: the base, and the tuned one where there is one."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import engine, layers, models
from tunescope.errors import ConfigError, ModelError
from tunescope.models import Loaded, bare
from tunescope.studies.bench import Bench


@dataclass(frozen=True)
class Tuned:
    """A tuned model beside its base.

    Attributes:
        model: the tuned model.
        base: the base model; None where the tuned one holds it, with its adapters switched off.
        first_changed: its lowest block that differs from the base's.
    """

    model: Any
    base: Any
    first_changed: int

    @property
    def put_back_to(self) -> Any:
        """What blocks are put back to: the base model, or None for adapters, which are switched off."""
        return None if hasattr(self.model, "get_base_model") else self.base

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Any]:
        """Gives the base model, for the time of the context."""
        if self.base is not None:
            yield self.base
            return
        with self.model.disable_adapter():
            yield self.model


def check_tuned(loaded: Loaded, folder: Path) -> str:
    """Refuses a tuned model that cannot be compared with the base block by block, before anything slow.

    Returns:
        What could not be found out about the base it was tuned from, in one line; empty where all is known.

    Raises:
        ConfigError: there is no such folder.
        ModelError: it holds no weights, or those of a model with another depth, width or tokenizer, or tuned from another base.
        IntegrityError: the weights are damaged.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"map.tuned {folder}: no such folder; give one with an adapter, changed weights or a tuned model"
        )
    unknown = engine.check_fits(loaded, folder)
    if (folder / "config.json").is_file():
        _check_shape(loaded, folder)
        unknown = engine.check_base(loaded, folder)
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        _check_tokenizer(loaded, folder)
    return unknown


def _check_shape(loaded: Loaded, folder: Path) -> None:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        theirs = values["model_type"], values["num_hidden_layers"], values["hidden_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: config.json is missing or not readable ({str(error)[:120]})") from None
    own = bare(loaded.model).config
    mine = own.model_type, own.num_hidden_layers, own.hidden_size
    if theirs != mine:
        raise ModelError(
            f"map.tuned {folder}: a {theirs[0]} model with {theirs[1]} blocks of width {theirs[2]}, the base {loaded.info.name} is a {mine[0]} "
            f"model with {mine[1]} of width {mine[2]}; a map compares block by block: give a model that was tuned from this base"
        )


def _check_tokenizer(loaded: Loaded, folder: Path) -> None:
    try:
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).get_vocab()
    except Exception as error:  # tokenizers and transformers each raise their own kinds
        first = (str(error).splitlines() or [""])[0][:120]
        raise ModelError(
            f"{folder}: its tokenizer cannot be read ({first}); remove it if it is the base's own"
        ) from None
    mine = loaded.tokenizer.get_vocab()
    if theirs != mine:
        differing = sum(mine.get(token) != number for token, number in theirs.items())
        raise ModelError(
            f"map.tuned {folder}: its tokenizer has {len(theirs)} tokens, {differing} of them not as in the base {loaded.info.name} "
            f"({len(mine)} tokens); both models must read the same token ids: give a model that was tuned from this base"
        )


def hash_of(folder: Path) -> str:
    """Returns a hash over the weights and settings in a folder, in hex."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        digest.update(f"{path.name} {models.sha256_of(path)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def tuned_beside(bench: Bench, loaded: Loaded, folder: Path, *, alone: bool = False) -> Iterator[Tuned]:
    """Opens the tuned model for the time of the context; the base model is afterwards what it was.

    A LoRA adapter is put on the base itself and switched off where the base is wanted; everything else gets a copy of its own.

    Args:
        bench: to load a copy.
        loaded: the base model.
        folder: what `engine.save` wrote, any PEFT adapter, or a whole model.
        alone: never touch the base model, which something else is wrapped around.
    """
    if (folder / "config.json").is_file():
        located = models.locate(str(folder))
        whole = models.load_located(located, dtype=bench.config.dtype, device=bench.device).model
        yield Tuned(whole, loaded.model, layers.first_changed_block(loaded.model, whole))
    elif alone or not _can_be_switched_off(folder):
        other = engine.attach(bench.load(), folder)
        yield Tuned(other, loaded.model, layers.first_changed_block(loaded.model, other))
    else:
        model = engine.attach(loaded, folder)
        try:
            yield Tuned(model, None, layers.first_changed_block(loaded.model, model))
        finally:
            model.unload()


def _can_be_switched_off(folder: Path) -> bool:
    """Whether the folder holds plain LoRA, which leaves every weight of the base as it is."""
    if not (folder / "adapter_config.json").is_file():
        return False
    values = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    also = ("modules_to_save", "trainable_token_indices", "target_parameters")
    return values.get("peft_type") == "LORA" and values.get("bias", "none") == "none" and not any(map(values.get, also))
