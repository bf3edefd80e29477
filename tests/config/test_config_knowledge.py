"""The settings of the knowledge study: paths, limits, and what is refused with a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunescope.config import Config, dump, load, validate
from tunescope.errors import ConfigError

TASKS = [{"name": "desk", "labels": ["it", "hr"]}]


def config(**knowledge: Any) -> Config:
    return validate({"tasks": TASKS, "knowledge": knowledge}, source="a.yaml")


def test_paths_are_relative_to_the_settings_file_and_survive_a_dump(tmp_path: Path) -> None:
    text = "\n".join(
        [
            "tasks: [{name: desk, labels: [a, b]}]",
            "knowledge:",
            "  questions: [{file: q/own.jsonl}, {file: q/far.csv, role: out_of_domain}]",
            "  general: more.jsonl",
        ]
    )
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    found = load(path)
    assert [one.file for one in found.knowledge.questions] == [tmp_path / "q/own.jsonl", tmp_path / "q/far.csv"]
    assert found.knowledge.general == (tmp_path / "more.jsonl",)
    again = tmp_path / "elsewhere.yaml"
    again.write_text(dump(found), encoding="utf-8")
    assert load(again) == found


def test_shares_are_sorted_and_the_published_ones_are_the_default() -> None:
    assert config().knowledge.intervention.shares == (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    assert config(intervention={"shares": [0.8, 0.2]}).knowledge.intervention.shares == (0.2, 0.8)
    assert config(intervention={"shares": []}).knowledge.intervention.shares == ()


@pytest.mark.parametrize(
    ("knowledge", "said"),
    [
        ({"question": []}, "did you mean questions"),
        ({"questions": [{"role": "homo"}]}, "file"),
        ({"questions": [{"file": "a.jsonl", "role": "test"}]}, "homo"),
        ({"questions": [{"file": "a/q.jsonl"}, {"file": "b/q.csv"}]}, "2 files are named 'q'"),
        ({"questions": [{"file": "q.jsonl", "columns": {"gold": "x"}}]}, "answer"),
        ({"header": "About {subject}"}, "the only name in braces that can be filled in is {domain}"),
        ({"header": "{domain.x}"}, "the only name in braces"),
        ({"header": "{"}, "the only name in braces"),
        ({"header": "  "}, "the header is empty"),
        ({"threshold": 1}, "threshold"),
        ({"demonstrations": -1}, "demonstrations"),
        ({"intervention": {"shares": [0.0, 0.5]}}, "got 0; a share lies between 0 and 1"),
        ({"intervention": {"shares": [0.5, 0.5]}}, "a share is listed twice"),
        ({"intervention": {"seeds": [1, 1]}}, "a seed is listed twice"),
        ({"intervention": {"explanations": "always"}}, "auto"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_is_allowed(knowledge: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**knowledge)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0] and "knowledge" in caught.value.problems[0]
