"""A run that is killed at any moment and resumed ends as if nothing had happened, bit by bit."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from tiny_study import TUNED_ARMS
from workers import SIGKILLED, count_moments, outcome, start

from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder

SAME_BYTES = ("results.json", "samples.jsonl", "risk.json", "verdict.json", "layers.json", "data.json", "config.yaml")
KILLED_AFTER = (
    "status.json",
    "data.json",
    "environment.json",
    "layers.json",
    "forecast.json",
    "plan.json",
    "plan.yaml",
    "plan_in_use.json",
    "race.json",
    "best.safetensors",
    "checkpoint.safetensors",
    "selected",  # the folder of finished weights
    "tuned.json",
    "answers.jsonl",
    "measured.json",
    "results.json",
    "verdict.json",
    "costs.json",
)


def everything(folder: Path) -> dict[str, object]:
    """What must not depend on an interruption: all but times, memory and paths."""
    run = RunFolder.open(folder)
    steps = [{key: value for key, value in row.items() if key != "seconds"} for row in run.read_jsonl("steps.jsonl")]
    weights = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("weights/*/*.safetensors")
    }
    texts = {name: (folder / name).read_bytes() for name in SAME_BYTES if name != "config.yaml"}
    events = [
        (
            row["event"],
            {key: value for key, value in row["details"].items() if key != "sha256"},
        )  # of a plan: it has times in it
        for row in run.read_jsonl("ledger.jsonl")
    ]
    return {"steps": steps, "events": events, "left": sorted(p.name for p in folder.iterdir()), **weights, **texts}


def assert_same(folder: Path, expected: dict[str, object]) -> None:
    found = everything(folder)
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if found[name] != value]
    assert not different
    assert ledger.verify(folder / "ledger.jsonl").n == len(expected["events"])  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def expected(run: RunFolder) -> dict[str, object]:
    """The run of this process, which nothing interrupted."""
    found = everything(run.path)
    assert len([name for name in found if name.endswith(".safetensors")]) == len(TUNED_ARMS)
    assert found["steps"]
    return found | {"left": sorted(name for name in found["left"] if not name.startswith("report."))}  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def moments(study: Path, expected: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many moments an uninterrupted run has; it is also the second run with the same seed."""
    folder = tmp_path_factory.mktemp("twice") / "run"
    number = count_moments(study, folder)
    assert_same(folder, expected)
    return number


def test_the_same_seed_gives_the_same_bytes_in_another_process(moments: int) -> None:
    assert moments > 300


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_resumed_it_ends_the_same(
    study: Path, expected: dict[str, object], moments: int, seed: int, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    for _ in range(4):
        moment = dice.randrange(1, moments // 6)
        assert outcome(study, tmp_path / "run", moment=moment) == SIGKILLED
    assert outcome(study, tmp_path / "run") == 0
    assert_same(tmp_path / "run", expected)


def test_killed_after_every_kind_of_file_and_resumed_it_ends_the_same(
    study: Path, expected: dict[str, object], tmp_path: Path
) -> None:
    for name in KILLED_AFTER:
        assert outcome(study, tmp_path / "run", after=name) == SIGKILLED, name
    assert outcome(study, tmp_path / "run") == 0
    assert_same(tmp_path / "run", expected)


def test_killed_from_outside_in_the_middle_of_tuning_it_ends_the_same(
    study: Path, expected: dict[str, object], tmp_path: Path
) -> None:
    process = start(study, tmp_path / "run")
    steps = tmp_path / "run" / "steps.jsonl"
    deadline = time.monotonic() + 100
    while not steps.is_file() or steps.read_bytes().count(b"\n") < 7:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == SIGKILLED
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "running"
    assert outcome(study, tmp_path / "run") == 0
    assert_same(tmp_path / "run", expected)
