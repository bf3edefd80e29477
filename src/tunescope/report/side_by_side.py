"""Several runs on one page: verdicts, arms, what was set differently, and what may be compared at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunescope.errors import RunError
from tunescope.report import charts
from tunescope.report.page import render, write_text
from tunescope.report.sections.arms import quality_cell
from tunescope.report.select_results import OVERALL, group_by_file, headline
from tunescope.report.single import words_of
from tunescope.report.source import RunSource, read_run
from tunescope.report.stream_compare import compare_streams
from tunescope.report.tables import ROLES, Cell, Table, number
from tunescope.report.wording import NONE, Words, shorten
from tunescope.runs.records import MoneyLine, Role

UNTOLD = ("output_dir", "language")  # settings that differ without changing a number
MARKERS = "oDs^vP"
COLOURS = (charts.BLUE, charts.ORANGE, "#009e73", "#cc79a7", "#6b7681", "#e69f00")


@dataclass(frozen=True)
class ScoredSet:
    """One test file over all runs.

    Attributes:
        task: name of the task.
        role: in_domain, out_of_domain or guard.
        dataset: stem of the file.
        versions: run -> versions of what was scored there.
    """

    task: str
    role: str
    dataset: str
    versions: Mapping[str, frozenset[str]]

    @property
    def everywhere(self) -> bool:
        """Whether every run measured it."""
        return all(self.versions.values())

    @property
    def same(self) -> bool:
        """Whether all runs that measured it scored the same examples, labels and metric."""
        found = {version for versions in self.versions.values() for version in versions}
        return len(found) == 1 and "" not in found


def compare(run_folders: Sequence[Path], *, out: Path, lang: str | None = None) -> Path:
    """Writes one page with several runs side by side.

    Scores of a task are only held against each other where all runs scored the same examples, labels and metric (equal
    ``task_version``); the others are marked as not comparable.

    Args:
        run_folders: at least two run folders.
        out: the page to write; an older one is replaced.
        lang: ``en`` or ``ja``; the first run's language where it is not given.

    Returns:
        `out`.

    Raises:
        RunError: fewer than two runs, a folder that cannot be read, or a page that cannot be written.
        UserError: there is no such language.
    """
    if len(run_folders) < 2:
        raise RunError(f"got {len(run_folders)} run folder(s) to compare; give at least two")
    read = [read_run(folder) for folder in run_folders]
    _refuse_maps(read)
    runs = _named(read)
    if any(run.study == "learn" for run in read):
        _refuse_mixed(read)
        return compare_streams(runs, out=out, lang=lang)
    words = words_of(next(iter(runs.values())), lang)
    sets = scored_sets(runs)
    differing = [found for found in sets if found.everywhere and not found.same]
    count, total = words.count(len(differing)), words.count(len(sets))
    page = render(
        "compare.html.j2",
        words,
        lang=words.lang,
        headline=words("compare.headline", count=words.count(len(runs))),
        meaning=words("compare.meaning_differ", count=count, total=total)
        if differing
        else words("compare.meaning_same"),
        verdicts=_verdicts(runs, words),
        means=[
            _means(runs, role, sets, words)
            for role in ROLES
            if any(row.role == role for run in runs.values() for row in run.results)
        ],
        settings=_settings(runs, words),
        tasks=[_tasks(runs, role, sets, words) for role in ROLES if any(found.role == role for found in sets)],
    )
    write_text(out, page)
    return out


def _refuse_maps(runs: Sequence[RunSource]) -> None:
    """A layer map has no arms and no scores of tasks, so there is nothing to put beside those of another run."""
    maps = [run.name for run in runs if run.study == "map"]
    if maps:
        raise RunError(
            f"{', '.join(maps)}: of study map, which has no scores to put side by side (study: "
            f"{', '.join(f'{run.name} {run.study}' for run in runs)}); give runs of poc or evaluate, or one map alone"
        )


def _refuse_mixed(runs: Sequence[RunSource]) -> None:
    """A stream has a score per stage and a proof of concept one per arm: neither can be held against the other."""
    others = [run for run in runs if run.study != "learn"]
    if others:
        raise RunError(
            f"{', '.join(run.name for run in others)}: of study {others[0].study or 'unknown'}, and the others are streams of learn, which are "
            "measured after every stage; compare streams with streams"
        )


def _named(runs: Sequence[RunSource]) -> dict[str, RunSource]:
    """Runs by a name that is unique: the folder's, with its parent's or a number where two are alike."""
    named: dict[str, RunSource] = {}
    names = [run.name for run in runs]
    for run in runs:
        name = run.name if names.count(run.name) == 1 else f"{run.folder.parent.name}/{run.name}"
        unique, place = name, 2
        while unique in named:
            unique, place = f"{name} ({place})", place + 1
        named[unique] = run
    return named


def scored_sets(runs: Mapping[str, RunSource]) -> list[ScoredSet]:
    """Returns every test file that some run scored, with what was scored there."""
    keys = dict.fromkeys(
        (row.task, row.role, row.dataset) for run in runs.values() for row in run.results if row.task != OVERALL
    )
    return [
        ScoredSet(
            *key,
            {
                name: frozenset(row.task_version for row in run.results if (row.task, row.role, row.dataset) == key)
                for name, run in runs.items()
            },
        )
        for key in keys
    ]


def _arms(runs: Mapping[str, RunSource]) -> list[str]:
    return list(dict.fromkeys(arm for run in runs.values() for arm in run.arms))


def _verdicts(runs: Mapping[str, RunSource], words: Words) -> Table:
    head = [words(f"compare.{name}") for name in ("run", "verdict", "arm", "sure", "net", "model", "started")]
    body = []
    for name, run in runs.items():
        verdict = run.verdict
        line = next((line for line in verdict.money if line.arm == verdict.arm), None) if verdict else None
        state = str(run.status.get("state", "done"))
        body.append(
            [
                Cell(name, "" if state == "done" else state),
                Cell(
                    words.get(f"decision.{verdict.decision}", verdict.decision) if verdict else words("decision.none")
                ),
                Cell((verdict.arm if verdict else None) or NONE),
                number(words.share(verdict.confidence) if verdict else NONE),
                _net(line, run, words),
                Cell(str(run.model.get("name") or run.setting("model", NONE))),
                Cell(str(run.environment.get("started") or NONE)[:16].replace("T", " ")),
            ]
        )
    return Table(words("compare.verdicts_caption"), head, body)


def _net(line: MoneyLine | None, run: RunSource, words: Words) -> Cell:
    if line is None:
        return number(NONE)
    currency = str(run.setting("business.currency", words.currency))
    interval = words.money_interval(line.net_low, line.net_high, currency=currency)
    return number(words.money(line.net_over_horizon, currency=currency), interval)


def _means(runs: Mapping[str, RunSource], role: Role, sets: Sequence[ScoredSet], words: Words) -> dict[str, Any]:
    """Mean over tasks of every arm in every run, with a chart only where the means may be compared."""
    comparable = all(found.same and found.everywhere for found in sets if found.role == role)
    rows = {arm: [headline(run, arm, role) for run in runs.values()] for arm in _arms(runs)}
    rows = {arm: found for arm, found in rows.items() if any(found)}
    body = [[Cell(arm), *(quality_cell(row, words) for row in found)] for arm, found in rows.items()]
    table = Table(
        words("compare.guard_caption" if role == "guard" else "compare.arms_caption", role=words(f"role.{role}")),
        [words("compare.arm"), *runs],
        body,
    )
    return {
        "table": table,
        "comparable": comparable,
        "chart": _chart(runs, role, words) if comparable and role == "in_domain" else None,
        "keys": _keys(runs),
    }


def _keys(runs: Mapping[str, RunSource]) -> list[tuple[str, str, str]]:
    """(run, sign, class) of the chart's legend."""
    signs = "●◆■▲▼✚"
    return [(name, signs[i % len(signs)], f"run-{i % len(signs)}") for i, name in enumerate(runs)]


def _chart(runs: Mapping[str, RunSource], role: Role, words: Words) -> Markup | None:
    rows = []
    for arm in _arms(runs):
        dots = []
        for i, run in enumerate(runs.values()):
            row = headline(run, arm, role)
            if row is not None:
                ends = (100 * row.value, 100 * row.low, 100 * row.high)
                look = (COLOURS[i % len(COLOURS)], False, MARKERS[i % len(MARKERS)])
                dots.append(charts.Dot(arm, *ends, words.score(row.value), *look))
        if dots:
            rows.append(dots)
    if not rows:
        return None
    return charts.dots(
        [charts.Panel("", rows)],
        name="compare",
        title=words("compare.chart_title"),
        row_height=16 + 18 * len(runs),
        tick=words.number,
        x_label=words("overview.chart_axis"),
    )


def _tasks(runs: Mapping[str, RunSource], role: Role, sets: Sequence[ScoredSet], words: Words) -> dict[str, Any]:
    """Scores by task, each test set headed by whether it may be compared."""
    body: list[list[Cell]] = []
    for found in (found for found in sets if found.role == role):
        title = words("compare.set_title", task=found.task, dataset=found.dataset or NONE)
        body.append([Cell(title, _comparable(found, words), css="" if found.same and found.everywhere else "apart")])
        for arm in _arms(runs):
            cells = []
            for run in runs.values():
                rows = [
                    row
                    for row in run.results
                    if (row.arm, row.task, row.role, row.dataset) == (arm, found.task, role, found.dataset)
                ]
                merged = group_by_file(rows)
                cells.append(merged[0] if merged else None)
            if any(cells):
                body.append([Cell(arm), *(quality_cell(row, words) for row in cells)])
    return {"table": Table(words(f"role.{role}"), [words("compare.arm_or_task"), *runs], body)}


def _comparable(found: ScoredSet, words: Words) -> str:
    if not found.same:
        versions = sorted({version[:8] or NONE for versions in found.versions.values() for version in versions})
        return f"{words('compare.not_comparable')}: {words('compare.not_comparable_why', versions=', '.join(versions))}"
    return words("compare.comparable") if found.everywhere else words("compare.not_in_all")


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Returns settings by dotted name; items of a list that have a name are found by it.

    Example:
        >>> flatten({"seed": 1, "tasks": [{"name": "a", "metric": "accuracy"}]})
        {'seed': '1', 'tasks.a.name': 'a', 'tasks.a.metric': 'accuracy'}
    """
    if isinstance(values, Mapping):
        items: Iterable[tuple[str, Any]] = ((str(key), value) for key, value in values.items())
    elif isinstance(values, list) and values and all(isinstance(item, Mapping) and "name" in item for item in values):
        items = ((str(item["name"]), item) for item in values)
    else:
        return {prefix.removesuffix("."): str(values)}
    return {name: text for key, value in items for name, text in flatten(value, f"{prefix}{key}.").items()}


def _settings(runs: Mapping[str, RunSource], words: Words) -> Table | None:
    """Only the settings, and the facts about the machine, that are not the same in all runs."""
    found = []
    for run in runs.values():
        machine = {
            f"({key})": str(run.environment.get(key) or NONE) for key in ("tunescope", "device", "gpu", "dtype", "cpu")
        }
        machine["(model sha256)"] = str(run.model.get("sha256", NONE))[:16]
        found.append(flatten({key: value for key, value in run.config.items() if key not in UNTOLD}) | machine)
    names = list(dict.fromkeys(name for settings in found for name in settings))
    body = [
        [
            Cell(name),
            *(Cell(shorten(settings.get(name, words("compare.absent")), 200), css="mono") for settings in found),
        ]
        for name in names
        if len({settings.get(name) for settings in found}) > 1
    ]
    return Table(words("compare.settings_caption"), [words("compare.setting"), *runs], body) if body else None
