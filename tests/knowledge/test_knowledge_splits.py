"""Train and the three tests: no question on both sides, whatever its id, its domain or its spelling."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunescope.errors import DataError, UserError
from tunescope.knowledge import Question, split_tests
from tunescope.knowledge.questions import overlaps


def questions(n: int, domain: str = "it", prefix: str = "s") -> list[Question]:
    return [Question(f"{prefix}{domain}{i}", domain, f"What is {domain} {i}?", ("a", "b"), i % 2) for i in range(n)]


def copies(source: list[Question], prefix: str = "c") -> list[Question]:
    return [
        replace(
            q, id=prefix + q.id, domain="other", text=f" {q.text.upper()}", choices=q.choices[::-1], gold=1 - q.gold
        )
        for q in source
    ]


def test_every_domain_gives_its_share_and_nothing_is_lost() -> None:
    source = questions(40) + questions(10, "law")
    split = split_tests(source, test_fraction=0.3, seed=0)
    assert sorted(q.id for q in split.train + split.homo) == sorted(q.id for q in source)
    assert [sum(q.domain == d for q in split.homo) for d in ("it", "law")] == [12, 3]
    assert split.in_domain == split.out_of_domain == ()


def test_the_split_follows_the_seed_and_not_the_order() -> None:
    source = questions(40)
    split = split_tests(source, test_fraction=0.3, seed=0)
    assert {q.id for q in split_tests(source[::-1], test_fraction=0.3, seed=0).homo} == {q.id for q in split.homo}
    assert {q.id for q in split_tests(source, test_fraction=0.3, seed=1).homo} != {q.id for q in split.homo}


def test_equal_texts_stay_on_one_side() -> None:
    source = questions(30)
    twins = [replace(q, id=f"t{q.id}", text=q.text.lower(), choices=("x", "y", *q.choices)) for q in source]
    for seed in range(5):
        split = split_tests(source + twins, test_fraction=0.4, seed=seed)
        assert {q.text.lower() for q in split.train} & {q.text.lower() for q in split.homo} == set()
        assert len(split.homo) == 24


def test_a_held_out_question_that_is_trained_under_another_domain_is_left_out() -> None:
    source = questions(10) + [replace(q, id=f"l{q.id}", domain="law") for q in questions(10)] + questions(10, "law")
    found = 0
    for seed in range(6):
        split = split_tests(source, test_fraction=0.3, seed=seed)
        assert overlaps(split.homo, split.train) == []
        found += len(split.left_out["homo"])
        assert len(split.train) + len(split.homo) + len(split.left_out["homo"]) == 30
    assert found > 0


def test_a_test_question_that_is_in_the_source_is_left_out_and_named() -> None:
    source = questions(10)
    fresh = questions(5, "law", "o")
    split = split_tests(
        source, in_domain=copies(source[:2]) + questions(3, "it2", "i"), out_of_domain=fresh, test_fraction=0.3, seed=0
    )
    assert split.left_out["in_domain"] == ("csit0", "csit1")
    assert [q.id for q in split.in_domain] == ["iit20", "iit21", "iit22"]
    assert split.out_of_domain == tuple(fresh)
    assert split.left_out["out_of_domain"] == ()


@pytest.mark.parametrize("role", ["in_domain", "out_of_domain"])
def test_a_test_set_that_is_the_training_file_is_refused(role: str) -> None:
    source = questions(10)
    with pytest.raises(DataError, match=rf"all 10 {role} questions also stand in the source of training \(leakage\)"):
        split_tests(source, **{role: copies(source)}, test_fraction=0.3, seed=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="id 'sit0' occurs 2 times"):
        split_tests(source, **{role: source}, test_fraction=0.3, seed=0)  # type: ignore[arg-type]


def test_both_sets_are_told_at_once() -> None:
    source = questions(10)
    with pytest.raises(DataError) as refused:
        split_tests(source, in_domain=copies(source, "a"), out_of_domain=copies(source, "b"), test_fraction=0.3, seed=0)
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    "source", [questions(1), questions(1) + questions(1, "law"), [replace(q, text="?") for q in questions(9)]]
)
def test_a_source_that_cannot_be_split_is_refused(source: list[Question]) -> None:
    with pytest.raises(DataError, match="leave none to hold out"):
        split_tests(source, test_fraction=0.5, seed=0)


def test_one_of_two_questions_can_be_held_out_and_one_is_always_left() -> None:
    assert len(split_tests(questions(2), test_fraction=0.5, seed=0).train) == 1
    assert len(split_tests(questions(3), test_fraction=0.99, seed=0).train) == 1


def test_wrong_settings_and_no_questions_are_refused() -> None:
    for fraction in (0, 1, float("nan")):
        with pytest.raises(UserError, match="test_fraction is"):
            split_tests(questions(9), test_fraction=fraction, seed=0)
    with pytest.raises(DataError, match="got no questions"):
        split_tests([], test_fraction=0.3, seed=0)
    with pytest.raises(DataError, match="got no questions to train on"):
        split_tests([], in_domain=questions(3), test_fraction=0.3, seed=0)
