"""Reading run folders: what may be missing, and what must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import Page

from tunescope import report
from tunescope.errors import RunError, UserError
from tunescope.report.source import CURVE, FILES, GENERALISATION, read_run

JSON_FILES = [name for name in FILES if name.endswith(".json")]


def test_every_file_is_read(finished: Path) -> None:
    found = read_run(finished)
    assert found.missing == ()
    assert found.arms == ("nothing", "prompt", "selected", "random", "lora-all")
    assert found.tuned_arms == ("selected", "random", "lora-all")
    assert found.verdict is not None and found.verdict.money[0].arm == "nothing"
    assert all((found.findings, found.steps, found.scores, found.selections, found.samples, found.risks, found.ledger))


@pytest.mark.parametrize("name", FILES)
def test_any_one_file_may_be_missing(run: Path, name: str) -> None:
    (run / name).unlink()
    page = Page(report.build(run).read_text(encoding="utf-8"))
    assert page.open == []
    only_home = {"data.json", "steps.jsonl", "layers.json", "samples.jsonl", "verdict.json", "risk.json"}
    assert (name in page.text.replace("see samples.jsonl", "").replace("in data.json", "")) >= (name in only_home)
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["missing_files"] == [name]


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_a_tuning_run_without_evaluation_has_a_report(run: Path, lang: str) -> None:
    for name in (*FILES, GENERALISATION, CURVE):
        if name not in ("config.yaml", "environment.json", "steps.jsonl", "status.json"):
            (run / name).unlink()
    page = Page(report.build(run, lang=lang).read_text(encoding="utf-8"))
    assert page.open == []
    assert page.count("svg") == 1
    assert {"en": "no verdict", "ja": "判定がありません"}[lang] in page.text
    assert "results.json" in page.text


def test_a_failed_run_says_so_first(run: Path) -> None:
    status = {"schema_version": 1, "state": "failed", "study": "poc", "stage": "tune", "error": "disk <full>"}
    (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
    page = Page(report.build(run).read_text(encoding="utf-8"))
    assert "This run failed in the stage “tune”: disk <full>" in page.text
    assert page.text.index("This run failed") < page.text.index("Tune: use the arm")


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_newer_schema_is_refused(run: Path, name: str) -> None:
    values = json.loads((run / name).read_text(encoding="utf-8"))
    (run / name).write_text(json.dumps({**values, "schema_version": 2}), encoding="utf-8")
    with pytest.raises(RunError, match=rf"{name}: schema_version is 2, .* newer version, upgrade") as caught:
        report.build(run)
    assert caught.value.exit_code == 2
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["steps.jsonl", "samples.jsonl", "ledger.jsonl"])
def test_a_newer_row_is_refused_with_its_line(run: Path, name: str) -> None:
    lines = (run / name).read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "schema_version": 7})
    (run / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=rf"{name}: line 2: schema_version is 7"):
        read_run(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "expected a JSON object, got list"), ("[" * 100_000, "not valid JSON")],
)
def test_broken_json_is_named(run: Path, text: str, message: str) -> None:
    (run / "costs.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=rf"costs\.json: {message}"):
        read_run(run)


def test_an_encoding_error_is_named(run: Path) -> None:
    (run / "data.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(RunError, match=r"data\.json: cannot be read"):
        read_run(run)


def test_yaml_tags_are_refused(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    (run / "config.yaml").write_text(f'seed: !!python/object/apply:os.system ["touch {target}"]', encoding="utf-8")
    with pytest.raises(RunError, match=r"config.yaml: not plain YAML"):
        read_run(run)
    assert not target.exists()


def test_a_last_line_cut_by_a_kill_is_left_out(run: Path) -> None:
    whole = read_run(run).steps
    path = run / "steps.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert read_run(run).steps == whole[:-1]


def test_a_cut_line_in_the_middle_is_an_error(run: Path) -> None:
    path = run / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4][:-9]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"steps\.jsonl: line 5: not valid JSON"):
        read_run(run)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("value", "high", r"Result 3: value is 'high', expected float"),
        ("role", "elsewhere", r"Result 3: role is 'elsewhere', expected Role"),
        ("difference", [1], r"Result 3: difference is '\[1\]', expected float \| None"),
    ],
)
def test_a_wrong_type_is_named_with_its_row(run: Path, field: str, value: object, message: str) -> None:
    path = run / "results.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["results"][2][field] = value
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_run(run)


def test_a_lacking_field_is_named(run: Path) -> None:
    (run / "risk.json").write_text('{"schema_version": 1, "risks": [{"arm": "selected"}]}', encoding="utf-8")
    with pytest.raises(RunError, match=r"risk.json: Risk 1 lacks .*'role'"):
        read_run(run)


def test_numbers_that_are_none_become_a_dash_and_null(run: Path) -> None:
    path = run / "results.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"n": 400', '"n": NaN'), encoding="utf-8")
    costs = json.loads((run / "costs.json").read_text(encoding="utf-8"))
    costs["actual"][2]["tuning_seconds"] = float("inf")
    (run / "costs.json").write_text(json.dumps(costs), encoding="utf-8")
    text = report.build(run).read_text(encoding="utf-8")
    assert "nan" not in Page(text).text
    facts = json.loads((run / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert facts["arms"]["selected"]["cost"]["tuning_seconds"] is None


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        report.build(tmp_path / "nowhere")
    with pytest.raises(RunError, match="not a run folder"):
        report.build(tmp_path)


def test_an_unknown_language_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="language 'fr' is not available; allowed: en, ja"):
        report.build(run, lang="fr")
    assert not (run / "report.html").exists()
