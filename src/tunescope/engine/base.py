"""For which base model saved weights were made: written beside them, and compared before they are put on another."""

from __future__ import annotations

import json
from pathlib import Path

from tunescope.errors import IntegrityError, ModelError
from tunescope.models import Loaded
from tunescope.runs.records import SCHEMA_VERSION

FILE = "base.json"
_ADAPTER = "adapter_config.json"


def write_base(folder: Path, *, name: str, sha256: str) -> None:
    """Writes ``base.json``: the base model that the weights beside it belong to.

    Args:
        folder: exists.
        name: of the base, as the user wrote it.
        sha256: of its weights, `ModelInfo.sha256`.
    """
    values = {"schema_version": SCHEMA_VERSION, "name": name, "sha256": sha256}
    (folder / FILE).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def check_base(loaded: Loaded, folder: Path) -> str:
    """Refuses weights that were made for another base model, where the folder tells.

    What tunescope saved holds the hash of the base's weights. A foreign adapter holds a name at best, which is compared where both
    sides name a published model; the last part of the name counts, since the same weights are published under several owners.

    Args:
        loaded: the base model.
        folder: what `save` wrote, or any PEFT adapter.

    Returns:
        What could not be found out, in one line; empty where the base is the right one.

    Raises:
        ModelError: the weights are for another base.
        IntegrityError: ``base.json`` is damaged.
    """
    if (folder / FILE).is_file():
        name, sha256 = _recorded(folder)
        if sha256 != loaded.info.sha256:
            raise ModelError(
                f"{folder}: made for another base model, {name} (sha256 {sha256[:12]}); {loaded.info.name} has {loaded.info.sha256[:12]}. "
                f"Give the base it was tuned from; if its weights are the same in other files, remove {FILE}"
            )
        return ""
    said = _adapter_says(folder)
    shapes = "only names and shapes of the matrices were compared"
    if not said:
        return f"{folder}: nothing says for which base model it was made; {shapes}"
    if said in (loaded.info.name, loaded.info.folder) or _same_folder(said, loaded.info.folder):
        return ""
    published = loaded.info.source in ("hub", "package") and not _is_path(said)
    mine = {Path(name).name.casefold() for name in (loaded.info.name, loaded.info.folder)}
    if published and Path(said).name.casefold() in mine:
        return ""
    if published and loaded.info.source == "hub" and "/" in said:
        raise ModelError(
            f"{folder}: made for another base model: its {_ADAPTER} names {said}, and the base is {loaded.info.name}. Give the base it was "
            "tuned from; if the weights are the same, write that name into base_model_name_or_path"
        )
    return f"{folder}: its {_ADAPTER} names the base {said}, which cannot be compared with {loaded.info.name}; {shapes}"


def _recorded(folder: Path) -> tuple[str, str]:
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        name, sha256 = values["name"], values["sha256"]
        if not isinstance(name, str) or not isinstance(sha256, str):
            raise TypeError("name and sha256 must be texts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{folder / FILE}: damaged ({str(error)[:120]}); put it back from where it was saved"
        ) from None
    return name, sha256


def _adapter_says(folder: Path) -> str:
    """The base that a PEFT adapter names; empty where it names none, or is no adapter."""
    try:
        values = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # not there; a damaged one is named by whoever reads all of it
    said = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    return said.strip() if isinstance(said, str) else ""


def _is_path(name: str) -> bool:
    """Whether a name is a place on a machine: a published model is ``owner/name`` or a bare name."""
    return name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or "\\" in name or Path(name).exists()


def _same_folder(one: str, other: str) -> bool:
    try:
        return Path(one).is_dir() and Path(one).resolve() == Path(other).resolve()
    except OSError:  # no name of a folder at all
        return False
