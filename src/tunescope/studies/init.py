"""Write a commented settings file and the sample data to start from."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunescope.errors import RunError
from tunescope.samples import FOLDER


def run(folder: Path, *, language: str = "en") -> list[Path]:
    """Writes ``tunescope.yaml`` and ``data/`` into a folder; nothing that exists is overwritten.

    Args:
        folder: made if missing.
        language: ``en``, or ``ja`` for the Japanese twin.

    Returns:
        The files written.

    Raises:
        RunError: one of the files exists, or the folder cannot be written.
    """
    source = FOLDER / language
    targets = {source / "tunescope.yaml": folder / "tunescope.yaml"}
    targets |= {path: folder / "data" / path.name for path in sorted((source / "data").glob("*.jsonl"))}
    if taken := [str(target) for target in targets.values() if target.exists()]:
        raise RunError(
            f"{taken[0]}: exists{f' (and {len(taken) - 1} more)' if taken[1:] else ''}; nothing was written. Choose another folder"
        )
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for path, target in targets.items():
            shutil.copyfile(path, target)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from None
    return list(targets.values())
