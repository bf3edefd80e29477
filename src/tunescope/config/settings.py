"""What all settings share: frozen, an unknown key is an error, paths that name something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _named_path(value: object) -> object:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError(f"got {value!r}, which names no file")
    return value


FilePath = Annotated[Path, BeforeValidator(_named_path)]
PathList = Annotated[tuple[FilePath, ...], BeforeValidator(_as_list, json_schema_input_type=tuple[Path, ...] | str)]


class Settings(BaseModel):
    """Base of all settings: frozen, an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"got {str(value).lower()}; only a setting that is on or off takes true or false")
        return value
