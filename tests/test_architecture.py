"""The rows of docs/architecture.md hold: who may import whom, who may need torch, and what no file may contain."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
PACKAGE = "tunescope"

# A module may import what stands in a lower row, and its own package. The longest prefix decides.
ROWS = {
    "tunescope": -1,  # __init__.py: the version
    "tunescope.errors": -1,  # row 0 like config, which raises them
    "tunescope.config": 0,
    "tunescope.samples": 0,
    "tunescope.runs.records": 0,
    "tunescope.data": 1,
    "tunescope.models": 1,
    "tunescope.runs": 1,
    "tunescope.layers": 2,
    "tunescope.select": 2,
    "tunescope.knowledge": 2,
    "tunescope.metrics": 2,
    "tunescope.replay": 2,
    "tunescope.testing": 2,  # for tests and doctests; nothing may import it
    "tunescope.engine": 3,
    "tunescope.evaluate": 3,
    "tunescope.verdict": 3,
    "tunescope.studies": 4,
    "tunescope.report": 4,
    "tunescope.cli": 5,
    "tunescope.__main__": 6,
}
WITHOUT_TORCH = ("errors", "config", "runs", "knowledge", "metrics", "replay", "verdict", "report", "samples", "cli")
NEEDS_TORCH = {"torch", "transformers", "peft", "accelerate"}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "manager", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One import: of `target`, a module of ours or the top of somebody else's, at a line of `module`."""

    module: str
    line: int
    target: str
    at_import_time: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((SRC / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import in the package, those inside functions and under TYPE_CHECKING included."""
    return tuple(found for name, path in modules().items() for found in imports_of(name, path.read_text("utf-8")))


def imports_of(module: str, source: str, *, is_package: bool | None = None) -> list[Import]:
    package = modules()[module].name == "__init__.py" if is_package is None else is_package
    tree = ast.parse(source)
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(outer)
        for inner in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if package else module.split(".")[:-1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            named = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in modules() else base for name in named]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            assert isinstance(name, ast.Constant), (
                f"{module}:{node.lineno}: an import by a computed name cannot be checked"
            )
            targets = [str(name.value)]
        for target in targets:
            ours = target == PACKAGE or target.startswith(PACKAGE + ".")
            found.append(
                Import(module, node.lineno, nearest(target) if ours else target.split(".")[0], node not in lazy)
            )
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nearest(name: str) -> str:
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


def part_of(module: str) -> str:
    """The entry of ROWS that a module belongs to."""
    while module not in ROWS and "." in module:
        module = module.rpartition(".")[0]
    return module


def ours() -> list[Import]:
    return [found for found in imports() if found.target.split(".")[0] == PACKAGE]


def reachable(starts: set[str], *, only_at_import_time: bool) -> dict[str, str]:
    """Every module and foreign package that the starts lead to, with the import that led there first."""
    edges: dict[str, list[Import]] = {}
    for found in imports():
        if found.at_import_time or not only_at_import_time:
            edges.setdefault(found.module, []).append(found)
    seen: dict[str, str] = dict.fromkeys(starts, "start")
    waiting = list(starts)
    while waiting:
        module = waiting.pop()
        package = module.rpartition(".")[0]
        steps = [(found.target, str(found)) for found in edges.get(module, [])]
        if package.startswith(PACKAGE):
            steps.append((package, f"{module} stands in {package}"))  # Python runs the package's __init__ first
        for target, why in steps:
            if target not in seen:
                seen[target] = why
                waiting.append(target)
    return seen


def within(part: str) -> set[str]:
    return {name for name in modules() if name == f"{PACKAGE}.{part}" or name.startswith(f"{PACKAGE}.{part}.")}


# The reading of imports, without which everything below would pass whatever the code does.


@pytest.mark.parametrize(
    ("source", "target", "at_import_time"),
    [
        ("import tunescope.models.load", "tunescope.models.load", True),
        ("from tunescope import models", "tunescope.models", True),
        ("from tunescope.models import load", "tunescope.models.load", True),
        ("from tunescope.models import blocks", "tunescope.models", True),
        ("from tunescope.models.load import Loaded", "tunescope.models.load", True),
        ("from . import folder", "tunescope.runs.folder", True),
        ("from .records import Record", "tunescope.runs.records", True),
        ("from .. import models", "tunescope.models", True),
        ("from ..models.load import load", "tunescope.models.load", True),
        ("def f():\n    from torch import nn", "torch", False),
        ("async def f():\n    import torch.nn as nn", "torch", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "torch", False),
        ("try:\n    import torch\nexcept ImportError:\n    pass", "torch", True),
        ("class A:\n    import torch", "torch", True),
        ("import importlib\nimportlib.import_module('torch.nn')", "torch", True),
        ("f = lambda: __import__('torch')", "torch", False),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source: str, target: str, at_import_time: bool) -> None:
    found = imports_of("tunescope.runs.ledger", source)
    assert (target, at_import_time) in [(i.target, i.at_import_time) for i in found]


def test_an_import_by_a_computed_name_is_refused() -> None:
    with pytest.raises(AssertionError, match="computed name"):
        imports_of("tunescope.runs.ledger", "import importlib\nimportlib.import_module(name)")


def test_the_checks_see_the_package() -> None:
    assert len(modules()) > 50
    assert len(ours()) > 100
    assert any(not found.at_import_time for found in ours())


# Rows


def test_every_module_stands_in_a_row() -> None:
    tops = {".".join(name.split(".")[:2]) for name in modules()}
    assert tops <= ROWS.keys(), "a new package needs its row here and in docs/architecture.md"
    assert ROWS.keys() <= modules().keys(), "a row for something that is gone"


def test_the_page_draws_the_rows_that_hold() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    drawn = {
        f"{PACKAGE}.{name}": int(row)
        for row, packages in re.findall(r"^\| (\d) \| (.+?) \|", page, re.MULTILINE)
        for name in re.findall(r"`([\w.]+)`", packages)
    }
    unlisted = {PACKAGE, "tunescope.testing", "tunescope.__main__"}
    assert drawn == {part: max(row, 0) for part, row in ROWS.items() if part not in unlisted}


def test_a_module_imports_only_lower_rows_and_its_own_package() -> None:
    wrong = [
        f"{found} (row {ROWS[part_of(found.target)]} from row {ROWS[part_of(found.module)]})"
        for found in ours()
        if part_of(found.target) != part_of(found.module) and ROWS[part_of(found.target)] >= ROWS[part_of(found.module)]
    ]
    assert wrong == []


def test_there_is_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for found in ours():
        if found.target != found.module:
            graph[found.module].add(found.target)
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")
    assert len(order) == len(modules())


def test_only_the_command_line_imports_a_study() -> None:
    users = {found.module.split(".")[1] for found in ours() if found.target.startswith("tunescope.studies")}
    assert users <= {"cli", "studies"}


def test_nothing_imports_the_fakes_for_tests() -> None:
    wrong = [
        str(f) for f in ours() if f.target.startswith("tunescope.testing") and part_of(f.module) != part_of(f.target)
    ]
    assert wrong == []


def test_the_report_reads_only_run_folders() -> None:
    parts = {found.target.split(".")[1] for found in ours() if found.module in within("report") and "." in found.target}
    assert parts <= {"report", "runs", "errors", "metrics", "config"}


def test_only_studies_and_the_command_line_read_the_settings() -> None:
    users = {found.module.split(".")[1] for found in ours() if found.target.startswith("tunescope.config")}
    assert users <= {"config", "studies", "cli"}, "settings never cross into parts: pass plain values"


# torch


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_a_part_without_torch_names_no_library_that_needs_it(part: str) -> None:
    wrong = [str(f) for f in imports() if f.module in within(part) and f.target in NEEDS_TORCH]
    assert within(part)
    assert wrong == []


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_a_part_without_torch_leads_to_none(part: str) -> None:
    # The command line starts studies inside its commands; every other part is free of torch whatever it calls.
    found = reachable(within(part), only_at_import_time=part == "cli")
    assert {name: why for name, why in found.items() if name in NEEDS_TORCH} == {}


def test_importing_the_parts_without_torch_does_not_load_it() -> None:
    names = [name for part in WITHOUT_TORCH for name in sorted(within(part))]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    loaded = {sorted(NEEDS_TORCH)!r}
    assert not (found := [m for m in loaded if m in sys.modules]), (name, found)
print(len(sys.modules))
"""
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


# Files


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name for name in modules() if VAGUE_NAMES & set(re.split(r"[._]", name))] == []


def repository_files() -> list[Path]:
    """What is or would be committed; in a copy without git, what stands in the known folders."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [path for folder in ("src", "tests", "docs") for path in (ROOT / folder).rglob("*")]
    return [path for path in paths if path.is_file()]


# In pieces, so that this file does not match itself.
PRIVATE = re.compile(
    r"(?<![\w.])/wo" + r"rk/|/tm" + r"p/w\b|\.\./sha" + r"red\b|/ro" + r"ot/|/hom" + r"e/(?!user|you)\w+"
)


@pytest.mark.parametrize("text", ["/wo" + "rk/main", "see ../sha" + "red/a.md", "'/tm" + "p/w/x'", "/ro" + "ot/.cache"])
def test_a_path_of_somebodys_machine_is_recognised(text: str) -> None:
    assert PRIVATE.search(text)


@pytest.mark.parametrize("text", ["https://example.com/wo" + "rk/", "framework/", "/tmp/where", "shared/transition"])
def test_other_paths_are_not_taken_for_one(text: str) -> None:
    assert not PRIVATE.search(text)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    files = repository_files()
    assert len(files) > 100
    wrong = []
    for path in files:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        wrong += [
            f"{path.relative_to(ROOT)}:{number}: {match[0]}"
            for number, line in enumerate(text.splitlines(), 1)
            if (match := PRIVATE.search(line))
        ]
    assert wrong == []
