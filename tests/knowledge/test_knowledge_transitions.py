"""What became of each question: counts by brute force, McNemar by hand, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import DataError, UserError
from tunescope.knowledge import Estimate, Probe, accuracy, mcnemar, transitions

RIGHT, WRONG, TIE = (0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.4, 0.4, 0.2)
HOW = {"n_bootstrap": 300, "seed": 0}


def probes(rows: list[tuple[float, ...]], domains: list[str] | None = None) -> list[Probe]:
    names = domains or ["it"] * len(rows)
    return [
        Probe(str(i), domain, ("a", "b", "c"), 0, row) for i, (row, domain) in enumerate(zip(rows, names, strict=True))
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from([RIGHT, WRONG, TIE]), st.sampled_from([RIGHT, WRONG, TIE]), st.sampled_from("xyz")),
        min_size=1,
        max_size=40,
    )
)
def test_counts_are_those_of_a_loop_and_add_up(rows: list[tuple[tuple[float, ...], tuple[float, ...], str]]) -> None:
    before, after, domains = (list(column) for column in zip(*rows, strict=True))
    base, tuned = probes(before, domains), probes(after, domains)
    table = transitions(base, tuned[::-1], n_bootstrap=20, seed=0)
    assert [row.domain for row in table] == [*sorted(set(domains)), "*"]
    for row in table:
        mine = [(a is RIGHT, b is RIGHT) for a, b, d in rows if row.domain in (d, "*")]
        assert row.n == len(mine) == row.kept + row.lost + row.learned + row.still_unknown
        assert (row.kept, row.lost) == (mine.count((True, True)), mine.count((True, False)))
        assert (row.learned, row.still_unknown) == (mine.count((False, True)), mine.count((False, False)))
        assert row.change.value == pytest.approx((row.learned - row.lost) / row.n)
        assert row.change.low <= row.change.value <= row.change.high
        assert sum(row.shares.values()) == pytest.approx(1.0)
    assert table[-1].change.value == pytest.approx(accuracy(tuned) - accuracy(base))


@pytest.mark.parametrize("lost", range(6))
@pytest.mark.parametrize("learned", range(6))
def test_mcnemar_is_a_fair_coin(lost: int, learned: int) -> None:
    n = lost + learned
    ways = [math.comb(n, k) for k in range(n + 1)]
    expected = sum(w for w in ways if w <= ways[learned]) / 2**n
    assert mcnemar(lost, learned) == pytest.approx(min(1.0, expected))
    assert mcnemar(lost, learned) == mcnemar(learned, lost)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(UserError, match="got -1 lost"):
        mcnemar(-1, 3)


def test_shares_are_of_what_was_known_and_of_what_was_not() -> None:
    row = transitions(
        probes([RIGHT] * 8 + [WRONG] * 4), probes([RIGHT] * 6 + [WRONG] * 2 + [RIGHT] * 1 + [WRONG] * 3), **HOW
    )[-1]
    assert (row.lost_share.value, row.lost_share.n) == (0.25, 8)
    assert (row.learned_share.value, row.learned_share.n) == (0.25, 4)
    assert row.lost_share.low < 0.25 < row.lost_share.high


def test_all_right_and_all_wrong_leave_no_share_to_tell() -> None:
    right, wrong = (
        transitions(probes([RIGHT] * 5), probes([RIGHT] * 5), **HOW)[-1],
        transitions(probes([WRONG] * 5), probes([WRONG] * 5), **HOW)[-1],
    )
    assert right.learned_share == wrong.lost_share == Estimate(None, None, None, 0)
    assert right.lost_share.value == wrong.learned_share.value == 0.0
    assert right.lost_share.high > 0.3
    assert right.p_value == wrong.p_value == 1.0
    assert right.change.low < 0 < right.change.high


def test_one_question_says_nothing_about_the_change() -> None:
    row = transitions(probes([WRONG]), probes([RIGHT]), **HOW)[-1]
    assert (row.change.value, row.change.low, row.change.high) == (1.0, -1.0, 1.0)
    assert row.p_value == 1.0


def test_a_model_that_turns_undecided_has_lost_what_it_knew() -> None:
    row = transitions(probes([RIGHT] * 3), probes([TIE] * 3), **HOW)[-1]
    assert row.lost == 3


def test_permuting_questions_or_choices_changes_nothing() -> None:
    random = np.random.default_rng(0)
    base, tuned = (probes([tuple(row) for row in random.dirichlet([1, 1, 1], 40)]) for _ in range(2))
    table = transitions(base, tuned, **HOW)
    assert transitions(base[::-1], tuned, **HOW) == table
    turn = [2, 0, 1]

    def turned(rows: list[Probe]) -> list[Probe]:
        return [
            Probe(
                p.id,
                p.domain,
                tuple(p.choices[k] for k in turn),
                turn.index(p.gold),
                tuple(p.probabilities[k] for k in turn),
            )
            for p in rows
        ]

    assert transitions(turned(base), turned(tuned), **HOW) == table


def test_domains_count_by_their_questions_in_the_whole() -> None:
    rows = transitions(probes([WRONG] * 10, ["x"] * 9 + ["y"]), probes([RIGHT] * 9 + [WRONG], ["x"] * 9 + ["y"]), **HOW)
    assert rows[-1].change.value == 0.9


def test_other_questions_are_refused() -> None:
    with pytest.raises(DataError, match="answered different questions"):
        transitions(probes([RIGHT] * 3), probes([RIGHT] * 2), **HOW)
