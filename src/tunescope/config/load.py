"""Read a YAML settings file: every problem in one message, each with its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunescope.config import plain
from tunescope.config.engine import spelled_out
from tunescope.config.explain import explain
from tunescope.config.models import Config
from tunescope.config.plain import Location
from tunescope.errors import ConfigError


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
    values, lines, problems = plain.parse(plain.read_text(path), str(path))
    if values is None:
        raise ConfigError(f"{path}: the file is empty; `tunescope init` writes one to start from")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: a settings file is a list of `key: value` lines, got something else")
    values = _resolve_paths(values, path.resolve().parent)
    problems += [problem for override in overrides if (problem := _apply_override(values, lines, override))]
    try:
        config = validate(_resolve_paths(values, Path.cwd()), source=str(path), lines=lines)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return config


def validate(values: Mapping[str, Any], *, source: str, lines: Mapping[Location, int | str] | None = None) -> Config:
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
        raise ConfigError(explain(error, source, lines or {})) from None


def dump(config: Config) -> str:
    """Returns the settings as YAML with every default written out; `load` reads it back to an equal `Config`."""
    return plain.to_text(config.model_dump(mode="json"))


def _resolve_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Makes the paths of the settings absolute; wrong types are left for validation to name."""

    def absolute(value: Any) -> Any:
        if isinstance(value, str) and value:
            at_home = value == "~" or value.startswith("~/")
            return str(folder / (Path(value).expanduser() if at_home else value))
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return value

    resolved = {"output_dir": str(Config.model_fields["output_dir"].default), **values}
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
    tuning = resolved.get("tuning")
    if isinstance(tuning, dict) and isinstance(tuning.get("regularisation"), dict):
        inner = {k: absolute(v) if k == "kl_examples" else v for k, v in tuning["regularisation"].items()}
        resolved["tuning"] = tuning | {"regularisation": inner}
    layer_map = resolved.get("map")
    if isinstance(layer_map, dict):
        resolved["map"] = {k: absolute(v) if k in ("tuned", "cache") else v for k, v in layer_map.items()}
    knowledge = resolved.get("knowledge")
    if isinstance(knowledge, dict):
        resolved["knowledge"] = {k: absolute(v) if k == "general" else v for k, v in knowledge.items()}
        files = knowledge.get("questions")
        if isinstance(files, list):
            resolved["knowledge"]["questions"] = [
                {k: absolute(v) if k == "file" else v for k, v in one.items()} if isinstance(one, dict) else one
                for one in files
            ]
    replay = resolved.get("replay")
    if isinstance(replay, dict):
        inner = {k: absolute(v) if k == "onto" else v for k, v in replay.items()}
        if isinstance(inner.get("tags"), dict):
            inner["tags"] = {k: absolute(v) if k == "file" else v for k, v in inner["tags"].items()}
        resolved["replay"] = inner
    if "engine" in resolved:
        resolved["engine"] = spelled_out(resolved["engine"])
    engine = resolved.get("engine")
    if isinstance(engine, dict):
        resolved["engine"] = {k: absolute(v) if k == "cache" else v for k, v in engine.items()}
    model = resolved.get("model")
    if isinstance(model, str) and (model.startswith((".", "~", "/")) or model.endswith(".gguf")):
        resolved["model"] = absolute(model)
    return resolved


def _apply_override(values: dict[str, Any], lines: dict[Location, int | str], override: str) -> str | None:
    """Sets one ``key.sub=value``; returns a problem or None."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        return f"override {override!r}: write key=value, for example tuning.num_epochs=2"
    try:
        value, _, problems = plain.parse(text, "value")
    except ConfigError as error:
        problems = list(error.problems)
    if problems:
        return f"override {override!r}: {problems[0]}"
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in key.strip().split(".")]
    if parts == ["engine"] and isinstance(value, str):
        parts = ["engine", "backend"]  # the short form changes where it runs, and nothing else that was set
    target: Any = values
    for part in parts[:-1]:
        if isinstance(target, dict):
            target = target.setdefault(str(part), {})
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
    place = tuple(parts)
    for older in [location for location in lines if location[: len(place)] == place]:
        del lines[older]
    lines[place] = f"override {override}"
    for end in range(1, len(place)):
        lines.setdefault(place[:end], f"override {override}")  # what it made on the way
    return None
