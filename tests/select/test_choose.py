"""Choosing blocks: by score, at random with the same budget, by name; and never silently nothing."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import ModelError, UserError
from tunescope.runs.records import Bands, LayerScores
from tunescope.select import above_shared_first, budget_layers, choose_random, choose_top, match_layers, put_last

LAYERS = tuple(f"block.{i}" for i in range(30))


def scores(values: list[float]) -> LayerScores:
    return LayerScores("gradient_norm", "1", LAYERS[: len(values)], tuple(values), n=8, higher_means="moves")


value_lists = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


@given(st.integers(1, 200), st.floats(0, 1, exclude_min=True))
def test_a_budget_is_at_least_one_block_and_at_most_all(n_layers: int, share: float) -> None:
    count = budget_layers(n_layers, share)
    assert 1 <= count <= n_layers
    assert abs(count - n_layers * share) <= 0.5 or count == 1


@given(st.integers(1, 200))
def test_a_whole_budget_is_every_block(n_layers: int) -> None:
    assert budget_layers(n_layers, 1) == n_layers


@pytest.mark.parametrize("share", [0, -0.1, 1.0001, math.inf, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="must be above 0 and at most 1"):
        budget_layers(30, share)


@given(value_lists, st.data())
def test_no_block_left_out_scores_more_than_a_chosen_one(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    chosen = choose_top(scores(values), count)
    assert len(set(chosen)) == count
    assert list(chosen) == sorted(chosen, key=LAYERS.index)
    inside = [v for layer, v in zip(LAYERS, values, strict=False) if layer in chosen]
    outside = [v for layer, v in zip(LAYERS, values, strict=False) if layer not in chosen]
    assert not outside or min(inside) >= max(outside)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30), st.data())
def test_only_the_order_of_the_scores_counts(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    assert choose_top(scores([v**3 + 2.0 * v for v in values]), count) == choose_top(
        scores([float(v) for v in values]), count
    )


def test_ties_go_to_the_upper_block() -> None:
    assert choose_top(scores([1.0] * 5), 2) == ("block.3", "block.4")
    assert choose_top(scores([5.0, 1.0, 1.0, 0.0]), 2) == ("block.0", "block.2")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused_by_name(bad: float) -> None:
    with pytest.raises(UserError, match=r"scores gradient_norm: not finite at block\.1;"):
        choose_top(scores([1.0, bad, 2.0]), 1)


@pytest.mark.parametrize("count", [0, -1, 4])
def test_a_count_that_cannot_be_had_is_refused(count: int) -> None:
    with pytest.raises(UserError, match="the model has 3; allowed: 1 to 3"):
        choose_top(scores([1.0, 2.0, 3.0]), count)
    with pytest.raises(UserError, match="the model has 3; allowed: 1 to 3"):
        choose_random(LAYERS[:3], count, seed=0)


@given(st.integers(1, 30), st.integers(0, 2**31 - 1), st.data())
def test_a_random_choice_has_the_budget_and_the_order_of_the_model(n: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n))
    chosen = choose_random(LAYERS[:n], count, seed=seed)
    assert len(set(chosen)) == count
    assert list(chosen) == sorted(chosen, key=LAYERS[:n].index)
    assert chosen == choose_random(LAYERS[:n], count, seed=seed)


@given(st.integers(2, 12), st.integers(0, 2**31 - 1), st.data())
def test_a_random_choice_differs_from_what_it_is_compared_with(n: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n - 1))
    avoid = tuple(data.draw(st.permutations(LAYERS[:n]))[:count])
    assert set(choose_random(LAYERS[:n], count, seed=seed, avoid=avoid)) != set(avoid)


def test_with_every_block_there_is_nothing_else_to_choose() -> None:
    assert choose_random(LAYERS, 30, seed=0, avoid=LAYERS) == LAYERS


def test_every_choice_is_as_likely_as_another() -> None:
    counts = Counter(choose_random(LAYERS[:4], 2, seed=seed) for seed in range(1200))
    assert len(counts) == 6
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 15.1  # chi-square with 5 degrees of freedom at 0.99


def test_avoiding_one_choice_leaves_the_others_equally_likely() -> None:
    counts = Counter(choose_random(LAYERS[:4], 2, seed=seed, avoid=("block.1", "block.0")) for seed in range(1000))
    assert len(counts) == 5
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 13.3  # 4 degrees of freedom


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["block.20"], [20]),
        (["20"], [20]),
        ([" block.20 "], [20]),
        (["block.2?"], range(20, 30)),
        (["block.[01]"], [0, 1]),
        (["block.*"], range(30)),
        (["block.20-22"], [20, 21, 22]),
        (["20-22"], [20, 21, 22]),
        (["block.20 - block.22"], [20, 21, 22]),
        (["5-5"], [5]),
        (["0-29"], range(30)),
        (["7", "block.3", "3", "2-4"], [2, 3, 4, 7]),
    ],
)
def test_a_pattern_means_these_blocks(patterns: list[str], wanted: list[int]) -> None:
    assert match_layers(patterns, LAYERS) == tuple(f"block.{i}" for i in wanted)


@pytest.mark.parametrize(
    "pattern", ["block.30", "30", "29-30", "22-20", "blok.3", "", "layers.3", "Block.3", "-3", "model.layers.3"]
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(ModelError, match=r"matches nothing.*this model has block\.0 to block\.29"):
        match_layers(["block.1", pattern], LAYERS)


def test_the_nearest_real_name_is_offered() -> None:
    with pytest.raises(ModelError, match=r"'blok\.12' matches nothing \(did you mean block\.12"):
        match_layers(["blok.12"], LAYERS)


def test_all_wrong_patterns_are_named_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        match_layers(["block.99", "block.1", "x"], LAYERS)
    assert [problem.split("'")[1] for problem in caught.value.problems] == ["block.99", "x"]


def test_no_pattern_at_all_is_an_error() -> None:
    with pytest.raises(ModelError, match="no layer pattern"):
        match_layers([], LAYERS)


# The order of a layer map.

MAPPED = tuple(f"block.{i}" for i in range(6))


def mapped(*values: float) -> LayerScores:
    return LayerScores("change", "1", MAPPED, values, n=8, higher_means="changes more")


def by_hand(scores: LayerScores, above: set[str], count: int) -> tuple[str, ...]:
    """The rule in words: from above the shared band by score, then from the rest; of equal scores the upper block."""
    rest = {name: (value, i) for i, (name, value) in enumerate(zip(scores.layers, scores.values, strict=True))}
    chosen: list[str] = []
    for part in (above, set(MAPPED) - above):
        chosen += sorted(part, key=lambda name: rest[name], reverse=True)
    return tuple(name for name in MAPPED if name in chosen[:count])


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("boundaries", [(1, 2), (2, 4), (4, 6), (0, 3), None])
@pytest.mark.parametrize(
    "values", [(0.5, 0.1, 0.4, 0.2, 0.3, 0.0), (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (3, -1, 2, 2, -1, 0)]
)
def test_a_map_fills_a_budget_from_above_the_shared_band_by_its_scores(
    values: tuple[float, ...], boundaries: tuple[int, int] | None, count: int
) -> None:
    scores = mapped(*values)
    bands = Bands(boundaries is not None, "test", MAPPED, boundaries=boundaries)
    above = set(MAPPED[boundaries[0] :]) if boundaries else set()
    assert choose_top(above_shared_first(scores, bands), count) == by_hand(scores, above, count)


def test_only_the_order_of_the_scores_of_a_map_counts() -> None:
    scores = mapped(0.5, 0.1, 0.4, 0.2, 0.3, 0.0)
    scaled = mapped(*(10 * value - 3 for value in scores.values))
    assert above_shared_first(scores, None).values == above_shared_first(scaled, None).values
    assert sorted(above_shared_first(scores, None).values) == [1, 2, 3, 4, 5, 6]


def test_a_map_with_numbers_that_are_none_or_bands_of_other_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"not finite at block\.2"):
        above_shared_first(mapped(0, 0, float("nan"), 0, 0, 0), None)
    with pytest.raises(UserError, match="the bands are over 2 blocks and the scores change over 6"):
        above_shared_first(mapped(0, 0, 0, 0, 0, 0), Bands(True, "", MAPPED[:2], boundaries=(0, 1)))


@pytest.mark.parametrize("last", [["block.0"], ["block.2", "block.4"], ["block.0", "block.5"]])
def test_put_last_keeps_the_order_of_both_parts(last: list[str]) -> None:
    scores = mapped(0.9, 0.1, 0.95, 0.3, 0.7, 0.95)
    values = dict(zip(MAPPED, scores.values, strict=True))
    wanted = sorted(MAPPED, key=lambda name: (name in last, -values[name], -int(name.removeprefix("block."))))
    for count in range(1, 7):
        assert set(choose_top(put_last(scores, last), count)) == set(wanted[:count])


def test_put_last_of_none_or_of_all_changes_nothing() -> None:
    scores = mapped(0.9, 0.1, 0.95, 0.3, 0.7, 0.95)
    assert put_last(scores, []) is scores
    assert put_last(scores, MAPPED) is scores
    with pytest.raises(ModelError, match="matches nothing"):
        put_last(scores, ["block.9"])
    with pytest.raises(UserError, match="not finite"):
        put_last(mapped(0, 0, float("nan"), 0, 0, 0), ["block.0"])
