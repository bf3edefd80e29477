"""The sample data that ships: enough of it, of every kind that is promised, and clean."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tunescope.config import Config, Metric, load
from tunescope.data import DataReport, FileRead, TaskFile, build_report, read_file
from tunescope.data.report import finding_line
from tunescope.samples import FOLDER, quickstart_config

CONFIGS = [FOLDER / "en" / "tunescope.yaml", FOLDER / "en" / "quickstart.yaml", FOLDER / "ja" / "tunescope.yaml"]
LANGUAGES = ("en", "ja")
JAPANESE = re.compile("[぀-ヿ一-鿿]")
AT = re.compile(r"[\w.+-]+@[\w.-]+")


@cache
def settings(path: Path) -> Config:
    return load(path)


@cache
def files(language: str) -> tuple[TaskFile, ...]:
    """All files of a language's settings by task and role."""
    config = settings(FOLDER / language / "tunescope.yaml")
    found = []
    for task in config.tasks:
        paths = [(task.train, "train"), (task.test, "test"), *((p, "out_of_domain") for p in task.out_of_domain)]
        found += [TaskFile(read_file(p, task=task.name, shown_as=p.name), role) for p, role in paths if p]
    found += [TaskFile(read_file(p, task="guard", shown_as=p.name), "guard") for p in config.guard]
    return tuple(found)


@cache
def report(language: str) -> DataReport:
    config = settings(FOLDER / language / "tunescope.yaml")
    return build_report(files(language), labels={task.name: task.labels for task in config.tasks})


def rows(language: str, *roles: str) -> int:
    return sum(len(file.read.examples) for file in files(language) if file.role in roles)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_shipped_config_loads_and_its_files_are_there(path: Path) -> None:
    config = settings(path)
    for task in config.tasks:
        assert task.train and task.test and task.out_of_domain
        for file in (task.train, task.test, *task.out_of_domain):
            assert file.is_file() and file.parent == path.parent / "data"
    assert config.guard and all(file.is_file() for file in config.guard)
    assert config.language == path.parent.name


def test_no_sample_file_is_forgotten_by_the_configs() -> None:
    used = {p for c in CONFIGS for t in settings(c).tasks for p in (t.train, t.test, *t.out_of_domain)}
    used |= {p for c in CONFIGS for p in settings(c).guard}
    assert used == set(FOLDER.glob("*/data/*"))


def test_the_quickstart_runs_the_english_tasks_with_the_same_meaning() -> None:
    quick, whole = settings(quickstart_config()), settings(CONFIGS[0])
    assert quick.tasks == whole.tasks and quick.guard == whole.guard and quick.model == whole.model
    limits = (quick.data.max_train_examples, quick.data.max_test_examples)
    assert all(limit is not None for limit in limits)


def test_there_is_as_much_english_data_as_promised() -> None:
    assert rows("en", "train") >= 600
    assert rows("en", "test", "out_of_domain") >= 400
    assert rows("en", "guard") >= 30
    config = settings(CONFIGS[0])
    assert len(config.tasks) >= 6
    assert len({task.family for task in config.tasks}) >= 4
    assert {task.metric for task in config.tasks} >= {Metric.ACCURACY, Metric.JSON_FIELDS, Metric.ROUGE_L}
    for file in files("en"):
        assert len(file.read.examples) >= {"train": 100, "test": 40, "out_of_domain": 30, "guard": 30}[file.role]


def test_the_japanese_twin_has_three_of_the_tasks() -> None:
    english, japanese = settings(CONFIGS[0]), settings(CONFIGS[2])
    metrics = {task.name: (task.family, task.metric) for task in english.tasks}
    assert len(japanese.tasks) == 3
    for task in japanese.tasks:
        assert metrics[task.name] == (task.family, task.metric)
    assert rows("ja", "train") >= 100 and rows("ja", "test", "out_of_domain") >= 80


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_data_check_finds_no_error_and_nothing_to_mend(language: str) -> None:
    found = report(language)
    assert [finding_line(finding) for finding in found.findings] == []
    assert found.drop and not any(found.drop.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_input_stands_in_two_files_or_under_two_tasks(language: str) -> None:
    places = Counter(
        (e.instruction, e.input) if not e.input else e.input.strip().casefold()
        for file in files(language)
        for e in file.read.examples
    )
    assert len(places) > 100
    assert [text for text, n in places.items() if n > 1] == []
    ids = [e.id for file in files(language) for e in file.read.examples]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_are_balanced_in_every_file(language: str) -> None:
    checked = 0
    for task in settings(FOLDER / language / "tunescope.yaml").tasks:
        for read in (file.read for file in files(language) if file.read.task == task.name and task.labels):
            counts = Counter(e.targets[0] for e in read.examples)
            assert set(counts) == set(task.labels or ())
            assert max(counts.values()) <= 1.5 * min(counts.values()), read.path
            checked += 1
    assert checked >= 6


def test_every_json_answer_is_an_object_with_the_same_keys() -> None:
    tasks = [task.name for task in settings(CONFIGS[0]).tasks if task.metric == Metric.JSON_FIELDS]
    reads = [file.read for file in files("en") if file.read.task in tasks]
    objects = [json.loads(target) for read in reads for e in read.examples for target in e.targets]
    assert len(objects) >= 150
    assert all(isinstance(value, dict) and value.keys() == objects[0].keys() for value in objects)


def texts(read: FileRead) -> list[str]:
    return [text for e in read.examples for text in (e.instruction, e.input, *e.targets)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_address_leads_to_a_person(language: str) -> None:
    addresses = [a for file in files(language) for text in texts(file.read) for a in AT.findall(text)]
    assert [a for a in addresses if not re.search(r"[@.]example\.(com|org|net)$", a)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_texts_are_in_the_language_of_the_folder(language: str) -> None:
    inputs = [e.input or e.instruction for file in files(language) for e in file.read.examples]
    japanese = sum(bool(JAPANESE.search(text)) for text in inputs)
    assert japanese == (len(inputs) if language == "ja" else 0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_inputs_are_no_filled_in_templates(language: str) -> None:
    """Real tickets hardly ever begin alike: no opening of ten characters is shared by more than a few inputs."""
    for file in files(language):
        if file.role == "guard":
            continue
        inputs = [re.sub(r"^(Question 1|Policy|Statement|質問1)[:：]\s*", "", e.input) for e in file.read.examples]
        openings = Counter(text[: 20 if language == "en" else 8] for text in inputs)
        assert len(inputs) >= 10
        assert openings.most_common(1)[0][1] <= max(3, len(inputs) // 12), (file.read.path, openings.most_common(3))
