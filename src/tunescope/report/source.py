"""Reads a run folder for the report: plain files in, checked records out.

A file that is not there leaves its part empty and is listed in `RunSource.missing`; a file that is there but
broken is an error that names it, because a report that silently leaves out half of a run would mislead.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tunescope.errors import RunError
from tunescope.runs.records import (
    SCHEMA_VERSION,
    Finding,
    Forecast,
    LayerScores,
    MoneyLine,
    Record,
    Result,
    Risk,
    Sample,
    Selection,
    Sensitivity,
    StepRecord,
    Verdict,
)

R = TypeVar("R", bound=Record)

FILES = (
    "config.yaml",
    "environment.json",
    "data.json",
    "steps.jsonl",
    "layers.json",
    "results.json",
    "samples.jsonl",
    "costs.json",
    "verdict.json",
    "risk.json",
    "ledger.jsonl",
    "status.json",
)


@dataclasses.dataclass(frozen=True)
class RunSource:
    """Everything a run folder holds, as far as it is there.

    Attributes:
        folder: the run folder.
        config: resolved settings, or empty.
        environment: versions, machine, model, hashes, or empty.
        data: files, label counts and the rendered example, or empty.
        findings: what was found in the data files.
        steps: optimiser steps and held-out checks of all arms, in file order.
        scores: numbers per block.
        selections: arm -> the weights that may move.
        results: measured numbers.
        samples: test examples with every arm's answer.
        forecast: arm -> cost expected before the run.
        actual: arm -> measured cost.
        totals: the other numbers of ``costs.json``.
        verdict: the verdict, or None.
        risks: calibration and risk–coverage per arm and role.
        ledger: the rows of the ledger; not verified here.
        status: state of the run, or empty.
        missing: names of the files that are not there.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    findings: tuple[Finding, ...]
    steps: tuple[StepRecord, ...]
    scores: tuple[LayerScores, ...]
    selections: Mapping[str, Selection]
    results: tuple[Result, ...]
    samples: tuple[Sample, ...]
    forecast: Mapping[str, Forecast]
    actual: Mapping[str, Forecast]
    totals: Mapping[str, Any]
    verdict: Verdict | None
    risks: tuple[Risk, ...]
    ledger: tuple[Mapping[str, Any], ...]
    status: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.name

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms: the config's order first, then any other that was measured, in order of appearance."""
        measured = [row.arm for row in self.results] + list(self.actual) + [row.arm for row in self.steps]
        planned = [arm for arm in self.config.get("arms") or () if arm in set(measured)]
        return tuple(dict.fromkeys([*planned, *measured]))

    @property
    def tuned_arms(self) -> tuple[str, ...]:
        """Names of the arms in which weights moved."""
        trained = {row.arm for row in self.steps} | {
            row.arm for row in self.actual.values() if row.trainable_parameters
        }
        return tuple(arm for arm in self.arms if arm in trained)

    @property
    def model(self) -> Mapping[str, Any]:
        """What the environment file says about the model, or empty."""
        found = self.environment.get("model")
        return found if isinstance(found, Mapping) else {}

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Returns one setting of the config by its dotted name, or `default` where it is absent."""
        value: Any = self.config
        for part in dotted.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value


def read_run(folder: Path) -> RunSource:
    """Reads what a run folder holds.

    Args:
        folder: the run folder; missing files are allowed, broken ones are not.

    Returns:
        The parts of the run; absent parts are empty and their files listed in ``missing``.

    Raises:
        RunError: `folder` is no run folder, a file cannot be read, or it was written by a newer tunescope.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; give the folder that holds config.yaml and results.json")
    missing = tuple(name for name in FILES if not (folder / name).is_file())
    if len(missing) == len(FILES):
        raise RunError(f"{folder}: not a run folder, it holds none of {', '.join(FILES)}")
    data, layers, costs = (_read_json(folder / name) for name in ("data.json", "layers.json", "costs.json"))
    verdict = _read_json(folder / "verdict.json")
    layer_path, cost_path = folder / "layers.json", folder / "costs.json"
    return RunSource(
        folder=folder.resolve(),
        config=_read_config(folder / "config.yaml"),
        environment=_read_json(folder / "environment.json"),
        data=data,
        findings=_records(Finding, data.get("findings"), folder / "data.json"),
        steps=_records(StepRecord, _read_jsonl(folder / "steps.jsonl"), folder / "steps.jsonl"),
        scores=_records(LayerScores, layers.get("scores"), layer_path),
        selections={
            arm: _record(Selection, row, layer_path, arm)
            for arm, row in _mapping(layers.get("selections"), layer_path).items()
        },
        results=_records(Result, _read_json(folder / "results.json").get("results"), folder / "results.json"),
        samples=_records(Sample, _read_jsonl(folder / "samples.jsonl"), folder / "samples.jsonl"),
        forecast={row.arm: row for row in _records(Forecast, costs.get("forecast"), cost_path)},
        actual={row.arm: row for row in _records(Forecast, costs.get("actual"), cost_path)},
        totals={key: value for key, value in costs.items() if isinstance(value, int | float)},
        verdict=_verdict(verdict, folder / "verdict.json") if verdict else None,
        risks=_records(Risk, _read_json(folder / "risk.json").get("risks"), folder / "risk.json"),
        ledger=tuple(_read_jsonl(folder / "ledger.jsonl")),
        status=_read_json(folder / "status.json"),
        missing=missing,
    )


def _read_text(path: Path) -> str | None:
    """The text of a file; None where it is not there."""
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); restore the file or run the study again") from error


def _read_config(path: Path) -> Mapping[str, Any]:
    text = _read_text(path)
    if text is None:
        return {}
    try:
        return _mapping(yaml.safe_load(text), path)
    except (yaml.YAMLError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise RunError(f"{path}: not plain YAML ({line}); restore the file or run the study again") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    """One JSON object whose schema this version knows."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: not valid JSON ({error}); restore the file or run the study again") from error
    if not isinstance(values, dict):
        raise RunError(f"{where}: expected a JSON object, got {type(values).__name__}")
    version = values.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RunError(
            f"{where}: schema_version is {version!r}, this tunescope reads up to {SCHEMA_VERSION}; "
            "the run comes from a newer version, upgrade tunescope to read it"
        )
    return values


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    return {} if text is None else _parse(text, str(path))


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; a last line without its line break was cut by a kill and is left out."""
    text = _read_text(path) or ""
    lines = text.split("\n")
    if lines[-1]:
        try:
            json.loads(lines[-1])
        except ValueError:
            lines.pop()
    return [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _mapping(values: Any, path: Path) -> Mapping[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RunError(f"{path}: expected a mapping of names to values, got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _records(kind: type[R], rows: Any, path: Path) -> tuple[R, ...]:
    if rows is None:
        return ()
    if not isinstance(rows, list):
        raise RunError(f"{path}: expected a list of {kind.__name__} rows, got {type(rows).__name__}")
    return tuple(_record(kind, row, path, str(number)) for number, row in enumerate(rows, 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(test(item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# Annotation of a record's field (as text, optional part cut off) -> what a value read from JSON must be.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "int": _is_number,
    "str": _is_text,
    "Role": lambda value: value in ("in_domain", "out_of_domain", "guard"),
    "tuple[float, ...]": _is_list_of(_is_number),
    "tuple[str, ...]": _is_list_of(_is_text),
    "tuple[Mapping[str, Any], ...]": _is_list_of(lambda item: isinstance(item, Mapping)),
    "Mapping[str, Any]": lambda value: isinstance(value, Mapping),
    "Mapping[str, float]": lambda value: isinstance(value, Mapping) and all(map(_is_number, value.values())),
}


def _record(kind: type[R], row: Any, path: Path, where: str) -> R:
    """Builds one record and checks the type of its fields, so that a hand-edited file gives a line, not a traceback."""
    if not isinstance(row, dict):
        raise RunError(f"{path}: {kind.__name__} {where}: expected an object, got {type(row).__name__}")
    try:
        record = kind.from_dict(row)
    except TypeError as error:
        lacking = str(error).partition("missing ")[2] or str(error)
        raise RunError(f"{path}: {kind.__name__} {where} lacks {lacking}; run the study again") from error
    for field in dataclasses.fields(record):
        value, annotation = getattr(record, field.name), str(field.type)
        optional = annotation.endswith("| None")
        check = CHECKS.get(annotation.removesuffix("| None").strip())
        if check is not None and not (optional and value is None) and not check(value):
            got = repr(str(value)[:60])
            raise RunError(
                f"{path}: {kind.__name__} {where}: {field.name} is {got}, expected {annotation}; "
                "correct it or run the study again"
            )
    return record


def _verdict(values: dict[str, Any], path: Path) -> Verdict:
    verdict = _record(Verdict, values, path, "1")
    return dataclasses.replace(
        verdict,
        money=_records(MoneyLine, values.get("money"), path),
        sensitivity=_records(Sensitivity, values.get("sensitivity"), path),
    )
