"""A stream in the report: every number of ``stream.json`` in its place, advice in words, runs side by side only where that is fair."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_run import make_run
from fake_stream import N_TEST, NAMES, make_stream, make_stream_run
from pages import Page

from tunescope import report
from tunescope.errors import RunError
from tunescope.metrics import paired_difference
from tunescope.report import stream_figures
from tunescope.report.canvas import clean
from tunescope.report.sections import stream_overview
from tunescope.report.source import read_run
from tunescope.report.stream import read_stream
from tunescope.report.stream_compare import StreamRun, policy_pairs
from tunescope.report.wording import Words
from tunescope.studies.learn_conclude import advice

SECTIONS = [
    "stream",
    "stream_matrix",
    "stream_curves",
    "stream_allocation",
    "stream_bias",
    "curves",
    "data",
    "reproduce",
]


@pytest.fixture(scope="module", params=["en", "ja-onto"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """(language, page, folder)."""
    lang, _, onto = request.param.partition("-")
    folder = make_stream_run(tmp_path_factory.mktemp("stream") / "run", lang=lang, onto=bool(onto))
    return lang, report.build(folder).read_text(encoding="utf-8"), folder


def change(folder: Path, **values: Any) -> Path:
    path = folder / "stream.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return folder


def read(values: dict[str, Any], folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stream.json").write_text(json.dumps({"schema_version": 1, **values}), encoding="utf-8")
    return read_stream(folder)


# The page


def test_the_page_is_whole_and_safe_and_its_sections_stand_in_order(page: tuple[str, str, Path]) -> None:
    lang, text, _ = page
    found = Page(text)
    assert found.open == [] and ("html", {"lang": lang}) in found.elements
    assert found.count("script") == found.count("img") == found.count("i") == 0
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert [attrs["id"] for tag, attrs in found.elements if tag == "section"] == SECTIONS


def test_the_first_screen_says_what_was_lost_and_what_to_do(page: tuple[str, str, Path]) -> None:
    _, text, folder = page
    first = text[text.index("<h1>") : text.index("<nav")]
    stream = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
    lost = sum(row["decides"] and row["difference"] < 0 for row in stream["changes"] if row["task"] != "*")
    assert str(lost) in re.findall("<h1>(.*?)</h1>", first)[0]
    assert first.count("<li>") == len(stream["advice"])
    assert ("replay.budget_per_task" in first) and "invented_later" in first
    assert first.count("<article") == 4


def test_the_matrix_shows_every_score_once_and_frames_where_a_task_was_learned(page: tuple[str, str, Path]) -> None:
    lang, _, folder = page
    found = read_stream(folder)
    assert found is not None
    svg = stream_figures.score_matrix(found, Words(lang))
    cells = sum(len(row.scores) for row in found.rows)
    tips = re.findall(r"<rect[^>]*><title>(.*?)</title>", svg)
    assert len(tips) == cells
    assert svg.count('fill="none" stroke=') == len(found.order)
    row = found.rows[-1]
    for task, score in row.scores.items():
        shown = f"{clean(task)}, {stream_figures.stage_name(row.arm, Words(lang))}: {Words(lang).score(score)}"
        assert sum(html.unescape(tip) == shown for tip in tips) == 1


def test_every_task_has_a_pane_and_every_change_a_row(page: tuple[str, str, Path]) -> None:
    _, text, folder = page
    stream = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
    matrix = text[text.index('id="stream_matrix"') : text.index('id="stream_curves"')]
    assert matrix.count('<small class="mark') == len(stream["changes"])
    shown = Page(text).text
    for name in NAMES[4:]:
        assert shown.count(name) >= 4


def test_the_json_holds_the_stream_unrounded(page: tuple[str, str, Path]) -> None:
    _, _, folder = page
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    stream = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
    assert {key: facts["stream"][key] for key in stream} == stream
    assert facts["stream_bias"]["stages"]["stage-16"] == stream["stages"][-1]["bias"]


def test_a_japanese_page_has_no_english_sentence(tmp_path: Path) -> None:
    folder = make_stream_run(tmp_path / "run", lang="ja")
    change(folder, advice=[{"code": code, **NUMBERS} for code in CODES])
    text = report.build(folder).read_text(encoding="utf-8")
    shown = re.sub(r'<section id="(data|reproduce)".*?</section>', "", text, flags=re.DOTALL)
    shown = re.sub(r"<title>.*?</title>|<style>.*?</style>|<[^>]+>", " ", shown, flags=re.DOTALL)
    sentences = [
        part for part in re.findall(r"(?:[A-Za-z]{2,}[ ,]+){4,}", shown) if not part.startswith(("task", "a_task"))
    ]
    assert sentences == []


# Advice

NUMBERS = {
    "tasks": ["a"],
    "n_tasks": 3,
    "difference": -0.05,
    "low": -0.08,
    "high": -0.02,
    "replayed": 20,
    "pool": 100,
    "kept": 90,
    "learned": 300,
    "policy": "inscl",
    "needed": 30,
    "share": 0.2,
}
CODES = (
    "joint", "first_task", "nothing_lost", "lost", "replay_more", "keep_more", "replay_something", "compare", "few_examples", "unrelated", "shifted",
)  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("code", CODES)
def test_every_advice_has_words_and_all_its_numbers_are_filled_in(code: str, lang: str) -> None:
    words = Words(lang)
    said = stream_overview.advice({"code": code, **NUMBERS}, words)
    assert (
        f"stream_advice.{code}" in words
        and "{" not in said
        and words("unknown_code", code=code, numbers="") not in said
    )


def base(**changes: Any) -> dict[str, Any]:
    """A stream without its advice: two tasks, enough test examples, everything right."""
    right = {"right": 40, "wrong": 0, "unrelated": 0}
    changed = {"task": "a", "difference": 0.0, "low": -0.02, "high": 0.02, "decides": False}
    stage = {"pool": {"a": 100}, "replayed": {"a": 20}, "bias": []}
    values = {
        "policy": "random",
        "changes": [changed],
        "tasks": [{"name": name, "n_test": 40, "n_train": 100} for name in "ab"],
        "rows": [{"arm": "stage-02", "failures": {"a": right, "b": right}}],
        "stages": [stage],
        "memory": {"examples": 200},
    }
    return values | changes


ALL_REPEATED = {"pool": {"a": 20}, "replayed": {"a": 20}, "bias": []}
LOST = {"task": "a", "difference": -0.3, "low": -0.4, "high": -0.2, "decides": True}


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, ["nothing_lost", "compare"]),
        ({"changes": [LOST]}, ["lost", "replay_more", "compare"]),
        ({"changes": [LOST], "stages": [ALL_REPEATED], "memory": {"examples": 120}}, ["lost", "keep_more", "compare"]),
        ({"changes": [LOST], "stages": [ALL_REPEATED]}, ["lost", "compare"]),
        (
            {"changes": [LOST], "policy": "none", "stages": [{"pool": {}, "replayed": {}, "bias": []}], "memory": {"examples": 0}},
            ["lost", "replay_something", "compare"],
        ),
        ({"changes": [], "policy": "inscl"}, ["first_task"]),
        ({"policy": "joint", "changes": []}, ["joint"]),
        ({"tasks": [{"name": "a", "n_test": 29, "n_train": 100}]}, ["nothing_lost", "compare", "few_examples"]),
        ({"rows": [{"arm": "stage-02", "failures": {"a": {"right": 8, "wrong": 0, "unrelated": 2}}}]}, ["nothing_lost", "compare", "unrelated"]),
        (
            {"stages": [{"pool": {"a": 100}, "replayed": {"a": 20}, "bias": [{"attribute": "label", "flagged": True}]}]},
            ["nothing_lost", "compare", "shifted"],
        ),
        (
            {"stages": [{"pool": {"a": 100}, "replayed": {"a": 20}, "bias": [{"attribute": "task", "flagged": True}]}]},
            ["nothing_lost", "compare"],
        ),
    ],
)  # fmt: skip
def test_the_advice_follows_from_the_numbers(changes: dict[str, Any], codes: list[str]) -> None:
    assert [row["code"] for row in advice(base(**changes))] == codes


def test_many_small_losses_are_a_loss_together_though_no_task_alone_decides() -> None:
    small = [{"task": t, "difference": -0.05, "low": -0.15, "high": 0.05, "decides": False} for t in "abcdefgh"]
    together = {"task": "*", "difference": -0.05, "low": -0.08, "high": -0.02, "decides": True}
    found = advice(base(changes=[together, *small]))[0]
    assert (found["code"], found["tasks"], found["n_tasks"]) == ("lost", [], 8)
    assert "together" in stream_overview.advice(found, Words("en"))


# What a run may lack


@pytest.mark.parametrize(
    "how",
    [
        {"n_tasks": 1, "experts": False},
        {"n_tasks": 2},
        {"policy": "joint"},
        {"policy": "none"},
        {"n_tasks": 3, "onto": True, "experts": False},
    ],
)
def test_short_joint_and_forgetful_streams_have_a_page_too(how: dict[str, Any], tmp_path: Path) -> None:
    folder = make_stream_run(tmp_path / "run", **how)
    text = report.build(folder).read_text(encoding="utf-8")
    assert Page(text).open == []
    assert text.count("<section") == len(SECTIONS)


def test_a_run_that_did_not_get_that_far_says_so(tmp_path: Path) -> None:
    folder = make_stream_run(tmp_path / "run", n_tasks=2)
    (folder / "stream.json").unlink()
    shown = Page(report.build(folder).read_text(encoding="utf-8")).text
    assert shown.count("stream.json is not in the run folder") == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schema_version": 99}, "upgrade"),
        ({"rows": []}, "no stage or no scores"),
        ({"rows": [{"arm": "stage-01"}]}, "StreamRow 1 lacks"),
        ({"stages": "x"}, "expected a list"),
        ({"order": ["unknown"]}, "of which there is no score"),
        ({"order": []}, "names no task"),
        ({"changes": [{"task": "a"}]}, "StreamChange 1 lacks"),
        (
            {"changes": [{"task": "a", "difference": "much", "low": 0, "high": 0, "decides": False, "n": 1}]},
            "difference is 'much'",
        ),
    ],
)
def test_a_broken_stream_is_one_line(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = change(make_stream_run(tmp_path / "run", n_tasks=2), **values)
    with pytest.raises(RunError, match=said) as caught:
        report.build(folder)
    assert len(caught.value.problems) == 1 and "stream.json" in str(caught.value)
    (folder / "stream.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be read"):
        report.build(folder)


# Side by side


def stream_run(folder: Path, name: str, **how: Any) -> StreamRun:
    run = read_run(make_stream_run(folder / name, **how))
    found = read_stream(run.folder)
    assert found is not None
    last = found.rows[-1].arm
    scores = {(s.task, s.id): float(s.answers[last]["score"]) for s in run.samples}
    return StreamRun(name, run, found, scores)


def test_policies_are_compared_on_the_same_examples_the_better_one_first(tmp_path: Path) -> None:
    small, large = (
        stream_run(tmp_path, "a", n_tasks=4, loss=0.1),
        stream_run(tmp_path, "b", n_tasks=4, loss=0.6, policy="random"),
    )
    pairs = policy_pairs([large, small])
    (first, second), gap = next(iter(pairs.items()))
    assert (first, second) == ("inscl 200", "random 200")
    keys = sorted(small.scores)
    expected = paired_difference(
        [small.scores[k] for k in keys], [large.scores[k] for k in keys], strata=[task for task, _ in keys]
    )
    assert (gap.value, gap.low, gap.high) == (expected.value, expected.low, expected.high)
    assert gap.n == 4 * N_TEST


def test_two_runs_of_a_policy_count_as_their_mean_and_budgets_are_told_apart(tmp_path: Path) -> None:
    runs = [
        stream_run(tmp_path, "a", n_tasks=3, loss=0.0),
        stream_run(tmp_path, "b", n_tasks=3, loss=1.0, seed=1),
        stream_run(tmp_path, "c", n_tasks=3, loss=0.0, policy="random"),
        stream_run(tmp_path, "d", n_tasks=3, loss=0.0, replay={"budget_per_task": 20}),
    ]
    pairs = policy_pairs(runs)
    assert {name for pair in pairs for name in pair} == {"inscl 200", "random 200", "inscl 20"}


def test_the_page_names_the_better_policy_and_the_smallest_memory_that_does(tmp_path: Path) -> None:
    folders = [
        make_stream_run(tmp_path / "clever", n_tasks=6, loss=0.0),
        make_stream_run(tmp_path / "plain", n_tasks=6, loss=0.5, policy="random"),
        make_stream_run(tmp_path / "none", n_tasks=6, loss=0.9, policy="none"),
    ]
    change(folders[0], memory={"examples": 60, "bytes": 1000, "budget_examples": 60, "budget_bytes": None})
    text = report.compare(folders, out=tmp_path / "side.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.open == [] and found.count("script") == 0
    assert [attrs["id"] for tag, attrs in found.elements if tag == "section" and "id" in attrs] == [
        "advice",
        "policies",
        "pairs",
        "runs",
    ]
    said = found.text
    assert "InsCL (200) has the highest average and beats random (200)" in said and "InsCL (200) against random" in said
    assert "The smallest memory within the noise of the best average is that of clever: 60 examples" in said
    assert "one seed and one order" in said


def test_without_random_nobody_knows(tmp_path: Path) -> None:
    folders = [make_stream_run(tmp_path / name, n_tasks=3, policy=name) for name in ("inscl", "none")]
    said = Page(report.compare(folders, out=tmp_path / "side.html", lang="en").read_text(encoding="utf-8")).text
    assert "No run with policy random" in said


def test_streams_on_other_examples_are_shown_and_not_held_against_each_other(tmp_path: Path) -> None:
    folders = [make_stream_run(tmp_path / name, n_tasks=3) for name in ("a", "b")]
    tasks = make_stream(n_tasks=3)[0]["tasks"]
    change(folders[1], tasks=[task | {"version": "other"} for task in tasks])
    text = report.compare(folders, out=tmp_path / "side.html").read_text(encoding="utf-8")
    assert "do not score the same tasks" in text and 'id="advice"' not in text and 'id="pairs"' not in text
    assert 'id="runs"' in text


def test_a_stream_and_a_proof_of_concept_are_not_put_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="compare streams with streams"):
        report.compare(
            [make_stream_run(tmp_path / "a", n_tasks=2), make_run(tmp_path / "b")], out=tmp_path / "side.html"
        )
    assert not (tmp_path / "side.html").exists()


def test_a_stream_that_is_not_done_cannot_be_compared(tmp_path: Path) -> None:
    folders = [make_stream_run(tmp_path / name, n_tasks=2) for name in "ab"]
    (folders[1] / "stream.json").unlink()
    with pytest.raises(RunError, match="--resume"):
        report.compare(folders, out=tmp_path / "side.html")


def test_a_sentence_names_a_few_tasks_and_counts_the_rest() -> None:
    row = {"code": "few_examples", "tasks": [f"task{i}" for i in range(11)], "needed": 30}
    assert "“task7” and 3 others): their intervals" in stream_overview.advice(row, Words("en")).replace(", and", " and")
    assert "others" not in stream_overview.advice(row | {"tasks": row["tasks"][:8]}, Words("en"))  # type: ignore[index]
