"""The mask: which entries of which matrices may move; with its hash, a file, and the selection it means."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tunescope.errors import IntegrityError, ModelError, RunError, UserError, did_you_mean
from tunescope.models import PARTS, block_index
from tunescope.runs.records import Selection
from tunescope.select.granularity import Granularity, check_granularity

_FORMAT = "tunescope-mask-1"


@dataclass(frozen=True)
class Mask:
    """Which entries may move.

    Attributes:
        entries: canonical matrix name (``block.3.q``) -> (d_out, d_in) bool, true where an entry may move; in the order of the model,
            matrices in which nothing moves left out.
        total: number of weights that were offered.
        granularity: what was chosen as one piece.

    Raises:
        UserError: nothing may move; a name, a shape or a type is wrong.

    Example:
        >>> mask = Mask({"block.3.q": torch.eye(4, dtype=torch.bool)}, total=32, granularity="entry")
        >>> mask.count, mask.lowest_block, mask.layers
        (4, 3, ('block.3',))
    """

    entries: Mapping[str, torch.Tensor]
    total: int
    granularity: Granularity

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        for name, chosen in self.entries.items():
            if not re.fullmatch(rf"block\.\d+\.({'|'.join(PARTS)})", name):
                raise UserError(
                    f"mask: {name!r} is no matrix; allowed are names such as block.3.q with {', '.join(PARTS)}"
                )
            if chosen.dtype != torch.bool or chosen.ndim != 2:
                raise UserError(f"mask: {name} is {chosen.dtype} {tuple(chosen.shape)}; allowed are bool matrices")
        kept = {name: self.entries[name].cpu() for name in sorted(self.entries, key=_place) if self.entries[name].any()}
        if not kept:
            raise UserError("mask: no entry may move; choose at least one")
        object.__setattr__(self, "entries", kept)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Canonical matrix name -> number of its entries that may move."""
        return {name: int(chosen.sum()) for name, chosen in self.entries.items()}

    @property
    def count(self) -> int:
        """Number of entries that may move."""
        return sum(self.counts.values())

    @property
    def layers(self) -> tuple[str, ...]:
        """The blocks in which something may move, lowest first."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.entries))

    @property
    def modules(self) -> tuple[str, ...]:
        """The parts in which something may move, in the order of `PARTS`."""
        found = {name.rpartition(".")[2] for name in self.entries}
        return tuple(part for part in PARTS if part in found)

    @property
    def lowest_block(self) -> int:
        """Number of the lowest block in which something may move: the backward pass ends there."""
        return block_index(self.layers[0])

    @cached_property
    def sha256(self) -> str:
        """Hash of names, shapes and bits: two masks have the same one if and only if they let the same entries move."""
        digest = hashlib.sha256()
        for name, chosen in self.entries.items():
            digest.update(f"{name} {tuple(chosen.shape)}\n".encode())
            digest.update(np.packbits(chosen.numpy()).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes the mask as safetensors, eight entries to a byte; the old file stays until the new one is complete.

        Raises:
            RunError: the file cannot be written, as on a full disk.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        packed = {name: torch.from_numpy(np.packbits(chosen.numpy())) for name, chosen in self.entries.items()}
        facts = {
            "shapes": {name: list(chosen.shape) for name, chosen in self.entries.items()},
            "total": self.total,
            "granularity": self.granularity,
            "sha256": self.sha256,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.part")
        try:
            save_file(packed, scratch, metadata={_FORMAT: json.dumps(facts, sort_keys=True)})
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())
            scratch.replace(path)
        except SafetensorError as error:
            raise RunError(
                f"{path}: the mask cannot be written ({str(error).splitlines()[0][:120]}); free some space, then run it again"
            ) from None
        finally:
            scratch.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Mask:
        """Reads what `save` wrote.

        Raises:
            IntegrityError: the file is missing, damaged, was changed, or is no mask.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_FORMAT])
                entries = {
                    name: _unpacked(file.get_tensor(name), shape) for name, shape in dict(facts["shapes"]).items()
                }
            mask = cls(entries, int(facts["total"]), check_granularity(facts["granularity"]))
            matches = mask.sha256 == facts["sha256"]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, UserError) as error:
            raise IntegrityError(
                f"{path}: no mask, or a damaged one ({(str(error).splitlines() or [''])[0][:120]}); make it again"
            ) from None
        if not matches:
            raise IntegrityError(f"{path}: the mask does not match its hash; make it again")
        return mask


def hand_mask(weights: Mapping[str, torch.Tensor], patterns: Sequence[str]) -> Mask:
    """Lets whole matrices move that a person names.

    Args:
        weights: canonical matrix name -> (d_out, d_in), from `weight_matrices`.
        patterns: ``block.3.q``, a wildcard (``block.2?.down``, ``*.v``) or a range of blocks (``block.20-29.q``).

    Raises:
        ModelError: a pattern matches nothing, or there is none; the message names the nearest real names.

    Example:
        >>> weights = {f"block.{i}.{part}": torch.zeros(2, 2) for i in range(3) for part in ("q", "v")}
        >>> list(hand_mask(weights, ["block.1-2.q", "block.0.*"]).entries)
        ['block.0.q', 'block.0.v', 'block.1.q', 'block.2.q']
    """
    if not patterns:
        raise ModelError(
            f"no pattern of matrices given, so nothing would move; there are {', '.join(list(weights)[:3])} ..."
        )
    found = {pattern: [name for name in weights if _matches(name, pattern.strip())] for pattern in patterns}
    problems = [
        f"pattern {pattern!r} matches no matrix{did_you_mean(pattern, list(weights))}; offered are {len(weights)}, from "
        f"{next(iter(weights))} to {list(weights)[-1]}"
        for pattern, names in found.items()
        if not names
    ]
    if problems:
        raise ModelError(problems)
    chosen = {name for names in found.values() for name in names}
    return Mask(
        {name: torch.ones(tuple(weights[name].shape), dtype=torch.bool) for name in chosen},
        total=sum(weight.numel() for weight in weights.values()),
        granularity="module",
    )


def selection_of(mask: Mask, *, method: Literal["lora", "weights", "sparse"], why: str) -> Selection:
    """Puts a mask in words: the selection that `engine.prepare` takes.

    Args:
        mask: what may move. For ``lora`` and ``weights`` every matrix moves whole or not at all (granularity module or block).
        method: ``sparse`` moves the entries of the mask; ``weights`` the whole matrices, a bias beside them included; ``lora`` puts an
            adapter on each matrix.
        why: one line a person can read.

    Raises:
        UserError: single entries of a matrix can only move with ``sparse``.

    Example:
        >>> whole = torch.ones(2, 2, dtype=torch.bool)
        >>> mask = Mask({"block.3.q": whole, "block.4.v": whole}, total=32, granularity="module")
        >>> selection_of(mask, method="lora", why="by hand").matrices
        ('block.3.q', 'block.4.v')
    """
    if method == "sparse":
        return Selection(
            "sparse",
            mask.layers,
            mask.modules,
            why,
            lowest_layer=mask.lowest_block,
            granularity=mask.granularity,
            mask_sha256=mask.sha256,
            counts=dict(mask.counts),
        )
    partial = [name for name, chosen in mask.entries.items() if not chosen.all()]
    if partial:
        raise UserError(
            f"method {method} moves whole matrices, and of {partial[0]} only {mask.counts[partial[0]]:,} entries may move; "
            "use method sparse, or choose with granularity module or block"
        )
    alike = len(mask.entries) == len(mask.layers) * len(mask.modules)
    return Selection(
        method,
        mask.layers,
        mask.modules,
        why,
        lowest_layer=mask.lowest_block,
        matrices=() if alike else tuple(mask.entries),
        granularity=mask.granularity,
    )


def _place(name: str) -> tuple[int, int]:
    block, _, part = name.rpartition(".")
    return block_index(block), PARTS.index(part)


def _matches(name: str, pattern: str) -> bool:
    span = re.fullmatch(r"(?:block\.)?(\d+)\s*-\s*(?:block\.)?(\d+)\.(.+)", pattern)
    if not span:
        return fnmatch.fnmatchcase(name, pattern)
    block, _, part = name.rpartition(".")
    return int(span[1]) <= block_index(block) <= int(span[2]) and fnmatch.fnmatchcase(part, span[3])


def _unpacked(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    height, width = shape
    bits = np.unpackbits(packed.numpy(), count=height * width)
    return torch.from_numpy(bits.astype(bool).reshape(height, width))
