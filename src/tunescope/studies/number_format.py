"""The number format of a run: the one that is set, the one it began with, or the one that this machine computes fastest in."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunescope import engine, models
from tunescope.config import Config
from tunescope.engine import NumberFormat, Widths
from tunescope.models import Located
from tunescope.runs.environment import describe_environment
from tunescope.studies.machine import gpu_name

_ENVIRONMENT = "environment.json"
_SAME_MACHINE = ("cpu", "platform", "packages")


def settled(config: Config, located: Located, device: str, threads: int) -> tuple[Config, NumberFormat | None]:
    """Replaces ``dtype: auto`` by a number format.

    A run that goes on keeps what it began with. A new one takes over what a run beside it measured on the same machine for the same
    model, since the runs of one study have to be comparable and the measurement of a busy machine may come out otherwise. Else it is measured.

    Args:
        config: the settings; their run folder may be there or not.
        located: the model's files.
        device: torch device.
        threads: of the CPU.

    Returns:
        The settings with ``float32`` or ``bfloat16``, and the measurement behind it; None where the settings name the format.
    """
    if config.dtype != "auto":
        return config, None
    found = _began_with(config.output_dir) or _beside(config.output_dir, located, device, threads)
    found = found or _measured(engine.widths_of(models.read_config(located)), device, threads)
    return config.model_copy(update={"dtype": found.dtype}), found


@functools.cache
def _measured(widths: Widths, device: str, threads: int) -> NumberFormat:
    return engine.calibrate_dtype(widths, device=device)


def _began_with(run: Path) -> NumberFormat | None:
    return _format_in(_read(run / _ENVIRONMENT))


def _beside(run: Path, located: Located, device: str, threads: int) -> NumberFormat | None:
    here = describe_environment()
    wanted = {key: here.get(key) for key in _SAME_MACHINE} | {
        "device": device,
        "gpu": gpu_name(device),
        "threads": threads,
    }
    for path in sorted(run.parent.glob(f"*/{_ENVIRONMENT}")):
        values = _read(path)
        model = values.get("model")
        known = wanted | {"sha256": located.sha256}
        told = values | {"sha256": model.get("sha256") if isinstance(model, Mapping) else None}
        if all(told.get(key) == value for key, value in known.items()) and (found := _format_in(values)):
            return found
    return None


def _read(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is not there or damaged, which is another function's business."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _format_in(environment: Mapping[str, Any]) -> NumberFormat | None:
    values = environment.get("number_format")
    try:
        return NumberFormat(**values) if isinstance(values, dict) else None
    except TypeError:
        return None
