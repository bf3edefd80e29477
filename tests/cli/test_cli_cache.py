"""`tunescope cache`: what it shows, what it removes, and its exit codes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import Outcome

from tunescope.engine.activations import ActivationCache, open_cache
from tunescope.engine.shelves import default_root

Command = Callable[..., Outcome]
ROWS = [SimpleNamespace(prompt_ids=(i,), target_ids=(7,)) for i in range(6)]
BASES = {"llama": "a1" * 32, "qwen": "b2" * 32}


def opened(root: Path, base: str) -> ActivationCache:
    return open_cache(
        root, base_sha256=BASES[base], dtype=torch.bfloat16, d_model=4, budget_bytes=10**6, keep_free_bytes=0
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six rows of two bases, one of them at two blocks."""
    for base, blocks in (("llama", (3, 5)), ("qwen", (3,))):
        with opened(tmp_path, base) as cache:
            for k in blocks:
                cache.write(ROWS, k, torch.randn(12, 4).bfloat16())
    return tmp_path


def damage(folder: Path, base: str) -> Path:
    file = min(folder.glob(f"{BASES[base][:12]}*/*.states"))
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    return file


def test_list_shows_every_base_and_block(command: Command, folder: Path) -> None:
    done = command("cache", "list", "--folder", folder)
    assert done.code == 0
    assert done.out.count("a1a1a1a1a1a1") == 2
    assert done.out.count("b2b2b2b2b2b2") == 1
    assert "block.5" in done.out
    listed = command("cache", "list", "--folder", folder, "--json").object
    assert sorted((s["base_sha256"][:2], s["block"], s["examples"]) for s in listed["shelves"]) == [
        ("a1", 3, 6),
        ("a1", 5, 6),
        ("b2", 3, 6),
    ]
    on_disk = sum(f.stat().st_size for f in folder.glob("*/*") if f.suffix in (".states", ".index"))
    assert listed["size_bytes"] == sum(s["size_bytes"] for s in listed["shelves"]) == on_disk


def test_without_a_folder_it_is_the_one_in_the_users_cache(command: Command) -> None:
    assert command("cache", "list").out == f"nothing in {default_root()}\n"
    with opened(default_root(), "qwen") as cache:
        cache.write(ROWS, 3, torch.randn(12, 4).bfloat16())
    assert "b2b2b2b2b2b2" in command("cache", "list").out
    assert command("cache", "verify").out.startswith("6 examples (96 bytes) in")
    assert command("cache", "clear").out.startswith("removed 672 bytes from")
    assert command("cache", "list").out == f"nothing in {default_root()}\n"


def test_verify_finds_nothing_where_nothing_is_wrong(command: Command, folder: Path) -> None:
    done = command("cache", "verify", "--folder", folder)
    assert (done.code, done.problems) == (0, [])
    assert done.out == f"18 examples (288 bytes) in {folder} are as they were written\n"
    assert command("cache", "verify", "--folder", folder, "--json").object["problems"] == []


def test_verify_names_what_is_damaged_and_removes_it_if_asked(command: Command, folder: Path) -> None:
    file = damage(folder, "llama")
    for words in ([], ["--json"]):
        done = command("cache", "verify", "--folder", folder, *words)
        assert done.code == 5
        assert len(done.problems) == 1
        assert f"{file.with_suffix('')}: 1 of 6 entries: does not match its hash" in done.problems[0]
    assert done.object["examples"] == 17
    removed = command("cache", "verify", "--folder", folder, "--remove", "--json")
    assert removed.code == 0
    assert removed.object["removed"] == [str(file.with_suffix(""))]
    assert not file.exists()
    assert command("cache", "verify", "--folder", folder).code == 0
    assert len(list(folder.glob("*/*.states"))) == 2


def test_a_damaged_shard_that_is_in_use_is_not_removed(command: Command, folder: Path) -> None:
    with opened(folder, "qwen") as cache:
        assert cache.read(ROWS, 3) is not None
        file = damage(folder, "qwen")
        assert command("cache", "verify", "--folder", folder, "--remove").code == 5
        assert file.exists()


@pytest.mark.parametrize("ending", ["states", "index"])
def test_verify_finds_a_file_that_was_cut(command: Command, folder: Path, ending: str) -> None:
    file = min(folder.glob(f"{BASES['qwen'][:12]}*/*.{ending}"))
    os.truncate(file, file.stat().st_size - 1)
    done = command("cache", "verify", "--folder", folder, "--json")
    if ending == "states":
        assert done.code == 5
        assert "cut short" in done.problems[0]
    assert done.object["examples"] == 17  # a record that is not complete is as if it had never been written


def test_verify_finds_states_that_nobody_can_find(command: Command, folder: Path) -> None:
    (facts,) = folder.glob(f"{BASES['qwen'][:12]}*/shelf.json")
    facts.write_text("{")
    done = command("cache", "verify", "--folder", folder)
    assert done.code == 5
    assert "shelf.json beside it is missing or damaged" in done.problems[0]
    assert "cannot be read" in command("cache", "list", "--folder", folder).out
    assert command("cache", "verify", "--folder", folder, "--remove").code == 0
    assert command("cache", "verify", "--folder", folder).code == 0


def test_clear_removes_all_or_one_base(command: Command, folder: Path) -> None:
    removed = command("cache", "clear", "--folder", folder, "--base", "b2b2", "--json").object
    assert removed == {"folder": str(folder), "removed_bytes": 672, "kept_bytes": 0}
    assert [path.name[:2] for path in folder.glob("*-block*")] == ["a1", "a1"]
    assert command("cache", "clear", "--folder", folder).code == 0
    assert list(folder.glob("*-block*")) == []


def test_clear_leaves_what_is_in_use(command: Command, folder: Path) -> None:
    with opened(folder, "qwen") as cache:
        before = cache.read(ROWS, 3)
        done = command("cache", "clear", "--folder", folder)
        assert done.out.splitlines()[1] == "672 bytes stay: a running process uses them"
        cache.release()
        assert torch.equal(cache.read(ROWS, 3), before)


def test_clear_leaves_what_is_not_its_own(command: Command, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "other").mkdir()
    command("cache", "clear", "--folder", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "notes.txt", "other"]


def test_an_unknown_base_or_folder_is_named(command: Command, folder: Path) -> None:
    done = command("cache", "clear", "--folder", folder, "--base", "c3")
    assert done.code == 2
    assert done.problems == [
        f"error: {folder}: holds no states of a base whose hash begins with 'c3'; it has a1a1a1a1a1a1, b2b2b2b2b2b2"
    ]
    for verb in ("list", "verify", "clear"):
        done = command("cache", verb, "--folder", folder / "none")
        assert (done.code, done.problems) == (2, [f"error: {folder / 'none'}: no such folder"])
