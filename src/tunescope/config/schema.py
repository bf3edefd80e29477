"""The settings as JSON Schema and as a table for the documentation; both generated from the classes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tunescope.config.models import Config


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a settings file; editors complete and check with it."""
    return Config.model_json_schema()


def markdown() -> str:
    """Returns ``docs/configuration.md``: one table per group of settings."""
    lines = [
        "# Configuration",
        "",
        "One YAML file. This page is generated from the settings classes (`make docs`); do not edit it by hand.",
        "Paths are relative to the file. An unknown key is an error. `tunescope config schema` prints the JSON Schema.",
        "On the command line `key.sub=value` replaces one setting: `tunescope poc config.yaml tuning.num_epochs=2 tasks.0.name=desk`.",
    ]
    groups: list[tuple[str, type[BaseModel]]] = [("Top level", Config), *_groups(Config)]
    for title, model in groups:
        doc = (model.__doc__ or "").strip().splitlines()[0]
        lines += [
            "",
            f"## {title}",
            "",
            doc,
            "",
            "| setting | default | allowed | what it does |",
            "| --- | --- | --- | --- |",
        ]
        for name, field in model.model_fields.items():
            inner = _model_of(field.annotation)
            if inner is not None and get_origin(field.annotation) is not tuple:
                lines.append(f"| `{name}` | see below | | {(inner.__doc__ or '').strip().splitlines()[0]} |")
            else:
                lines.append(f"| `{name}` | {_default(field)} | {_allowed(field)} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def _groups(model: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    """The groups of settings inside another, each followed by its own."""
    groups: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None:
            many = " (a list; each entry has)" if get_origin(field.annotation) is tuple else ""
            groups += [(f"`{prefix}{name}`{many}", inner), *_groups(inner, f"{prefix}{name}.")]
    return groups


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`[{', '.join(str(item.value if isinstance(item, Enum) else item) for item in value)}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _allowed(field: FieldInfo) -> str:
    parts = (field.annotation, *get_args(field.annotation))
    choices: list[str] = []
    limits = list(field.metadata)
    for part in parts:
        if isinstance(part, type) and issubclass(part, Enum):
            choices += [str(member.value) for member in part]
        elif get_origin(part) is Annotated:  # one branch of a union, with limits of its own
            limits += [limit for inner in part.__metadata__ for limit in getattr(inner, "metadata", ())]
        else:
            choices += [str(value) for value in (part, *get_args(part)) if isinstance(value, str)]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{signs[k]} {getattr(limit, k):.10g}" for limit in limits for k in signs if getattr(limit, k, None) is not None
    ]
    words = [f"`{choice}`" for choice in dict.fromkeys(choices)]
    return " or ".join(text for text in (", ".join(words), ", ".join(bounds)) if text)


if __name__ == "__main__":  # writes docs/configuration.md: `make docs`
    print(markdown(), end="")
