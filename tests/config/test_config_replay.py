"""The settings of replay: what they need of each other, and where their paths lead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunescope import config
from tunescope.errors import ConfigError
from tunescope.replay import ALLOCATIONS, POLICIES


def validate(**replay: Any) -> config.ReplaySettings:
    values = {"tasks": [{"name": "a", "metric": "rouge_l"}], "replay": replay}
    return config.validate(values, source="test").replay


def test_the_policies_and_allocations_on_offer_are_those_that_exist() -> None:
    fields = config.ReplaySettings.model_fields
    for name, offered in (("policy", POLICIES), ("allocation", ALLOCATIONS)):
        assert set(fields[name].annotation.__args__) == set(offered)  # type: ignore[union-attr]
    assert set(config.INSTRUCTION_POLICIES) < set(POLICIES)


@pytest.mark.parametrize(
    ("replay", "said"),
    [
        ({"tags": {"tagger": "file"}}, "set file to it"),
        ({"tags": {"tagger": "endpoint", "url": "http://localhost:8000/v1"}}, "set url and model"),
        ({"tags": {"tagger": "endpoint", "url": "localhost:8000", "model": "m"}}, "replay.tags.url"),
        ({"memory_examples": 10, "memory_bytes": 5000}, "two budgets of one memory"),
        ({"policy": "joint", "onto": "runs/x"}, "nothing to learn onto"),
        ({"policy": "insc"}, "did you mean inscl"),
        ({"budget_per_task": 0}, "replay.budget_per_task"),
        ({"memory_examples": 0}, "replay.memory_examples"),
        ({"memory_bytes": 100}, "replay.memory_bytes"),
        ({"order": []}, "replay.order"),
        ({"order": ["a", "a"]}, "named twice"),
        ({"arm": "random"}, "replay.arm"),
        ({"experts": "maybe"}, "replay.experts: got 'maybe', needs true or false"),
    ],
)
def test_settings_that_cannot_work_are_refused(replay: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        validate(**replay)
    assert len(caught.value.problems) == 1


def test_one_word_is_an_order_as_it_is() -> None:
    assert validate(order="reverse").order == ("reverse",) == validate(order=["reverse"]).order


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "stream.yaml"
    file.parent.mkdir()
    file.write_text(
        "tasks: [{name: a, metric: rouge_l}]\nreplay: {onto: ../runs/last, tags: {tagger: file, file: tags.jsonl}}\n"
    )
    found = config.load(file)
    assert found.replay.onto == tmp_path / "sub" / ".." / "runs" / "last"
    assert found.replay.tags.file == tmp_path / "sub" / "tags.jsonl"
    text = tmp_path / "again.yaml"
    text.write_text(config.dump(found))
    assert config.load(text) == found
