"""Single weights out of a model's safetensors files, without loading the model.

The format: eight bytes with the length of a JSON header, the header (name -> number format, shape, place), the bytes. It is read by hand
because the library maps whole files into memory as private, which a limit on memory counts in full.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from tunescope.errors import ModelError

_FORMATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 25


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight lies.

    Attributes:
        file: the file.
        offset: of its first byte.
        shape: its shape.
        dtype: its number format in the file.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class WeightFiles:
    """The weights of a model folder by name.

    Args:
        folder: with ``model.safetensors``, or with shards and ``model.safetensors.index.json``.

    Attributes:
        weights: name -> where it lies.

    Raises:
        ModelError: a file is missing or damaged, or holds a number format that is no plain float.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights: dict[str, StoredWeight] = {}
        listed = _listed(folder)
        for file in dict.fromkeys(listed.values()) if listed else [folder / "model.safetensors"]:
            self.weights |= _read_header(file)
        lost = sorted(listed.keys() - self.weights.keys())
        if lost:
            raise ModelError(
                f"{folder}: {len(lost)} weights of the index are in none of its files, the first is {lost[0]}"
            )

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def read(self, name: str, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> torch.Tensor:
        """Returns a weight, read in place or converted piece by piece: beside the result at most 32 MiB are held.

        Args:
            name: as in the files.
            dtype: number format of the result.
            device: where it goes.

        Raises:
            ModelError: there is no such weight, or the file became shorter.
        """
        stored = self.weights.get(name)
        if stored is None:
            raise ModelError(
                f"{self.folder}: there is no weight {name}; the files are incomplete or belong to another model"
            )
        whole = torch.empty(stored.shape, dtype=dtype, device=device)
        flat = whole.view(-1)
        if dtype == stored.dtype and flat.device.type == "cpu":
            with stored.file.open("rb", buffering=0) as file:
                file.seek(stored.offset)
                _read_into(flat, file, stored.file)
            return whole
        start = 0
        for piece in self._pieces(stored):
            flat[start : start + len(piece)].copy_(piece)
            start += len(piece)
        return whole

    def equal(self, left: str, right: str) -> bool:
        """Returns whether two weights are the same bit by bit, holding only a piece of each."""
        one, other = self.weights[left], self.weights[right]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        pieces = zip(self._pieces(one), self._pieces(other), strict=True)
        return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pieces)

    def _pieces(self, stored: StoredWeight) -> Iterator[torch.Tensor]:
        step = _CHUNK_BYTES // stored.dtype.itemsize
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.offset)
            for start in range(0, stored.numel, step):
                piece = torch.empty(min(step, stored.numel - start), dtype=stored.dtype)
                _read_into(piece, file, stored.file)
                yield piece


def _read_into(flat: torch.Tensor, file: FileIO, path: Path) -> None:
    """Fills a tensor with the next bytes of a file."""
    target: Any = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
    while target:
        count = file.readinto(target)
        if not count:
            raise ModelError(f"{path}: ends before its weights do; fetch it again")
        target = target[count:]


def _listed(folder: Path) -> dict[str, Path]:
    """Name -> file, for a model in several files; a whole file beside an index wins, as in transformers."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return {}
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / Path(file).name for name, file in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: missing or damaged ({type(error).__name__}); fetch it again") from None
    return files


def _read_header(file: Path) -> dict[str, StoredWeight]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _FORMATS:
                raise ModelError(
                    f"{file}: {name} is stored as {entry['dtype']}, which cannot be read weight by weight; allowed: {', '.join(_FORMATS)}"
                )
            first, last = entry["data_offsets"]
            weight = StoredWeight(file, 8 + length + first, tuple(entry["shape"]), _FORMATS[entry["dtype"]])
            if last - first != weight.numel * weight.dtype.itemsize or first < 0 or 8 + length + last > size:
                raise ValueError(f"{name} does not lie in the file")
            found[name] = weight
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: damaged or not a safetensors file ({str(error)[:120]}); fetch it again") from None
    return found
