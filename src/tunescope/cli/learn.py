"""Learning task after task on the command line: the command `learn`, and the group `memory`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.cli.shared import AsJson, ConfigFile, DryRun, Overrides, Resume, load_config, open_console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from tunescope.config import Config
    from tunescope.runs.folder import RunFolder
    from tunescope.runs.records import Forecast, Selection

memory_app = typer.Typer(help="What a run of learn keeps of its tasks.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with a memory.")]
PlanOnly = Annotated[
    bool, typer.Option("--plan-only", help="Write replay_plan.jsonl for use with any trainer; tune nothing.")
]


def add_learn(app: typer.Typer, blame: Callable[[Config], None]) -> None:
    """Puts `learn` and `memory` beside the commands of `app`.

    Args:
        app: the command line.
        blame: notes where the traceback of a bug goes.
    """

    @app.command()
    def learn(
        config: ConfigFile,
        overrides: Overrides = None,
        plan_only: PlanOnly = False,
        dry_run: DryRun = False,
        as_json: AsJson = False,
        resume: Resume = False,
    ) -> None:
        """Learn the tasks one after another, or one more on a finished run, repeating some of the earlier examples; say what was lost."""
        settings = load_config(config, overrides)
        blame(settings)
        _learn(settings, overrides or [], plan_only=plan_only, dry_run=dry_run, as_json=as_json, resume=resume)

    app.add_typer(memory_app, name="memory")


def _learn(
    settings: Config, overrides: list[str], *, plan_only: bool, dry_run: bool, as_json: bool, resume: bool
) -> None:
    from tunescope.cli.progress import TerminalProgress
    from tunescope.studies import learn as study

    command = shlex.join(["tunescope", *sys.argv[1:]])
    with TerminalProgress(open_console(stderr=True)) as progress:
        if dry_run:
            forecasts, selections = study.preview(settings, progress)
        else:
            folder = study.run(
                settings, command=command, overrides=overrides, resume=resume, plan_only=plan_only, progress=progress
            )
    if dry_run:
        _print_forecast(settings, forecasts, selections, as_json=as_json)
    elif plan_only and not folder.has("stream.json"):
        _print_plan(folder, as_json=as_json)
    else:
        _finish(folder, as_json=as_json)


def _print_forecast(
    settings: Config, forecasts: list[Forecast], selections: Mapping[str, Selection], *, as_json: bool
) -> None:
    from tunescope.cli.show import show_forecast

    if as_json:
        facts = {arm: selection.to_dict() for arm, selection in selections.items()}
        print_json({"forecast": [f.to_dict() for f in forecasts], "selections": facts})
        return
    business = settings.business
    console = open_console(stderr=False)
    show_forecast(console, forecasts, selections, business.machine_cost_per_hour, business.currency)


def _print_plan(folder: RunFolder, *, as_json: bool) -> None:
    path = folder.path / "replay_plan.jsonl"
    rows = folder.read_jsonl("replay_plan.jsonl")
    stages: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = stages.setdefault(f"{row['stage']} ({', '.join(row['learns'])})", {})
        counts[row["task"]] = counts.get(row["task"], 0) + 1
    if as_json:
        print_json({"run": str(folder.path), "plan": str(path), "examples": len(rows), "stages": stages})
        return
    for stage, counts in stages.items():
        print(f"{stage}: repeats " + ", ".join(f"{count} of {task}" for task, count in counts.items()))
    print(f"replay plan: {path} ({len(rows)} rows); tune with it anywhere, or here with --resume")


def _finish(folder: RunFolder, *, as_json: bool) -> None:
    """Builds the report and says what was learned, what was lost, and where everything is."""
    from tunescope import report

    page = report.build(folder.path)
    stream = folder.read_json("stream.json")
    weights = sorted(path for path in (folder.path / "weights").iterdir() if path.is_dir())[-1]
    if as_json:
        state = folder.read_json("status.json")["state"]
        print_json(
            {"run": str(folder.path), "state": state, "report": str(page), "weights": str(weights), "stream": stream}
        )
        return
    console = open_console(stderr=False)
    show_stream(console, stream)
    print(f"weights: {weights}")
    print(f"report: {page}")


def show_stream(console: Console, stream: Mapping[str, Any]) -> None:
    """Prints the score matrix and the measures of a stream.

    Args:
        console: where to.
        stream: content of a ``stream.json``.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Scores after each stage, policy {stream['policy']}", title_justify="left")
    table.add_column("task")
    for row in stream["rows"]:
        table.add_column(row["arm"], justify="right")
    table.add_column("since learned", justify="right")
    changes = {row["task"]: row for row in stream["changes"]}
    for task in stream["order"]:
        cells = [f"{100 * row['scores'][task]:.1f}" if task in row["scores"] else "" for row in stream["rows"]]
        table.add_row(Text(task), *cells, _change(changes.get(task)))
    console.print(table)
    measures = stream["measures"]
    for name, unit in (("average", ""), ("forgetting", ""), ("backward_transfer", ""), ("forward_transfer", "")):
        if found := measures[name]:
            console.print(_measure(name, found, 100, unit), highlight=False)
    if gains := measures["relative_gain"]:
        console.print(_measure("relative_gain", gains[-1], 1, " % of the experts"), highlight=False)


def _change(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    mark = " *" if row["decides"] else ""
    return f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]{mark}"


def _measure(name: str, found: Mapping[str, float], factor: float, unit: str) -> str:
    value, low, high = (f"{factor * found[key]:.1f}" for key in ("value", "low", "high"))
    return f"{name.replace('_', ' ')}: {value} [{low}, {high}]{unit}"


@memory_app.command("show")
def memory_show(run: Run, as_json: AsJson = False) -> None:
    """Say what a run keeps of each task, why, and within which budget."""
    from tunescope.studies import learn_memory as study

    found = study.show(run)
    if as_json:
        print_json(found)
        return
    for task, row in found["tasks"].items():
        why = ", ".join(f"{count} by {code}" for code, count in row["reasons"].items())
        print(f"{task}: {row['examples']} examples, {row['instructions']} distinct instructions ({why})")
    budgets = (("budget_examples", "examples"), ("budget_bytes", "bytes"))
    limits = [f"{found[key]:,} {unit}" for key, unit in budgets if found[key] is not None]
    print(f"in all {found['examples']} examples, {found['bytes']:,} bytes; budget: {' and '.join(limits) or 'none'}")
    print(f"withdrawn: {found['withdrawn']}; sha256 {found['sha256']}")


@memory_app.command("export")
def memory_export(run: Run, to: Annotated[Path, typer.Option("--to", help="File to write; must not exist.")]) -> None:
    """Write the memory of a run to one file."""
    from tunescope.studies import learn_memory as study

    print(f"{to}: {study.export(run, to)} examples")


@memory_app.command("import")
def memory_import(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder without a memory.")],
    source: Annotated[Path, typer.Option("--from", help="File that `memory export` wrote.")],
) -> None:
    """Give a run the memory of a file; it must be of the same base model."""
    from tunescope.studies import learn_memory as study

    print(f"{run / 'memory'}: {study.load(run, source)} examples")


@memory_app.command("forget")
def memory_forget(
    run: Run,
    ids: Annotated[list[str], typer.Option("--id", help="Id of a kept example; may be given several times.")],
    task: Annotated[
        str | None, typer.Option(help="Its task, where the id occurs in several.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw examples: they leave the memory and every later stage, and the ledger says so."""
    from tunescope.studies import learn_memory as study

    gone = study.forget(run, ids, task=task)
    if as_json:
        print_json({"run": str(run), "withdrawn": [{"task": one.task, "id": one.id} for one in gone]})
        return
    for one in gone:
        print(f"withdrawn: {one.id} of task {one.task}")
    print("weights that were tuned on them stay what they are; learn again without them to be rid of that")
