"""Measure wall time, peak memory and, where the machine tells, energy of a piece of work."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

import psutil
import torch

_RAPL = Path("/sys/class/powercap")


class Meter:
    """Context manager that measures what happens inside.

    Attributes:
        seconds: wall time.
        peak_memory_bytes: highest resident memory of the process, sampled every 20 ms; on a GPU the highest allocated memory.
        energy_kwh: energy of the processor packages (Intel/AMD RAPL, where readable) or of the GPU (NVML); None elsewhere. It counts
            everything that ran on the machine meanwhile.

    Example:
        >>> with Meter() as meter:
        ...     _ = sum(range(1000))
        >>> meter.peak_memory_bytes > 0
        True
    """

    def __init__(self, device: str = "cpu") -> None:
        self.seconds = 0.0
        self.peak_memory_bytes = 0
        self.energy_kwh: float | None = None
        self._device = device

    def __enter__(self) -> Meter:
        self._on_gpu = self._device.startswith("cuda")
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._process = psutil.Process()
        self.peak_memory_bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._joules = _read_joules(self._device)
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._started
        self._stop.set()
        self._thread.join()
        if self._on_gpu:
            self.peak_memory_bytes = torch.cuda.max_memory_allocated(self._device)
        end = _read_joules(self._device)
        if self._joules is not None and end is not None and end >= self._joules:
            self.energy_kwh = (end - self._joules) / 3.6e6

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            self.peak_memory_bytes = max(self.peak_memory_bytes, self._process.memory_info().rss)


def _read_joules(device: str) -> float | None:
    """Total energy counter in joules, or None if there is none that this user may read."""
    if device.startswith("cuda"):
        try:
            import pynvml

            pynvml.nvmlInit()
            index = torch.device(device).index or 0
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(index))) / 1000
        except Exception:  # not installed, or the card has no counter: then energy is reported as not measurable
            return None
    counters = sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj"))
    counters = [c for c in counters if c.parent.name.count(":") == 1]
    try:
        return sum(int(c.read_text()) for c in counters) / 1e6 if counters else None
    except OSError:
        return None
