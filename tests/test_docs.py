"""The documentation is true as far as a program can tell: examples run, links lead somewhere, tables match the code."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import json
import re
from pathlib import Path

import pytest
import typer

from tunescope import config, data
from tunescope.runs import environment, records
from tunescope.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
WITH_EXAMPLES = [name for name, text in TEXTS.items() if ">>>" in text]
FENCE = re.compile(r"^(```+)(\w*)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
# A place on somebody's machine, a number in somebody's tracker, and what nobody outside can look up.
NOT_FOR_READERS = (
    r"(?<![\w.])/(?:[w]ork|home|root|Users)\b",
    r"\bshared[/]",
    r"(?<![\w&(])#\d+\b",
    r"\bsess(?:ion)s?\b",
)


def typed(text: str) -> list[str]:
    """What the page tells a reader to type: lines of console blocks, and what stands between backticks."""
    lines = [line for block in FENCE.finditer(text) if block[2] == "console" for line in block[3].splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [line for line in lines if line.startswith("tunescope ")]


def is_in_package(package: str, name: str) -> bool:
    """Whether a page means the Python package of the same name as a group of settings: `engine.Term`, `engine.terms`."""
    folder = ROOT / "src/tunescope" / package
    exports = folder / "__init__.py"
    return (folder / f"{name}.py").is_file() or (
        exports.is_file() and f'"{name}",' in exports.read_text(encoding="utf-8")
    )


def prose(text: str) -> str:
    """The page without its code: what stands in a fence or between backticks is no link and no heading."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-{sum(a.startswith(slug) for a in found)}")
    return found


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_a_page_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESCOPE_LEDGER_KEY", raising=False)
    text = TEXTS[name]
    # Only Python blocks, at their own lines, so that a failure names the line of the page.
    kept = [""] * (text.count("\n") + 1)
    for block in FENCE.finditer(text):
        if block[2] == "python":
            first = text.count("\n", 0, block.start(3))
            lines = block[3].splitlines()
            kept[first : first + len(lines)] = lines
    test = doctest.DocTestParser().get_doctest("\n".join(kept), {}, name, str(PAGES[name]), 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted == text.count(">>>")


def test_the_pages_that_need_examples_have_them():
    assert {"README.md", "docs/engine.md", "docs/evaluation.md", "docs/ledger.md", "docs/models.md"} <= set(
        WITH_EXAMPLES
    )


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings_that_exist(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert file.exists(), f"{name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name}: {target} has no such heading"


def test_every_page_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md|[A-Z]+\.md)\)", TEXTS["README.md"]))
    assert set(PAGES) - {"README.md"} <= linked


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("pattern", NOT_FOR_READERS)
def test_pages_name_nothing_that_only_the_authors_can_see(name, pattern):
    assert re.findall(pattern, TEXTS[name], re.IGNORECASE) == []


@pytest.mark.parametrize("name", [name for name in PAGES if name != "CHANGELOG.md"])
def test_settings_named_on_a_page_exist(name):
    groups = {key for key, field in config.Config.model_fields.items() if hasattr(field.annotation, "model_fields")}
    for group, key in re.findall(rf"`({'|'.join(groups)})\.(\w+)", TEXTS[name]):
        if key == "json":  # the file of that name in a run folder
            continue
        fields = config.Config.model_fields[group].annotation.model_fields
        assert key in fields or is_in_package(group, key), f"{name}: there is no setting {group}.{key}"


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, text in TEXTS.items() for line in typed(text)])
def test_commands_and_options_named_on_a_page_exist(name, line):
    from tunescope.cli.app import app

    command = typer.main.get_command(app)
    words = line.split()[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{name}: {line}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert set(re.findall(r"--[a-z-]+", line)) <= known, f"{name}: {line}"


def test_configuration_page_is_the_one_that_the_settings_generate():
    assert TEXTS["docs/configuration.md"] == config.markdown(), "run `make docs`"


def record_table(record: type) -> str:
    """The fields of a record as a table, from its docstring."""
    text = inspect.getdoc(record).partition("Attributes:\n")[2]
    rows = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE)
    assert {name for name, _ in rows} == {field.name for field in dataclasses.fields(record)}
    lines = ["| field | what it is |", "| --- | --- |"]
    for name, meaning in rows:
        one_line = re.sub(r"\s+", " ", meaning).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{name}` | {one_line} |")
    return "\n".join(lines)


RECORDS = [
    value
    for value in vars(records).values()
    if isinstance(value, type) and issubclass(value, records.Record) and value is not records.Record
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_run_folder_page_describes_every_field_of_a_record(record):
    assert len(RECORDS) > 10
    assert f"### {record.__name__}\n\n" in TEXTS["docs/run-folder.md"]
    section = TEXTS["docs/run-folder.md"].partition(f"### {record.__name__}\n\n")[2].partition("\n\n")[0]
    assert section == record_table(record)


def test_run_folder_page_names_the_keys_of_the_other_files(tmp_path):
    page = TEXTS["docs/run-folder.md"]
    run = RunFolder.create(tmp_path / "run", "seed: 1\n", study="poc", command="")
    status = set(json.loads((run.path / "status.json").read_text()))
    report = data.build_report([]).to_dict()
    file = {field.name for field in dataclasses.fields(data.FileSummary)}
    for heading, keys in (
        ("status.json", status),
        ("data.json", set(report) | file),
        ("environment.json", set(environment.describe_environment())),
    ):
        section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        missing = {key for key in keys - {"schema_version"} if f"`{key}`" not in section}
        assert not missing, f"{heading}: {sorted(missing)} not described"
