"""Read a YAML settings file: every problem in one message, each with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tunescope.config.models import Config
from tunescope.errors import ConfigError, did_you_mean

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
_Location = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``2e-4`` as a number; YAML 1.1 wants a dot there, which nobody expects."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a settings file and returns it with every default filled in.

    Args:
        path: the YAML file.
        overrides: ``key.sub=value`` strings that replace single settings; values are read as YAML.

    Returns:
        The settings. Paths in the file are made absolute, relative to the file's folder; paths in overrides are relative
        to the working directory.

    Raises:
        ConfigError: the file cannot be read, is not plain YAML, or any setting is wrong; one line per problem, all at once.
    """
    text = _read_text(path)
    values, lines = _parse(text, str(path))
    values = _resolve_paths(values, path.resolve().parent)
    problems: list[str] = []
    for override in overrides:
        problem = _apply_override(values, lines, override)
        if problem:
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    return validate(values, source=str(path), lines=lines)


def validate(
    values: Mapping[str, Any], *, source: str, lines: Mapping[_Location, int | str] | None = None
) -> Config:
    """Turns plain values into `Config`.

    Args:
        values: nested plain values, as read from YAML or JSON.
        source: name shown in front of every problem.
        lines: where each location stands: a line number, or the text of an override.

    Returns:
        The settings.

    Raises:
        ConfigError: any setting is wrong; one line per problem.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source, lines or {})) from None


def dump(config: Config) -> str:
    """Returns the settings as YAML with every default written out; `load` reads it back to an equal `Config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes is too long for a settings file (at most 1,000,000)")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(
            f"{path}: no such settings file{did_you_mean(path.name, near)}; `tunescope init` writes one to start from"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, a YAML file is needed") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _parse(text: str, source: str) -> tuple[dict[str, Any], dict[_Location, int | str]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{source}:{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML ({str(error).splitlines()[0][:120]})") from None
    if node is None:
        raise ConfigError(f"{source}: the file is empty; `tunescope init` writes one to start from")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source}:1: a settings file is a list of `key: value` lines, got something else")
    lines: dict[_Location, int | str] = {}
    problems: list[str] = []
    _walk(node, (), lines, problems, source, set())
    if problems:
        raise ConfigError(problems)
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader, and tags were refused above
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML ({str(error).splitlines()[0][:120]})") from None
    return values, lines


def _walk(
    node: yaml.Node,
    where: _Location,
    lines: dict[_Location, int | str],
    problems: list[str],
    source: str,
    open_nodes: set[int],
) -> None:
    """Notes the line of every value; refuses tags, aliases (they can explode), repeated keys and great depth."""
    line = node.start_mark.line + 1
    lines.setdefault(where, line)
    if id(node) in open_nodes:
        problems.append(f"{source}:{line}: YAML anchors and aliases are not allowed in a settings file; write the value out")
        return
    open_nodes.add(id(node))
    if len(where) > _MAX_DEPTH:
        problems.append(f"{source}:{line}: nested deeper than {_MAX_DEPTH} levels")
        return
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
        problems.append(f"{source}:{line}: YAML tag {node.tag!r} is not allowed in a settings file; write a plain value")
        return
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                problems.append(f"{source}:{key.start_mark.line + 1}: {name!r} is set twice; keep one")
            seen.add(name)
            lines[(*where, name)] = key.start_mark.line + 1
            _walk(value, (*where, name), lines, problems, source, open_nodes)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*where, index), lines, problems, source, open_nodes)


def _resolve_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Makes the paths of the settings absolute; wrong types are left for validation to name."""

    def absolute(value: Any) -> Any:
        if isinstance(value, str) and value:
            return str(folder / Path(value).expanduser())
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return value

    resolved = dict(values)
    for key in ("output_dir", "guard"):
        if key in resolved:
            resolved[key] = absolute(resolved[key])
    tasks = resolved.get("tasks")
    if isinstance(tasks, list):
        resolved["tasks"] = [
            {k: absolute(v) if k in ("train", "test", "out_of_domain") else v for k, v in task.items()}
            if isinstance(task, dict)
            else task
            for task in tasks
        ]
    model = resolved.get("model")
    if isinstance(model, str) and (model.startswith((".", "~", "/")) or model.endswith(".gguf")):
        resolved["model"] = absolute(model)
    return resolved


def _apply_override(values: dict[str, Any], lines: dict[_Location, int | str], override: str) -> str | None:
    """Sets one ``key.sub=value``; returns a problem or None."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        return f"override {override!r}: write key=value, for example tuning.num_epochs=2"
    try:
        node = yaml.compose(text, Loader=_Loader)
        problems: list[str] = []
        if node is not None:
            _walk(node, (), {}, problems, f"override {key}", set())
        if problems:
            return problems[0]
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - as above
    except (yaml.YAMLError, RecursionError):
        return f"override {override!r}: the value is not valid YAML; quote it"
    parts: list[str | int] = [int(part) if part.isdigit() else part for part in key.strip().split(".")]
    target: Any = values
    for part in parts[:-1]:
        if isinstance(target, dict):
            target = target.setdefault(part, {})
        elif isinstance(target, list) and isinstance(part, int) and part < len(target):
            target = target[part]
        else:
            return f"override {override!r}: {part!r} does not exist there"
        if target is None:
            return f"override {override!r}: {part!r} is empty there"
    last = parts[-1]
    if isinstance(target, list):
        if not isinstance(last, int) or last >= len(target):
            return f"override {override!r}: the list there has {len(target)} entries, counted from 0"
        target[last] = value
    elif isinstance(target, dict):
        target[str(last)] = value
    else:
        return f"override {override!r}: {'.'.join(map(str, parts[:-1]))} is a single value, it has no {last!r}"
    lines[tuple(parts)] = f"override {override}"
    return None


def _explain(error: ValidationError, source: str, lines: Mapping[_Location, int | str]) -> list[str]:
    problems = []
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(i["loc"][: len(item["loc"])] == item["loc"] and i is not item for i in items):
            continue  # the list is only "too short" because its entries, named elsewhere, are wrong
        location = tuple(part for part in item["loc"] if not _is_type_branch(part))
        place = _place(location, source, lines)
        name = ".".join(str(part) for part in location) or "settings"
        problems.append(f"{place}: {_one_problem(item, name, location)}")
    # A union of types reports once per branch; the place and name are the same, so the first says it.
    return list(dict.fromkeys(problems))


def _is_type_branch(part: str | int) -> bool:
    return isinstance(part, str) and (part in ("float", "int", "str") or part.startswith(("literal[", "function-", "constrained")))


def _place(location: _Location, source: str, lines: Mapping[_Location, int | str]) -> str:
    for end in range(len(location), -1, -1):
        found = lines.get(location[:end])
        if isinstance(found, str):
            return found
        if found is not None:
            return f"{source}:{found}"
    return source


def _one_problem(item: Any, name: str, location: _Location) -> str:
    kind, got = item["type"], item.get("input")
    shown = repr(got) if not isinstance(got, dict | list | tuple) else f"a {type(got).__name__}"
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if kind == "extra_forbidden":
        allowed = _field_names(location[:-1])
        return f"unknown setting {name!r}{did_you_mean(str(location[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return f"{name} is missing; see `tunescope config schema` or docs/configuration.md"
    if kind == "value_error":
        return f"{name}: {item['ctx']['error']}"
    if kind in ("enum", "literal_error"):
        allowed_values = [text.strip("' ") for text in re.split(r",|\bor\b", item["ctx"]["expected"])]
        return f"{name}: got {shown}{did_you_mean(str(got), allowed_values)}; allowed: {', '.join(allowed_values)}"
    if kind in ("model_type", "dict_type"):
        return f"{name}: got {shown}, needs `key: value` lines"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{name}: got {shown}, {message.replace('input ', 'it ')}"


def _field_names(location: _Location) -> list[str]:
    """Names of the settings that exist at a location."""
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
