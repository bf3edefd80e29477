from __future__ import annotations

from math import comb

import numpy as np
import pytest

from tunescope.errors import UserError
from tunescope.replay import bias_table


def exact_p(kept_with: int, pool_with: int, kept: int, pool: int) -> float:
    """Two-sided: all tables at most as likely as the one seen, counted out."""
    ways = [comb(pool_with, i) * comb(pool - pool_with, kept - i) for i in range(kept + 1)]
    return sum(w for w in ways if w <= ways[kept_with] * (1 + 1e-12)) / comb(pool, kept)


@pytest.mark.parametrize(
    ("kept_with", "pool_with", "kept", "pool"), [(3, 30, 20, 70), (10, 25, 12, 60), (0, 20, 10, 90), (7, 35, 14, 70)]
)
def test_the_probability_is_that_of_all_tables_at_most_as_likely(kept_with, pool_with, kept, pool):
    values = ["x"] * pool_with + ["y"] * (pool - pool_with)
    keep = [True] * kept_with + [False] * (pool_with - kept_with)
    keep += [True] * (kept - kept_with) + [False] * (pool - len(keep) - (kept - kept_with))
    row = next(r for r in bias_table({"a": values}, keep) if r.value == "x")
    assert (row.n_kept, row.n_pool) == (kept_with, pool_with)
    assert row.p == pytest.approx(exact_p(kept_with, pool_with, kept, pool), rel=1e-9)
    assert row.kept_share == kept_with / kept
    assert row.pool_share == pool_with / pool


def test_random_draws_are_hardly_ever_flagged_and_a_lost_language_always():
    rng = np.random.default_rng(0)
    attributes = {
        "language": rng.choice(["en", "ja", "de"], 600, p=[0.7, 0.2, 0.1]).tolist(),
        "length": rng.choice(["0-49", "50+"], 600).tolist(),
        "site": rng.choice(list("pqrs"), 600).tolist(),
    }
    false = 0
    for _ in range(100):
        keep = np.zeros(600, dtype=bool)
        keep[rng.choice(600, 120, replace=False)] = True
        false += any(row.flagged for row in bias_table(attributes, keep.tolist()))
    assert false <= 12  # at most 5 expected by Bonferroni; more than 12 have a chance below 1 in 1,000
    lost = [language != "ja" and i % 4 == 0 for i, language in enumerate(attributes["language"])]
    flagged = {(row.attribute, row.value) for row in bias_table(attributes, lost) if row.flagged}
    assert flagged == {("language", "ja"), ("language", "en")}  # English takes over what Japanese loses


def test_a_certain_but_small_shift_is_not_flagged():
    values = ["x"] * 50_000 + ["y"] * 50_000
    keep = [i < 21_000 for i in range(50_000)] + [i < 19_000 for i in range(50_000)]
    rows = bias_table({"a": values}, keep)
    assert max(row.p for row in rows) < 1e-20
    assert not any(row.flagged for row in rows)


def test_labels_inside_their_task_are_not_confused_with_tasks():
    tasks = ["p"] * 100 + ["q"] * 100
    labels = (["yes"] * 50 + ["no"] * 50) * 2
    keep = [i % 2 == 0 for i in range(100)] + [i % 10 == 0 for i in range(100)]  # five times as many of p
    rows = bias_table({"task": tasks, "label": labels}, keep, within={"label": tasks})
    assert {(r.attribute, r.within, r.value): r.flagged for r in rows} == {
        ("task", "", "p"): True,
        ("task", "", "q"): True,
        **{("label", task, label): False for task in "pq" for label in ("yes", "no")},
    }
    assert {r.kept_share for r in rows if r.attribute == "label"} == {0.5}


def test_what_cannot_differ_or_is_too_small_is_shown_but_not_tested():
    rows = bias_table({"a": ["x"] * 19 + ["y"] * 81}, [True] * 50 + [False] * 50)
    assert [(r.value, r.p is None) for r in rows] == [("x", True), ("y", False)]
    for keep in ([True] * 100, [False] * 100):
        assert all(r.p is None and not r.flagged for r in bias_table({"a": ["x"] * 50 + ["y"] * 50}, keep))
    (only,) = bias_table({"a": ["x"] * 100}, [True] * 50 + [False] * 50)
    assert (only.p, only.pool_share, only.kept_share) == (None, 1.0, 1.0)
    (nothing,) = bias_table({"a": ["x"] * 30}, [False] * 30)
    assert nothing.kept_share == 0.0
    assert bias_table({"a": []}, []) == []
    assert bias_table({}, [True]) == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="attribute 'a': 1 values for 2 examples"):
        bias_table({"a": ["x"]}, [True, False])
    with pytest.raises(UserError, match=r"within names 'lable', which is no attribute \(did you mean label\?\)"):
        bias_table({"label": ["x"]}, [True], within={"lable": ["t"]})
    with pytest.raises(UserError, match="alpha 2"):
        bias_table({"a": ["x"]}, [True], alpha=2)
