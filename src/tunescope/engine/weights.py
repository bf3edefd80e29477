"""Save what was tuned in formats that the ecosystem loads, and load it again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tunescope.engine.base import check_base, write_base
from tunescope.engine.checkpoint import read_tensors, write_tensors
from tunescope.engine.fsdp import gathered
from tunescope.engine.moving import Moving, check_selection
from tunescope.engine.sparse import without_index_checks, write_adapter
from tunescope.errors import IntegrityError, ModelError, RunError
from tunescope.models import Loaded, bare, blocks, canonical_name, family_of, locate
from tunescope.runs.records import Selection

_CHANGED = "changed.safetensors"


def save(moving: Moving, tokenizer: Any, folder: Path, *, card: str, base: str, base_sha256: str | None = None) -> int:
    """Writes what was tuned: a PEFT adapter, the whole model (all weights), or the changed tensors.

    With several processes all of them call it, and the one with rank 0 writes.

    Args:
        moving: after `to_inference`.
        tokenizer: saved beside a whole model.
        folder: made whole or not at all; replaced if there.
        card: text of ``README.md``.
        base: name of the base model, written into the adapter.
        base_sha256: hash of the base's weights (`ModelInfo.sha256`), by which `attach` knows the base again; None where it is not known.

    Returns:
        Size of the weights in bytes.

    Raises:
        RunError: the weights cannot be written, as on a full disk.
    """
    workers = moving.workers
    tensors = gathered(_to_save(moving), workers) if workers.sharded else None
    size = workers.agreed(
        lambda: (
            _write(moving, tokenizer, folder, tensors, card=card, base=base, base_sha256=base_sha256)
            if workers.main
            else 0
        )
    )
    return int(workers.sum_(torch.tensor(size, device=workers.device)))


def _to_save(moving: Moving) -> dict[str, torch.Tensor]:
    """What is written of a model whose blocks are cut over processes, under the names of the model; in the number format of inference."""
    if moving.selection.method == "lora":
        return {name: p for name, p in moving.model.named_parameters() if "lora_" in name}
    if moving.selection.whole_model:
        return {name: tensor.to(moving.dtype) for name, tensor in bare(moving.model).state_dict().items()}
    return {name: p.detach().to(moving.dtype) for name, p in moving.parameters.items()}


def _write(
    moving: Moving,
    tokenizer: Any,
    folder: Path,
    tensors: dict[str, torch.Tensor] | None,
    *,
    card: str,
    base: str,
    base_sha256: str | None,
) -> int:
    """Writes the folder; `tensors` where the model holds parts of them alone."""
    from safetensors import SafetensorError

    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if moving.selection.method == "lora":
            for config in moving.model.peft_config.values():
                config.base_model_name_or_path = base
                config.inference_mode = True
            # Without save_embedding_layers=False PEFT asks the hub whether the vocabulary of the base model changed.
            moving.model.save_pretrained(scratch, save_embedding_layers=False, state_dict=tensors)
        elif moving.selection.method == "sparse":
            write_adapter(moving.model, family_of(bare(moving.model).config.model_type), scratch, base=base)
        elif moving.selection.whole_model:
            bare(moving.model).save_pretrained(scratch, state_dict=tensors)
            tokenizer.save_pretrained(scratch)
        else:
            write_tensors(scratch / _CHANGED, dict(moving.parameters) if tensors is None else tensors, {"base": base})
        (scratch / "selection.json").write_text(json.dumps(moving.selection.to_dict(), indent=1))
        if base_sha256 is not None:
            write_base(scratch, name=base, sha256=base_sha256)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        mode = (scratch / "README.md").stat().st_mode & 0o777
        for path in scratch.iterdir():
            path.chmod(mode)  # safetensors lets the owner alone read; a server often runs as somebody else
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _swap_in(scratch, folder)
    except SafetensorError as error:
        raise RunError(
            f"{folder}: the weights cannot be written ({str(error).splitlines()[0][:120]}); free some space, then run the same command "
            "with --resume"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return weight_bytes(folder)


def _swap_in(scratch: Path, folder: Path) -> None:
    """Puts a complete folder in the place of the old one; under its name there is never half a folder."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        scratch.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
        ModelError: the folder holds no weights, or weights for another model; see `check_base` for what tells.
        IntegrityError: the weights, or the record of their base, are damaged.
    """
    if (folder / "adapter_config.json").is_file():
        return _attach_adapter(loaded, folder)
    if (folder / _CHANGED).is_file():
        return _attach_changed(loaded, folder)
    raise ModelError(_no_weights(folder))


def check_fits(loaded: Loaded, folder: Path) -> str:
    """Looks at saved weights without changing the model: to be called before anything slow.

    Args:
        loaded: the base model.
        folder: what `save` wrote, or any PEFT adapter.

    Returns:
        What could not be found out about the base that the weights are for, in one line for the user; empty where all is known. A
        whole model needs no base.

    Raises:
        ModelError: the folder holds no weights, or weights for another model.
        IntegrityError: the weights, or the record of their base, are damaged.
    """
    if (folder / "config.json").is_file():
        locate(str(folder))
        return ""
    if (folder / "adapter_config.json").is_file():
        _check_adapter(loaded, folder)
    elif (folder / _CHANGED).is_file():
        _read_changed(loaded, folder)
    else:
        raise ModelError(_no_weights(folder))
    return check_base(loaded, folder)


def _no_weights(folder: Path) -> str:
    below = sorted(path.parent.name for path in folder.glob("weights/*/selection.json"))
    hint = f"; it is a run, give one of its arms: {folder / 'weights' / below[0]}" if below else ""
    return f"{folder}: holds neither adapter_config.json nor {_CHANGED}{hint}"


def _check_adapter(loaded: Loaded, folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(f"{folder}: adapter_model.safetensors is missing (pickled adapters are not read)")
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - not a dict
            # Sparse entries: PyTorch does not check that they lie in the matrix.
            reach = {name: tensors.get_tensor(name) for name in shapes if name.endswith(".shira_indices")}
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{file}: damaged ({str(error).splitlines()[0][:120]})") from None
    matrices = {
        n: p.shape for n, p in loaded.model.named_parameters() if n.endswith(".weight")
    }  # not the biases beside them
    own = {canonical_name(n, loaded.family).removesuffix(".weight"): shape for n, shape in matrices.items()}
    for name, shape in sorted(shapes.items()):
        where, matrix = _adapted(canonical_name(name, loaded.family))
        if where not in own:
            raise ModelError(
                f"{folder}: the adapter is for another base model; it adapts {where}, which {loaded.info.name} lacks"
            )
        axis = {"lora_A.weight": 1, "lora_B.weight": 0}.get(matrix)
        if axis is not None and shape[axis] != own[where][axis]:
            raise ModelError(
                f"{folder}: the adapter is for another base model; its {where} has width {shape[axis]}, that of {loaded.info.name} "
                f"{own[where][axis]}"
            )
        if matrix == "shira_weight" and shape[0] % sum(own[where]):
            raise ModelError(
                f"{folder}: the adapter is for another base model; it moves {shape[0]} entries of {where}, and of that of "
                f"{loaded.info.name} it would be a multiple of {sum(own[where])}"
            )
        if matrix == "weight" and tuple(shape) != tuple(own[where]):
            raise ModelError(
                f"{folder}: the adapter is for another base model; its {where} is {tuple(shape)}, that of {loaded.info.name} "
                f"{tuple(own[where])}"
            )
        entries = reach.get(name)
        if entries is not None and not _inside(entries, own[where]):
            raise ModelError(
                f"{folder}: the adapter is for another base model; it moves entries of {where} outside its {tuple(own[where])}"
            )


def _adapted(name: str) -> tuple[str, str]:
    """Matrix and what is stored of it: ``("block.3.q", "lora_A.weight")``."""
    for mark in (".lora_", ".shira_"):
        where, found, rest = name.partition(mark)
        if found:
            return where, found[1:] + rest
    where, _, rest = name.rpartition(".")  # stored whole, beside an adapter
    return where, rest


def _inside(entries: Any, shape: Any) -> bool:
    """Whether (2, n) rows and columns lie in a matrix of this shape."""
    if entries.ndim != 2 or entries.shape[0] != 2:
        return False
    return entries.shape[1] == 0 or bool(
        (entries >= 0).all() and entries[0].max() < shape[0] and entries[1].max() < shape[1]
    )


def _attach_adapter(loaded: Loaded, folder: Path) -> Any:
    from peft import PeftModel, PeftType

    _check_adapter(loaded, folder)
    check_base(loaded, folder)
    try:
        model = PeftModel.from_pretrained(loaded.model, folder)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: the adapter does not fit {loaded.info.name} ({' '.join(str(error).split())[:240]})"
        ) from None
    if getattr(model.peft_config["default"], "peft_type", None) == PeftType.SHIRA:
        # Unmerged, every pass copies every adapted matrix; the bits are the same.
        with without_index_checks():
            model = model.merge_and_unload()
    return model.requires_grad_(False).eval()


def _attach_changed(loaded: Loaded, folder: Path) -> Any:
    own = {canonical_name(n, loaded.family): p for n, p in loaded.model.named_parameters()}
    changed = _read_changed(loaded, folder)
    check_base(loaded, folder)
    with torch.no_grad():
        for name, tensor in changed.items():
            own[name].copy_(tensor)
    return loaded.model


def _read_changed(loaded: Loaded, folder: Path) -> dict[str, Any]:
    tensors, _ = read_tensors(folder / _CHANGED)
    try:
        selection = Selection.from_dict(json.loads((folder / "selection.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder / 'selection.json'}: missing or damaged ({str(error)[:120]})") from None
    check_selection(selection, n_layers=len(blocks(loaded.model)))
    own = {canonical_name(n, loaded.family): p for n, p in loaded.model.named_parameters()}
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ModelError(f"{folder}: changed weight {name} does not fit {loaded.info.name}")
    return tensors
