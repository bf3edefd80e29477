"""The settings of the engine: where it runs, what is kept from one pass to the next, and how much disk that may take."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tunescope.config.ray import RaySettings
from tunescope.config.settings import FilePath, Settings

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def _as_bytes(value: object) -> object:
    """``20GB`` is 20 * 1000³ bytes, ``20GiB`` 20 * 1024³."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", value, re.IGNORECASE)
    if not found or (found[3] and not found[2]):
        raise ValueError(f"got {value!r}, needs a number of bytes, such as 20GB, 512MiB or 20000000000")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])


Bytes = Annotated[int, BeforeValidator(_as_bytes, json_schema_input_type=int | str)]


Backend = Literal["local", "ray"]


class EngineSettings(Settings):
    """Where a study runs and what it keeps of a pass for the next one; `engine: ray` is short for `engine: {backend: ray}`."""

    backend: Backend = Field(
        "local",
        description="local: one process on this machine; ray: independent pieces, and the workers of one tuning, on a Ray cluster (extra `ray`).",
    )
    ray: RaySettings = RaySettings()
    checkpointing: bool = Field(
        False,
        description="Moving blocks keep their input alone and are computed again for the backward pass: much less memory, about a third more "
        "time, the same bits.",
    )
    memory_bytes: Bytes | None = Field(
        None,
        gt=0,
        description="What the weights of the base may take in memory, such as 8GB. Of a larger base only the blocks from the lowest one in "
        "selection.blocks on are held; those below are read from disk one by one. Default: no limit.",
    )
    keep_states: bool = Field(
        True,
        description="Keep the output of the blocks below the lowest moving one on disk, where that saves time; no result changes.",
    )
    cache: FilePath | None = Field(
        None, description="Folder of what is kept; runs and models share it. Default: in the user's cache."
    )
    cache_bytes: Bytes = Field(
        20_000_000_000,
        ge=0,
        description="What the folder may take, as a number of bytes or as 20GB; what was used longest ago goes first.",
    )
    keep_free_bytes: Bytes = Field(1_000_000_000, ge=0, description="What it leaves free on the disk.")


def spelled_out(value: object) -> object:
    """Returns the settings of the engine for their short form, a word such as ``ray``; anything else as it is.

    Example:
        >>> spelled_out("ray")
        {'backend': 'ray'}
    """
    return {"backend": value} if isinstance(value, str) else value


EngineChoice = Annotated[EngineSettings, BeforeValidator(spelled_out, json_schema_input_type=EngineSettings | Backend)]
