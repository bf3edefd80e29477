"""Demonstrations: which finished examples stand before a prompt, and that none gives the answer away."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.data import Demonstrations, Example, prompt_key
from tunescope.errors import DataError

WORDS = ["pump", "valve", "seal", "belt", "screen", "printer", "mail", "badge", "door", "水", "漏れ", "ポンプ", "画面"]


def row(name: str, text: str, answer: str = "it", *, instruction: str = "Which desk?", **more) -> Example:
    return Example(name, "desk", instruction, text, (answer,), file="a.jsonl", line=int(name) + 1, **more)


def pool(n: int, seed: int = 0) -> list[Example]:
    dice = random.Random(seed)
    return [row(str(i), f"{i} " + " ".join(dice.choices(WORDS, k=6))) for i in range(n)]


def test_the_first_are_the_same_before_every_prompt_in_file_order():
    rows = pool(6)
    shown = Demonstrations(rows, 2)
    assert [shown(e) for e in rows[2:]] == [(rows[0], rows[1])] * 4


@pytest.mark.parametrize("same", [row("9", "  PUMP broken\n"), row("8", "pump broken", "hr")])
def test_a_prompt_that_is_itself_a_demonstration_is_refused_by_line(same):
    rows = [row("0", "pump broken"), row("1", "mail down")]
    with pytest.raises(
        DataError, match=rf"a\.jsonl:{same.line}: asks the same as a demonstration \(a\.jsonl:1 is one\)"
    ):
        Demonstrations(rows, 2)(same)


def test_the_same_last_turn_after_other_turns_is_another_prompt():
    rows = [row("0", "and now?", history=(("user", "pump"), ("assistant", "it")))]
    assert Demonstrations(rows, 1)(row("1", "and now?"))
    assert prompt_key(rows[0]) != prompt_key(row("1", "and now?"))


@pytest.mark.parametrize("choice", ["first", "random", "nearest"])
def test_too_few_are_refused_with_both_numbers(choice):
    with pytest.raises(DataError, match="3 demonstrations are wanted and there are 2"):
        Demonstrations(pool(2), 3, choice=choice)
    with pytest.raises(DataError, match="1 demonstrations are wanted and there are 0"):
        Demonstrations([], 1, choice=choice)


@pytest.mark.parametrize("choice", ["random", "nearest"])
def test_an_example_whose_likes_are_all_the_pool_has_too_few_left(choice):
    rows = pool(2)
    with pytest.raises(DataError, match=r"2 demonstrations are wanted for a\.jsonl:1 and there are 1"):
        Demonstrations(rows, 2, choice=choice)(rows[0])


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Demonstrations(pool(2), 0)
    with pytest.raises(ValueError, match="first, random, nearest"):
        Demonstrations(pool(2), 1, choice="best")  # type: ignore[arg-type]


@given(st.integers(0, 5), st.integers(1, 3), st.sampled_from(["random", "nearest"]))
@settings(max_examples=30, deadline=None)
def test_neither_the_order_of_the_pool_nor_of_the_questions_changes_what_is_shown(seed, count, choice):
    rows = pool(12, seed)
    asked = [*rows, row("50", "pump pump valve"), row("51", "画面 水")]
    one = Demonstrations(rows, count, choice=choice, seed=seed)
    shuffled = random.Random(seed + 1).sample(rows, len(rows))
    other = Demonstrations(shuffled, count, choice=choice, seed=seed)
    backwards = {e.id: other(e) for e in reversed(asked)}
    for example in asked:
        shown = one(example)
        assert shown == backwards[example.id]
        assert len(shown) == count == len({e.id for e in shown})
        assert prompt_key(example) not in map(prompt_key, shown)


def test_drawn_demonstrations_differ_from_question_to_question_and_with_the_seed():
    rows = pool(30)
    drawn = {tuple(d.id for d in Demonstrations(rows, 2, choice="random", seed=1)(e)) for e in rows}
    assert len(drawn) > 25
    other = Demonstrations(rows, 2, choice="random", seed=2)
    assert sum(other(e) == Demonstrations(rows, 2, choice="random", seed=1)(e) for e in rows) < 5


def test_every_example_of_the_pool_is_drawn_about_equally_often():
    rows = pool(10)
    shown = Demonstrations(rows, 1, choice="random")
    counts = np.bincount([int(shown(row(str(100 + i), f"question {i}"))[0].id) for i in range(2000)], minlength=10)
    assert counts.min() > 140 and counts.max() < 260  # 200 each, four standard deviations are 54


def test_the_nearest_are_those_of_scikit_learns_vectors():
    vectors = pytest.importorskip("sklearn.feature_extraction.text")
    rows = pool(40, seed=3)
    texts = [e.input.casefold() for e in rows]
    index = vectors.TfidfVectorizer(analyzer="char", ngram_range=(3, 3), lowercase=False).fit(texts)
    known = index.transform(texts)
    shown = Demonstrations(rows, 4, choice="nearest")
    for i, text in enumerate(["pump valve belt", "水 漏れ ポンプ", "badge wage leave door"]):
        likeness = (known @ index.transform([text]).T).toarray()[:, 0]
        best = np.argsort(-likeness, kind="stable")[:4]
        got = shown(row(str(100 + i), text))
        np.testing.assert_allclose(sorted(likeness[best]), sorted(likeness[int(e.id)] for e in got), atol=1e-9)
        assert likeness[int(got[-1].id)] == pytest.approx(likeness[best[0]])  # the most similar stands last


def test_the_nearest_look_at_the_input_and_not_at_the_instruction_that_all_share():
    rows = [row("0", "水漏れがひどい"), row("1", "ポンプの音が大きい"), row("2", "画面が暗い")]
    assert Demonstrations(rows, 1, choice="nearest")(row("9", "ポンプの音がする"))[0].id == "1"
    bare = [row(str(i), "", instruction=text) for i, text in enumerate(["Add two and two.", "Name a bird."])]
    assert Demonstrations(bare, 1, choice="nearest")(row("9", "", instruction="Name a fish."))[0].id == "1"


def test_texts_shorter_than_a_trigram_and_unlike_anything_still_get_demonstrations():
    rows = [row("0", "a"), row("1", "é"), row("2", "🙂")]
    assert len(Demonstrations(rows, 2, choice="nearest")(row("9", "zzz"))) == 2
    assert Demonstrations(rows, 1, choice="nearest")(row("9", "🙂 "))[0].id in ("0", "1")  # its own text is passed over


def test_earlier_turns_of_a_demonstration_are_shown_with_it():
    before = row("0", "and now?", history=(("user", "pump"), ("assistant", "it")))
    said = [m["content"] for m in row("1", "mail").messages([before])]
    assert said == ["pump", "it", "Which desk?\n\nand now?", "it", "Which desk?\n\nmail"]
