"""How far saved weights moved from the base model: the mean absolute change, overall and per block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tunescope.engine.weights import check_fits
from tunescope.errors import ModelError
from tunescope.models import Loaded, canonical_name
from tunescope.runs.generalisation import WeightChange

_CHANGED = "changed.safetensors"
_TOLD = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "shira_weight", "shira_indices")


@torch.no_grad()
def weight_change(loaded: Loaded, folder: Path, *, arm: str = "") -> WeightChange:
    """Returns how far saved weights moved from the base model.

    Reads the files and compares with the base model; changes neither. Of an adapter the change is that of the merged product,
    computed in float32: in bfloat16 a change of 1e-4 would vanish in the rounding of the weight that it is added to.

    Args:
        loaded: the base model, as it was loaded.
        folder: what `save` wrote, or any PEFT adapter.
        arm: name for the record.

    Returns:
        The mean absolute change over all weights and per block. For adapters whose change is no plain sum (DoRA, IA3 ...) it is None, with
        the reason.

    Raises:
        ModelError: the folder holds no weights, or weights for another model.
        IntegrityError: the weights are damaged.

    Source:
        Yang et al. (2024), who report the mean absolute change of all weights after full tuning; ours counts weights that did not move as
        0, so that tuning methods compare.
    """
    check_fits(loaded, folder)
    base = dict(loaded.model.named_parameters(remove_duplicate=False))  # a tied head may be stored under either name
    sizes: dict[str, int] = {}
    for name, parameter in loaded.model.named_parameters():
        place = _place(canonical_name(name, loaded.family))
        sizes[place] = sizes.get(place, 0) + parameter.numel()
    sums, changed = dict.fromkeys(sizes, 0.0), 0
    try:
        for name, delta in _deltas(loaded, base, folder):
            place = _place(canonical_name(name, loaded.family))
            sums[place] += float(delta.abs().sum(dtype=torch.float64))
            changed += int(delta.count_nonzero())
    except _UntoldError as reason:
        return WeightChange(arm, None, why=str(reason))
    total = sum(sizes.values())
    return WeightChange(
        arm=arm,
        mean_abs=math.fsum(sums.values()) / total,
        blocks={place: sums[place] / size for place, size in sizes.items() if place},
        outside=sums[""] / sizes[""] if sizes.get("") else 0.0,
        changed_fraction=changed / total,
    )


class _UntoldError(Exception):
    """The change of these weights cannot be told from their files."""


def _place(canonical: str) -> str:
    """The block that a weight belongs to; empty outside the blocks."""
    head, _, rest = canonical.partition(".")
    return f"block.{rest.partition('.')[0]}" if head == "block" else ""


def _deltas(loaded: Loaded, base: dict[str, Any], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name of a weight (or of what of it changed) and its change, in float32, one at a time."""
    if (folder / "config.json").is_file():
        yield from _against(base, _stored(sorted(folder.glob("*.safetensors"))))
    elif (folder / "adapter_config.json").is_file():
        yield from _adapter_deltas(loaded, base, folder)
    else:
        own = {canonical_name(name, loaded.family): parameter for name, parameter in base.items()}
        yield from _against(own, _stored([folder / _CHANGED]))


def _stored(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                yield name, tensors.get_tensor(name)


def _against(base: dict[str, Any], tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    seen = set()
    for name, tensor in tensors:
        if name not in base or base[name].shape != tensor.shape:
            raise ModelError(
                f"weight {name} {tuple(tensor.shape)} is not one of the base model; give weights tuned from it"
            )
        if id(base[name]) in seen:
            continue
        seen.add(id(base[name]))
        yield name, tensor.float() - base[name].detach().cpu().float()


def _adapter_deltas(loaded: Loaded, base: dict[str, Any], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    tensors = dict(_stored([folder / "adapter_model.safetensors"]))
    kinds = {
        part for name in tensors for part in name.split(".") if part.startswith(("lora_", "shira_", "ia3_", "vera_"))
    }
    if getattr(config, "use_dora", False) or not kinds <= set(_TOLD):
        raise _UntoldError(
            f"the change of an adapter of type {config.peft_type} with {', '.join(sorted(kinds))} is no plain sum"
        )
    whole = {}
    for name, tensor in tensors.items():
        module, kind = _module(name)
        if kind in ("lora_A", "lora_embedding_A"):
            other = tensors[name.replace(kind, kind[:-1] + "B")]
            yield module, (other.float() @ tensor.float()) * _scale(config, module, rank=tensor.shape[0])
        elif kind == "shira_weight":
            yield module, tensor.float()
        elif not kind:
            whole[name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")] = tensor
    yield from _against(base, iter(whole.items()))


def _module(name: str) -> tuple[str, str]:
    """Path of an adapted module in the base model, and the kind of tensor; an empty kind for a weight stored whole."""
    parts = name.removeprefix("base_model.model.").split(".")
    at = next((i for i, part in enumerate(parts) if part in _TOLD), None)
    return (".".join(parts), "") if at is None else (".".join(parts[:at]) + ".weight", parts[at])


def _scale(config: Any, module: str, *, rank: int) -> float:
    """What PEFT multiplies the product of a module with."""
    from peft.utils.other import get_pattern_key

    path = module.removesuffix(".weight")
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), path), config.lora_alpha)
    return float(alpha / math.sqrt(rank) if config.use_rslora else alpha / rank)
