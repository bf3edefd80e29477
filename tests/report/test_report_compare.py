"""Several runs side by side: only what may be compared is compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from fake_run import make_run
from pages import Page

from tunescope import report
from tunescope.errors import RunError
from tunescope.report.side_by_side import flatten


@pytest.fixture
def pair(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of one folder name, with the same test sets and another seed."""
    one = Path(shutil.copytree(finished, tmp_path / "a" / "helpdesk"))
    return one, make_run(tmp_path / "b" / "helpdesk", seed=1)


def _change_version(folder: Path, task: str) -> None:
    path = folder / "results.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for row in values["results"]:
        if row["task"] == task:
            row["task_version"] = "beef" * 4
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_runs_with_the_same_test_sets_are_compared(pair: tuple[Path, Path], tmp_path: Path, lang: str) -> None:
    out = report.compare(pair, out=tmp_path / "new" / "both.html", lang=lang)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.count("svg") == 1
    assert "a/helpdesk" in page.text and "b/helpdesk" in page.text
    assert {"en": "not comparable", "ja": "比較不可"}[lang] not in page.text


def test_a_test_set_that_differs_is_marked_and_its_mean_not_drawn(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _change_version(pair[1], "sentiment")
    page = Page(report.compare(pair, out=tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "2 of 13 test sets differ" in page.text
    assert page.text.count("the scores must not be held against each other") == 2
    assert page.text.count("the means over tasks must not be held against each other") == 2
    assert page.count("svg") == 0


def test_a_test_set_that_one_run_lacks_is_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "results.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["results"] = [row for row in values["results"] if row["task"] != "policy"]
    path.write_text(json.dumps(values), encoding="utf-8")
    page = Page(report.compare(pair, out=tmp_path / "both.html").read_text(encoding="utf-8"))
    assert page.text.count("Not measured in every run") == 2
    assert page.count("svg") == 0


def test_only_settings_that_differ_are_listed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = yaml.safe_load((pair[1] / "config.yaml").read_text(encoding="utf-8"))
    config["tuning"]["lora_rank"] = 32
    (pair[1] / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    page = report.compare(pair, out=tmp_path / "both.html").read_text(encoding="utf-8")
    settings = page[page.index('<section id="settings">') : page.index('<section id="tasks">')]
    assert "tuning.lora_rank" in settings and "seed" in settings
    assert "output_dir" not in settings and "num_epochs" not in settings


def test_runs_without_verdict_or_results_still_stand_side_by_side(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in pair:
        for name in ("verdict.json", "results.json", "environment.json"):
            (folder / name).unlink()
    page = Page(report.compare(pair, out=tmp_path / "both.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.text.count("No verdict") == 2


def test_one_run_is_not_a_comparison_and_a_newer_one_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"got 1 run folder\(s\) to compare"):
        report.compare(pair[:1], out=tmp_path / "both.html")
    path = pair[1] / "verdict.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"schema_version": 1', '"schema_version": 9'), encoding="utf-8"
    )
    with pytest.raises(RunError, match="newer version"):
        report.compare(pair, out=tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()


def test_settings_are_flattened_by_the_names_of_their_items() -> None:
    settings = {"tasks": [{"name": "b", "labels": ["x", "y"]}, {"name": "a", "labels": None}], "arms": ["nothing"]}
    assert flatten(settings) == {
        "tasks.b.name": "b",
        "tasks.b.labels": "['x', 'y']",
        "tasks.a.name": "a",
        "tasks.a.labels": "None",
        "arms": "['nothing']",
    }
