"""One random model, one study and one finished run for all tests of this folder; only read them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from tiny_study import save_model, write_study

from tunescope import report
from tunescope.config import Config, load
from tunescope.runs.folder import RunFolder
from tunescope.studies import poc


@pytest.fixture(scope="session", autouse=True)
def frozen() -> None:
    """What was imported is never collected; else every collection that a study asks for takes a third of a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file of the whole study: six arms, three tasks."""
    return write_study(tmp_path_factory.mktemp("study"), model)


@pytest.fixture(scope="session")
def config(study: Path) -> Config:
    return load(study)


@pytest.fixture(scope="session")
def run(config: Config) -> RunFolder:
    """The finished proof of concept with its report."""
    folder = poc.run(config, command="tunescope poc study.yaml")
    report.build(folder.path)
    return folder
