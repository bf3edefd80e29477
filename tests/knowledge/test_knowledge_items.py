"""Training sets: which answer is trained, what the groups share, mixes that are nested."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tunescope.errors import DataError, UserError
from tunescope.knowledge import (
    SHARES,
    EqualGroups,
    Probe,
    Question,
    TrainingItem,
    draw_general,
    equal_groups,
    intervention_sets,
    mix,
    probe,
)


def material(n: int = 40) -> tuple[list[Question], list[Probe]]:
    """Questions of two domains with a context; the base knows every second one and answers c where it does not."""
    questions = [
        Question(f"q{i}", ("it", "law")[i % 4 // 2], f"What is {i}?", ("a", "b", "c"), 0, f"{i} is a.")
        for i in range(n)
    ]
    return questions, [probe(q, [0.8, 0.1, 0.1] if i % 2 else [0.2, 0.1, 0.7]) for i, q in enumerate(questions)]


def sets_of(n: int = 40) -> dict[str, tuple[TrainingItem, ...]]:
    questions, base = material(n)
    return intervention_sets(questions, base, equal_groups(base, threshold=0.5, seed=0))  # type: ignore[return-value]


def test_the_sets_differ_only_in_what_the_base_knew_and_is_told() -> None:
    questions, base = material()
    by_id, answers = {q.id: q for q in questions}, {p.id: p.answer for p in base}
    sets = sets_of()
    assert {kind: len(items) for kind, items in sets.items()} == dict.fromkeys(
        ("harmonious", "incompatible", "self_aligning", "contextualised"), 20
    )
    assert all(item.target == item.gold == answers[item.id] for item in sets["harmonious"])
    assert all(item.target == item.gold != answers[item.id] for item in sets["incompatible"])
    assert all(item.target == answers[item.id] != item.gold for item in sets["self_aligning"])
    assert all(item.target == item.gold for item in sets["contextualised"])
    same = [
        [(i.id, i.domain, i.text, i.choices, i.gold) for i in sets[k]]
        for k in ("incompatible", "self_aligning", "contextualised")
    ]
    assert same[0] == same[1] == same[2]
    assert {i.id for i in sets["harmonious"]} & {i.id for i in sets["incompatible"]} == set()
    assert [i.context for i in sets["contextualised"]] == [by_id[i.id].context for i in sets["contextualised"]]
    assert {i.context for kind in ("harmonious", "incompatible", "self_aligning") for i in sets[kind]} == {""}
    assert all(i.kind == kind for kind, items in sets.items() for i in items)


def test_without_a_context_for_every_question_there_is_no_contextualised_set() -> None:
    questions, base = material()
    groups = equal_groups(base, threshold=0.5, seed=0)
    lacking = [replace(q, context=" ") if q.id == groups.incompatible[0] else q for q in questions]
    assert "contextualised" not in intervention_sets(lacking, base, groups)
    unused = [replace(q, context="") if q.id in groups.harmonious else q for q in questions]
    assert "contextualised" in intervention_sets(unused, base, groups)


def test_groups_that_do_not_fit_their_questions_are_refused() -> None:
    questions, base = material(4)
    groups = EqualGroups(("q1",), ("q0",), {"it": 1})
    for change, message in [
        (replace(groups, harmonious=("q9",)), "'q9' is in a group, but its question or its probe is missing"),
        (replace(groups, harmonious=("q0",)), "'q0' is harmonious, but the base gets it wrong"),
        (replace(groups, incompatible=("q1",)), "'q1' is incompatible, but the base has no wrong answer"),
    ]:
        with pytest.raises(DataError, match=message):
            intervention_sets(questions, base, change)
    with pytest.raises(DataError, match="'q0' differs from its probe"):
        intervention_sets([replace(questions[0], gold=1), *questions[1:]], base, groups)
    tie = replace(base[0], probabilities=(0.2, 0.4, 0.4))
    with pytest.raises(DataError, match="no wrong answer of its own"):
        intervention_sets(questions, [tie, *base[1:]], groups)


def test_a_mix_asks_every_incompatible_question_once_and_has_the_share_it_says() -> None:
    sets = sets_of()
    for share in SHARES:
        items = mix(sets, share, seed=0)  # type: ignore[arg-type]
        assert [item.id for item in items] == [item.id for item in sets["incompatible"]]
        assert sum(item.kind == "self_aligning" for item in items) == int(share * 20 + 0.5)
        assert all((item.target != item.gold) == (item.kind == "self_aligning") for item in items)
    assert mix(sets, 0.0, seed=0) == sets["incompatible"]  # type: ignore[arg-type]
    assert mix(sets, 1.0, seed=0) == sets["self_aligning"]  # type: ignore[arg-type]


def test_mixes_are_nested_and_hold_the_share_in_every_domain() -> None:
    sets = sets_of(80)
    for kind in ("incompatible", "self_aligning"):  # a domain four times as large as the other
        sets[kind] = tuple(replace(item, domain="it" if i % 5 else "law") for i, item in enumerate(sets[kind]))
    before: set[str] = set()
    for share in SHARES:
        items = mix(sets, share, seed=3)  # type: ignore[arg-type]
        own = {item.id for item in items if item.kind == "self_aligning"}
        assert before <= own
        before = own
        sizes = Counter(item.domain for item in items)
        for domain, n in Counter(item.domain for item in items if item.kind == "self_aligning").items():
            assert abs(n - share * sizes[domain]) <= 1
    assert mix(sets, 0.4, seed=3) != mix(sets, 0.4, seed=4)  # type: ignore[arg-type]


def test_a_mix_of_sets_that_do_not_belong_together_is_refused() -> None:
    sets = sets_of()
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="share is"):
            mix(sets, share, seed=0)  # type: ignore[arg-type]
    for broken in ({}, {"incompatible": sets["incompatible"]}, sets | {"self_aligning": sets["self_aligning"][:-1]}):
        with pytest.raises(UserError, match="a mix needs both"):
            mix(broken, 0.5, seed=0)  # type: ignore[arg-type]


def test_general_instructions_are_drawn_without_repeats_and_the_same_for_every_set() -> None:
    ids = [f"g{i}" for i in range(50)]
    drawn = draw_general(ids, 20, seed=1)
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(ids)
    assert draw_general(ids[::-1], 20, seed=1) == drawn
    assert draw_general(ids, 30, seed=1)[:20] == drawn
    assert draw_general(ids, 20, seed=2) != drawn
    assert draw_general([], 0, seed=0) == ()


@pytest.mark.parametrize(
    ("ids", "n", "message"),
    [(["a"], 2, "asked for 2 general instructions and got 1"), (["a", "a"], 1, "repeat"), (["a"], -1, "n is -1")],
)
def test_too_few_general_instructions_are_refused(ids: list[str], n: int, message: str) -> None:
    with pytest.raises((DataError, UserError), match=message):
        draw_general(ids, n, seed=0)


def test_an_item_comes_back_from_json() -> None:
    item = sets_of()["contextualised"][0]
    assert TrainingItem.from_dict(item.to_dict()) == item
