"""Answers are kept as they come: whatever ends a run half-way, nothing is asked twice, and it ends with the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import settings, write_study

from tunescope.config import Config, load
from tunescope.errors import ConfigError, IntegrityError
from tunescope.evaluate import answers
from tunescope.runs.folder import RunFolder
from tunescope.studies import poc
from tunescope.studies.progress import Silent

SAME_BYTES = ("results.json", "samples.jsonl", "risk.json", "verdict.json", "generalisation.json")
EVALUATION = {
    "max_new_tokens": 6,
    "demonstrations": 2,
    "n_bootstrap": 200,
    "latency_requests": 0,
    "batch_tokens": 150,
    "paraphrase_examples": 4,
    "stop": ["\n\n", "x"],
}


class KilledError(BaseException):
    """Stands for a kill: nothing but the files survives it."""


class Dies(Silent):
    """Dies at the n-th answer of an arm, those that were read back included."""

    def __init__(self, arm: str, limit: int) -> None:
        self.arm, self.limit, self.seen, self.now = arm, limit, 0, ""

    def stage(self, name: str, total: int | None = None) -> None:
        self.now, self.seen = name, 0

    def advance(self, units: int = 1) -> None:
        self.seen += units
        if self.now == f"{self.arm}: measure" and self.seen >= self.limit:
            raise KilledError


@pytest.fixture(scope="module")
def asked_study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks asked in other words too; what the label tasks held out is asked as well."""
    tasks = [task | {"paraphrases": ["In short: {instruction}"]} for task in settings(model)["tasks"]]
    folder = tmp_path_factory.mktemp("asked")
    return write_study(folder, model, arms=["nothing", "prompt"], evaluation=EVALUATION, tasks=tasks)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, tuple[int, ...]]]:
    """Every prompt that goes through the model to be answered."""
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def watched(kind: str, original: Any) -> Any:
        def instead(model: Any, prompts: Any, *more: Any, **settings: Any) -> Iterator[Any]:
            for batch in original(model, prompts, *more, **settings):
                indices = batch[0] if isinstance(batch, tuple) else [index for index, _ in batch]
                found.update((kind, tuple(prompts[index])) for index in indices)
                yield batch

        return instead

    for kind in ("greedy", "continuation_batches"):
        monkeypatch.setattr(answers, kind, watched(kind, getattr(answers, kind)))
    return found


def at(study: Path, folder: Path) -> Config:
    return load(study, [f"output_dir={folder}"])


def whole_run(study: Path, folder: Path) -> dict[str, bytes]:
    run = poc.run(at(study, folder))
    return {name: (run.path / name).read_bytes() for name in SAME_BYTES}


def test_interrupted_at_any_answer_it_asks_only_the_rest_and_ends_with_the_same_bytes(
    asked_study: Path, counted: Counter[Any], tmp_path: Path
) -> None:
    expected = whole_run(asked_study, tmp_path / "whole")
    wanted = Counter(counted)
    assert sum(wanted.values()) > 60 and {kind for kind, _ in wanted} == {"greedy", "continuation_batches"}
    counted.clear()
    config = at(asked_study, tmp_path / "run")
    for arm, limit in [("nothing", n) for n in (1, 14, 30, 47, 58)] + [("prompt", n) for n in (7, 33)]:
        with pytest.raises(KilledError):
            poc.run(config, resume=True, progress=Dies(arm, limit))
        notes = config.output_dir / "arms" / arm / "asked.jsonl"
        assert notes.read_bytes().endswith(b"\n")
        with notes.open("ab") as file:
            file.write(b'{"call": 0, "seconds": 0.1, "answers": [[3, {"te')  # as a kill leaves it
    run = poc.run(config, resume=True)
    assert {name: (run.path / name).read_bytes() for name in SAME_BYTES} == expected
    assert counted == wanted
    assert not (run.path / "arms").exists()


def test_the_time_of_an_interrupted_arm_holds_that_of_both_parts(asked_study: Path, tmp_path: Path) -> None:
    config = at(asked_study, tmp_path / "run")
    with pytest.raises(KilledError):
        poc.run(config, resume=True, progress=Dies("nothing", 20))
    rows = RunFolder(config.output_dir).read_jsonl("arms/nothing/asked.jsonl")
    assert sum(len(row["answers"]) for row in rows) >= 20 and all(row["seconds"] > 0 for row in rows)
    run = poc.run(config, resume=True)
    cost = next(c for c in run.read_json("costs.json")["actual"] if c["arm"] == "nothing")
    assert cost["evaluation_seconds"] > sum(row["seconds"] for row in rows)


@pytest.mark.parametrize("row", ["nonsense", "{}", '{"call": 0, "seconds": "long", "answers": []}', "[1]"])
def test_damaged_notes_are_refused_by_name(asked_study: Path, row: str, tmp_path: Path) -> None:
    config = at(asked_study, tmp_path / "run")
    with pytest.raises(KilledError):
        poc.run(config, resume=True, progress=Dies("nothing", 5))
    notes = config.output_dir / "arms" / "nothing" / "asked.jsonl"
    notes.write_text(row + "\n" + notes.read_text())
    with pytest.raises(IntegrityError, match=r"arms/nothing/asked\.jsonl.*damaged") as caught:
        poc.run(config, resume=True)
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)


def test_a_stop_string_of_a_task_replaces_the_common_ones(asked_study: Path, tmp_path: Path) -> None:
    own = [f"output_dir={tmp_path / 'run'}", "evaluation.task_stop.summary=[]", "arms=[nothing]"]
    free = [answer["nothing"]["text"] for answer in summaries(poc.run(load(asked_study, own)))]
    stopped = [answer["nothing"]["text"] for answer in summaries(poc.run(at(asked_study, tmp_path / "stopped")))]
    assert stopped == [text.split("x")[0].split("\n\n")[0].strip() for text in free]


def test_a_stop_string_that_no_answer_can_hold_is_refused(asked_study: Path, tmp_path: Path) -> None:
    own = ['evaluation.stop=["x<end>"]', "evaluation.task_stop.summary=[<user>]", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError) as caught:
        poc.run(load(asked_study, own))
    first, second = caught.value.problems
    assert first.startswith("evaluation.stop: 'x<end>' holds '<end>', a control token")
    assert second.startswith("evaluation.task_stop.summary: '<user>'")
    assert not (tmp_path / "run").exists()


def summaries(run: RunFolder) -> list[dict[str, Any]]:
    return [row["answers"] for row in run.read_jsonl("samples.jsonl") if row["task"] == "summary"]
