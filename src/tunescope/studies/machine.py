"""The device and the threads that a study uses."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import torch

from tunescope.errors import ConfigError


def pick_device(wanted: str) -> str:
    """Returns the torch device for a setting.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        index = int(wanted.partition(":")[2] or 0)
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise ConfigError(
                f"device {wanted}: this machine has {torch.cuda.device_count()} usable GPU(s); use device: cpu or auto"
            )
    return wanted


def gpu_name(device: str) -> str | None:
    """Returns the name of the GPU that a torch device is; None for the CPU."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None


def set_threads(wanted: int | None) -> int:
    """Sets and returns the number of CPU threads: the setting, else ``OMP_NUM_THREADS``, else the cores that this process may use."""
    from_environment = os.environ.get("OMP_NUM_THREADS", "")
    if wanted is None and from_environment.isdigit() and int(from_environment) > 0:
        wanted = int(from_environment)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = wanted or available
    torch.set_num_threads(threads)
    return threads


def release_memory() -> None:
    """Gives the memory of a model that is no longer used back to the system.

    PEFT models hold reference cycles, and glibc keeps freed blocks: without this a run with five arms needed twice the memory.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Makes glibc give freed blocks back.

    Batches differ in width, so freed blocks rarely fit the next batch and the heap grows: from 2.6 to 4.4 GiB in the quickstart's
    tuning. Trimming after every step made tuning 7 % slower, after every eighth it does not show.
    """
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # musl has no malloc_trim
            return
