"""From the activation cache to the device that computes, through pinned memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunescope.engine.activations import ActivationCache
from tunescope.models import KeptStates, Row


def staged(states: KeptStates | None, device: torch.device) -> KeptStates | None:
    """Returns kept states as they are best read on a device: a cache on disk through pinned memory where that is not the CPU."""
    pinned = device.type != "cpu" and isinstance(states, ActivationCache)
    return DeviceReader(states, device) if pinned else states  # type: ignore[arg-type]


class DeviceReader:
    """Reads states onto a device; where that is not the CPU, nobody waits for the copy.

    A copy to a GPU is asynchronous only from pinned memory. Two pinned buffers take turns: until the GPU has copied one, the next batch is
    read from the memory map into the other, and a buffer is filled again only when its copy is over.

    Args:
        cache: where the states lie.
        device: where they are needed; on the CPU this is `ActivationCache.read`.
    """

    def __init__(self, cache: ActivationCache, device: str | torch.device) -> None:
        self.cache = cache
        self.device = torch.device(device)
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._copied: list[torch.Event | None] = [None, None]
        self._turn = 0

    def write(self, rows: Sequence[Row], k: int, states: torch.Tensor) -> None:
        """Keeps the states of rows, as `ActivationCache.write`."""
        self.cache.write(rows, k, states)

    def read(self, rows: Sequence[Row], k: int) -> torch.Tensor | None:
        """Returns the states of rows, or None if those of any row are not in the cache.

        Args:
            rows: encoded examples.
            k: the states are those at the input of this block.

        Returns:
            (sum of tokens, d_model) on the device, in the order of its current stream.
        """
        if self.device.type == "cpu":
            return self.cache.read(rows, k)
        turn = self._turn
        if (copied := self._copied[turn]) is not None:
            copied.synchronize()
        n_tokens = sum(len(row.prompt_ids) + len(row.target_ids) for row in rows)
        buffer = self._buffers[turn]
        if buffer is None or len(buffer) < n_tokens:
            buffer = torch.empty((n_tokens, self.cache.d_model), dtype=self.cache.dtype, pin_memory=True)
            self._buffers[turn] = buffer
        found = self.cache.read(rows, k, out=buffer)
        if found is None:
            return None
        states = found.to(self.device, non_blocking=True)
        event = torch.Event(self.device)
        event.record()
        self._copied[turn] = event
        self._turn = 1 - turn
        return states
