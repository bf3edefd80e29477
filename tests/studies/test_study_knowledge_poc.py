"""A proof of concept with questions: the probe before and after, for the best arm."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_questions import rows
from tiny_study import write_jsonl, write_study

from tunescope import report
from tunescope.config import load
from tunescope.errors import DataError
from tunescope.runs.records import Result
from tunescope.studies import poc
from tunescope.studies.knowledge_poc import best_tuned

TASK = {
    "name": "routing",
    "family": "classification",
    "train": "data/routing.train.jsonl",
    "test": "data/routing.test.jsonl",
    "labels": ["it", "hr", "ops"],
}


def study(folder: Path, model: Path) -> Path:
    quick = {"num_epochs": 1, "lora_rank": 2, "learning_rate": 1e-3}
    asked = {"questions": [{"file": "data/own.jsonl"}], "demonstrations": 2, "style_prompts": 2, "style_tokens": 3}
    path = write_study(folder, model, tasks=[TASK], arms=["nothing", "selected", "full"], tuning=quick, knowledge=asked)
    write_jsonl(folder / "data/own.jsonl", rows("own", 16))
    return path


def test_the_best_arm_is_asked_before_and_after(model: Path, tmp_path: Path) -> None:
    run = poc.run(load(study(tmp_path, model), [f"output_dir={tmp_path / 'run'}"]))
    found = run.read_json("knowledge.json")
    assert found["after"]["arm"] in ("selected", "full")
    assert found["after"]["tuned"].endswith(f"weights/{found['after']['arm']}")
    assert {(row["model"], row["how"]) for row in run.read_jsonl("probe.jsonl")} == {
        ("base", "few_shot"),
        ("base", "zero_shot"),
        ("tuned", "zero_shot"),
    }
    page = report.build(run.path).read_text(encoding="utf-8")
    section = page.partition('<section id="knowledge">')[2].partition("</section>")[0]
    assert section.count("<svg") == 2 and section.count("What this means") == 2
    assert "What data to collect" in section
    assert "Whether tuning added knowledge" not in page  # no gap any more


def test_bad_questions_stop_it_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    path = study(tmp_path, model)
    write_jsonl(tmp_path / "data/own.jsonl", [{"question": "?", "choices": ["one"], "answer": 0}])
    with pytest.raises(DataError, match="a question with one choice asks nothing"):
        poc.run(load(path, [f"output_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_the_best_tuned_arm_is_that_with_the_highest_mean_over_tasks() -> None:
    def row(arm: str, task: str, value: float, role: str = "in_domain") -> Result:
        return Result(arm, task, role, "accuracy", value, 0, 1, 9)  # type: ignore[arg-type]

    several = [row("full", "a", 0.9), row("full", "*", 0.5), row("selected", "*", 0.6), row("nothing", "*", 0.99)]
    assert best_tuned(several) == "selected"
    assert best_tuned([row("full", "a", 0.4), row("random", "a", 0.3), row("random", "a", 0.9, "guard")]) == "full"
    assert best_tuned([row("nothing", "a", 0.4)]) is None
