"""Results: means, paired differences, macro F1, the guard's loss; risk."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tunescope.evaluate import Scored, risks, summarise
from tunescope.runs.records import Answer, Result, Risk

COUNT = {"seed": 0, "n_bootstrap": 300}


def scored(answers: dict[str, list[float]], *, task: str = "routing", role: Any = "in_domain", **more: Any) -> Scored:
    n = len(next(iter(answers.values())))
    values = {
        "dataset": f"{task}.{role}",
        "metric": "rouge_l",
        "labels": None,
        "references": ("right",) * n,
        "answers": {arm: [Answer("x", score) for score in scores] for arm, scores in answers.items()},
        "version": f"v-{task}",
    }
    return Scored(task=task, role=role, **(values | more))


def only(results: list[Result], **wanted: Any) -> Result:
    (found,) = [r for r in results if all(getattr(r, key) == value for key, value in wanted.items())]
    return found


def test_every_file_and_arm_has_a_result_with_its_interval() -> None:
    item = scored({"nothing": [0.0, 1.0, 0.5, 0.5], "full": [1.0, 1.0, 0.5, 1.0]})
    results = summarise([item], seed=5, n_bootstrap=300, tuned=("full",))
    assert [(r.arm, r.task, r.role, r.dataset) for r in results] == [
        ("nothing", "routing", "in_domain", "routing.in_domain"),
        ("full", "routing", "in_domain", "routing.in_domain"),
    ]
    for result, value in zip(results, (0.5, 0.875), strict=True):
        assert result.value == value and result.n == 4 and result.metric == "rouge_l"
        assert 0 <= result.low < value < result.high <= 1
        assert result.higher_is_better and result.task_version == "v-routing"
    assert [r.seed for r in results] == [None, 5]


def test_the_difference_is_paired() -> None:
    """Two arms that differ by the same amount on every example: the scores vary, their difference does not."""
    base = np.linspace(0, 0.8, 40)
    paired = summarise([scored({"nothing": list(base), "full": list(base + 0.2)})], **COUNT)
    crossed = summarise([scored({"nothing": list(base), "full": list(base[::-1] + 0.2)})], **COUNT)
    one, other = only(paired, arm="full"), only(crossed, arm="full")
    assert one.difference == pytest.approx(0.2) == other.difference
    assert one.difference_high - one.difference_low < (other.difference_high - other.difference_low) / 2  # type: ignore[operator]
    assert one.noise_floor == pytest.approx((one.difference_high - one.difference_low) / 2)  # type: ignore[operator]
    assert only(paired, arm="nothing").difference is None


def test_without_the_untuned_arm_nothing_is_compared() -> None:
    results = summarise([scored({"prompt": [0.0, 1.0], "full": [1.0, 1.0]})], **COUNT)
    assert [r.difference for r in results] == [None, None]
    assert [r.noise_floor for r in results] == [None, None]


def test_the_mean_over_tasks_weighs_every_task_the_same() -> None:
    items = [
        scored({"nothing": [0.0] * 4, "full": [1.0] * 4}),
        scored({"nothing": [1.0] * 36, "full": [1.0] * 36}, task="mood"),
    ]
    results = summarise(items, **COUNT)
    mean = only(results, task="*", arm="full")
    assert mean.value == 1 and only(results, task="*", arm="nothing").value == 0.5
    assert mean.difference == 0.5 and mean.n == 40
    assert mean.difference_low < 0.5 < mean.difference_high  # type: ignore[operator]
    assert mean.metric == "mean_score" and mean.task_version == "v-mood+v-routing"
    assert [r.task for r in results[-2:]] == ["*", "*"]


def test_roles_are_never_mixed_and_one_task_alone_has_no_mean() -> None:
    one_task = [scored({"nothing": [1.0, 0.0]}), scored({"nothing": [0.0, 0.0]}, role="out_of_domain")]
    assert "*" not in [r.task for r in summarise(one_task, **COUNT)]
    both = [*one_task, scored({"nothing": [1.0, 1.0]}, task="mood")]
    means = [r for r in summarise(both, **COUNT) if r.task == "*"]
    assert [(r.role, r.value) for r in means] == [("in_domain", 0.75)]


def test_two_out_of_domain_files_of_a_task_are_results_of_their_own_and_one_task_in_the_mean() -> None:
    items = [
        scored({"nothing": [1.0] * 4}, role="out_of_domain", dataset="plant_b"),
        scored({"nothing": [0.0] * 4}, role="out_of_domain", dataset="plant_c"),
        scored({"nothing": [0.0] * 4}, task="mood", role="out_of_domain"),
    ]
    results = summarise(items, **COUNT)
    assert [r.dataset for r in results[:3]] == ["plant_b", "plant_c", "mood.out_of_domain"]
    assert only(results, task="*").value == 0.25


def test_the_guard_is_a_loss_and_its_difference_is_a_rise() -> None:
    item = scored({"nothing": [2.0, 3.0, 4.0], "full": [2.5, 3.5, 4.7]}, task="guard", role="guard", metric="loss")
    results = summarise([item], **COUNT)
    rise = only(results, arm="full")
    assert not rise.higher_is_better and rise.metric == "loss"
    assert rise.value == pytest.approx(3.5667, abs=1e-4) and rise.high > 1
    assert rise.difference == pytest.approx(0.5667, abs=1e-4)
    assert "*" not in [r.task for r in results]


def label_answers(texts: list[str], references: tuple[str, ...]) -> list[Answer]:
    return [Answer(t, float(t == r), 0.5, {}) for t, r in zip(texts, references, strict=True)]


def test_macro_f1_is_that_of_the_labels_and_not_a_mean_of_scores() -> None:
    labels = ("good", "bad", "mixed")
    references = ("good",) * 16 + ("bad",) * 3 + ("mixed",)
    texts = ["good"] * 14 + ["bad"] * 4 + ["good", "mixed"]
    lazy = ["good"] * 20
    item = scored({"nothing": [0.0]}, metric="macro_f1", labels=labels, references=references)
    item = dataclasses.replace(
        item, answers={"nothing": label_answers(lazy, references), "full": label_answers(texts, references)}
    )
    results = summarise([item], **COUNT)

    def by_reference(predicted: list[str]) -> float:
        return float(f1_score(references, predicted, labels=list(labels), average="macro", zero_division=0))

    full = only(results, arm="full")
    assert full.value == pytest.approx(by_reference(texts))
    assert only(results, arm="nothing").value == pytest.approx(by_reference(lazy))
    assert full.difference == pytest.approx(by_reference(texts) - by_reference(lazy))
    assert full.low <= full.value <= full.high and full.difference_low < full.difference < full.difference_high  # type: ignore[operator]
    assert only(summarise([dataclasses.replace(item, metric="accuracy")], **COUNT), arm="nothing").value == 0.8


def test_the_same_seed_gives_the_same_intervals_and_a_higher_level_wider_ones() -> None:
    items = [scored({"nothing": [0.1, 0.9, 0.4, 0.3, 0.8] * 4, "full": [0.3, 0.9, 0.7, 0.2, 0.8] * 4})]
    assert summarise(items, **COUNT) == summarise(items, **COUNT)
    narrow, wide = (only(summarise(items, **COUNT, confidence=c), arm="full") for c in (0.6, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.noise_floor > narrow.noise_floor  # type: ignore[operator]


def labelled(pairs: list[tuple[float, bool]], **more: Any) -> Scored:
    answers = [Answer("a", float(right), confidence) for confidence, right in pairs]
    item = scored({"nothing": [0.0] * len(pairs)}, labels=("a", "b"), metric="accuracy", **more)
    return dataclasses.replace(item, answers={"nothing": answers})


def test_an_arm_that_is_right_as_often_as_it_says_is_calibrated_and_one_that_boasts_is_not() -> None:
    honest = risks([labelled([(0.8, i % 5 != 0) for i in range(50)])], seed=0)[0]
    boasting = risks([labelled([(0.99, i % 2 == 0) for i in range(50)])], seed=0)[0]
    assert honest.ece == pytest.approx(0.0, abs=1e-9) and honest.n == 50
    assert boasting.ece == pytest.approx(0.49)
    assert honest.collapse_rate is None and honest.unrelated_rate is None


def test_the_risk_curve_keeps_the_surest_answers_first() -> None:
    found = risks([labelled([(0.9, True)] * 30 + [(0.6, False)] * 10)], seed=0, target_error=0.05)[0]
    assert found.coverage[-1] == 1 and found.risk[-1] == pytest.approx(0.25)
    assert found.risk[0] == 0 and list(found.risk) == sorted(found.risk)
    assert found.human_share is not None and 0 < found.human_share < 1
    assert found.target_error == 0.05


def test_unrelated_output_is_counted_over_generated_answers_only() -> None:
    flags: list[tuple[str, ...]] = [(), ("label_of_other_task",), ("empty",), ("label_of_other_task", "endless")]
    free = scored({"nothing": [0.0] * 4}, task="summary")
    free = dataclasses.replace(free, answers={"nothing": [Answer("x", 0.0, flags=f) for f in flags]})
    found = risks([labelled([(0.7, True)] * 6), free], seed=0)[0]
    assert (found.n, found.collapse_rate, found.unrelated_rate) == (6, 0.5, 0.75)


def test_roles_and_arms_have_risks_of_their_own_and_the_guard_has_none() -> None:
    items = [
        scored({"nothing": [1.0, 0.0], "full": [1.0, 1.0]}),
        scored({"nothing": [1.0], "full": [1.0]}, role="out_of_domain"),
        scored({"nothing": [2.0], "full": [2.0]}, task="guard", role="guard", metric="loss"),
    ]
    found = risks(items, seed=0)
    assert [(r.arm, r.role) for r in found] == [
        (arm, role) for role in ("in_domain", "out_of_domain") for arm in ("nothing", "full")
    ]


def test_fewer_than_two_labelled_answers_say_nothing_about_calibration() -> None:
    found = risks([labelled([(0.7, True)])], seed=0)[0]
    assert found == Risk("nothing", "in_domain", 1, None, (), (), None, None, 0.05, None, None, None)
    assert risks([], seed=0) == []
