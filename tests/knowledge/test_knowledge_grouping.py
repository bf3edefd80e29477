"""Groups by what the model knew, and equal groups with the same domains."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import DataError, UserError
from tunescope.knowledge import Probe, equal_groups, group


def one(name: str, top: float, *, right: bool, domain: str = "it") -> Probe:
    rest = (1 - top) / 3
    row = [rest] * 4
    row[0 if right else 2] = top
    return Probe(name, domain, ("a", "b", "c", "d"), 0, tuple(row))


def many(sizes: dict[str, tuple[int, int, int]]) -> list[Probe]:
    """Domain -> harmonious, incompatible, unsure."""
    made = []
    for domain, (known, wrong, unsure) in sizes.items():
        made += [one(f"{domain}-k{i}", 0.9, right=True, domain=domain) for i in range(known)]
        made += [one(f"{domain}-w{i}", 0.8, right=False, domain=domain) for i in range(wrong)]
        made += [one(f"{domain}-u{i}", 0.4, right=bool(i % 2), domain=domain) for i in range(unsure)]
    return made


def test_the_threshold_is_to_be_passed_and_not_only_met() -> None:
    tops = [0.499, 0.5, 0.501]
    found = group([one(f"{top} {right}", top, right=right) for top in tops for right in (True, False)], threshold=0.5)
    assert found.harmonious == ("0.501 True",)
    assert found.incompatible == ("0.501 False",)
    assert len(found.unsure) == 4


def test_a_tie_at_the_top_is_unsure_at_any_threshold() -> None:
    tie = Probe("1", "it", ("a", "b", "c"), 0, (0.45, 0.45, 0.1))
    flat = Probe("2", "it", ("a", "b"), 0, (0.5, 0.5))
    assert group([tie, flat], threshold=0.0).unsure == ("1", "2")


@given(st.integers(0, 1000), st.floats(0, 0.99))
def test_every_question_is_in_exactly_one_group_by_a_naive_rule(seed: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    probes = [
        Probe(str(i), "it", tuple("abcd"), int(random.integers(4)), tuple(random.dirichlet([0.4] * 4)))
        for i in range(30)
    ]
    found = group(probes, threshold=threshold)
    assert sorted(found.harmonious + found.incompatible + found.unsure) == sorted(p.id for p in probes)
    for p in probes:
        sure = max(p.probabilities) > threshold
        right = int(np.argmax(p.probabilities)) == p.gold
        assert p.id in (getattr(found, "unsure" if not sure else "harmonious" if right else "incompatible"))


def test_equal_groups_have_the_same_domains_and_hold_what_they_say() -> None:
    probes = many({"it": (10, 4, 3), "law": (3, 9, 0), "art": (5, 0, 5)})
    found = equal_groups(probes, threshold=0.5, seed=0)
    assert found.per_domain == {"it": 4, "law": 3}
    assert found.size == len(found.harmonious) == len(found.incompatible) == 7
    assert len(set(found.harmonious + found.incompatible)) == 14
    groups = group(probes, threshold=0.5)
    assert set(found.harmonious) <= set(groups.harmonious)
    assert set(found.incompatible) <= set(groups.incompatible)
    for ids in (found.harmonious, found.incompatible):
        assert Counter(name.split("-")[0] for name in ids) == found.per_domain


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5), st.data())
def test_a_size_is_met_exactly_in_proportion_to_the_room(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    room = {f"d{i}": min(pair) for i, pair in enumerate(sizes)}
    total = sum(room.values())
    if not total:
        return
    size = data.draw(st.integers(1, total))
    found = equal_groups(many({f"d{i}": (*pair, 0) for i, pair in enumerate(sizes)}), threshold=0.5, size=size, seed=1)
    assert found.size == size == sum(found.per_domain.values())
    for domain, n in found.per_domain.items():
        assert 0 < n <= room[domain]
        assert abs(n - size * room[domain] / total) < 1


def test_the_remainder_goes_to_the_largest_fraction() -> None:
    probes = many({"it": (4, 4, 0), "law": (1, 1, 0)})
    assert equal_groups(probes, threshold=0.5, size=4, seed=0).per_domain == {"it": 3, "law": 1}


def test_the_draw_follows_the_seed_and_not_the_order_and_grows_with_the_size() -> None:
    probes = many({"it": (30, 25, 5), "law": (20, 30, 5)})
    found = equal_groups(probes, threshold=0.5, size=20, seed=4)
    assert equal_groups(probes[::-1], threshold=0.5, size=20, seed=4) == found
    assert equal_groups(probes, threshold=0.5, size=20, seed=5) != found
    larger = equal_groups(probes, threshold=0.5, size=30, seed=4)
    assert set(found.harmonious) <= set(larger.harmonious)
    assert set(found.incompatible) <= set(larger.incompatible)


def test_only_narrows_the_incompatible_ones() -> None:
    probes = many({"it": (10, 10, 0)})
    found = equal_groups(probes, threshold=0.5, only={"it-w3", "it-w7", "it-k1"}, seed=0)
    assert sorted(found.incompatible) == ["it-w3", "it-w7"]
    assert found.size == 2


def test_groups_that_cannot_be_made_are_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"there are 0 .* \(5 harmonious, 5 incompatible in all\)"):
        equal_groups(many({"it": (5, 0, 0), "law": (0, 5, 0)}), threshold=0.5, seed=0)
    with pytest.raises(DataError, match="asked for 4 questions in each group, there are 3"):
        equal_groups(many({"it": (3, 5, 0)}), threshold=0.5, size=4, seed=0)
    for all_the_same in ((5, 0, 0), (0, 5, 0), (0, 0, 5)):
        with pytest.raises(DataError, match="there are 0"):
            equal_groups(many({"it": all_the_same}), threshold=0.5, seed=0)
    with pytest.raises(UserError, match="size is 0"):
        equal_groups(many({"it": (3, 5, 0)}), threshold=0.5, size=0, seed=0)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="threshold is"):
            group(many({"it": (1, 1, 1)}), threshold=threshold)
