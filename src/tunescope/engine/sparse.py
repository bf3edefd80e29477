"""Move single entries of matrices, in the format of PEFT's SHiRA, so that plain PEFT loads what was tuned.

In tuning, every matrix with chosen entries has one float32 number per entry, its change, beginning at 0; all other entries stay bit by
bit what they were. In a forward pass PEFT adds the changes to a copy of the matrix, in the number format of the base model. So in
bfloat16 small updates add up in float32 and are never lost, while the forward pass sees their sum rounded, as it does with whole
weights in mixed precision. What counts after tuning is the rounded sum.

A SHiRA file has one rank r for all matrices, and each matrix must have r * (d_out + d_in) numbers. Ours have as many as the mask says,
so a file is filled up with entries outside the mask whose change is -0.0, which changes no bit of any number; and a matrix so dense that
filling up all others to its rank would cost more than storing it whole is stored whole (PEFT's ``modules_to_save``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunescope.errors import IntegrityError, ModelError
from tunescope.models import Family, bare, block_index, blocks
from tunescope.runs.records import Selection
from tunescope.select import Mask

_ADAPTER = "default"
_ENTRY_BYTES = 4 + 2 * 4  # a float32 change, and its row and column
_MASK_TYPE = "tunescope"  # not `random`: PEFT then draws no mask in loading, but takes the stored indices


def check_mask(model: Any, family: Family, selection: Selection, mask: Mask | None) -> None:
    """Refuses a mask that is not the one of the selection, or does not fit the model.

    Args:
        model: the base model.
        family: where its parts are.
        selection: what may move; its blocks exist.
        mask: which entries, for method ``sparse`` alone.

    Raises:
        ModelError: no mask or one too many; other shapes than the model has; nothing that is sparse about it.
        IntegrityError: the mask is another one than that of the selection.
    """
    if selection.method != "sparse":
        if mask is not None:
            raise ModelError(f"method {selection.method} takes no mask; use method sparse, or leave the mask out")
        return
    if mask is None:
        raise ModelError("method sparse needs a mask of the entries that may move; make one with select.masks")
    if mask.sha256 != selection.mask_sha256:
        raise IntegrityError(
            f"the mask ({mask.sha256[:12]}) is not the one of the selection ({selection.mask_sha256[:12] or 'none'}); "
            "make the selection again with select.selection_of"
        )
    if tuple(selection.layers) != mask.layers or tuple(selection.modules) != mask.modules:
        raise ModelError(
            f"the selection names {len(selection.layers)} blocks and {', '.join(selection.modules)}, its mask has {len(mask.layers)} and "
            f"{', '.join(mask.modules)}; change the mask, not the names"
        )
    shapes = {name: tuple(_linear(model, family, name).weight.shape) for name in mask.entries}
    problems = [
        f"mask of {name}: {tuple(chosen.shape)}, this model has {shapes[name]}; the mask belongs to another model"
        for name, chosen in mask.entries.items()
        if tuple(chosen.shape) != shapes[name]
    ]
    if problems:
        raise ModelError(problems)
    storage(mask.counts, {name: (shape[0], shape[1]) for name, shape in shapes.items()})


def with_sparse(model: Any, family: Family, mask: Mask) -> Any:
    """Wraps the model so that the changes of the entries in the mask are its only trainable parameters.

    Args:
        model: the base model, nothing requiring a gradient.
        family: where its parts are.
        mask: which entries; it fits the model (`check_mask`).

    Returns:
        A PEFT model in evaluation mode; its parameters ``...shira_weight.default`` are (entries of the matrix,) float32, all 0.
    """
    from peft import ShiraConfig, get_peft_model

    paths = [module_path(name, family) for name in mask.entries]
    wrapped = get_peft_model(model, ShiraConfig(r=1, target_modules=paths, task_type="CAUSAL_LM"))
    for name, layer in sparse_layers(wrapped, family).items():
        indices = mask.entries[name].nonzero().T.contiguous().to(layer.weight.device)
        # In the place of PEFT's r * (d_out + d_in) random entries. int64, since PEFT's int32 would be converted in every pass.
        layer.shira_indices[_ADAPTER] = indices
        layer.shira_weight[_ADAPTER] = nn.Parameter(torch.zeros(indices.shape[1], device=indices.device))
    wrapped.eval()
    return wrapped


def sparse_layers(model: Any, family: Family) -> dict[str, Any]:
    """Returns PEFT's SHiRA layers by canonical matrix name, in the order of the model."""
    from peft.tuners.shira.layer import ShiraLayer

    return {
        f"block.{i}.{part}": block.get_submodule(path)
        for i, block in enumerate(blocks(model))
        for part, path in family.parts.items()
        if isinstance(block.get_submodule(path), ShiraLayer)
    }


def without_index_checks() -> contextlib.AbstractContextManager[Any]:
    """The context for passes through SHiRA layers: says that PyTorch need not check the indices, else it warns.

    They come from a mask of the matrix's own shape, or were checked in loading.
    """
    context: contextlib.AbstractContextManager[Any] = torch.sparse.check_sparse_tensor_invariants(False)
    return context


@torch.no_grad()
def merge_(model: Any, family: Family) -> None:
    """Adds the changes to the weights for good: the same bits as in an unmerged forward pass, without its copy of every matrix."""
    with without_index_checks():
        for layer in sparse_layers(model, family).values():
            if not layer.merged:
                layer.merge()


def storage(
    counts: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], *, weight_bytes: int = 4
) -> tuple[int, tuple[str, ...]]:
    """Returns the rank of the SHiRA file, and the matrices that are stored whole because they do not fit it.

    Args:
        counts: canonical matrix name -> entries that move.
        shapes: canonical matrix name -> (d_out, d_in).
        weight_bytes: of one weight of the base model.

    Returns:
        The rank that makes the file smallest, and names; at least one matrix is stored as entries.

    Raises:
        ModelError: every matrix moves as good as whole.

    Example:
        >>> storage({"a": 30, "b": 130}, {"a": (64, 64), "b": (64, 64)})
        (2, ())
        >>> storage({"a": 30, "b": 4_096}, {"a": (64, 64), "b": (64, 64)})
        (1, ('b',))
    """

    def fits(name: str, rank: int) -> bool:
        height, width = shapes[name]
        return counts[name] <= rank * (height + width) <= height * width

    def size(rank: int) -> int:
        return sum(
            _ENTRY_BYTES * rank * (height + width) if fits(name, rank) else weight_bytes * height * width
            for name, (height, width) in ((name, shapes[name]) for name in counts)
        )

    ranks = {-(-count // sum(shapes[name])) for name, count in counts.items()}
    possible = [rank for rank in sorted(ranks) if any(fits(name, rank) for name in counts)]
    if not possible:
        raise ModelError(
            f"all {len(counts)} chosen matrices move as good as whole, which method sparse cannot store; choose with granularity module "
            "and use method weights or lora"
        )
    best = min(possible, key=size)
    return best, tuple(name for name in counts if not fits(name, best))


@torch.no_grad()
def write_adapter(model: Any, family: Family, folder: Path, *, base: str) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` as plain PEFT loads them.

    Args:
        model: from `with_sparse`, merged or not.
        family: where its parts are.
        folder: exists.
        base: name of the base model, written into the adapter.

    Raises:
        SafetensorError: the file cannot be written, as on a full disk.
    """
    from peft import ShiraConfig
    from safetensors.torch import save_file

    layers = sparse_layers(model, family)
    counts = {name: layer.shira_weight[_ADAPTER].numel() for name, layer in layers.items()}
    rank, whole = storage(
        counts,
        {name: (layer.out_features, layer.in_features) for name, layer in layers.items()},
        weight_bytes=next(iter(layers.values())).base_layer.weight.element_size(),
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        key = f"base_model.model.{module_path(name, family)}"
        if name in whole:
            tensors[f"{key}.weight"] = _merged(layer)
            if layer.base_layer.bias is not None:
                tensors[f"{key}.bias"] = layer.base_layer.bias
        else:
            values, indices = _filled_up(layer, rank * (layer.out_features + layer.in_features))
            tensors[f"{key}.shira_weight"], tensors[f"{key}.shira_indices"] = values, indices
    config = ShiraConfig(
        r=rank,
        mask_type=_MASK_TYPE,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
        modules_to_save=[module_path(name, family) for name in whole] or None,
    )
    # A list, set after PEFT has made its sets: those are written in another order in every process.
    config.target_modules = [module_path(name, family) for name in layers if name not in whole]
    config.save_pretrained(folder)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def module_path(name: str, family: Family) -> str:
    """Returns the module path of a matrix in the base model.

    Example:
        >>> from tunescope.models import FAMILIES
        >>> module_path("block.3.q", FAMILIES[0])
        'model.layers.3.self_attn.q_proj'
    """
    block, _, part = name.rpartition(".")
    return f"{family.blocks}.{block_index(block)}.{family.parts[part]}"


def _linear(model: Any, family: Family, name: str) -> nn.Linear:
    found = bare(model).get_submodule(module_path(name, family))
    assert isinstance(found, nn.Linear)
    return found


def _merged(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.base_layer.weight.detach()
    if layer.merged:
        return weight
    with without_index_checks():
        return weight.clone().add_(layer.get_delta_weight(_ADAPTER))


def _filled_up(layer: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Changes and indices, filled up to a length by entries outside the mask with a change of -0.0."""
    values, indices = layer.shira_weight[_ADAPTER].detach().cpu(), layer.shira_indices[_ADAPTER].cpu().long()
    taken = torch.zeros(layer.out_features * layer.in_features, dtype=torch.bool)
    taken[indices[0] * layer.in_features + indices[1]] = True
    free = (~taken).nonzero().flatten()[: length - len(values)]
    extra = torch.stack([free // layer.in_features, free % layer.in_features])
    return torch.cat([values, torch.full((len(free),), -0.0)]), torch.cat([indices, extra], dim=1).to(torch.int32)
