"""What a run ran on: plain values, true ones, and none where the machine does not tell."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tunescope.runs import environment
from tunescope.runs.environment import cpu_name, describe_environment, git_state, user_name

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty git repository, untouched by the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> str:
    (folder / "a.txt").write_text("a")
    git(folder, "add", "a.txt")
    git(folder, "commit", "--quiet", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_the_description_is_plain_values_with_the_versions_in_use() -> None:
    found = describe_environment()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    for name in ("torch", "transformers", "peft", "numpy", "scikit-learn"):
        assert found["packages"][name] == importlib.metadata.version(name)
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**27
    assert found["cpu"].strip()


def test_a_package_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("peft", "tunescope"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = describe_environment()
    assert "peft" not in found["packages"]
    assert found["packages"]["torch"] == "1"
    assert found["tunescope"] == "0 (not installed)"


@needs_git
def test_a_commit_without_changes_is_clean(repository: Path) -> None:
    head = commit(repository)
    assert git_state(repository) == {"commit": head, "dirty": False}


@needs_git
@pytest.mark.parametrize("name", ["a.txt", "new.txt"])
def test_a_changed_or_new_file_makes_it_dirty(repository: Path, name: str) -> None:
    head = commit(repository)
    (repository / name).write_text("changed")
    assert git_state(repository) == {"commit": head, "dirty": True}


@needs_git
def test_a_folder_inside_counts_as_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = commit(repository)
    inside = repository / "deep" / "er"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert describe_environment()["git"] == {"commit": head, "dirty": False}


@needs_git
def test_a_repository_without_a_commit_has_no_state(repository: Path) -> None:
    assert git_state(repository) is None


def test_outside_a_repository_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "a").mkdir()
    assert git_state(tmp_path / "a") is None


def test_without_git_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path.cwd()) is None


@needs_git
def test_a_state_that_cannot_be_told_is_not_called_clean(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = commit(repository)
    run = subprocess.run

    def slow_status(command: list[str], **settings: object) -> object:
        if "status" in command:
            raise subprocess.TimeoutExpired(command, 10)
        return run(command, **settings)

    monkeypatch.setattr(environment.subprocess, "run", slow_status)
    assert git_state(repository) == {"commit": head, "dirty": None}


def test_a_user_without_a_name_is_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(environment.getpass, "getuser", nobody)
    assert user_name() == (f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown")


def test_the_processor_has_a_name_on_one_line() -> None:
    assert cpu_name().strip()
    assert "\n" not in cpu_name()
