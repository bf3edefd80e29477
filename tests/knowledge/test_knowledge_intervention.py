"""Comparison of the groups: differences by hand and against the metrics, the order and its probability, partial Spearman over cells."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tunescope.errors import UserError
from tunescope.knowledge import Cell, compare_groups, partial_consistency, partial_spearman
from tunescope.metrics import paired_difference

HOW = {"n_bootstrap": 2000, "seed": 0}
GROUPS = {"harmonious": 0.8, "self_aligning": 0.6, "incompatible": 0.45}


def drawn(
    n: int = 200, tests: tuple[str, ...] = ("homo", "ood"), seeds: int = 1, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return {name: {t: (random.random((seeds, n)) < p) * 1.0 for t in tests} for name, p in GROUPS.items()}


def find(found, test: str, first: str, second: str):  # type: ignore[no-untyped-def]
    return next(d for d in found.differences if (d.test, d.first, d.second) == (test, first, second))


def test_differences_are_those_of_the_metrics_on_one_test() -> None:
    scores = drawn(tests=("homo",))
    found = compare_groups(scores, **HOW)
    mine = find(found, "homo", "harmonious", "incompatible")
    theirs = paired_difference(scores["harmonious"]["homo"][0], scores["incompatible"]["homo"][0], seed=0)
    assert mine.difference.value == pytest.approx(theirs.value)
    assert (mine.difference.low, mine.difference.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)
    assert mine.share_positive == pytest.approx(theirs.share_positive, abs=0.01)
    whole = find(found, "*", "harmonious", "incompatible")
    assert whole.difference == mine.difference


def test_all_pairs_are_there_on_every_test_and_on_all() -> None:
    found = compare_groups(drawn() | {"base": drawn()["incompatible"]}, **HOW)
    assert len(found.differences) == 3 * 6
    assert found.order == ("harmonious", "self_aligning", "incompatible")
    assert {d.test for d in found.differences} == {"homo", "ood", "*"}
    assert find(found, "ood", "incompatible", "base").difference.value == 0.0


@pytest.mark.parametrize("n_ood", [50, 200])  # as many questions as the other test, and they are still drawn apart
def test_the_figure_over_all_tests_is_their_unweighted_mean(n_ood: int) -> None:
    scores = drawn()
    scores = {name: {"homo": tests["homo"], "ood": tests["ood"][:, :n_ood]} for name, tests in scores.items()}
    found = compare_groups(scores, **HOW)
    parts = [find(found, test, "harmonious", "incompatible").difference for test in ("homo", "ood")]
    whole = find(found, "*", "harmonious", "incompatible").difference
    assert whole.value == pytest.approx((parts[0].value + parts[1].value) / 2)
    assert whole.n == 200 + n_ood
    widths = [(part.high - part.low) / 2 for part in parts]
    assert (whole.high - whole.low) / 2 == pytest.approx(math.hypot(*widths) / 2, rel=0.1)


def test_seeds_are_averaged_question_by_question() -> None:
    scores = {"harmonious": {"homo": [[1, 1, 0, 1], [1, 0, 0, 1]]}, "incompatible": {"homo": [0, 0, 0, 1]}}
    found = compare_groups(scores, **HOW)
    assert found.accuracy["homo"]["harmonious"].value == pytest.approx(5 / 8)
    assert find(found, "homo", "harmonious", "incompatible").difference.value == pytest.approx(5 / 8 - 1 / 4)
    assert found.n_seeds == {"harmonious": 2, "incompatible": 1}


def test_the_order_is_sure_where_the_groups_are_far_apart_and_not_where_they_are_equal() -> None:
    far = compare_groups(drawn(400), **HOW)
    assert far.order_holds == {"homo": True, "ood": True, "*": True}
    assert min(far.order_probability.values()) > 0.95
    scores = drawn(400)
    scores["self_aligning"] = scores["incompatible"]
    equal = compare_groups(scores, **HOW)
    assert equal.order_holds["homo"] is False  # a tie is no order
    assert equal.order_probability["homo"] == 0.0


def test_the_probability_of_the_order_is_the_share_of_the_resamples() -> None:
    """Three groups of independent coins: all six orders are equally likely."""
    random = np.random.default_rng(3)
    total = []
    for seed in range(60):
        scores = {name: {"homo": (random.random(80) < 0.5) * 1.0} for name in GROUPS}
        total.append(compare_groups(scores, n_bootstrap=200, seed=seed).order_probability["homo"])
    assert np.mean(total) == pytest.approx(1 / 6, abs=0.08)


def test_groups_that_were_not_tuned_leave_the_order() -> None:
    scores = drawn()
    del scores["self_aligning"]
    assert compare_groups(scores, **HOW).order == ("harmonious", "incompatible")
    alone = compare_groups({"harmonious": scores["harmonious"]}, **HOW)
    assert (alone.order, alone.order_holds, alone.order_probability, alone.differences) == ((), {}, {}, ())
    assert compare_groups(scores, order=("incompatible", "harmonious"), **HOW).order_holds["homo"] is False


def test_all_right_and_one_question_have_intervals_that_admit_it() -> None:
    found = compare_groups({"harmonious": {"homo": [1] * 20}, "incompatible": {"homo": [1] * 20}}, **HOW)
    difference = find(found, "homo", "harmonious", "incompatible").difference
    assert difference.low < 0 < difference.high
    assert found.accuracy["homo"]["harmonious"].low < 0.9
    assert find(found, "*", "harmonious", "incompatible").share_positive == 0.5
    one = compare_groups({"harmonious": {"homo": [1]}, "incompatible": {"homo": [0]}}, **HOW)
    assert find(one, "homo", "harmonious", "incompatible").difference.low == -1.0


def test_the_order_of_the_questions_changes_nothing() -> None:
    scores = drawn(60)
    order = np.random.default_rng(1).permutation(60)
    turned = {name: {t: rows[:, order] for t, rows in tests.items()} for name, tests in scores.items()}
    assert compare_groups(turned, **HOW) == compare_groups(scores, **HOW)


def test_the_comparison_is_plain_json() -> None:
    json.dumps(compare_groups(drawn(30, seeds=2), **HOW).to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "no groups or no tests"),
        ({"a": {}}, "no groups or no tests"),
        ({"a": {"*": [1]}}, "a test is named"),
        ({"a": {"homo": [1]}, "b": {"ood": [1]}}, "group b has the tests"),
        ({"a": {"homo": [1, 0]}, "b": {"homo": [1]}}, "group b has 1 questions on homo, a 2"),
        ({"a": {"homo": []}}, "scores of shape"),
        ({"a": {"homo": [2]}}, "not in \\[0, 1\\]"),
        ({"a": {"homo": [math.nan]}}, "not in \\[0, 1\\]"),
        ({"a": {"homo": [[1, 0], [1]]}}, "different numbers of questions"),
        ({"a": {"homo": [[1], [0]], "ood": [1]}}, "2 seeds and 1 on ood"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        compare_groups(scores, **HOW)


# Partial Spearman over groups and tests


def cells(n_groups: int = 5, n_tests: int = 3, seed: int = 0) -> list[Cell]:
    random = np.random.default_rng(seed)
    return [
        Cell(f"g{g}", f"t{t}", c := float(random.random()), float(c + 0.3 * random.random()), 0.3 + 0.1 * t)
        for g in range(n_groups)
        for t in range(n_tests)
    ]


def test_it_is_the_partial_spearman_of_all_cells() -> None:
    rows = cells()
    found = partial_consistency(rows)
    assert found.value == partial_spearman(
        [c.consistency for c in rows], [c.accuracy for c in rows], [c.base_accuracy for c in rows]
    )
    assert found.n == 15
    assert found.value > 0.5


def test_the_range_leaves_out_one_group_at_a_time() -> None:
    rows = cells()
    values = [partial_consistency([c for c in rows if c.group != name]).value for name in {c.group for c in rows}]
    found = partial_consistency(rows)
    assert (found.low, found.high) == (min(values), max(values))


def test_a_correlation_that_one_group_makes_is_seen_in_the_range() -> None:
    random = np.random.default_rng(4)
    rows = [
        Cell(f"g{g}", f"t{t}", 0.5 + 0.01 * random.random(), 0.5 + 0.01 * random.random(), 0.4)
        for g in range(3)
        for t in range(2)
    ]
    rows += [Cell("odd", f"t{t}", 0.9 + 0.01 * t, 0.9 + 0.01 * t, 0.4) for t in range(6)]
    found = partial_consistency(rows)
    assert found.value > 0.6
    assert found.low < 0.4


def test_where_it_is_undefined_it_is_none() -> None:
    assert partial_consistency([]).value is None
    assert partial_consistency(cells(1, 2)).value is None
    same = [Cell(f"g{i}", "t", 0.5, 0.1 * i, 0.3) for i in range(6)]
    assert partial_consistency(same).value is None
    one_group = partial_consistency(cells(1, 6))
    assert one_group.value is not None
    assert (one_group.low, one_group.high) == (None, None)
    with pytest.raises(UserError, match="x holds NaN"):
        partial_consistency([*cells(), Cell("g", "t", math.nan, 0.5, 0.3)])
