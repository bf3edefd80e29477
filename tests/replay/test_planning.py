from __future__ import annotations

import json

import numpy as np
import pytest

from tunescope.errors import IntegrityError, UserError
from tunescope.replay import InstructionSet, planning, task_distances, wasserstein


def tasks(n: int = 4, k: int = 6, d: int = 5) -> list[InstructionSet]:
    rng = np.random.default_rng(0)
    return [
        InstructionSet(f"t{i}", rng.normal(size=(k, d)).astype(np.float32), rng.integers(1, 9, k)) for i in range(n)
    ]


@pytest.fixture
def solved(monkeypatch):
    """Counts the pairs that are really computed."""
    calls = []
    original = planning.sampled_wasserstein

    def counted(*arguments, **more):
        calls.append(1)
        return original(*arguments, **more)

    monkeypatch.setattr(planning, "sampled_wasserstein", counted)
    return calls


def test_every_distance_is_that_of_the_pair_in_the_order_given():
    *earlier, current = tasks()
    found = list(task_distances(current, earlier, seed=0))
    assert [(one.task, one.current, one.exact, one.n_instructions) for one in found] == [
        (f"t{i}", "t3", True, 6) for i in range(3)
    ]
    for one, task in zip(found, earlier, strict=True):
        assert one.value == wasserstein(task.embeddings, current.embeddings, task.counts, current.counts)
    assert list(task_distances(current, earlier[::-1], seed=0)) == found[::-1]


def test_distances_come_one_by_one_and_a_stop_loses_only_the_one_under_way(tmp_path, solved):
    *earlier, current = tasks()
    store, seen = tmp_path / "distances.jsonl", []
    stream = task_distances(current, earlier, seed=0, store=store, progress=lambda *now: seen.append(now))
    first = next(stream)
    stream.close()
    assert len(solved) == 1
    assert len(store.read_text().splitlines()) == 1
    with store.open("a") as file:
        file.write('{"task": "t1", "val')  # as a kill leaves it
    rest = list(task_distances(current, earlier, seed=0, store=store, progress=lambda *now: seen.append(now)))
    assert len(solved) == 3
    assert rest[0] == first
    assert seen == [(1, 3), (1, 3), (2, 3), (3, 3)]
    assert (
        list(task_distances(current, earlier, seed=0, store=store))
        == rest
        == list(task_distances(current, earlier, seed=0))
    )
    assert [json.loads(line)["task"] for line in store.read_text().splitlines()] == ["t0", "t1", "t2"]


@pytest.mark.parametrize("change", ["vectors", "counts", "current", "seed", "limit"])
def test_a_stored_distance_of_other_data_or_settings_is_not_used(tmp_path, solved, change):
    old, current = tasks(2)
    store = tmp_path / "distances.jsonl"
    settings = {"seed": 0, "limit": 100}
    list(task_distances(current, [old], **settings, store=store))
    if change == "vectors":
        old = InstructionSet("t0", old.embeddings + np.float32(0.1), old.counts)
    elif change == "counts":
        old = InstructionSet("t0", old.embeddings, old.counts + 1)
    elif change == "current":
        current = InstructionSet("t1", current.embeddings[:-1], current.counts[:-1])
    else:
        settings[change] += 1
    list(task_distances(current, [old], **settings, store=store))
    assert len(solved) == 2


def test_a_renamed_task_keeps_its_distance(tmp_path, solved):
    old, current = tasks(2)
    store = tmp_path / "distances.jsonl"
    (one,) = task_distances(current, [old], seed=0, store=store)
    (same,) = task_distances(current, [InstructionSet("new", old.embeddings, old.counts)], seed=0, store=store)
    assert len(solved) == 1
    assert (same.task, same.value) == ("new", one.value)


def test_sampled_pairs_state_their_error_and_do_not_depend_on_their_place():
    *earlier, current = tasks(4, 60)
    found = list(task_distances(current, earlier, seed=0, limit=20))
    assert not any(one.exact for one in found)
    assert all(one.standard_error > 0 for one in found)
    assert list(task_distances(current, earlier[1:], seed=0, limit=20)) == found[1:]


def test_a_task_that_cannot_be_compared_is_named(tmp_path):
    old, current = tasks(2)
    broken = InstructionSet("broken", old.embeddings * 0, old.counts)
    with pytest.raises(UserError, match=r"distance of task 'broken' \(x\) to 't1' \(y\): x row 0: a zero vector"):
        list(task_distances(current, [broken], seed=0))
    with pytest.raises(UserError, match="every task needs a name of its own"):
        list(task_distances(current, [old, old], seed=0))
    (tmp_path / "d.jsonl").write_text("damage\n{}\n")
    with pytest.raises(IntegrityError, match=r"d\.jsonl:1: damaged"):
        list(task_distances(current, [old], seed=0, store=tmp_path / "d.jsonl"))
    (tmp_path / "d.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(IntegrityError, match="holds something else than distances"):
        list(task_distances(current, [old], seed=0, store=tmp_path / "d.jsonl"))


def test_without_earlier_tasks_there_is_nothing_to_compare():
    assert list(task_distances(tasks(1)[0], [], seed=0)) == []
