"""The version of a task changes with what is scored, and with nothing else."""

import dataclasses

import pytest

from tunescope.data import Example, Task

ROWS = tuple(Example(str(i), "desk", "Which desk?", text, ("it",)) for i, text in enumerate(("No network.", "Stuck.")))
TASK = Task("desk", "classification", "accuracy", ("it", "hr"), ROWS[:1], (), ROWS, {"plant_b": ROWS[:1]})


def test_the_order_of_test_examples_does_not_change_the_version():
    assert dataclasses.replace(TASK, test=ROWS[::-1]).version == TASK.version


@pytest.mark.parametrize(
    "same",
    [
        {"name": "other"},
        {"family": "other"},
        {"train": ()},
        {"validation": ROWS},
        {"test": tuple(dataclasses.replace(row, id="x", file="y", line=9) for row in ROWS)},
    ],
)
def test_what_is_not_scored_does_not_change_the_version(same):
    assert dataclasses.replace(TASK, **same).version == TASK.version


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": "macro_f1"},
        {"labels": ("it", "hr", "ops")},
        {"test": ROWS[:1]},
        {"test": (ROWS[0], dataclasses.replace(ROWS[1], targets=("hr",)))},
        {"test": (ROWS[0], dataclasses.replace(ROWS[1], system="Be brief."))},
        {"test": (ROWS[0], dataclasses.replace(ROWS[1], history=(("user", "Hi"),)))},
        {"out_of_domain": {"plant_c": ROWS[:1]}},
        {"out_of_domain": {}},
    ],
)
def test_what_is_scored_changes_the_version(changed):
    assert dataclasses.replace(TASK, **changed).version != TASK.version
