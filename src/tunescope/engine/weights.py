"""Save what was tuned in formats that the ecosystem loads, and load it again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tunescope.engine.checkpoint import read_tensors, write_tensors
from tunescope.engine.moving import Moving, check_selection
from tunescope.errors import IntegrityError, ModelError
from tunescope.models import Loaded, bare, blocks, canonical_name
from tunescope.runs.records import Selection

_CHANGED = "changed.safetensors"


def save(moving: Moving, tokenizer: Any, folder: Path, *, card: str, base: str) -> int:
    """Writes what was tuned: a PEFT adapter, the whole model (all weights), or the changed tensors.

    Args:
        moving: after `to_inference`.
        tokenizer: saved beside a whole model.
        folder: made whole or not at all; replaced if there.
        card: text of ``README.md``.
        base: name of the base model, written into the adapter.

    Returns:
        Size of the weights in bytes.
    """
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if moving.selection.method == "lora":
            for config in moving.model.peft_config.values():
                config.base_model_name_or_path = base
                config.inference_mode = True
            # Without save_embedding_layers=False PEFT asks the hub whether the vocabulary of the base model changed.
            moving.model.save_pretrained(scratch, save_embedding_layers=False)
        elif moving.selection.whole_model:
            bare(moving.model).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        else:
            write_tensors(scratch / _CHANGED, dict(moving.parameters), {"base": base})
        (scratch / "selection.json").write_text(json.dumps(moving.selection.to_dict(), indent=1))
        (scratch / "README.md").write_text(card, encoding="utf-8")
        for path in scratch.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return weight_bytes(folder)


def weight_bytes(folder: Path) -> int:
    """Returns the size of the weights in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def attach(loaded: Loaded, folder: Path) -> Any:
    """Puts saved weights on a freshly loaded base model.

    Args:
        loaded: the base model.
        folder: what `save` wrote, or any PEFT adapter.

    Returns:
        The tuned model in evaluation mode.

    Raises:
        ModelError: the folder holds no weights, or weights for another model.
        IntegrityError: the weights are damaged.
    """
    if (folder / "adapter_config.json").is_file():
        return _attach_adapter(loaded, folder)
    if (folder / _CHANGED).is_file():
        return _attach_changed(loaded, folder)
    raise ModelError(f"{folder}: holds neither adapter_config.json nor {_CHANGED}")


def _attach_adapter(loaded: Loaded, folder: Path) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(f"{folder}: adapter_model.safetensors is missing (pickled adapters are not read)")
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{file}: damaged ({str(error).splitlines()[0][:120]})") from None
    own = {canonical_name(n, loaded.family).rsplit(".", 1)[0] for n, _ in loaded.model.named_parameters()}
    wanted = {canonical_name(n, loaded.family).split(".lora_")[0] for n in names}
    if strange := sorted(wanted - own):
        raise ModelError(
            f"{folder}: the adapter is for another base model; it adapts {strange[0]}, which {loaded.info.name} lacks"
        )
    try:
        model = PeftModel.from_pretrained(loaded.model, folder)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{folder}: the adapter does not fit {loaded.info.name} ({str(error).splitlines()[0][:160]})"
        ) from None
    return model.requires_grad_(False).eval()


def _attach_changed(loaded: Loaded, folder: Path) -> Any:
    import torch

    tensors, _ = read_tensors(folder / _CHANGED)
    selection = Selection.from_dict(json.loads((folder / "selection.json").read_text()))
    check_selection(selection, n_layers=len(blocks(loaded.model)))
    own = {canonical_name(n, loaded.family): p for n, p in loaded.model.named_parameters()}
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ModelError(f"{folder}: changed weight {name} does not fit {loaded.info.name}")
        with torch.no_grad():
            own[name].copy_(tensor)
    return loaded.model
