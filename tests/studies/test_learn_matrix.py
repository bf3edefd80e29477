"""Measures of a stream against a naive computation, with intervals that know that rows share their examples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from tunescope import metrics
from tunescope.evaluate import Scored
from tunescope.runs.records import Answer
from tunescope.studies.learn_matrix import Row, ScoreMatrix, failures, kept_and_lost, score_of
from tunescope.studies.learn_stream import Stage, Stream

HOW = {"n_bootstrap": 300, "confidence": 0.95, "seed": 1}


def scored(task: str, arm: str, scores: Sequence[float]) -> Scored:
    answers = [Answer("", float(score)) for score in scores]
    return Scored(task, "in_domain", "test", "rouge_l", None, ("y",) * len(scores), {arm: answers})


def make(
    stages: Sequence[str], rows: dict[str, dict[str, Sequence[float]]], *, earlier: tuple[str, ...] = ()
) -> ScoreMatrix:
    """A matrix from per-example scores: row -> task -> scores."""
    first = len(earlier) + 1
    stream = Stream(earlier, tuple(Stage(f"stage-{i:02d}", (task,)) for i, task in enumerate(stages, first)))
    found = [Row(arm, tuple(by), {t: scored(t, arm, s) for t, s in by.items()}) for arm, by in rows.items()]
    return ScoreMatrix(stream, found, **HOW)  # type: ignore[arg-type]


def random_rows(
    n_tasks: int, *, n: int = 40, base: bool = True, seed: int = 0
) -> dict[str, dict[str, Sequence[float]]]:
    dice = np.random.default_rng(seed)
    tasks = [f"t{i}" for i in range(n_tasks)]
    rows: dict[str, dict[str, Sequence[float]]] = {"nothing": {t: dice.random(n) for t in tasks}} if base else {}
    for i in range(n_tasks):
        rows[f"stage-{i + 1:02d}"] = {t: dice.random(n) for t in tasks[: i + 2]}
    return rows


def means(rows: dict[str, dict[str, Sequence[float]]], arm: str) -> list[float]:
    return [float(np.mean(scores)) for scores in rows[arm].values()]


def test_all_measures_are_those_of_the_matrix_of_means() -> None:
    rows = random_rows(4)
    upper = {f"t{i}": 0.5 + i / 10 for i in range(4)}
    found = make([f"t{i}" for i in range(4)], rows).measures(upper)
    stages = [means(rows, f"stage-{i + 1:02d}") for i in range(4)]
    assert found["average"]["value"] == pytest.approx(np.mean(stages[-1]))
    lost = [max(stages[i][j] for i in range(3) if j < len(stages[i])) - stages[3][j] for j in range(3)]
    assert found["forgetting"]["value"] == pytest.approx(np.mean(lost))
    assert [found["forgetting_by_task"][f"t{j}"]["value"] for j in range(3)] == pytest.approx(lost)
    assert found["backward_transfer"]["value"] == pytest.approx(
        np.mean([stages[3][j] - stages[j][j] for j in range(3)])
    )
    base = means(rows, "nothing")
    assert found["forward_transfer"]["value"] == pytest.approx(
        np.mean([stages[j - 1][j] - base[j] for j in range(1, 4)])
    )
    for place, gain in enumerate(found["relative_gain"], 1):
        expected = 100 * np.mean([stages[place][j] / upper[f"t{j}"] for j in range(place)])
        assert gain["value"] == pytest.approx(expected)
        assert (gain["stage"], gain["tasks"]) == (f"stage-{place + 1:02d}", place)
    for name in ("average", "forgetting", "backward_transfer", "forward_transfer"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_without_a_row_before_the_stages_there_is_no_forward_transfer_and_without_experts_no_gain() -> None:
    found = make(["t0", "t1", "t2"], random_rows(3, base=False)).measures({})
    assert found["forward_transfer"] is None and found["relative_gain"] is None
    assert found["forgetting"] is not None


def test_on_an_earlier_run_its_tasks_count_as_learned_in_the_model_it_starts_from() -> None:
    dice = np.random.default_rng(3)
    start = {t: dice.random(30) for t in ("a", "b")}
    last = {t: dice.random(30) for t in ("a", "b", "c")}
    found = make(["c"], {"start": start, "stage-03": last}, earlier=("a", "b")).measures({})
    gaps = [float(np.mean(start[t]) - np.mean(last[t])) for t in ("a", "b")]
    assert found["forgetting"]["value"] == pytest.approx(np.mean(gaps))
    assert found["backward_transfer"]["value"] == pytest.approx(-np.mean(gaps))
    assert found["forward_transfer"] is None


def test_rows_that_agree_on_every_example_lose_nothing_with_certainty() -> None:
    same = np.random.default_rng(0).random(25)
    rows = {"stage-01": {"a": same}, "stage-02": {"a": same, "b": same}}
    found = make(["a", "b"], rows).measures({})
    assert found["forgetting"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["average"]["high"] > found["average"]["low"]


def test_the_interval_of_a_difference_rests_on_the_same_examples_in_both_rows() -> None:
    dice = np.random.default_rng(5)
    before = dice.random(60)
    rows = {"stage-01": {"a": before}, "stage-02": {"a": before - 0.1, "b": dice.random(60)}}
    found = make(["a", "b"], rows).measures({})["forgetting"]
    assert (found["low"], found["high"]) == pytest.approx((0.1, 0.1))


def test_an_expert_that_scores_nothing_is_left_out_and_named() -> None:
    rows = random_rows(3)
    found = make(["t0", "t1", "t2"], rows).measures({"t0": 0.0, "t1": 0.5, "t2": 0.5})
    assert found["without_share"] == ["t0"]
    assert [gain["stage"] for gain in found["relative_gain"]] == ["stage-03"]
    assert found["relative_gain"][0]["value"] == pytest.approx(100 * means(rows, "stage-03")[1] / 0.5)


def test_a_task_without_an_expert_is_left_out_and_named_too() -> None:
    found = make(["t0", "t1", "t2"], random_rows(3)).measures({"t1": 0.5, "t2": 0.5})
    assert found["without_share"] == ["t0"] and found["relative_gain"][0]["tasks"] == 1


def test_one_task_has_an_average_and_nothing_to_forget() -> None:
    found = make(["a"], {"stage-01": {"a": [1.0, 0.0]}}).measures({"a": 0.5})
    assert found["average"]["value"] == 0.5
    assert [found[name] for name in ("forgetting", "backward_transfer", "forward_transfer", "relative_gain")] == [
        None
    ] * 4


def test_learning_all_at_once_has_an_average_and_a_relative_gain_over_all_but_the_last() -> None:
    stream = Stream((), (Stage("stage-01", ("a", "b", "c")),))
    scores = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 0.0]}
    row = Row("stage-01", tuple(scores), {t: scored(t, "stage-01", s) for t, s in scores.items()})
    found = ScoreMatrix(stream, [row], **HOW).measures({"a": 1.0, "b": 0.5, "c": 1.0})  # type: ignore[arg-type]
    assert found["forgetting"] is None and found["average"]["value"] == 0.5
    assert [(gain["stage"], gain["value"]) for gain in found["relative_gain"]] == [("stage-01", 125.0)]


def test_macro_f1_is_the_score_of_a_task_that_asks_for_it() -> None:
    texts, references = ["x", "x", "x", "y"], ("x", "x", "y", "y")
    answers = [Answer(text, float(text == right)) for text, right in zip(texts, references, strict=True)]
    item = Scored("a", "in_domain", "test", "macro_f1", ("x", "y"), references, {"stage-01": answers})
    assert score_of(item, "stage-01") == pytest.approx(metrics.macro_f1(texts, references, ["x", "y"]))
    assert score_of(item, "stage-01") != pytest.approx(np.mean([a.score for a in answers]))
    stream = Stream((), (Stage("stage-01", ("a",)),))
    matrix = ScoreMatrix(stream, [Row("stage-01", ("a",), {"a": item})], **HOW)  # type: ignore[arg-type]
    assert matrix.value("stage-01", "a") == score_of(item, "stage-01")


def test_resamples_depend_on_the_seed_and_not_on_other_tasks() -> None:
    rows = random_rows(3)
    both = make(["t0", "t1", "t2"], rows)
    again = make(["t0", "t1", "t2"], rows)
    assert both.measures({}) == again.measures({})
    alone = make(["t0"], {"stage-01": {"t0": rows["stage-01"]["t0"]}}).measures({})["average"]
    first = make(["t0", "t1"], {"stage-01": {"t0": rows["stage-01"]["t0"]}, "stage-02": rows["stage-02"]})
    assert first.value("stage-01", "t0") == alone["value"]


# What was kept and lost


def test_what_was_lost_is_the_paired_difference_since_learning_and_its_turned_answers() -> None:
    before, after = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    rows = {"stage-01": {"a": before}, "stage-02": {"a": after, "b": [1.0] * 6}}
    found = kept_and_lost(make(["a", "b"], rows), **HOW)  # type: ignore[arg-type]
    expected = metrics.paired_difference(after, before, **HOW)  # type: ignore[arg-type]
    assert len(found) == 1  # one task alone has no mean over tasks
    assert {key: found[0][key] for key in ("task", "learned", "before", "after", "n")} == {
        "task": "a", "learned": "stage-01", "before": 4 / 6, "after": 0.5, "n": 6,
    }  # fmt: skip
    assert (found[0]["difference"], found[0]["low"], found[0]["high"]) == (expected.value, expected.low, expected.high)
    assert (found[0]["right_then_wrong"], found[0]["wrong_then_right"]) == (2, 1)


def test_the_mean_over_tasks_comes_first_and_weighs_every_task_the_same() -> None:
    rows = {
        "stage-01": {"a": [1.0] * 30},
        "stage-02": {"a": [1.0] * 30, "b": [1.0] * 10},
        "stage-03": {"a": [0.0] * 30, "b": [1.0] * 10, "c": [1.0] * 4},
    }
    found = kept_and_lost(make(["a", "b", "c"], rows), **HOW)  # type: ignore[arg-type]
    assert [row["task"] for row in found] == ["*", "a", "b"]
    assert found[0]["difference"] == -0.5 and found[0]["decides"] and found[1]["decides"] and not found[2]["decides"]


def test_the_task_of_the_last_stage_cannot_have_been_lost() -> None:
    assert kept_and_lost(make(["a"], {"stage-01": {"a": [1.0, 0.0]}}), **HOW) == []  # type: ignore[arg-type]


def test_failures_are_right_wrong_or_unrelated_and_every_answer_is_one() -> None:
    answers = [
        Answer("", 1.0),
        Answer("", 0.5),
        Answer("", 0.49),
        Answer("", 0.0, flags=("empty",)),
        Answer("", 0.9, flags=("endless", "empty")),
    ]
    item = Scored("a", "in_domain", "test", "rouge_l", None, ("y",) * 5, {"stage-01": answers})
    assert failures(item, "stage-01") == {"right": 2, "wrong": 1, "unrelated": 2, "empty": 2, "endless": 1}


def test_every_pair_of_rows_and_tasks_has_its_value() -> None:
    rows = random_rows(3)
    matrix = make(["t0", "t1", "t2"], rows)
    for arm, task in itertools.product(rows, ("t0", "t1", "t2")):
        if task in rows[arm]:
            assert matrix.value(arm, task) == pytest.approx(np.mean(rows[arm][task]))
