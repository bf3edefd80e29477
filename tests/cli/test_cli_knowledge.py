"""`tunescope knowledge`: one JSON object or tables, exit codes, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from tiny_questions import write_study
from tiny_study import save_model


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knowledge")
    return write_study(folder, save_model(folder / "model"))


@pytest.fixture(scope="module")
def finished(paths: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    run = tmp_path_factory.mktemp("runs") / "run"
    said = run_command(
        "knowledge", paths, f"output_dir={run}", "knowledge.intervention.shares=[]", "--intervene", "--json"
    )
    return run, said


def test_json_is_one_object_with_everything_that_was_found(finished: tuple[Path, Any]) -> None:
    run, said = finished
    assert said.code == 0, said.err
    assert set(said.object) == {"run", "state", "report", "knowledge"}
    assert (said.object["state"], said.object["run"]) == ("done", str(run))
    assert {"before", "intervention"} <= set(said.object["knowledge"])
    assert Path(said.object["report"]).is_file()


def test_tables_say_the_probe_the_comparison_and_the_sets(finished: tuple[Path, Any], paths: Path) -> None:
    run, _ = finished
    more = ["knowledge.intervention.shares=[]", "--resume", "--tuned", run / "weights/incompatible-3"]
    said = run_command("knowledge", paths, f"output_dir={run}", *more)
    assert said.code == 0, said.err
    for text in (
        "What the base knows",
        "advice: base not above chance",
        "Base (with demonstrations)",
        "Tuned on 4 questions",
        "report: ",
    ):
        assert text in said.out, text


def test_a_dry_run_writes_nothing(paths: Path, tmp_path: Path) -> None:
    said = run_command("knowledge", paths, f"output_dir={tmp_path / 'run'}", "--dry-run", "--intervene", "--json")
    assert said.code == 0, said.err
    assert said.object["forecast"]["sets"] == 5
    told = run_command("knowledge", paths, f"output_dir={tmp_path / 'run'}", "--dry-run")
    assert "in all about" in told.out and "nothing was written" in " ".join(told.out.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tuned", "nowhere"], "--tuned nowhere: no such folder"),
        (["knowledge.demonstrations=30"], "has 3 questions for 30 demonstrations"),
        (["knowledge.questions=[]"], "knowledge.questions names no file"),
        (["knowledge.header=About {topic}."], "the only name in braces that can be filled in is {domain}"),
        (["--intervene", "tuning.learning_rate=auto"], "would give every set its own rate"),
    ],
)
def test_bad_input_is_a_line_and_exit_code_2(paths: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    outcome = run_command("knowledge", paths, f"output_dir={tmp_path / 'run'}", *arguments)
    assert outcome.code == 2
    assert any(said in problem for problem in outcome.problems), outcome.err
    assert not (tmp_path / "run").exists()
