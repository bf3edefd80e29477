"""Checkpoints: one safetensors file, swapped in whole, so that a kill at any moment leaves the last good one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunescope.errors import IntegrityError, RunError

_FORMAT = "tunescope-checkpoint-1"


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any], *, before: Path | None = None
) -> None:
    """Writes tensors and plain facts to one file; the old file stays until the new one is complete.

    Args:
        path: the file.
        tensors: name -> tensor.
        facts: JSON-serialisable, kept in the file's header together with a hash over everything.
        before: where the old file is kept after that, or None.

    Raises:
        RunError: the file cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    # One entry: safetensors writes several in an order that differs from run to run, and equal contents should be equal bytes.
    header = {_FORMAT: json.dumps({"facts": text, "sha256": _digest(plain, text)}, sort_keys=True)}
    scratch = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(plain, scratch, metadata=header)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        if before is not None and path.is_file():
            _keep(path, before)
        scratch.replace(path)
    except SafetensorError as error:
        raise RunError(
            f"{path}: cannot be written ({str(error).splitlines()[0][:120]}); free some space, then run the same command with --resume"
        ) from None
    finally:
        scratch.unlink(missing_ok=True)


def _keep(path: Path, before: Path) -> None:
    """Gives a file a second name, so that at no moment it has none."""
    link = before.with_name(f".{before.name}.part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        shutil.copyfile(path, link)
    link.replace(before)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Returns:
        The tensors (CPU) and the facts.

    Raises:
        IntegrityError: the file is damaged, was changed, or is no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"{path}: the checkpoint is damaged ({str(error).splitlines()[0][:120]}); remove it to start this arm again"
        ) from None
    if _FORMAT not in header:
        raise IntegrityError(f"{path}: not a tunescope checkpoint of this version; remove it to start this arm again")
    try:
        recorded = json.loads(header[_FORMAT])
        matches = _digest(tensors, recorded["facts"]) == recorded["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        matches = False
    if not matches:
        raise IntegrityError(f"{path}: the checkpoint does not match its hash; remove it to start this arm again")
    facts: dict[str, Any] = json.loads(recorded["facts"])
    return tensors, facts


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
