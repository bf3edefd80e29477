"""A stream that is killed at any moment and resumed ends as if nothing had happened, bit by bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from learn_worker import count_moments, outcome
from tiny_stream import write_stream_study
from workers import SIGKILLED

from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder

SAME_BYTES = (
    "results.json",
    "samples.jsonl",
    "replay_plan.jsonl",
    "layers.json",
    "memory/index.json",
    "memory/examples.jsonl",
)
TIMES = ("seconds", "tuning_seconds", "measuring_seconds")
KILLED_AFTER = (
    "layers.json",
    "index.json",
    "forecast.json",
    "answers.jsonl",  # of the model before the first stage
    "replay_plan.jsonl",
    "stage-01.json",
    "checkpoint.safetensors",
    "stage-01",  # the folder of finished weights
    "tuned.json",
    "measured.json",
    "examples.jsonl",
    "stage-01.done.json",
    "stage-02.json",
    "stage-02",
    "stage-02.done.json",
    ".stage-01.old",  # weights that a later stage has replaced
    "expert-routing",
    "results.json",
    "stream.json",
    "costs.json",
)


@pytest.fixture(scope="module")
def study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, a memory that has to shrink, experts: everything that is kept between stages."""
    folder = tmp_path_factory.mktemp("killed")
    return write_stream_study(folder, model, ("routing", "summary"), evaluate="next", memory_examples=10, experts=True)


def everything(folder: Path) -> dict[str, Any]:
    """What must not depend on an interruption: all but times and paths."""
    run = RunFolder.open(folder)
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in SAME_BYTES}
    found |= {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("weights/*/*.safetensors")}
    stream = run.read_json("stream.json")
    stages = [{key: value for key, value in stage.items() if key not in TIMES} for stage in stream["stages"]]
    steps = [{key: value for key, value in row.items() if key not in TIMES} for row in run.read_jsonl("steps.jsonl")]
    events = [(row["event"], row["details"]) for row in run.read_jsonl("ledger.jsonl")]
    left = sorted(path.name for path in folder.iterdir())
    return found | {"stream": stream | {"stages": stages}, "steps": steps, "events": events, "left": left}


def assert_same(folder: Path, expected: dict[str, Any]) -> None:
    found = everything(folder)
    assert found.keys() == expected.keys()
    assert found["left"] == expected["left"]
    assert [name for name in expected if found[name] != expected[name]] == []
    assert ledger.verify(folder / "ledger.jsonl").n == len(expected["events"])


@pytest.fixture(scope="module")
def uninterrupted(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """What a run leaves, and how many moments it has."""
    folder = tmp_path_factory.mktemp("whole")
    moments = count_moments(study, folder / "run", folder / "cache")
    assert moments > 200
    return everything(folder / "run"), moments


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_resumed_it_ends_the_same(
    study: Path, uninterrupted: tuple[dict[str, Any], int], seed: int, tmp_path: Path
) -> None:
    expected, moments = uninterrupted
    dice = random.Random(seed)
    for _ in range(5):
        moment = dice.randrange(1, moments // 5)
        assert outcome(study, tmp_path / "run", tmp_path / "cache", moment=moment) == SIGKILLED
    assert outcome(study, tmp_path / "run", tmp_path / "cache") == 0
    assert_same(tmp_path / "run", expected)


def test_killed_after_every_kind_of_file_and_resumed_it_ends_the_same(
    study: Path, uninterrupted: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    for name in KILLED_AFTER:
        assert outcome(study, tmp_path / "run", tmp_path / "cache", after=name) == SIGKILLED, name
    assert outcome(study, tmp_path / "run", tmp_path / "cache") == 0
    assert_same(tmp_path / "run", uninterrupted[0])
