"""Run folders to report on: one written once a session, copied for each test that changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_run import make_run

from tunescope import report


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without a report; only read it."""
    return make_run(tmp_path_factory.mktemp("runs") / "helpdesk")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    return Path(shutil.copytree(finished, tmp_path / "helpdesk"))


@pytest.fixture(scope="session", params=["en", "ja"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(language, page) of a full report; its texts are hostile."""
    folder = make_run(tmp_path_factory.mktemp(request.param) / "help<i>desk</i>", lang=request.param)
    config = folder / "config.yaml"  # more samples, so that all hostile ones are among them
    config.write_text(config.read_text(encoding="utf-8").replace("samples: 24", "samples: 60"), encoding="utf-8")
    return request.param, report.build(folder).read_text(encoding="utf-8")
