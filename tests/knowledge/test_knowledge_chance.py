"""The tests against guessing: exact, by brute force; Holm by hand; what the table says at the edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tunescope.errors import DataError, UserError
from tunescope.knowledge import Probe, chance_table, probability_of_at_least
from tunescope.knowledge.chance import holm


def probes(n_right: int, n_wrong: int, *, domain: str = "it", n_choices: int = 4) -> list[Probe]:
    """Probes of one domain; the right ones first."""
    made = []
    for i in range(n_right + n_wrong):
        row = [0.1 / (n_choices - 1)] * n_choices
        row[0 if i < n_right else 1] = 0.9
        made.append(Probe(f"{domain}{n_choices}-{i}", domain, tuple("abcdefgh"[:n_choices]), 0, tuple(row)))
    return made


@given(st.lists(st.sampled_from([0.0, 0.2, 0.25, 0.5, 1.0]), max_size=8))
def test_the_sum_of_unequal_trials_is_that_of_all_their_outcomes(chances: list[float]) -> None:
    for count in range(len(chances) + 1):
        expected = sum(
            math.prod(p if hit else 1 - p for p, hit in zip(chances, outcome, strict=True))
            for outcome in itertools.product((0, 1), repeat=len(chances))
            if sum(outcome) >= count
        )
        assert probability_of_at_least(count, chances) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [0, 1, 7, 20, 40])
def test_equal_trials_are_the_binomial_test(count: int) -> None:
    expected = binomtest(count, 40, 0.25, alternative="greater").pvalue
    assert probability_of_at_least(count, [0.25] * 40) == pytest.approx(expected, rel=1e-9)


def test_many_trials_keep_their_small_probabilities() -> None:
    mixed = [0.25] * 3000 + [0.2] * 2000
    assert 0 < probability_of_at_least(1500, mixed) < 1e-20
    assert probability_of_at_least(0, mixed) == pytest.approx(1.0, abs=1e-12)
    assert probability_of_at_least(0, []) == 1.0
    nearly = [0.25] * 400 + [0.25 + 1e-15] * 100  # the two ways of counting agree
    assert probability_of_at_least(150, nearly) == pytest.approx(probability_of_at_least(150, [0.25] * 500), rel=1e-9)


@pytest.mark.parametrize(("count", "chances"), [(-1, [0.5]), (2, [0.5]), (1, [1.5]), (1, [math.nan]), (0, [[0.5]])])
def test_impossible_trials_are_refused(count: int, chances: list[float]) -> None:
    with pytest.raises(UserError, match=r"use 0 to 1|one per trial"):
        probability_of_at_least(count, chances)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))
    for alpha in (0.01, 0.05, 0.3):
        order = sorted(range(len(values)), key=values.__getitem__)
        rejected = set()
        for step, place in enumerate(order):
            if values[place] * (len(values) - step) > alpha:
                break
            rejected.add(place)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


def test_the_table_is_per_domain_with_all_last() -> None:
    rows = chance_table(probes(40, 10, domain="law") + probes(10, 30, domain="art"))
    assert [(row.domain, row.n, row.correct) for row in rows] == [("art", 40, 10), ("law", 50, 40), ("*", 90, 50)]
    assert [row.state for row in rows] == ["not_above", "above", "above"]
    assert rows[0].accuracy == rows[0].chance == 0.25
    assert rows[1].p_adjusted == pytest.approx(2 * rows[1].p_value)
    assert rows[2].p_adjusted == rows[2].p_value
    assert all(row.low <= row.accuracy <= row.high for row in rows)
    assert rows[0].mean_confidence == pytest.approx(0.9)


def test_testing_many_domains_asks_more_of_each() -> None:
    alone = probes(17, 23, domain="d0")
    assert chance_table(alone)[0].state == "above"
    many = alone + [p for i in range(1, 12) for p in probes(10, 30, domain=f"d{i}")]
    assert chance_table(many)[0].state == "not_above"


def test_guessing_counts_the_choices_of_each_question() -> None:
    rows = chance_table(probes(6, 4, n_choices=2) + probes(6, 4, n_choices=5))
    assert rows[0].chance == pytest.approx((10 / 2 + 10 / 5) / 20)
    assert rows[0].p_value == pytest.approx(probability_of_at_least(12, [0.5] * 10 + [0.2] * 10))
    assert rows[0].state == "above"


def test_a_base_below_chance_is_told_from_one_that_guesses() -> None:
    assert [row.state for row in chance_table(probes(1, 59))] == ["below", "below"]
    assert [row.state for row in chance_table(probes(12, 48))] == ["not_above", "not_above"]


@pytest.mark.parametrize(
    ("right", "wrong", "p", "state"), [(1, 0, 0.25, "not_above"), (0, 1, 1.0, "not_above"), (20, 0, 0.25**20, "above")]
)
def test_one_question_all_right_and_all_wrong(right: int, wrong: int, p: float, state: str) -> None:
    row = chance_table(probes(right, wrong))[-1]
    assert row.p_value == pytest.approx(p)
    assert row.state == state
    assert 0 <= row.low < row.high <= 1


def test_a_model_without_preferences_is_not_above_chance() -> None:
    flat = [Probe(str(i), "it", ("a", "b"), 0, (0.5, 0.5)) for i in range(50)]
    assert chance_table(flat)[-1].correct == 0


def test_a_false_alarm_is_as_rare_as_the_level_says() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        hits = random.binomial(30, 0.25, 3).tolist()
        rows = [p for d, hit in enumerate(hits) for p in probes(hit, 30 - hit, domain=f"d{d}")]
        alarms += any(row.state == "above" for row in chance_table(rows)[:-1])
    assert alarms / 300 < 0.08


def test_the_order_of_the_probes_changes_nothing() -> None:
    rows = probes(8, 5) + probes(7, 9, domain="law", n_choices=3)
    assert chance_table(rows[::-1]) == chance_table(rows)


def test_a_level_that_is_none_is_refused() -> None:
    for alpha in (0, 1, math.nan):
        with pytest.raises(UserError, match="alpha is"):
            chance_table(probes(1, 1), alpha=alpha)
    with pytest.raises(UserError, match="confidence is 2"):
        chance_table(probes(1, 1), confidence=2)
    with pytest.raises(DataError, match="got no probes"):
        chance_table([])
