"""What a run ran on: versions, commit, machine. Nothing here needs torch."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn")


def describe_environment() -> dict[str, Any]:
    """Returns versions, git state of the working directory, and the machine, as plain values."""
    import psutil

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "tunescope": importlib.metadata.version("tunescope") if _installed() else "0 (not installed)",
        "python": platform.python_version(),
        "packages": packages,
        "git": git_state(Path.cwd()),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def user_name() -> str:
    """Returns who runs this: the login name, or the user's number where the system knows no name (some containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # which one depends on system and version
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Returns the commit and whether files differ from it (None if git does not say in time), or None outside a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = git("status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def cpu_name() -> str:
    """Returns the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or sys.platform


def _installed() -> bool:
    try:
        importlib.metadata.version("tunescope")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
