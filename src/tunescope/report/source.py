"""Reads a run folder for the report: plain files in, checked records out.

A file that is not there leaves its part empty and is listed in `RunSource.missing`; a file that is there but
broken is an error that names it, because a report that silently leaves out half of a run would mislead.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunescope.errors import RunError
from tunescope.report.checked import mapping, record, records
from tunescope.report.knowledge import Knowledge, read_knowledge
from tunescope.report.layer_map import LayerMap, read_map
from tunescope.runs.generalisation import CurvePoint, DataCurve, MatrixCell, Rewording, WeightChange
from tunescope.runs.records import (
    SCHEMA_VERSION,
    Finding,
    Forecast,
    LayerScores,
    MoneyLine,
    Result,
    Risk,
    Sample,
    Selection,
    Sensitivity,
    StepRecord,
    Verdict,
)

GENERALISATION = "generalisation.json"
CURVE = "curve.json"
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
        layer_map: the layer map, or None.
        knowledge: the knowledge study, or None.
        results: measured numbers.
        samples: test examples with every arm's answer.
        forecast: arm -> cost expected before the run.
        actual: arm -> measured cost.
        totals: the other numbers of ``costs.json``.
        verdict: the verdict, or None.
        risks: calibration and risk–coverage per arm and role.
        cells: the generalisation matrix.
        weight_change: how far the weights of each tuned arm moved.
        reworded: what other wordings of the instruction do to answers.
        paraphrases: task -> these wordings.
        data_curves: quality over the number of training examples.
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
    layer_map: LayerMap | None
    knowledge: Knowledge | None
    results: tuple[Result, ...]
    samples: tuple[Sample, ...]
    forecast: Mapping[str, Forecast]
    actual: Mapping[str, Forecast]
    totals: Mapping[str, Any]
    verdict: Verdict | None
    risks: tuple[Risk, ...]
    cells: tuple[MatrixCell, ...]
    weight_change: tuple[WeightChange, ...]
    reworded: tuple[Rewording, ...]
    paraphrases: Mapping[str, Sequence[str]]
    data_curves: tuple[DataCurve, ...]
    ledger: tuple[Mapping[str, Any], ...]
    status: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.name

    @property
    def study(self) -> str:
        """Name of the study that wrote the run; empty where its status does not say."""
        return str(self.status.get("study") or "")

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
    verdict, generalised = _read_json(folder / "verdict.json"), _read_json(folder / GENERALISATION)
    layer_path, cost_path = folder / "layers.json", folder / "costs.json"
    return RunSource(
        folder=folder.resolve(),
        config=_read_config(folder / "config.yaml"),
        environment=_read_json(folder / "environment.json"),
        data=data,
        findings=records(Finding, data.get("findings"), folder / "data.json"),
        steps=records(StepRecord, _read_jsonl(folder / "steps.jsonl"), folder / "steps.jsonl"),
        scores=records(LayerScores, layers.get("scores"), layer_path),
        selections={
            arm: record(Selection, row, layer_path, arm)
            for arm, row in mapping(layers.get("selections"), layer_path).items()
        },
        layer_map=read_map(layers, layer_path),
        knowledge=read_knowledge(_read_json(folder / "knowledge.json"), folder / "knowledge.json"),
        results=records(Result, _read_json(folder / "results.json").get("results"), folder / "results.json"),
        samples=records(Sample, _read_jsonl(folder / "samples.jsonl"), folder / "samples.jsonl"),
        forecast={row.arm: row for row in records(Forecast, costs.get("forecast"), cost_path)},
        actual={row.arm: row for row in records(Forecast, costs.get("actual"), cost_path)},
        totals={key: value for key, value in costs.items() if isinstance(value, int | float)},
        verdict=_verdict(verdict, folder / "verdict.json") if verdict else None,
        risks=records(Risk, _read_json(folder / "risk.json").get("risks"), folder / "risk.json"),
        cells=records(MatrixCell, generalised.get("cells"), folder / GENERALISATION),
        weight_change=records(WeightChange, generalised.get("weight_change"), folder / GENERALISATION),
        reworded=records(Rewording, generalised.get("reworded"), folder / GENERALISATION),
        paraphrases=mapping(generalised.get("paraphrases"), folder / GENERALISATION),
        data_curves=_data_curves(folder / CURVE),
        ledger=tuple(_read_jsonl(folder / "ledger.jsonl")),
        status=_read_json(folder / "status.json"),
        missing=missing,
    )


def read_language(folder: Path) -> str:
    """Returns the language that a run's config asks for; English where it has none.

    Raises:
        RunError: the config cannot be read.
    """
    return str(_read_config(folder / "config.yaml").get("language", "en"))


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
        return mapping(yaml.safe_load(text), path)
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


def _data_curves(path: Path) -> tuple[DataCurve, ...]:
    rows = _read_json(path).get("curves")
    found = records(DataCurve, rows, path)
    return tuple(
        dataclasses.replace(curve, points=records(CurvePoint, list(row["points"]), path))
        for curve, row in zip(found, rows or (), strict=True)
    )


def _verdict(values: dict[str, Any], path: Path) -> Verdict:
    verdict = record(Verdict, values, path, "1")
    return dataclasses.replace(
        verdict,
        money=records(MoneyLine, values.get("money"), path),
        sensitivity=records(Sensitivity, values.get("sensitivity"), path),
    )
