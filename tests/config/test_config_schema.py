"""The settings as schema and as documentation: complete, generated, and true of what ships."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from tunescope import config

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "src/tunescope/samples").rglob("*.yaml"))
GROUPS = [
    config.Config,
    config.TaskSettings,
    config.DemonstrationSettings,
    config.DataSettings,
    config.TuningSettings,
    config.RegularisationSettings,
    config.SelectionSettings,
    config.MapSettings,
    config.SpecialistSettings,
    config.KnowledgeSettings,
    config.QuestionFileSettings,
    config.InterventionSettings,
    config.ReplaySettings,
    config.SearchSettings,
    config.TagSettings,
    config.EngineSettings,
    config.GenerationSettings,
    config.RaySettings,
    config.EvaluationSettings,
    config.BusinessSettings,
    config.GateSettings,
]
SETTINGS = [(group, name) for group in GROUPS for name in group.model_fields]


def holds(schema: dict, value: object, root: dict) -> bool:
    """Whether a value meets a JSON Schema, as far as ours uses the language; a word that is not known here fails the test."""
    if "$ref" in schema:
        return holds(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "null": type(None),
    }
    checks = {
        "type": lambda wanted: (
            isinstance(value, kinds[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
        ),
        "anyOf": lambda options: any(holds(option, value, root) for option in options),
        "enum": lambda allowed: value in allowed,
        "const": lambda only: value == only,
        "required": lambda names: set(names) <= value.keys(),
        "properties": lambda known: all(holds(known[k], v, root) for k, v in value.items() if k in known),
        "additionalProperties": lambda rest: all(
            rest is not False and (rest is True or holds(rest, v, root))
            for k, v in value.items()
            if k not in schema.get("properties", {})
        ),
        "propertyNames": lambda names: all(holds(names, key, root) for key in value),
        "items": lambda each: all(holds(each, item, root) for item in value),
        "minItems": lambda n: len(value) >= n,
        "minLength": lambda n: len(value) >= n,
        "maxLength": lambda n: len(value) <= n,
        "minimum": lambda n: value >= n,
        "maximum": lambda n: value <= n,
        "exclusiveMinimum": lambda n: value > n,
        "exclusiveMaximum": lambda n: value < n,
        "pattern": lambda expression: re.search(expression, value) is not None,
    }
    notes = {"title", "description", "default", "format", "$defs"}
    assert schema.keys() <= checks.keys() | notes, f"words of JSON Schema that this test does not know: {schema.keys()}"
    order = ["type", *(word for word in checks if word != "type")]
    return all(checks[word](schema[word]) for word in order if word in schema)


@pytest.mark.parametrize(("group", "name"), SETTINGS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_setting_says_what_it_does(group: type[BaseModel], name: str) -> None:
    field = group.model_fields[name]
    is_group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    said = (field.annotation.__doc__ if is_group else field.description) or ""
    assert said.endswith(".")
    assert "|" not in said, "it would break the table"


def test_every_group_is_checked_here() -> None:
    assert {group.__name__ for group in GROUPS} == {s.__name__ for s in config.models.Settings.__subclasses__()}


@pytest.mark.parametrize("group", GROUPS)
def test_every_default_is_allowed(group: type[BaseModel]) -> None:
    for name, field in group.model_fields.items():
        if not field.is_required() and not isinstance(field.default, BaseModel):
            text = json.dumps(field.default, default=str)
            if (group, name) != (config.TaskSettings, "metric"):  # its default needs labels
                required = {"name": "a", "metric": "chrf"} if group is config.TaskSettings else {}
                required |= {"tasks": [{"name": "a", "metric": "chrf"}]} if group is config.Config else {}
                required |= {"file": "a.jsonl"} if group is config.QuestionFileSettings else {}
                assert getattr(group.model_validate({**required, name: json.loads(text)}), name) == field.default


def test_the_documentation_names_every_setting() -> None:
    lines = config.markdown().splitlines()
    for _, name in SETTINGS:
        assert any(line.startswith(f"| `{name}` |") for line in lines), name
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == len(SETTINGS)
    assert {line.count("|") for line in rows} == {5}


@pytest.mark.parametrize(
    "row",
    [
        "| `seed` | `42` | ≥ 0, ≤ 2147483647 | ",
        "| `learning_rate` | `auto` | `auto` or > 0, ≤ 10 | ",
        "| `metric` | `accuracy` | `accuracy`, `macro_f1`, ",
        "| `name` | **required** |  | ",
        "| `threads` | none | ≥ 1, ≤ 1024 | ",
        "| `arms` | `[nothing, prompt, selected, random, lora-all]` | `nothing`, `prompt`, ",
        "| `fail` | `false` |  | ",
    ],
)
def test_the_documentation_says_what_is_allowed(row: str) -> None:
    assert f"\n{row}" in config.markdown()


def test_the_page_in_docs_is_the_generated_one() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == config.markdown(), "run `make docs`"


def test_the_command_that_makes_the_page_prints_it() -> None:
    command = [sys.executable, "-X", "utf8", "-W", "ignore", "-m", "tunescope.config.schema"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "src", encoding="utf-8")
    assert done.stdout == config.markdown()


def test_the_schema_is_json_and_forbids_unknown_settings() -> None:
    schema = json.loads(json.dumps(config.json_schema()))
    objects = [schema, *(part for part in schema["$defs"].values() if part["type"] == "object")]
    assert len(objects) == len(GROUPS)
    assert all(part["additionalProperties"] is False for part in objects)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: str(path.relative_to(ROOT / "src/tunescope/samples")))
def test_a_sample_is_right_by_the_schema_and_by_the_loader(path: Path) -> None:
    schema = config.json_schema()
    assert holds(schema, yaml.safe_load(path.read_text(encoding="utf-8")), schema)
    found = config.load(path)
    files = [*found.guard, *(file for task in found.tasks for file in (task.train, task.test, *task.out_of_domain))]
    assert [str(file) for file in files if file is not None and not file.is_file()] == []


def test_samples_ship() -> None:
    assert len(SAMPLES) >= 2


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"tasks": [{"name": "a"}]}, True),
        ({"tasks": [{"name": "a", "out_of_domain": "b.jsonl"}], "guard": "g.jsonl"}, True),
        ({"tasks": [{"name": "a", "out_of_domain": ["b.jsonl"]}], "guard": ["g.jsonl"]}, True),
        ({"tasks": [{"name": "a"}], "tuning": {"learning_rate": 1e-3}}, True),
        ({"tasks": [{"name": "a"}], "tuning": {"learning_rate": "auto"}}, True),
        ({"tasks": [{"name": "a"}], "tuning": {"learning_rate": "fast"}}, False),
        ({"tasks": [{"name": "a"}], "tuning": {"lora_rnak": 1}}, False),
        ({"tasks": [{"name": "a"}], "seed": True}, False),
        ({"tasks": [{"name": "a"}], "seed": -1}, False),
        ({"tasks": [{"name": "a"}], "arms": ["lora_all"]}, False),
        ({"tasks": []}, False),
        ({}, False),
    ],
)
def test_the_schema_allows_what_the_loader_allows(values: dict, allowed: bool) -> None:
    schema = config.json_schema()
    assert holds(schema, values, schema) is allowed
