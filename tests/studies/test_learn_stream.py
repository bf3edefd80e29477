"""Which task is learned at which stage, what is measured after it, and which tasks are refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunescope.config import Config, validate
from tunescope.data import Example, Task
from tunescope.data.report import DataReport
from tunescope.errors import ConfigError
from tunescope.studies.inputs import Inputs
from tunescope.studies.learn_stream import Stage, make_stream, refuse_unfit_stream

NAMES = ("a", "b", "c", "d")


def config(*names: str, **replay: Any) -> Config:
    tasks = [{"name": name, "metric": "rouge_l"} for name in names or NAMES]
    return validate({"tasks": tasks, "replay": replay, "seed": 3}, source="test")


def order(*, earlier: tuple[str, ...] = (), **replay: Any) -> list[str]:
    return [name for stage in make_stream(config(**replay), earlier).stages for name in stage.learns]


def test_tasks_are_learned_in_the_order_asked_for() -> None:
    assert order() == list(NAMES)
    assert order(order="reverse") == list(NAMES[::-1])
    assert order(order=["c", "a", "d", "b"]) == ["c", "a", "d", "b"]
    drawn = order(order="random")
    assert sorted(drawn) == list(NAMES) and drawn == order(order=["random"])


def test_a_random_order_depends_on_the_seed_alone() -> None:
    names = tuple(f"t{i}" for i in range(12))
    orders = set()
    for seed in range(5):
        settings = config(*names, order="random").model_copy(update={"seed": seed})
        stages = make_stream(settings, ()).stages
        assert stages == make_stream(settings, ()).stages
        orders.add(tuple(stage.learns[0] for stage in stages))
    assert len(orders) == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a", "b", "c"], "leaves out 'd'"),
        (["a", "b", "c", "x"], "'x' is no new task"),
        ("revers", r"did you mean reverse\?"),
    ],
)
def test_an_order_that_is_not_one_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        order(order=given)


def test_an_order_with_a_name_twice_or_a_word_among_names_is_refused_with_the_settings() -> None:
    with pytest.raises(ConfigError, match="named twice"):
        config(order=["a", "a"])
    with pytest.raises(ConfigError, match="random stands alone"):
        config(order=["a", "random"])


def test_stages_go_on_counting_where_the_earlier_run_ended() -> None:
    stream = make_stream(config("a", "b", "c"), ["a", "b"])
    assert stream.earlier == ("a", "b") and stream.stages == (Stage("stage-03", ("c",)),)
    assert stream.tasks == ("a", "b", "c") and stream.before(stream.stages[0]) == ("a", "b")


def test_joint_learns_everything_at_one_stage() -> None:
    stream = make_stream(config(policy="joint", order="reverse"), ())
    assert stream.stages == (Stage("stage-01", NAMES[::-1]),)
    assert stream.measured(0, "seen") == NAMES[::-1]


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ("seen", [(), ("a",), ("a", "b"), ("a", "b", "c")]),
        ("next", [("a", "b", "c"), ("a", "b"), ("a", "b", "c"), ("a", "b", "c")]),
        ("all", [("a", "b", "c")] * 4),
    ],
)
def test_what_is_measured_is_always_the_beginning_of_the_stream(what: str, rows: list[tuple[str, ...]]) -> None:
    stream = make_stream(config("a", "b", "c"), ())
    assert [stream.measured(place, what) for place in range(-1, 3)] == rows


def test_on_an_earlier_run_its_tasks_are_seen_from_the_start() -> None:
    stream = make_stream(config(), ["a", "b"])
    assert stream.measured(-1, "seen") == ("a", "b")
    assert stream.measured(0, "seen") == ("a", "b", "c")
    assert stream.measured(-1, "next") == NAMES


def inputs(**changes: Any) -> Inputs:
    """Two tasks that can be learned; `changes` are fields of the second."""

    def rows(task: str, n: int, instruction: str = "Do.") -> tuple[Example, ...]:
        return tuple(Example(f"{i}", task, instruction, f"x{i}", ("y",), file="f.jsonl", line=i + 1) for i in range(n))

    fields: dict[str, Any] = {"train": rows("b", 4), "validation": rows("b", 1), "test": rows("b", 2)}
    first = Task("a", "", "rouge_l", train=rows("a", 4), validation=rows("a", 1), test=rows("a", 2))
    second = Task("b", "", "rouge_l", **(fields | changes))
    return Inputs((first, second), (), DataReport((), {}, ()), {})


BLANK = tuple(Example(f"{i}", "b", " ", "Sort this.", ("y",), file="f.jsonl", line=i + 1) for i in range(3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": ()}, "task 'b' has no `test` file"),
        ({"train": ()}, "task 'b' has no usable `train` example"),
        ({"validation": ()}, "held-out examples at every stage, and the 4 training examples of task 'b'"),
        (
            {"train": BLANK},
            r"task 'b': 3 of 3 training examples have no instruction \(the first: f.jsonl:1\).*policy inscl",
        ),
    ],
)
def test_a_task_that_cannot_be_learned_or_measured_is_named(changes: dict[str, Any], said: str) -> None:
    settings = config("a", "b")
    with pytest.raises(ConfigError, match=said):
        refuse_unfit_stream(settings, inputs(**changes), make_stream(settings, ()))


def test_everything_that_is_wrong_is_named_at_once() -> None:
    settings = config("a", "b")
    with pytest.raises(ConfigError) as caught:
        refuse_unfit_stream(settings, inputs(train=(), test=()), make_stream(settings, ()))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("policy", ["random", "none", "prototype_data", "joint"])
def test_policies_that_do_not_look_at_instructions_need_none(policy: str) -> None:
    settings = config("a", "b", policy=policy)
    refuse_unfit_stream(settings, inputs(train=BLANK), make_stream(settings, ()))


def test_with_a_learning_rate_no_example_need_be_held_out() -> None:
    settings = validate(
        {"tasks": [{"name": n, "metric": "rouge_l"} for n in "ab"], "tuning": {"learning_rate": 1e-3}}, source="test"
    )
    refuse_unfit_stream(settings, inputs(validation=()), make_stream(settings, ()))


def test_an_earlier_task_needs_no_training_data_any_more_but_test_data(tmp_path: Path) -> None:
    settings = config("a", "b")
    stream = make_stream(settings, ["b"])
    refuse_unfit_stream(settings, inputs(train=(), validation=()), stream)
    with pytest.raises(ConfigError, match="name the task in tasks, with `test`"):
        refuse_unfit_stream(settings, inputs(train=(), test=()), stream)
