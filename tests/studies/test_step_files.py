"""Step records of arms that are tuned at the same time end in one file, each record once, whatever was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunescope.runs.folder import RunFolder
from tunescope.studies.step_files import STEPS, begin_steps, merge_steps, steps_of


def rows(arm: str, n: int) -> list[dict[str, Any]]:
    return [{"arm": arm, "step": step} for step in range(1, n + 1)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "arms").mkdir()
    return RunFolder(tmp_path)


@pytest.mark.parametrize("live", [True, False])
def test_steps_after_the_checkpoint_are_dropped_and_those_of_other_arms_stay(run: RunFolder, live: bool) -> None:
    run.write_jsonl(STEPS, rows("a", 4) + rows("b", 3))
    run.append_jsonl(begin_steps(run, "b", 2, live=live), [{"arm": "b", "step": 3}])
    assert steps_of(run, "b") == rows("b", 3) and steps_of(run, "a") == rows("a", 4)


def test_arms_that_end_in_any_order_are_sorted_as_the_run_has_them(run: RunFolder) -> None:
    for arm in "abc":
        run.append_jsonl(begin_steps(run, arm, 0, live=False), rows(arm, 2))
    for arm in "cab":
        merge_steps(run, arm, ["a", "b", "c"])
    assert run.read_jsonl(STEPS) == rows("a", 2) + rows("b", 2) + rows("c", 2)


def test_merged_twice_every_record_is_there_once(run: RunFolder) -> None:
    name = begin_steps(run, "a", 0, live=False)
    run.append_jsonl(name, rows("a", 3))
    kept = (run.path / name).read_bytes()
    merge_steps(run, "a", ["a"])
    (run.path / name).write_bytes(kept)  # as after a kill between writing one file and removing the other
    merge_steps(run, "a", ["a"])
    merge_steps(run, "a", ["a"])
    assert run.read_jsonl(STEPS) == rows("a", 3)


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_run_goes_on_with_and_without_a_cluster(run: RunFolder, first: bool, then: bool) -> None:
    run.append_jsonl(begin_steps(run, "a", 0, live=first), rows("a", 5))
    run.append_jsonl(begin_steps(run, "a", 4, live=then), [{"arm": "a", "step": 5}])
    merge_steps(run, "a", ["a"])
    assert run.read_jsonl(STEPS) == rows("a", 5)
