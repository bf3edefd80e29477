"""The settings of several machines: the short form, overrides in any order, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunescope.config import dump, json_schema, load
from tunescope.errors import ConfigError

TASK = "model: m\ntasks:\n  - {name: a, train: a.jsonl, metric: exact_match}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(TASK)
    return path


@pytest.mark.parametrize("text", ["engine: ray\n", "engine: {backend: ray}\n"])
def test_a_word_is_short_for_the_backend(text: str, file: Path) -> None:
    file.write_text(TASK + text)
    config = load(file)
    assert config.engine.backend == "ray" and config.engine.ray.workers == 1
    (file.parent / "again.yaml").write_text(dump(config))
    assert load(file.parent / "again.yaml") == config


@pytest.mark.parametrize("overrides", [["engine=ray", "engine.ray.workers=2"], ["engine.ray.workers=2", "engine=ray"]])
def test_the_short_form_goes_with_other_overrides_in_any_order(overrides: list[str], file: Path) -> None:
    file.write_text(TASK + "engine: {cache_bytes: 5GB}\n")
    engine = load(file, overrides).engine
    assert (engine.backend, engine.ray.workers, engine.cache_bytes) == ("ray", 2, 5_000_000_000)


def test_local_on_the_command_line_takes_a_file_back_to_one_process(file: Path) -> None:
    file.write_text(TASK + "engine: ray\n")
    assert load(file, ["engine=local"]).engine.backend == "local"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine=rya", "engine.backend: got 'rya' (did you mean ray?); allowed: local, ray"),
        ("engine=3", "engine: got 3, needs"),
        ("engine.ray.address=ray://head:10001", "got 'ray://head:10001'; give auto, or host:port"),
        ("engine.ray.address=head:99999", "give auto, or host:port"),
        ("engine.ray.workers=0", "engine.ray.workers: got 0"),
        ("engine.ray.sharding=fsdp2", "got fsdp2 with one worker"),
        ("engine.ray.gpus_per_task=1.5", "only whole GPUs"),
        ("engine.ray.wrokers=2", "did you mean workers?"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(override: str, words: str, file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, [override])
    assert words in str(caught.value) and str(caught.value).startswith(f"override {override}: ")


def test_workers_take_a_gpu_each_or_none(file: Path) -> None:
    with pytest.raises(ConfigError, match="each worker takes one GPU or none"):
        load(file, ["engine.ray.workers=2", "engine.ray.gpus_per_task=0.5"])
    assert load(file, ["engine.ray.workers=2", "engine.ray.gpus_per_task=1"]).engine.ray.gpus_per_task == 1


@pytest.mark.parametrize("address", ["auto", "10.0.0.5:6379", "head.example:6379", "[::1]:6379"])
def test_addresses_as_ray_shows_them_are_taken(address: str, file: Path) -> None:
    assert load(file, [f"engine.ray.address='{address}'"]).engine.ray.address == address


def test_editors_accept_the_short_form() -> None:
    branches = json_schema()["properties"]["engine"]["anyOf"]
    assert {"enum": ["local", "ray"], "type": "string"} in branches
    assert json.dumps(branches)
