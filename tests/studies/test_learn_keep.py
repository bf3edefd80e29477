"""What stays in memory: within the budget, the same share for every task, and the same again when asked twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope import replay
from tunescope.config import ReplaySettings
from tunescope.data import Example
from tunescope.replay import PoolTask
from tunescope.runs.kept import line_of
from tunescope.runs.memory import Kept
from tunescope.studies.learn_choose import example_of, plain_example
from tunescope.studies.learn_keep import keep_after
from tunescope.studies.learn_stream import Stage

POLICIES = [name for name in replay.POLICIES if name != "none"]


class Chooser:
    """Stands in for the base model and the tagger: vectors and tags from the text itself."""

    def pool_task(self, name: str, rows: Sequence[Example]) -> PoolTask:
        texts = [e.instruction for e in rows]
        own = replay.group_instructions(texts).texts
        return PoolTask.build(
            name,
            [e.id for e in rows],
            texts,
            embeddings=np.array([[len(t), hash_of(t), 1.0] for t in own]),
            example_embeddings=np.array([[len(e.input), hash_of(e.input), 1.0] for e in rows]),
        )

    def information(self, tasks: Sequence[PoolTask]) -> dict[str, list[float]]:
        return {task.name: [float(len(text)) for text in task.grouped.texts] for task in tasks}


def hash_of(text: str) -> float:
    return float(sum(text.encode()) % 17)


def examples(task: str, n: int, *, size: int = 1) -> list[Example]:
    return [
        Example(f"{task}-{i:03d}", task, f"Do {i % 3}" + "!" * (i % 3), "x" * (i % 5) * size, ("y",)) for i in range(n)
    ]


def keep(stage: str, kept: Sequence[Kept], learned: dict[str, list[Example]], **settings: Any) -> list[Kept]:
    return keep_after(
        Stage(stage, tuple(learned)),
        kept,
        learned,
        settings=ReplaySettings(**settings),
        seed=3,
        chooser=Chooser(),  # type: ignore[arg-type]
    )


def counts(kept: Sequence[Kept]) -> dict[str, int]:
    return {name: sum(k.task == name for k in kept) for name in sorted({k.task for k in kept})}


def after_stages(sizes: Sequence[int], **settings: Any) -> list[list[Kept]]:
    """What is kept after each of several stages."""
    kept: list[Kept] = []
    found = []
    for i, n in enumerate(sizes):
        kept = keep(f"stage-{i + 1:02d}", kept, {f"t{i}": examples(f"t{i}", n)}, **settings)
        found.append(kept)
    return found


def test_without_a_budget_everything_is_kept_and_says_so() -> None:
    kept = after_stages([5, 7])[-1]
    assert counts(kept) == {"t0": 5, "t1": 7}
    assert {(k.stage, k.reason["code"]) for k in kept} == {("stage-01", "everything"), ("stage-02", "everything")}


def test_policy_none_keeps_nothing() -> None:
    assert after_stages([5, 7], policy="none")[-1] == []


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_shares_the_budget_evenly_and_shrinks_what_was_kept(policy: str) -> None:
    stages = after_stages([30, 30, 30], policy=policy, memory_examples=12)
    assert [counts(kept) for kept in stages] == [{"t0": 12}, {"t0": 6, "t1": 6}, {"t0": 4, "t1": 4, "t2": 4}]
    for earlier, later in itertools.pairwise(stages):
        ids = {(k.task, k.id) for k in earlier}
        assert {(k.task, k.id) for k in later if k.task in counts(earlier)} <= ids  # nothing comes back
    assert all(k.policy == policy and k.stage == "stage-03" and k.reason["kept"] == 4 for k in stages[-1])


def test_what_one_task_does_not_need_goes_to_the_others() -> None:
    assert counts(after_stages([2, 30], policy="random", memory_examples=10)[-1]) == {"t0": 2, "t1": 8}


def test_with_a_budget_below_the_number_of_tasks_the_first_by_name_keep_one() -> None:
    assert counts(after_stages([9, 9, 9], policy="random", memory_examples=2)[-1]) == {"t0": 1, "t1": 1}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [{}, {"memory_examples": 7}, {"memory_examples": 2}, {"memory_bytes": 2000}])
def test_called_twice_the_second_time_changes_nothing(policy: str, budget: dict[str, int]) -> None:
    before = after_stages([20, 20], policy=policy, **budget)[-1]
    learned = {"t2": examples("t2", 20)}
    once = keep("stage-03", before, learned, policy=policy, **budget)
    assert keep("stage-03", once, learned, policy=policy, **budget) == once


@given(st.lists(st.integers(1, 25), min_size=1, max_size=5), st.integers(1, 60))
def test_the_budget_holds_and_is_used_up(sizes: list[int], most: int) -> None:
    kept = after_stages(sizes, policy="random", memory_examples=most)[-1]
    assert len({(k.task, k.id) for k in kept}) == len(kept) <= most
    assert len(kept) == min(most, sum(sizes)) or most < sum(sizes)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1024, 9000), st.integers(1, 60))
def test_a_budget_in_bytes_holds(sizes: list[int], most: int, size: int) -> None:
    kept: list[Kept] = []
    for i, n in enumerate(sizes):
        learned = {f"t{i}": examples(f"t{i}", n, size=size)}
        kept = keep(f"stage-{i + 1:02d}", kept, learned, policy="random", memory_bytes=most)
        assert sum(len(line_of(k)) for k in kept) <= most
    assert kept  # 1,024 bytes hold at least one of these


def test_a_budget_in_bytes_is_mostly_used() -> None:
    kept = after_stages([100, 100], policy="random", memory_bytes=20_000)[-1]
    assert sum(len(line_of(k)) for k in kept) > 18_000
    found = counts(kept)
    assert abs(found["t0"] - found["t1"]) <= 1


def test_the_instructions_that_say_most_are_kept_first() -> None:
    kept = after_stages([30], policy="inscl", memory_examples=2)[-1]
    assert sorted({k.example["instruction"] for k in kept}) == ["Do 1!", "Do 2!!"]
    assert {k.reason["code"] for k in kept} == {"top_information"}


def test_the_order_in_which_things_are_given_does_not_matter() -> None:
    before = after_stages([20, 20], policy="inscl")[-1]
    learned = examples("t2", 20)
    first = keep("stage-03", before, {"t2": learned}, policy="inscl", memory_examples=9)
    second = keep("stage-03", before[::-1], {"t2": learned[::-1]}, policy="inscl", memory_examples=9)
    assert first == second


def test_an_example_survives_being_kept() -> None:
    example = Example(
        "7", "t", "Do.", "", ("a", "b"), "Be kind.", (("user", "Hi"), ("assistant", "Ho")), {"site": "x"}, "f.jsonl", 3
    )
    assert example_of(Kept("t", "7", plain_example(example), "random", "stage-01", {"code": "random"})) == example
