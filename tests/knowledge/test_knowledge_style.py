"""Token shift: classes by rank, style by list and by frequency, positions and edges."""

from __future__ import annotations

import numpy as np
import pytest

from tunescope.errors import UserError
from tunescope.knowledge import Estimate, token_shift

HOW = {"n_bootstrap": 200, "seed": 0}


def test_the_classes_are_first_up_to_third_and_beyond() -> None:
    found = token_shift([[1, 2, 3, 4, 5, 1]], [list("abcdef")], **HOW)
    assert found.unshifted.value == pytest.approx(2 / 6)
    assert found.marginal.value == pytest.approx(2 / 6)
    assert found.shifted.value == pytest.approx(2 / 6)
    assert (found.n_answers, found.n_tokens) == (1, 6)


def test_the_three_shares_add_up_and_weigh_tokens() -> None:
    random = np.random.default_rng(0)
    ranks = [random.integers(1, 9, size) for size in (3, 50, 0, 7)]
    found = token_shift(ranks, [["x"] * len(rows) for rows in ranks], **HOW)
    every = np.concatenate(ranks)
    assert found.unshifted.value == pytest.approx((every == 1).mean())
    assert found.marginal.value == pytest.approx(((every == 2) | (every == 3)).mean())
    assert found.unshifted.value + found.marginal.value + found.shifted.value == pytest.approx(1.0)
    assert found.unshifted.n == 3
    assert found.n_answers == 4


def test_by_frequency_a_token_is_style_if_it_comes_back_in_other_answers() -> None:
    tokens = [
        ["Sure", "!", " The", " pump"],
        [" sure", "!", " A", " valve"],
        ["Ｓｕｒｅ", ".", " It", " leaks"],
        ["No", "!", "x", "y"],
    ]
    ranks = [[9, 9, 1, 9]] * 4
    found = token_shift(ranks, tokens, min_answer_share=0.5, **HOW)
    assert found.stylistic_tokens == {"!": 3, "sure": 3}
    assert found.stylistic.value == pytest.approx(6 / 12)
    assert found.rule == "frequency"
    assert token_shift(ranks, tokens, min_answer_share=0.8, **HOW).stylistic_tokens == {}
    assert token_shift(ranks, tokens, min_answer_share=0.75, **HOW).stylistic_tokens == {"!": 3, "sure": 3}


def test_a_token_repeated_in_one_answer_only_is_no_style() -> None:
    found = token_shift([[9] * 10, [9]], [["ha"] * 10, ["no"]], min_answer_share=0.01, **HOW)
    assert found.stylistic_tokens == {}
    assert found.stylistic.value == 0.0


def test_only_shifted_places_count() -> None:
    found = token_shift([[9, 1], [1, 1], [1, 9]], [["so", "a"], ["so", "b"], ["so", "c"]], **HOW)
    assert found.stylistic_tokens == {}


def test_a_stylistic_token_counts_only_where_it_is_shifted() -> None:
    found = token_shift([[9, 1, 9], [9, 2, 1]], [["so", "so", "pump"], ["so", "so", "so"]], **HOW)
    assert found.stylistic_tokens == {"so": 2}
    assert found.stylistic.value == pytest.approx(2 / 3)


def test_by_list_only_the_listed_tokens_are_style() -> None:
    found = token_shift([[9, 9], [9, 1]], [["Sure", " pump"], ["sure", "x"]], stylistic=["SURE", "unused"], **HOW)
    assert found.stylistic_tokens == {"sure": 2}
    assert found.stylistic.value == pytest.approx(2 / 3)
    assert found.rule == "list"
    assert token_shift([[9]], [["Sure"]], stylistic=[], **HOW).stylistic.value == 0.0


def test_white_space_is_a_token_of_its_own() -> None:
    found = token_shift([[9, 9], [9, 9]], [["\n", "a"], ["\n", "b"]], **HOW)
    assert found.stylistic_tokens == {"\n": 2}


def test_answers_without_spaces_between_words_are_counted_by_their_tokens() -> None:
    found = token_shift([[9, 1, 9], [9, 9, 1]], [["はい", "、", "ポンプ"], ["はい", "弁", "。"]], **HOW)
    assert found.stylistic_tokens == {"はい": 2}


def test_the_share_along_the_answer_is_in_ranges_that_double() -> None:
    found = token_shift([[9, 1, 1, 9, 9, 9], [9, 9]], [["a"] * 6, ["b"] * 2], **HOW)
    assert found.by_position == ((0, 0, 2, 1.0), (1, 1, 2, 0.5), (2, 3, 2, 0.5), (4, 5, 2, 1.0))
    assert sum(n for _, _, n, _ in found.by_position) == found.n_tokens


def test_without_tokens_or_without_shifts_there_is_no_share() -> None:
    empty = token_shift([[], []], [[], []], **HOW)
    assert empty.unshifted == empty.shifted == empty.stylistic == Estimate(None, None, None, 0)
    assert empty.by_position == ()
    same = token_shift([[1, 1], [1]], [["a", "b"], ["c"]], **HOW)
    assert same.unshifted.value == 1.0
    assert same.unshifted.low < 0.6
    assert same.stylistic.value is None


def test_one_answer_cannot_tell_style_by_frequency() -> None:
    found = token_shift([[9, 9]], [["a", "b"]], **HOW)
    assert found.stylistic.value is None
    assert found.shifted.value == 1.0


def test_the_order_of_the_answers_changes_nothing() -> None:
    random = np.random.default_rng(1)
    ranks = [random.integers(1, 9, int(size)).tolist() for size in random.integers(1, 12, 20)]
    tokens = [[f"t{rank}" for rank in rows] for rows in ranks]
    assert token_shift(ranks[::-1], tokens[::-1], **HOW) == token_shift(ranks, tokens, **HOW)


@pytest.mark.parametrize(
    ("ranks", "tokens", "message"),
    [
        ([], [], "at least one answer"),
        ([[1]], [], "ranks of 1 answers and tokens of 0"),
        ([[1, 2]], [["a"]], "one rank per token"),
        ([[0]], [["a"]], "the rank 0"),
        ([[1.5]], [["a"]], "the rank 1.5"),
        ([[float("nan")]], [["a"]], "the rank nan"),
        ([[[1]]], [["a"]], "one rank per token"),
    ],
)
def test_ranks_that_are_none_are_refused(ranks, tokens, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        token_shift(ranks, tokens, **HOW)


def test_a_share_that_is_none_is_refused() -> None:
    for share in (0, 1.1, float("nan")):
        with pytest.raises(UserError, match="min_answer_share is"):
            token_shift([[1]], [["a"]], min_answer_share=share, **HOW)
