"""From settings to tasks: read the files, check them, hold a validation slice out, keep what fits."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunescope.config import Config, Metric, TaskSettings
from tunescope.data import (
    ChatFormat,
    DataReport,
    Encoded,
    Example,
    FileRead,
    LengthRow,
    Task,
    TaskFile,
    build_report,
    check_templates,
    finding_line,
    length_findings,
    read_file,
    token_pieces,
)
from tunescope.errors import ConfigError, DataError
from tunescope.metrics import json_fields
from tunescope.runs.records import Finding
from tunescope.studies.demonstrations import encode_training, unfit

GUARD = "guard"
REPLAY = "replay"
_TEST_SEED = 0  # the same test examples for every seed of a study, so that its runs can be compared


@dataclass(frozen=True)
class Inputs:
    """Everything that was read.

    Attributes:
        tasks: the tasks with their examples.
        guard: general examples.
        report: what was found in the files.
        files: path as shown -> sha256.
        replay: examples on which tuning stays near the base model; none that stands in `guard`.
    """

    tasks: tuple[Task, ...]
    guard: tuple[Example, ...]
    report: DataReport
    files: dict[str, str]
    replay: tuple[Example, ...] = ()

    @property
    def train(self) -> list[Example]:
        """Training examples of all tasks."""
        return [e for task in self.tasks for e in task.train]

    @property
    def validation(self) -> list[Example]:
        """Held-out examples of all tasks."""
        return [e for task in self.tasks for e in task.validation]


def read_inputs(config: Config, *, personal: bool = True, done: Callable[[str], None] = lambda path: None) -> Inputs:
    """Reads and checks all data files; needs no model.

    Args:
        config: the settings.
        personal: whether to look for personal data.
        done: called with each file read.

    Returns:
        The tasks. Problems are in `Inputs.report`; the caller decides whether to stop (`refuse`).

    Raises:
        ConfigError: a task has neither training nor test data, or the name of the guard or replay set.
        DataError: a template of a task would drop something its examples need.
    """
    regularisation = config.tuning.regularisation
    files: list[TaskFile] = []
    for settings in config.tasks:
        if settings.train is None and settings.test is None:
            raise ConfigError(f"task {settings.name!r} has neither `train` nor `test`; give it at least one file")
        if settings.train:
            files.append(TaskFile(_read(settings, settings.train), "train"))
        if settings.test:
            files.append(TaskFile(_read(settings, settings.test), "test"))
        files += [TaskFile(_read(settings, path), "out_of_domain") for path in settings.out_of_domain]
        stems = [path.stem for path in settings.out_of_domain]
        if twice := [path for path in settings.out_of_domain if stems.count(path.stem) > 1]:
            raise ConfigError(
                f"task {settings.name!r}: {len(twice)} out_of_domain files are named {twice[0].stem!r}; their names tell them apart in the "
                "report: rename one"
            )
        if settings.name in (GUARD, REPLAY):
            raise ConfigError(
                f"a task cannot be named {settings.name!r}, which is what the {settings.name} set is called in the results; rename it"
            )
        done(settings.name)
    files += [TaskFile(read_file(path, task=GUARD, shown_as=_shown(path)), "guard") for path in config.guard]
    kept_near = regularisation.kl_examples if regularisation.kl_to_base else ()
    files += [TaskFile(read_file(path, task=REPLAY, shown_as=_shown(path)), "replay") for path in kept_near]
    report = build_report(
        files,
        labels={task.name: task.labels for task in config.tasks},
        near_threshold=config.data.near_duplicate_threshold,
        drop_duplicates=config.data.drop_duplicates,
        personal=personal,
    )
    tasks = tuple(_task(config, settings, files, report) for settings in config.tasks)
    report = dataclasses.replace(
        report, findings=(*report.findings, *_not_json(config, files), *_shown_rows(config, tasks))
    )
    for task, settings in zip(tasks, config.tasks, strict=True):
        check_templates(task.train, settings.templates)
        for examples in (task.test, *task.out_of_domain.values()):
            check_templates(examples, settings.paraphrases)
    guard = [e for file in files if file.role == "guard" for e in file.read.examples]
    guard = _some(guard, config.data.max_test_examples, _TEST_SEED, GUARD)
    replay = _some(_replay(files, report), regularisation.kl_max_examples, config.seed, REPLAY)
    report = _with_used(report, tasks, guard, replay)
    return Inputs(tasks, tuple(guard), report, {f.read.path: f.read.sha256 for f in files}, tuple(replay))


def encode_inputs(config: Config, inputs: Inputs, chat: ChatFormat) -> Inputs:
    """Adds what needs the tokenizer: lengths, control tokens in texts, and one rendered row with its loss mask."""
    report = inputs.report
    findings: list[Finding] = []
    groups = [
        (
            task.name,
            [
                *task.train,
                *task.validation,
                *task.test,
                *sum((*task.out_of_domain.values(), *task.set_aside.values()), ()),
            ],
        )
        for task in inputs.tasks
    ]
    groups += [(GUARD, list(inputs.guard)), (REPLAY, list(inputs.replay))]
    shown = None
    for name, examples in groups:
        rows = []
        for example in examples:
            try:
                encoded = chat.encode(example)
            except DataError as error:
                text = str(error).partition(": ")[2]
                findings.append(Finding("control_token", "error", example.file, example.line, text, name))
                continue
            rows.append(LengthRow(example.file, example.line or 0, len(encoded.prompt_ids), len(encoded.target_ids)))
            shown = shown or encoded
        report = report.with_lengths(length_findings(rows, max_length=config.data.max_length, task=name), task=name)
    findings += [] if findings else unfit(config, inputs.tasks, chat)
    if shown is not None:
        if shown.example in inputs.train and not findings:
            [shown] = encode_training(config, inputs.tasks, chat, [shown.example])
        report = report.with_example(shown.example.file, shown.example.id, token_pieces(chat, shown))
    report = dataclasses.replace(report, findings=(*report.findings, *findings))
    return dataclasses.replace(inputs, report=report)


def refuse(report: DataReport) -> None:
    """Stops where the data has errors.

    Raises:
        DataError: one line per error.
    """
    if report.errors:
        raise DataError(finding_line(finding).replace(": error: ", ": ", 1) for finding in report.errors)


def encode_all(chat: ChatFormat, examples: Sequence[Example]) -> list[Encoded]:
    """Encodes examples for training or for a loss."""
    return [chat.encode(example) for example in examples]


def _task(config: Config, settings: TaskSettings, files: Sequence[TaskFile], report: DataReport) -> Task:
    mine = [file for file in files if file.read.task == settings.name]
    drop = {key: ids for key, ids in report.drop.items() if key[0] == settings.name}
    kept = {
        (file.role, file.read.path): [
            e
            for e in file.read.examples
            if file.role != "train" or e.id not in drop.get((settings.name, file.read.path), frozenset())
        ]
        for file in mine
    }
    shown = settings.demonstrations
    n_shown = shown.count if shown is not None and shown.choice == "first" else 0
    left = {place: examples[n_shown:] for place, examples in kept.items()}
    train = [e for (role, _), examples in left.items() if role == "train" for e in examples]
    train = _some(train, config.data.max_train_examples, config.seed, settings.name)
    n_validation = round(len(train) * config.data.validation_fraction)
    test = [e for (role, _), examples in left.items() if role == "test" for e in examples]
    limit = config.data.max_test_examples
    return Task(
        name=settings.name,
        family=settings.family,
        metric=settings.metric.value,
        labels=settings.labels,
        train=tuple(train[n_validation:]),
        validation=tuple(train[:n_validation]),
        test=tuple(_some(test, limit, _TEST_SEED, f"{settings.name}/test")),
        out_of_domain={
            Path(path).stem: tuple(_some(examples, limit, _TEST_SEED, path))
            for (role, path), examples in left.items()
            if role == "out_of_domain"
        },
        set_aside={path: tuple(examples[:n_shown]) for (_, path), examples in kept.items() if n_shown},
    )


def _shown_rows(config: Config, tasks: Sequence[Task]) -> list[Finding]:
    """What is wrong with the rows kept out of files as demonstrations."""
    counts = {task.name: task.demonstrations.count for task in config.tasks if task.demonstrations}
    found = []
    for task in tasks:
        left = {e.file for e in (*task.train, *task.validation, *task.test, *sum(task.out_of_domain.values(), ()))}
        for path, examples in task.set_aside.items():
            if len(examples) < counts[task.name] or path not in left:
                text = (
                    f"{len(examples)} of its usable rows are demonstrations (demonstrations.count {counts[task.name]}) and none is left to "
                    "tune on or to score; add rows, lower the count, or choose them by random or nearest"
                )
                found.append(Finding("demonstrations_use_all", "error", path, None, text, task.name))
            elif task.labels and len(examples) > 1 and len({e.targets[0] for e in examples}) == 1:
                text = (
                    f"the first {len(examples)} rows, shown before every prompt, all have the label {examples[0].targets[0]!r}, which a model "
                    "may copy (files are often sorted by label); put rows with other labels first"
                )
                found.append(Finding("demonstrations_one_label", "warning", path, examples[0].line, text, task.name))
    return found


def _replay(files: Sequence[TaskFile], report: DataReport) -> list[Example]:
    return [
        example
        for read, role in files
        for example in (read.examples if role == "replay" else ())
        if example.id not in report.drop.get((REPLAY, read.path), frozenset())
    ]


def _not_json(config: Config, files: Sequence[TaskFile]) -> list[Finding]:
    """Targets of a json_fields task that are not a JSON object: they could never be scored."""
    wanted = {task.name for task in config.tasks if task.metric == Metric.JSON_FIELDS}
    found = []
    for read, _ in files:
        for example in read.examples if read.task in wanted else ():
            for target in example.targets:
                try:
                    json_fields(target, target)
                except DataError as error:
                    found.append(Finding("target_not_json", "error", example.file, example.line, str(error), read.task))
    return found


def _some(examples: Sequence[Example], limit: int | None, seed: int, name: str) -> list[Example]:
    """A random order that depends on the seed and the name alone, cut to the limit: files are often sorted by label."""
    name_seed = int.from_bytes(hashlib.sha256(Path(name).name.encode()).digest()[:4])
    order = np.random.default_rng([seed, name_seed]).permutation(len(examples))
    return [examples[i] for i in order[:limit]]


def _with_used(
    report: DataReport, tasks: Sequence[Task], guard: Sequence[Example], replay: Sequence[Example]
) -> DataReport:
    """Fills in how many rows of each file are really used."""
    used: dict[tuple[str, str], int] = {}
    for task in tasks:
        for example in [*task.train, *task.validation, *task.test, *sum(task.out_of_domain.values(), ())]:
            used[task.name, example.file] = used.get((task.name, example.file), 0) + 1
    for name, examples in ((GUARD, guard), (REPLAY, replay)):
        for example in examples:
            used[name, example.file] = used.get((name, example.file), 0) + 1
    return dataclasses.replace(
        report, files=tuple(dataclasses.replace(f, used=used.get((f.task, f.path), 0)) for f in report.files)
    )


def _read(settings: TaskSettings, path: Path) -> FileRead:
    return read_file(
        path,
        task=settings.name,
        instruction=settings.instruction,
        columns={str(field): column for field, column in settings.columns.items()} if settings.columns else None,
        attributes=settings.attributes,
        shown_as=_shown(path),
    )


def _shown(path: Path) -> str:
    """A path as a person would write it: relative to the working directory where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) and not relative.startswith("../../..") else str(path)
