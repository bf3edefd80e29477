"""One table of promises for all policies, and what each of them promises alone."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter

import numpy as np
import pytest

from tunescope import replay
from tunescope.errors import UserError
from tunescope.replay import POLICIES, Chosen, PoolTask, ReplayPool
from tunescope.replay.policies import inscl, inscl_without_information

INSTRUCTIONS = ["Sort the list.", "Count the words.", "Translate the text.", "要約してください。", "Name the author."]


def task(name: str, n: int, k: int, shuffle: int = 0) -> PoolTask:
    """A task of `n` examples over `k` instructions; `shuffle` changes the order of the examples and nothing else."""
    rng = np.random.default_rng(sum(map(ord, name)))
    instructions = [f"{INSTRUCTIONS[i % 5]} {name} {i}" for i in range(k)]
    texts = [instructions[i % k] for i in range(n)]
    ids = [f"{name}{i:03}" for i in range(n)]
    distinct = replay.group_instructions(texts).texts
    embeddings = rng.normal(size=(len(distinct), 6))
    vectors = rng.normal(size=(n, 6))
    tags = [["task", name][: 1 + i % 2] + [text] * (i % 3 == 0) for i, text in enumerate(distinct)]
    order = np.random.default_rng(shuffle).permutation(n) if shuffle else np.arange(n)
    return PoolTask.build(
        name,
        [ids[i] for i in order],
        [texts[i] for i in order],
        embeddings=embeddings,
        example_embeddings=vectors[order],
        tags=tags,
    )


def pool(shuffle: int = 0) -> ReplayPool:
    earlier = [
        task("a", 40, 7, shuffle),
        task("b", 9, 1, shuffle),
        task("c", 25, 25, shuffle),
        task("d", 1, 1, shuffle),
    ]
    return ReplayPool(task("now", 30, 3, shuffle), tuple(earlier[:: -1 if shuffle else 1]))


def by_length(pool: ReplayPool, budget: int, seed: int) -> list[Chosen]:
    """What a user might write: the first examples by id of the largest tasks."""
    everything = [(one.name, name) for one in sorted(pool.ordered, key=len, reverse=True) for name in one.ids]
    return [Chosen(t, name, {"code": "mine"}) for t, name in sorted(everything[:budget])]


ALL = POLICIES | {
    "similar": functools.partial(inscl, allocation="similarity"),
    "random in distance": functools.partial(inscl_without_information, allocation="even"),
    "a user's own": by_length,
}
CHOOSING = [name for name in ALL if name not in ("none", "joint")]


@pytest.fixture(scope="module")
def choices():
    """What each policy chooses, each budget and seed once."""
    return functools.cache(lambda name, budget, seed=0, shuffle=0: ALL[name](pool(shuffle), budget, seed))


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 11, 40, 74, 75, 1000])
@pytest.mark.parametrize("name", CHOOSING)
def test_a_policy_chooses_the_budget_or_all_there_is(name, budget, choices):
    assert len(choices(name, budget)) == min(budget, 75)


@pytest.mark.parametrize("budget", [1, 11, 40, 1000])
@pytest.mark.parametrize("name", list(ALL))
def test_a_choice_is_an_example_of_an_earlier_task_once_in_order_with_a_reason(name, budget, choices):
    chosen = choices(name, budget)
    there = {(one.name, i) for one in pool().earlier for i in one.ids}
    keys = [(one.task, one.id) for one in chosen]
    assert set(keys) <= there
    assert keys == sorted(set(keys))
    for one in chosen:
        assert isinstance(one.reason["code"], str)
        assert json.loads(json.dumps(dict(one.reason), allow_nan=False)) == one.reason


@pytest.mark.parametrize("budget", [3, 11, 40])
@pytest.mark.parametrize("name", list(ALL))
def test_the_order_of_tasks_and_examples_changes_nothing(name, budget, choices):
    assert choices(name, budget, 3) == choices(name, budget, 3, shuffle=1)


@pytest.mark.parametrize("name", list(ALL))
def test_the_same_seed_gives_the_same(name, choices):
    assert ALL[name](pool(), 20, 7) == choices(name, 20, 7)


@pytest.mark.parametrize("name", [name for name in CHOOSING if name not in ("prototype_data", "a user's own")])
def test_another_seed_gives_another(name, choices):
    assert len({tuple(c.id for c in choices(name, 30, seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize("name", list(ALL))
def test_without_earlier_tasks_nothing_is_replayed(name):
    assert ALL[name](ReplayPool(task("now", 3, 1), ()), 10, 0) == []


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_negative_budget_is_refused(name):
    with pytest.raises(UserError, match="budget -1"):
        POLICIES[name](pool(), -1, 0)


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("inscl", "tags", "'a': has no tags"),
        ("inscl_without_distance", "tags", "'a': has no tags"),
        ("inscl", "embeddings", "'now': policy inscl needs embeddings of its instructions"),
        ("inscl_without_information", "embeddings", "needs embeddings of its instructions"),
        ("prototype_instruction", "embeddings", "'a': policy prototype_instruction needs"),
        ("diverse_instruction", "embeddings", "'a': policy diverse_instruction needs"),
        ("prototype_data", "example_embeddings", "'a': policy prototype_data needs embeddings of its examples"),
    ],
)
def test_what_a_policy_rests_on_is_asked_for_by_name(name, missing, message):
    whole = pool()
    tasks = [dataclasses.replace(one, **{missing: None}) for one in (*whole.earlier, whole.current)]
    with pytest.raises(UserError, match=message):
        POLICIES[name](ReplayPool(tasks[-1], tuple(tasks[:-1])), 5, 0)


def test_none_keeps_nothing_and_joint_everything():
    assert POLICIES["none"](pool(), 50, 0) == []
    assert len(POLICIES["joint"](pool(), 5, 0)) == 75


def test_random_gives_every_example_the_same_chance():
    drawn = Counter((c.task, c.id) for seed in range(1500) for c in POLICIES["random"](pool(), 5, seed))
    assert len(drawn) == 75
    assert max(abs(n - 100) for n in drawn.values()) < 5 * 10


def test_inscl_shares_by_distance_and_its_ablations_do_not_differ_in_the_rest():
    distances = {"a": 0.3, "b": 0.1, "c": 0.1, "d": 0.0}
    whole = ReplayPool(pool().current, pool().earlier, distances)
    quotas = dict(zip("abcd", replay.allocate([0.3, 0.1, 0.1, 0.0], 20, available=[40, 9, 25, 1]), strict=True))
    counts = {name: Counter(c.task for c in POLICIES[name](whole, 20, 0)) for name in POLICIES}
    assert counts["inscl"] == counts["inscl_without_information"] == {t: n for t, n in quotas.items() if n}
    assert counts["inscl_without_distance"] == {"a": 7, "b": 6, "c": 6, "d": 1}
    nearer = Counter(c.task for c in inscl(whole, 20, 0, allocation="similarity"))
    assert nearer["a"] < nearer["c"]


def test_distances_that_are_not_given_are_computed():
    one = pool()
    distances = {
        t.name: replay.wasserstein(t.embeddings, one.current.embeddings, t.grouped.counts, one.current.grouped.counts)
        for t in one.earlier
    }
    given = ReplayPool(one.current, one.earlier, distances)
    assert POLICIES["inscl"](one, 20, 0) == POLICIES["inscl"](given, 20, 0)


def test_inscl_counts_the_tags_of_the_current_task_too():
    old = PoolTask.build("old", ["1", "2"], ["A", "B"], tags=[["p"], ["q"]])
    for tags, expected in ((["p"], "2"), (["q"], "1")):  # the tag that the current task shares says less
        now = PoolTask.build("now", ["1"], ["C"], tags=[tags])
        (chosen,) = inscl(ReplayPool(now, (old,), {"old": 0.1}), 1, 0)
        assert chosen.id == expected
        assert chosen.reason == {"code": "top_information", "information": np.log(3), "quota": 1, "distance": 0.1}


def test_prototypes_of_data_are_the_middles_of_its_clusters():
    rng = np.random.default_rng(0)
    centres = np.eye(4)[:3] * 10
    vectors = np.vstack([centres, *(c + rng.normal(size=(20, 4)) for c in centres)])
    old = PoolTask.build("old", [f"{i:03}" for i in range(63)], ["A"] * 63, example_embeddings=vectors)
    chosen = POLICIES["prototype_data"](ReplayPool(task("now", 1, 1), (old,)), 3, 0)
    found = np.array([vectors[int(c.id)] for c in chosen])
    assert sorted(np.argmax(found, axis=1).tolist()) == [0, 1, 2]
    assert max(c.reason["distance_to_centre"] for c in chosen) < 0.01


def test_prototypes_among_equal_examples_are_still_as_many_as_wanted():
    old = PoolTask.build("old", list("abcdef"), ["A"] * 6, example_embeddings=np.ones((6, 3)))
    chosen = POLICIES["prototype_data"](ReplayPool(task("now", 1, 1), (old,)), 4, 0)
    assert [c.id for c in chosen] == list("abcd")


def test_prototypes_of_instructions_come_before_others():
    rng = np.random.default_rng(1)
    centres = np.eye(5)[:2] * 10
    vectors = np.vstack([centres, *(c + rng.normal(size=(10, 5)) for c in centres)])
    texts = [f"instruction {i:02}" for i in range(22) for _ in range(4)]
    old = PoolTask.build("old", [f"{i:03}" for i in range(88)], texts, embeddings=vectors)
    chosen = POLICIES["prototype_instruction"](ReplayPool(task("now", 1, 1), (old,)), 12, 0)
    codes = Counter(c.reason["code"] for c in chosen)
    assert codes == {"prototype_instruction": 8, "top_up": 4}
    central = {int(c.id) // 4 for c in chosen if c.reason["code"] == "prototype_instruction"}
    assert sorted(k if k < 2 else (k - 2) // 10 for k in central) == [0, 1]
    assert {c.reason["n_prototypes"] for c in chosen} == {2}


def test_diverse_instructions_are_far_from_the_current_task_and_from_each_other():
    vectors = np.array([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [-1.0, 0.05]])
    old = PoolTask.build("old", list("abcdefgh"), [f"i{k}" for k in (0, 1, 2, 3) for _ in "xy"], embeddings=vectors)
    now = PoolTask.build("now", ["1"], ["C"], embeddings=np.array([[1.0, 0.0]]))
    ranks = {c.id: c.reason["rank"] for c in POLICIES["diverse_instruction"](ReplayPool(now, (old,)), 4, 0)}
    kept = sorted("abcdefgh".index(i) // 2 for i in ranks)
    assert kept == [0, 1, 2, 3]  # one of each before any second
    by_instruction = {"abcdefgh".index(i) // 2: rank for i, rank in ranks.items()}
    assert by_instruction[3] == 0  # opposite to the current task
    assert by_instruction[1] == 3 or by_instruction[0] == 3  # one of the two that are nearly the same comes last
    twice = POLICIES["diverse_instruction"](ReplayPool(now, (old,)), 6, 0)
    assert Counter("abcdefgh".index(c.id) // 2 for c in twice)[3] == 2


def test_identical_tasks_share_evenly():
    one = task("a", 12, 3)
    same = [PoolTask(name, one.ids, one.grouped, one.embeddings, one.example_embeddings, one.tags) for name in "abc"]
    now = PoolTask("now", one.ids, one.grouped, one.embeddings, one.example_embeddings, one.tags)
    counts = Counter(c.task for c in POLICIES["inscl"](ReplayPool(now, tuple(same)), 9, 0))
    assert counts == {"a": 3, "b": 3, "c": 3}
