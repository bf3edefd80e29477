"""Settings of generation: an address and names belong together, no secret in the file, stop strings that can occur."""

from __future__ import annotations

from typing import Any

import pytest

from tunescope.config import Config, validate
from tunescope.errors import ConfigError

TASKS = [{"name": "desk", "labels": ["it", "hr"]}, {"name": "log", "metric": "rouge_l"}]
URL = "http://127.0.0.1:8000/v1"


def checked(**groups: Any) -> Config:
    return validate({"tasks": TASKS, **groups}, source="a.yaml")


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"endpoint": URL}, "names a server and no model on it"),
        ({"model": "m"}, "set endpoint to its address"),
        ({"arms": {"nothing": "m"}}, "set endpoint to its address"),
        ({"endpoint": "localhost:8000", "model": "m"}, "generation.endpoint: got 'localhost:8000'"),
        ({"endpoint": URL, "arms": {"nothing": " "}}, "leaves arm or model empty"),
        ({"endpoint": URL, "arms": {"nothing": 3}}, "generation.arms.nothing: got 3, needs text"),
        ({"endpoint": URL, "model": "m", "timeout_seconds": 0}, "timeout_seconds"),
        ({"endpoint": URL, "model": "m", "api_key_variable": "sk-4711 x"}, "api_key_variable"),
        ({"endpoint": URL, "modl": "m"}, "did you mean model"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(generation: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(generation=generation)
    assert message in str(caught.value) and len(caught.value.problems) == 1


@pytest.mark.parametrize("url", ["http://me:geheim@host/v1", "http://host/v1?key=geheim", "http://host/v1#geheim"])
def test_a_secret_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="must hold no password") as caught:
        checked(generation={"endpoint": url, "model": "m"})
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"stop": ["\n", ""]}, "evaluation.stop.1: got '', which ends no answer"),
        ({"stop": ["\ufffd"]}, "which ends no answer"),
        ({"stop": ["a", "a"]}, "evaluation.stop: a stop string is listed twice"),
        ({"task_stop": {"lgo": ["\n"]}}, "there is no task 'lgo' (did you mean log?)"),
        ({"task_stop": {"desk": ["\n"]}}, "task 'desk' has labels"),
        ({"task_stop": {"log": [""]}}, "evaluation.task_stop.log.0: got ''"),
    ],
)
def test_stop_strings_that_end_nothing_are_refused(evaluation: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(evaluation=evaluation)
    assert message in str(caught.value) and len(caught.value.problems) == 1


def test_one_stop_string_may_stand_alone() -> None:
    evaluation = checked(evaluation={"stop": "\n\n", "task_stop": {"log": "。"}}).evaluation
    assert evaluation.stop == ("\n\n",) and evaluation.task_stop == {"log": ("。",)}
