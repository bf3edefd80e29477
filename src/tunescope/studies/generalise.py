"""Writes ``generalisation.json``: the matrix of arms and tasks, how far weights moved, and whether other wordings change answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tunescope import evaluate
from tunescope.errors import IntegrityError
from tunescope.evaluate import Scored
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Result
from tunescope.studies.bench import TUNED, Bench
from tunescope.studies.beside import TRAINING
from tunescope.studies.demonstrations import at_test

GENERALISATION = "generalisation.json"


def write_generalisation(
    bench: Bench, arms: Sequence[str], scored: Sequence[Scored], results: Sequence[Result], weights: Mapping[str, Path]
) -> None:
    """Writes the file from the arms' answers and what was measured beside them.

    Args:
        bench: what all arms share.
        arms: all arms, all measured.
        scored: their answers.
        results: of them.
        weights: arm -> folder, of arms that are not the run's own.
    """
    settings = bench.config.evaluation
    folders = {arm: bench.run.path / "weights" / arm for arm in arms if arm in TUNED} | dict(weights)
    cells = evaluate.matrix(
        scored,
        results,
        {arm: trained_tasks(folder) for arm, folder in folders.items()},
        seed=bench.config.seed,
        demonstrations={
            (arm, task.name): len(at_test(bench.config, task, arm)(example))
            for arm in arms
            for task in bench.inputs.tasks
            for example in (*task.test, *sum(task.out_of_domain.values(), ()))[:1]
        },
        n_bootstrap=settings.n_bootstrap,
        confidence=settings.confidence,
    )
    measured = {arm: bench.run.read_json(f"arms/{arm}/measured.json") for arm in arms}
    values = {
        "cells": [cell.to_dict() for cell in cells],
        "weight_change": [found["weight_change"] for found in measured.values() if found["weight_change"]],
        "reworded": [row for found in measured.values() for row in found["reworded"]],
        "paraphrases": {task.name: list(task.paraphrases) for task in bench.config.tasks if task.paraphrases},
    }
    bench.run.write_json(GENERALISATION, values)


def shown_in_tuning(folder: Path) -> Mapping[str, int]:
    """Returns task -> finished examples that stood before each training prompt of saved weights; empty where none did or nobody says."""
    if not (folder / TRAINING).is_file():
        return {}
    asked = RunFolder(folder).read_json(TRAINING).get("demonstrations") or {}
    return {task: int(how["count"]) for task, how in asked.items() if "train" in how["at"]}


def trained_tasks(folder: Path) -> Collection[str] | None:
    """Returns the tasks that saved weights were tuned on, from the file beside them; None where there is none.

    Raises:
        IntegrityError: the file is damaged.
    """
    if not (folder / TRAINING).is_file():
        return None
    tasks = RunFolder(folder).read_json(TRAINING).get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise IntegrityError(
            f"{folder / TRAINING}: damaged (tasks is no list of names); tune again, or remove the file"
        )
    return tasks
