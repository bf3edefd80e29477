"""One model and one finished run, made through the command line."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import HOSTILE, Finished, Outcome, run_command, small
from tiny_study import save_model, write_jsonl


@pytest.fixture(scope="session", autouse=True)
def frozen() -> None:
    """What was imported is never collected; else every collection that a study asks for takes a third of a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    return run_command


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def small_study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(model, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A proof of concept made by the command, with hostile texts in its data; only read it."""
    folder = tmp_path_factory.mktemp("finished")
    study = small(model, folder, data={"max_length": 300})
    file = folder / "data" / "routing.test.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[0]["input"] = HOSTILE
    rows[1]["id"] = "<b>id</b>"
    write_jsonl(file, rows)
    return Finished(study, folder / "run", run_command("poc", study, "seed=5", "--json"))
