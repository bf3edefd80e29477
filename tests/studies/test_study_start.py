"""What a user runs first: init, doctor, data check."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_study import write_study

from tunescope.config import load
from tunescope.errors import RunError
from tunescope.samples import FOLDER
from tunescope.studies import data_check, doctor, init


@pytest.mark.parametrize("language", ["en", "ja"])
def test_init_writes_settings_that_work_as_they_are(language: str, model: Path, tmp_path: Path) -> None:
    written = init.run(tmp_path / "new" / "folder", language=language)
    folder = tmp_path / "new" / "folder"
    assert {path for path in folder.rglob("*") if path.is_file()} == set(written)
    source = FOLDER / language
    assert {p.name: p.read_bytes() for p in (folder / "data").iterdir()} == {
        p.name: p.read_bytes() for p in (source / "data").iterdir()
    }
    config = load(written[0], [f"model={model}", "data.max_length=4096"])
    assert config.language == language and config.output_dir.is_relative_to(folder)
    assert "#" in written[0].read_text(encoding="utf-8")
    report, note = data_check.run(config.model_copy(update={"tasks": config.tasks[:1], "guard": ()}))
    assert not report.errors and note is None
    assert report.files[0].prompt_tokens["max"] > 0


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "guard.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"guard\.jsonl: exists.*nothing was written"):
        init.run(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"data", "guard.jsonl"}
    assert (tmp_path / "data" / "guard.jsonl").read_text() == "mine"


def states(checks: list[doctor.Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_the_doctor_finds_everything_that_a_run_needs(study: Path, tmp_path: Path) -> None:
    checks = doctor.run(load(study, [f"output_dir={tmp_path / 'own'}"]))
    found = states(checks)
    assert set(found) == {
        "python",
        "packages",
        "processor",
        "memory",
        "disk",
        "model",
        "data",
        "output",
        "ledger",
    }
    assert "problem" not in found.values()
    assert found["model"] == found["data"] == found["output"] == "ok"
    assert doctor.as_json(checks)["ready"] is True
    assert not (tmp_path / "own").exists()


def test_the_doctor_names_each_problem(model: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, model, output_dir="taken")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("")
    (tmp_path / "data" / "mood.test.jsonl").write_text("")
    config = load(path, [f"model={tmp_path / 'nowhere'}"])
    checks = {check.name: check for check in doctor.run(config)}
    assert checks["model"].state == checks["data"].state == "problem"
    assert checks["output"].state == "warning"
    assert "nowhere" in checks["model"].text and "1 errors" in checks["data"].text
    assert doctor.as_json(list(checks.values()))["ready"] is False


@pytest.mark.parametrize(
    ("name", "state"),
    [("smollm2-135m-instruct", "warning"), ("owner/model", "warning"), ("smolm2", "problem"), (".", "ok")],
)
def test_the_doctor_says_where_the_model_would_come_from(
    name: str, state: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / "cache"))
    config = load(study, [f"output_dir={tmp_path / 'own'}"]).model_copy(update={"model": name})
    assert states(doctor.run(config))["model"] == state
    assert not (tmp_path / "cache").exists()


def test_the_doctor_without_settings_looks_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_LEDGER_KEY", "secret")
    checks = doctor.run()
    assert {"data", "output"}.isdisjoint(states(checks))
    assert "sealed" in checks[-1].text and "secret" not in checks[-1].text


def test_a_data_check_adds_lengths_and_a_rendered_row_where_the_model_is_at_hand(study: Path) -> None:
    config = load(study)
    report, note = data_check.run(config)
    assert note is None and not report.errors and report.example is not None
    assert all(file.prompt_tokens and file.target_tokens for file in report.files)
    without, note = data_check.run(config.model_copy(update={"model": "nowhere"}))
    assert note is not None and "'nowhere'" in note
    assert without.example is None and not any(file.prompt_tokens for file in without.files)
    assert [f.rows for f in without.files] == [f.rows for f in report.files]


def test_a_data_check_changes_nothing(study: Path) -> None:
    before = {path: path.read_bytes() for path in study.parent.rglob("*") if path.is_file()}
    data_check.run(load(study))
    assert {path: path.read_bytes() for path in study.parent.rglob("*") if path.is_file()} == before


def test_a_data_check_finds_what_a_run_would_stop_at(model: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, model)
    file = tmp_path / "data" / "routing.train.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2].replace('"input": "A ', '"input": "<end> ')
    lines[4] = lines[4].replace('"output": "', '"output": "x')
    file.write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")
    report, _ = data_check.run(load(path))
    found = {(f.code, f.line) for f in report.errors}
    assert found == {("control_token", 3), ("label_unknown", 5), ("id_duplicate", 15)}
