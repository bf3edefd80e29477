"""Tuning goes on from weights that were saved: the same matrices move again, from where they ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunescope.engine.checkpoint import read_tensors
from tunescope.engine.moving import Moving
from tunescope.engine.sparse import sparse_layers
from tunescope.engine.tuner import load_weights
from tunescope.errors import IntegrityError, ModelError
from tunescope.models import Family, bare, canonical_name, family_of
from tunescope.runs.records import Selection

_ADAPTER = "default"


def saved_selection(folder: Path) -> Selection:
    """Returns what moved in weights that `save` wrote, without the counts of the model it was prepared for.

    Args:
        folder: what `save` wrote.

    Raises:
        ModelError: the folder holds no weights that tunescope saved.
        IntegrityError: the file that says what moved is damaged.
    """
    path = folder / "selection.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: has no selection.json, so what moved there is not known; give weights that tunescope tuned"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        lists = ("layers", "modules", "matrices")
        return Selection.from_dict({k: tuple(v) if k in lists else v for k, v in values.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: damaged ({str(error)[:120]}); restore it from a copy") from None


def load_saved(moving: Moving, folder: Path) -> None:
    """Puts saved weights into a prepared model, so that tuning goes on where it ended.

    LoRA matrices and sparse changes were saved in float32 and come back bit by bit. Moved weights were rounded to the number format of
    inference when they were saved; they go on from there, which is what was measured.

    Args:
        moving: prepared with the selection of the saved weights (`saved_selection`), the same rank and scale, and for sparse entries the same mask.
        folder: what `save` wrote.

    Raises:
        ModelError: the folder holds weights of another selection, rank, scale or model.
        IntegrityError: the weights are damaged.

    Example:
        >>> import tempfile
        >>> from tunescope.engine import prepare, save, to_inference
        >>> from tunescope.models import FAMILIES
        >>> from tunescope.testing import tiny_model
        >>> def again():
        ...     return prepare(tiny_model(), FAMILIES[0], Selection("lora", ("block.1",), ("q",), "example"), lora_rank=2, seed=7)
        >>> first, second = again(), again()
        >>> _ = first.parameters["block.1.q.lora_B.default.weight"].data.fill_(0.5)
        >>> _ = to_inference(first)
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     _ = save(first, None, Path(scratch) / "weights", card="", base="tiny")
        ...     load_saved(second, Path(scratch) / "weights")
        >>> second.parameters["block.1.q.lora_B.default.weight"].mean().item()
        0.5
    """
    family = family_of(bare(moving.model).config.model_type)
    if moving.selection.method == "lora":
        _check_scale(moving, folder)
        found = {_in_place(name): t for name, t in _tensors(folder, family).items()}
    elif moving.selection.method == "sparse":
        found = _changes(moving, _tensors(folder, family), family, folder)
    elif moving.selection.whole_model:
        found = _tensors(folder, family)
    else:
        found = read_tensors(folder / "changed.safetensors")[0]
    shapes = {name: tuple(p.shape) for name, p in moving.parameters.items()}
    problem = next((n for n, shape in shapes.items() if n not in found or tuple(found[n].shape) != shape), None)
    if problem is not None:
        there = tuple(found[problem].shape) if problem in found else "nothing"
        raise ModelError(
            f"{folder}: holds {there} for {problem}, which is to go on as {shapes[problem]}; go on with the model, tuning.method, "
            "tuning.lora_rank, tuning.target_modules and selection with which it was tuned"
        )
    load_weights(moving, {f"weight.{name}": found[name] for name in shapes})


def _tensors(folder: Path, family: Family) -> dict[str, torch.Tensor]:
    """All saved tensors by canonical name."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: holds no weights")
    found: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as tensors:
                found |= {canonical_name(name, family): tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise IntegrityError(
                f"{path}: damaged ({str(error).splitlines()[0][:120]}); restore it from a copy"
            ) from None
    return found


def _in_place(name: str) -> str:
    """Name of a LoRA matrix in a prepared model; files leave the name of the adapter out."""
    for half in (".lora_A.", ".lora_B."):
        name = name.replace(half, f"{half}{_ADAPTER}.")
    return name


def _check_scale(moving: Moving, folder: Path) -> None:
    path = folder / "adapter_config.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        there = (saved["r"], saved["lora_alpha"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{path}: missing or damaged ({str(error)[:120]}); restore it from a copy") from None
    mine = moving.model.peft_config[_ADAPTER]
    if there != (mine.r, mine.lora_alpha):
        raise ModelError(
            f"{folder}: an adapter of lora_rank {there[0]} and lora_alpha {there[1]:g}, and the settings say {mine.r} and "
            f"{mine.lora_alpha:g}; set tuning.lora_rank and tuning.lora_alpha to what the adapter has"
        )


def _changes(
    moving: Moving, found: Mapping[str, torch.Tensor], family: Family, folder: Path
) -> dict[str, torch.Tensor]:
    """Changes of sparse entries: their own part of what was filled up, or what a matrix that is stored whole differs by."""
    changes: dict[str, Any] = {}
    for name, layer in sparse_layers(moving.model, family).items():
        indices = layer.shira_indices[_ADAPTER].cpu()
        parameter = next(key for key in moving.parameters if key.startswith(f"{name}.shira_weight."))
        n = indices.shape[1]
        if f"{name}.weight" in found:
            rows, columns = indices
            base = layer.base_layer.weight.detach().cpu()
            whole = found[f"{name}.weight"]
            if whole.shape == base.shape:
                changes[parameter] = whole[rows, columns].float() - base[rows, columns].float()
        elif f"{name}.shira_weight" in found:
            if not torch.equal(found[f"{name}.shira_indices"][:, :n].long(), indices):
                raise ModelError(f"{folder}: other entries of {name} moved there; go on with the mask of that run")
            changes[parameter] = found[f"{name}.shira_weight"][:n]
    return changes
