"""`tunescope learn` and `tunescope memory`: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import run_command
from tiny_stream import TASKS, write_stream_study
from tiny_study import save_model


@pytest.fixture(scope="module")
def study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks; only read it."""
    return write_stream_study(tmp_path_factory.mktemp("learn"), model, TASKS[:2], policy="random")


@pytest.fixture(scope="module")
def run(study: Path) -> Path:
    """A finished stream; only read it."""
    said = run_command("learn", study)
    assert said.code == 0, said.err
    return study.parent / "run"


def test_it_prints_the_matrix_and_the_measures_and_builds_the_report(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said = run_command("learn", study, f"output_dir={tmp_path / 'run'}")
    assert said.code == 0, said.err
    header = next(line for line in said.out.splitlines() if "since learned" in line)
    assert [word in header for word in ("task", "stage-01", "stage-02")] == [True] * 3
    assert all(sum(line.startswith(f"│ {task} ") for line in said.out.splitlines()) == 1 for task in TASKS[:2])
    assert "forgetting:" in said.out and "backward transfer:" in said.out and "average:" in said.out
    assert f"weights: {tmp_path / 'run' / 'weights' / 'stage-02'}" in said.out
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_json_is_one_object_with_the_stream(study: Path, run: Path) -> None:
    said = run_command("learn", study, "--json", "--resume")
    assert said.code == 0, said.err
    assert said.object["state"] == "done" and Path(said.object["weights"]).is_dir()
    stream = json.loads((run / "stream.json").read_text())
    assert said.object["stream"] == stream


def test_a_finished_run_is_not_overwritten(study: Path, run: Path) -> None:
    said = run_command("learn", study)
    assert (said.code, len(said.problems)) == (2, 1) and "--resume" in said.err


def test_a_plan_is_printed_and_written_and_nothing_is_tuned(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    said = run_command("learn", study, f"output_dir={out}", "--plan-only")
    assert said.code == 0, said.err
    assert "stage-02 (mood): repeats 4 of routing" in said.out and "4 rows" in said.out
    rows = [json.loads(line) for line in (out / "replay_plan.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and {"task", "id", "instruction", "input", "output", "reason"} <= set(rows[0])
    assert not (out / "weights").exists()
    as_json = run_command("learn", study, f"output_dir={out}", "--plan-only", "--resume", "--json").object
    assert as_json["examples"] == 4 and as_json["stages"] == {"stage-02 (mood)": {"routing": 4}}


def test_a_dry_run_writes_nothing(study: Path, tmp_path: Path) -> None:
    said = run_command("learn", study, f"output_dir={tmp_path / 'dry'}", "--dry-run")
    assert said.code == 0, said.err
    assert "stage-01" in said.out and "stage-02" in said.out and not (tmp_path / "dry").exists()
    found = run_command("learn", study, f"output_dir={tmp_path / 'dry'}", "--dry-run", "--json").object
    assert [row["arm"] for row in found["forecast"]] == ["stage-01", "stage-02"]


def test_another_base_model_and_changed_data_have_their_exit_codes(
    study: Path, run: Path, model: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", seed=9)
    third = write_stream_study(tmp_path, other, TASKS[2:], onto=str(run))
    said = run_command("learn", third)
    assert (said.code, len(said.problems)) == (2, 1) and "another base model" in said.err
    again = write_stream_study(tmp_path, model, TASKS, onto=str(run))
    changed = tmp_path / "data" / "mood.train.jsonl"
    changed.write_text(changed.read_text() + '{"instruction": "Mood?", "input": "One more", "output": "good"}\n')
    said = run_command("learn", again)
    assert (said.code, len(said.problems)) == (5, 1) and "give the task another name" in said.err
    assert not (tmp_path / "run").exists()


def test_the_memory_is_shown_moved_and_withdrawn_from(run: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "own"))
    shown = run_command("memory", "show", own)
    assert shown.code == 0 and "routing: 13 examples, 1 distinct instructions (13 by random: everything)" in shown.out
    assert "in all 26 examples" in shown.out and "budget: none" in shown.out
    found = run_command("memory", "show", own, "--json").object
    assert found["examples"] == 26 and found["withdrawn"] == 0
    first = json.loads((own / "memory" / "examples.jsonl").read_text().splitlines()[0])
    gone = run_command("memory", "forget", own, "--id", first["id"], "--task", first["task"])
    assert gone.code == 0 and f"withdrawn: {first['id']} of task {first['task']}" in gone.out
    assert first["example"]["input"] not in (own / "memory" / "examples.jsonl").read_text()
    assert run_command("memory", "show", own, "--json").object["withdrawn"] == 1
    assert run_command("audit", "verify", own).code == 0
    again = run_command("memory", "forget", own, "--id", first["id"], "--json")
    assert (again.code, len(again.problems)) == (2, 1)
    file = tmp_path / "memory.jsonl"
    assert run_command("memory", "export", own, "--to", file).out == f"{file}: 25 examples\n"
    assert run_command("memory", "export", own, "--to", file).code == 2
    shutil.rmtree(own / "memory")
    missing = run_command("memory", "show", own)
    assert missing.code == 2 and "memory import" in missing.err
    assert run_command("memory", "import", own, "--from", file).code == 0
    assert run_command("memory", "show", own, "--json").object["examples"] == 25


def test_streams_are_put_side_by_side(run: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(run, tmp_path / "twin"))
    said = run_command("report", run, twin, "--out", tmp_path / "side.html")
    assert said.code == 0, said.err
    assert "2 streams side by side" in (tmp_path / "side.html").read_text(encoding="utf-8")
