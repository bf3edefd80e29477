"""Sizes may be written as people write them, and a size that is none is named."""

from __future__ import annotations

import pytest

from tunescope import config
from tunescope.errors import ConfigError


def engine(**values: object) -> config.EngineSettings:
    return config.validate({"tasks": [{"name": "t", "metric": "exact_match"}], "engine": values}, source="test").engine


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (5000, 5000),
        ("5000", 5000),
        (2e10, 20_000_000_000),
        ("20GB", 20_000_000_000),
        ("20 GiB", 20 * 1024**3),
        ("1.5 kb", 1500),
        ("512M", 512_000_000),
        ("2TiB", 2 * 1024**4),
        ("7b", 7),
        (0, 0),
    ],
)
def test_a_size_is_a_number_of_bytes_however_it_is_written(written: object, count: int) -> None:
    assert engine(cache_bytes=written).cache_bytes == count


@pytest.mark.parametrize("written", ["much", "20 gigs", "-1GB", "1e9GB", "5iB", "", "1_000"])
def test_a_size_that_is_none_is_named(written: str) -> None:
    with pytest.raises(ConfigError, match=r"engine.cache_bytes: got .*, needs a number of bytes, such as 20GB"):
        engine(cache_bytes=written)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"cache_bytes": -1}, "cache_bytes"),
        ({"keep_free_bytes": True}, "keep_free_bytes"),
    ],
)
def test_a_size_out_of_range_is_named(values: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.{name}: got "):
        engine(**values)


def test_by_default_one_process_keeps_states() -> None:
    assert engine().model_dump(exclude={"ray"}) == {
        "backend": "local",
        "checkpointing": False,
        "memory_bytes": None,
        "keep_states": True,
        "cache": None,
        "cache_bytes": 20_000_000_000,
        "keep_free_bytes": 1_000_000_000,
    }


def test_the_folder_is_relative_to_the_file(tmp_path) -> None:
    file = tmp_path / "tunescope.yaml"
    file.write_text("tasks: [{name: t, metric: exact_match}]\nengine: {cache: kept, cache_bytes: 3GB}\n")
    settings = config.load(file)
    assert settings.engine.cache == tmp_path / "kept"
    assert settings.engine.cache_bytes == 3 * 10**9
    assert config.load(file, ["engine.keep_free_bytes=8GiB"]).engine.keep_free_bytes == 8 * 1024**3
    again = tmp_path / "again.yaml"
    again.write_text(config.dump(settings))
    assert config.load(again) == settings
