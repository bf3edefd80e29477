"""The commands: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import HOSTILE, Finished, Outcome

import tunescope
from tunescope.runs.folder import RunFolder
from tunescope.samples import FOLDER

Command = Callable[..., Outcome]
COMMANDS = (
    ["quickstart"],
    ["poc"],
    ["plan"],
    ["map"],
    ["approve"],
    ["tune"],
    ["evaluate"],
    ["init"],
    ["doctor"],
    ["data"],
    ["data", "check"],
    ["models"],
    ["models", "list"],
    ["models", "pull"],
    ["cache"],
    ["cache", "list"],
    ["cache", "verify"],
    ["cache", "clear"],
    ["report"],
    ["export"],
    ["audit"],
    ["audit", "verify"],
    ["config"],
    ["config", "schema"],
)


def test_help_of_every_command_answers_without_torch() -> None:
    script = (
        "import contextlib, io, json, sys\n"
        "from tunescope.cli import main\n"
        "seen = {}\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    out = io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(out): main([*words, '--help'])\n"
        "    except SystemExit as stop: seen[' '.join(words)] = [stop.code, out.getvalue()]\n"
        "heavy = [m for m in ('torch', 'transformers', 'peft', 'numpy', 'scipy', 'matplotlib') if m in sys.modules]\n"
        "print(json.dumps([seen, heavy]))\n"
    )
    words = [[], *COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)], capture_output=True, text=True, check=True, timeout=60
    )
    seen, heavy = json.loads(done.stdout)
    assert heavy == []
    assert set(seen) == {" ".join(w) for w in words}
    assert all(code == 0 and "Usage" in text for code, text in seen.values())
    assert all(name in seen[""][1] for name in ("quickstart", "poc", "tune", "evaluate", "doctor", "report", "export"))


def test_a_study_command_has_the_options_that_all_share(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("quickstart", "poc", "plan", "map", "tune", "evaluate"):
        text = command(name, "--help").out
        assert all(option in text for option in ("--dry-run", "--json", "--resume"))


def test_the_version_is_that_of_the_package(command: Command) -> None:
    said = command("--version")
    assert (said.code, said.out) == (0, f"tunescope {tunescope.__version__}\n")
    done = subprocess.run(
        [sys.executable, "-m", "tunescope", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == said.out


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["poc"], ["poc", "a.yaml", "--nonsense"], ["report"], ["export", "run"], ["init", "--lang", "fr"]],
)
def test_wrong_usage_ends_with_2(arguments: list[str], command: Command) -> None:
    said = command(*arguments)
    assert said.code == 2 and said.err and not said.out
    assert "Traceback" not in said.err


# A run.


def test_a_run_prints_one_json_object_and_everything_else_on_stderr(finished: Finished) -> None:
    said = finished.said
    assert said.code == 0, said.err
    shown = said.object
    assert shown["run"] == str(finished.run) and shown["state"] == "done"
    assert shown["report"] == str(finished.run / "report.html")
    run = RunFolder.open(finished.run)
    for name in ("verdict", "costs", "results"):
        assert shown[name] == run.read_json(f"{name}.json")
    assert "nothing: measure" in said.err and "random: tune" in said.err


def test_overrides_count_and_are_noted(finished: Finished) -> None:
    run = RunFolder.open(finished.run)
    assert yaml.safe_load((finished.run / "config.yaml").read_text(encoding="utf-8"))["seed"] == 5
    assert run.read_json("environment.json")["seed"] == 5
    events = {row["event"]: row["details"] for row in run.read_jsonl("ledger.jsonl")}
    assert events["overrides"] == {"settings": ["seed=5"]}


def test_a_finished_run_is_shown_again_with_resume(finished: Finished, command: Command) -> None:
    before = (finished.run / "results.json").stat().st_mtime_ns
    said = command("poc", finished.study, "seed=5", "--resume")
    assert said.code == 0
    assert "in-domain" in said.out and "selected" in said.out
    assert said.out.splitlines()[-1] == f"report: {finished.run / 'report.html'}"
    assert (finished.run / "results.json").stat().st_mtime_ns == before


def test_hostile_texts_are_escaped_in_the_report_and_whole_in_the_samples(finished: Finished, command: Command) -> None:
    samples = RunFolder.open(finished.run).read_jsonl("samples.jsonl")
    assert any(HOSTILE in row["prompt"] for row in samples)
    assert command("report", finished.run).code == 0
    page = (finished.run / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(" in page
    for raw in ("<script>alert", "<img src=x", "<b>id</b>", "\x1b", "\x00"):
        assert raw not in page
    assert "{{ 7*7 }}" in page.replace("&#39;", "'")


def test_control_characters_do_not_reach_the_terminal(finished: Finished, command: Command) -> None:
    said = command("data", "check", finished.study)
    assert said.code == 0
    assert "\x1b[31m" not in said.out + said.err and "\x00" not in said.out + said.err


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_report_is_built_again_in_either_language(lang: str, finished: Finished, command: Command) -> None:
    said = command("report", finished.run, "--lang", lang)
    assert said.code == 0 and said.out.strip() == str(finished.run / "report.html")
    assert f'<html lang="{lang}"' in (finished.run / "report.html").read_text(encoding="utf-8")


def test_runs_are_put_side_by_side(
    finished: Finished, model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    assert command("poc", finished.study, "arms=[nothing]", f"output_dir={other}", "gate.fail=true").code == 3
    said = command("report", finished.run, other, "--out", tmp_path / "both.html")
    assert said.code == 0 and said.out.strip() == str(tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "other" in page and "run" in page
    monkeypatch.chdir(tmp_path)
    assert command("report", finished.run, other).out.strip() == "comparison.html"
    assert (tmp_path / "comparison.html").is_file()


def test_a_gate_that_is_not_passed_ends_with_3_and_the_run_is_whole(
    small_study: Path, command: Command, tmp_path: Path
) -> None:
    arguments = ["poc", small_study, "arms=[nothing]", "gate.fail=true", f"output_dir={tmp_path / 'run'}", "--json"]
    for extra in ([], ["--resume"]):
        said = command(*arguments, *extra)
        assert said.code == 3
        assert len(said.problems) == 1 and "gate" in said.problems[0]
        assert said.object["state"] == "done"
        assert (tmp_path / "run" / "report.html").is_file()


def test_a_dry_run_prints_the_price_and_writes_nothing(small_study: Path, command: Command, tmp_path: Path) -> None:
    arguments = ["poc", small_study, f"output_dir={tmp_path / 'run'}", "--dry-run"]
    said = command(*arguments)
    assert said.code == 0 and "selected" in said.out and "EUR" in said.out and "in all about" in said.out
    shown = command(*arguments, "--json").object
    assert [f["arm"] for f in shown["forecast"]] == ["nothing", "selected", "random"]
    assert set(shown["selections"]) == {"selected", "random"}
    assert list(tmp_path.iterdir()) == []


def test_tune_then_evaluate_then_export(small_study: Path, command: Command, tmp_path: Path) -> None:
    tuned, measured = tmp_path / "tuned", tmp_path / "measured"
    said = command("tune", small_study, f"output_dir={tuned}", "--arm", "random")
    assert said.code == 0
    assert f"weights: {tuned / 'weights' / 'random'}" in said.out and (tuned / "report.html").is_file()
    arguments = ["evaluate", small_study, f"output_dir={measured}", "--weights", tuned / "weights" / "random"]
    preview = command(*arguments, "--dry-run", "--json").object
    assert [f["arm"] for f in preview["forecast"]] == ["nothing", "random"] and not measured.exists()
    shown = command(*arguments, "--json").object
    assert {row["arm"] for row in shown["results"]["results"]} == {"nothing", "random"}
    named = [
        "evaluate",
        small_study,
        f"output_dir={tmp_path / 'named'}",
        "--arm",
        f"mine={tuned / 'weights' / 'random'}",
    ]
    assert [f["arm"] for f in command(*named, "--dry-run", "--json").object["forecast"]] == ["nothing", "mine"]
    again = command(*named, "--json").object
    assert {row["arm"] for row in again["results"]["results"]} == {"nothing", "mine"}
    said = command("export", tuned, "random", "--to", tmp_path / "adapter", "--format", "adapter")
    assert (said.code, said.out.strip()) == (0, str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    again = command("export", tuned, "random", "--to", tmp_path / "adapter")
    assert again.code == 2 and "not an empty folder" in again.problems[0]


def test_the_quickstart_is_the_shipped_study(
    model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [f"model={model}", "data.max_length=4096", "data.max_train_examples=10", "data.max_test_examples=2"]
    said = command(
        "quickstart", *given, "arms=[nothing, selected]", "evaluation.max_new_tokens=2", "--dry-run", "--json"
    )
    assert said.code == 0, said.err
    assert [f["arm"] for f in said.object["forecast"]] == ["nothing", "selected"]
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_writes_into_the_working_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunescope.studies import poc

    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(poc, "run", lambda config, **how: asked.append((config, how)) or 1 / 0)
    assert command("quickstart", "--lang", "ja", "seed=9").code == 1
    ((config, how),) = asked
    assert config.output_dir == tmp_path / "runs" / "quickstart"
    assert (config.language, config.seed, how["study"]) == ("ja", 9, "quickstart")


# The smaller commands.


def test_init_then_data_check(command: Command, model: Path, tmp_path: Path) -> None:
    said = command("init", tmp_path / "new", "--lang", "ja")
    assert said.code == 0 and str(tmp_path / "new" / "tunescope.yaml") in said.out
    written = {path.name for path in (tmp_path / "new" / "data").iterdir()}
    assert written == {path.name for path in (FOLDER / "ja" / "data").iterdir()}
    checked = command("data", "check", tmp_path / "new" / "tunescope.yaml", f"model={model}", "data.max_length=4096")
    assert checked.code == 0
    assert "routing.train.jsonl" in checked.out and "loss on: " in checked.out
    again = command("init", tmp_path / "new")
    assert again.code == 2 and "nothing was written" in again.problems[0]


def test_a_data_check_prints_one_object_and_ends_with_2_at_an_error(
    model: Path, command: Command, small_study: Path, tmp_path: Path
) -> None:
    good = command("data", "check", small_study, "--json")
    assert good.code == 0 and {f["role"] for f in good.object["files"]} == {"train", "test", "out_of_domain", "guard"}
    assert good.object["example"]["tokens"]
    (tmp_path / "bad.jsonl").write_text('{"instruction": "Desk?", "input": "x", "output": "sales"}\n')
    bad = command("data", "check", small_study, f"tasks.0.train={tmp_path / 'bad.jsonl'}", "--json")
    assert bad.code == 2
    errors = [f for f in bad.object["findings"] if f["severity"] == "error"]
    assert [(f["code"], f["line"]) for f in errors] == [("label_unknown", 1)]
    assert "1 error(s)" in bad.err
    assert "bad.jsonl:1: error: label 'sales' is unknown" in command(
        "data", "check", small_study, f"tasks.0.train={tmp_path / 'bad.jsonl'}"
    ).out.replace("\n", "")


def test_the_doctor_ends_with_2_where_a_run_would_fail(command: Command, small_study: Path) -> None:
    well = command("doctor", small_study, "--json")
    assert well.code == 0 and well.object["ready"] is True
    text = command("doctor", small_study)
    assert text.code == 0 and "is on this machine" in text.out
    missing = command("doctor", small_study.parent / "other.yaml")
    assert missing.code == 2 and "no such settings file" in missing.problems[0]


def test_the_models_are_listed(command: Command) -> None:
    shown = command("models", "list", "--json").object["models"]
    assert "smollm2-135m-instruct" in [row["alias"] for row in shown]
    assert all(row.keys() == {"alias", "package", "licence", "cached", "note"} for row in shown)
    assert not any(row["cached"] for row in shown)  # every test has an empty cache
    text = command("models", "list")
    assert text.code == 0 and all(row["alias"] in text.out for row in shown)
    unknown = command("models", "pull", "smollm2-135m")
    assert unknown.code == 2 and "did you mean smollm2-135m-instruct" in unknown.problems[0]


def test_the_schema_is_json_and_knows_every_setting(command: Command) -> None:
    schema = command("config", "schema").object
    assert {"model", "tasks", "arms", "tuning"} <= schema["properties"].keys()
    assert schema["additionalProperties"] is False


# The ledger.


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.run, tmp_path / "copy"))


def test_an_unchanged_ledger_passes(copy: Path, command: Command) -> None:
    said = command("audit", "verify", copy)
    assert said.code == 0 and "4 lines, unchanged (not keyed" in said.out
    shown = command("audit", "verify", copy, "--json").object
    assert (shown["lines"], shown["keyed"]) == (4, False) and len(shown["head"]) == 64


@pytest.mark.parametrize("tampering", ["changed", "removed", "reordered", "cut off", "gone", "not keyed"])
def test_a_tampered_ledger_ends_with_5(
    tampering: str, copy: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy / "ledger.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if tampering == "changed":
        lines[2] = lines[2].replace("block.", "block.1")
    elif tampering == "removed":
        del lines[1]
    elif tampering == "reordered":
        lines[0], lines[1] = lines[1], lines[0]
    elif tampering == "cut off":
        lines = lines[:-1]
    elif tampering == "not keyed":
        monkeypatch.setenv("TUNESCOPE_LEDGER_KEY", "secret")
    path.write_text("".join(lines), encoding="utf-8")
    if tampering == "gone":
        path.unlink()
    said = command("audit", "verify", copy)
    assert said.code == 5 and len(said.problems) == 1 and "ledger.jsonl" in said.problems[0]
    assert not said.out


def test_a_key_seals_the_ledger_of_a_run(
    small_study: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESCOPE_LEDGER_KEY", "secret")
    run = tmp_path / "run"
    assert command("evaluate", small_study, f"output_dir={run}").code == 0
    assert command("audit", "verify", run, "--json").object["keyed"] is True
    assert b"secret" not in b"".join(path.read_bytes() for path in run.iterdir() if path.is_file())
    monkeypatch.delenv("TUNESCOPE_LEDGER_KEY")
    said = command("audit", "verify", run)
    assert said.code == 5 and "TUNESCOPE_LEDGER_KEY" in said.problems[0]


# Bugs, and the outside world.


@pytest.mark.parametrize("name", ["poc", "tune", "evaluate"])
def test_a_bug_ends_with_1_and_leaves_its_traceback_in_the_run_folder(
    name: str, small_study: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tunescope.studies.measure

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("first line\nsecond line")

    for module in ("many_arms", "evaluate"):
        for step in ("measure_arm", "tune_arm"):
            monkeypatch.setattr(f"tunescope.studies.{module}.{step}", broken, raising=False)
    assert tunescope.studies.measure.measure_arm is not broken
    said = command(name, small_study, f"output_dir={tmp_path / 'run'}")
    assert said.code == 1 and "Traceback" not in said.err
    assert "ZeroDivisionError: first line" in said.problems[0]
    assert "in broken" in (tmp_path / "run" / "error.txt").read_text(encoding="utf-8")
    status = json.loads((tmp_path / "run" / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["error"]) == ("failed", "first line")


def test_a_user_without_a_name_can_decide(
    small_study: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a bare number."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    run = tmp_path / "run"
    assert command("evaluate", small_study, f"output_dir={run}").code == 0
    actors = {row["actor"] for row in RunFolder.open(run).read_jsonl("ledger.jsonl")}
    assert actors == {f"uid {os.getuid()}"}
