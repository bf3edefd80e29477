"""The commands."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunescope.cli.groups import add_groups
from tunescope.cli.learn import add_learn
from tunescope.cli.shared import (
    AsJson,
    ConfigFile,
    DryRun,
    Language,
    Overrides,
    Resume,
    load_config,
    open_console,
    print_json,
)

if TYPE_CHECKING:
    from tunescope.config import Config
    from tunescope.runs.folder import RunFolder
    from tunescope.runs.plan import Plan

app = typer.Typer(
    name="tunescope",
    help="See where to tune a language model, tune only that, and prove in money whether it was worth it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
add_groups(app)

current_run: Path | None = None  # where the traceback of an unexpected error goes


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from tunescope import __version__

        print(f"tunescope {__version__}")
        raise typer.Exit


@app.command()
def quickstart(
    overrides: Overrides = None,
    lang: Language = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Run the proof of concept on a small real model and the sample data; about ten minutes on two cores."""
    from tunescope.config import load
    from tunescope.samples import quickstart_config

    given = list(overrides or [])
    if not any(o.startswith("output_dir=") for o in given):
        given.append(f"output_dir={json.dumps(str(Path('runs/quickstart').absolute()))}")
    if lang:
        given.append(f"language={lang}")
    _poc(load(quickstart_config(), given), "quickstart", given, dry_run, as_json, resume)


@app.command()
def poc(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Run the whole proof of concept on your data and write one report with a verdict."""
    _poc(load_config(config, overrides), "poc", overrides or [], dry_run, as_json, resume)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    arm: Annotated[
        str | None, typer.Option(help="Plan `tune --arm` instead of the whole proof of concept.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Say what would be tuned, why and at what price, in a plan.yaml that you can edit; nothing is tuned."""
    from tunescope.cli.show import show_plan
    from tunescope.studies import plan as study

    settings = load_config(config, overrides)
    _blame(settings)
    with _progress() as progress:
        if dry_run:
            forecasts, selections, proposed = study.preview(settings, arm, progress)
        else:
            folder, proposed = study.run(
                settings, arm, command=_command(), overrides=overrides or [], resume=resume, progress=progress
            )
    if dry_run:
        _print_preview(settings, forecasts, selections, as_json=as_json, plan=proposed)
        return
    steps = study.next_steps(folder, proposed, required=settings.approval == "required")
    if as_json:
        state = folder.read_json("status.json")["state"]
        print_json({"run": str(folder.path), "state": state, "plan": proposed.to_dict(), "next": steps})
        return
    show_plan(open_console(stderr=False), proposed)
    print(f"plan: {folder.path / 'plan.yaml'} ({proposed.state})")
    for step in steps:
        print(f"next: {step}")


@app.command("map")
def layer_map(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Map where the tasks live in the model, block by block, and propose which blocks to tune."""
    from tunescope.cli.show_map import finish_map, show_map_forecast
    from tunescope.studies import map as study

    settings = load_config(config, overrides)
    _blame(settings)
    with _progress() as progress:
        if dry_run:
            forecast = study.preview(settings, progress)
        else:
            folder = study.run(
                settings, command=_command(), overrides=overrides or [], resume=resume, progress=progress
            )
    if dry_run:
        if as_json:
            print_json({"forecast": forecast.to_dict()})
        else:
            show_map_forecast(open_console(stderr=False), forecast.to_dict())
        return
    found = finish_map(open_console(stderr=as_json), folder, quiet=as_json)
    if as_json:
        print_json(found)


@app.command()
def approve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with a plan.")],
    by: Annotated[str, typer.Option("--by", help="Name of the person who approves.")],
    as_json: AsJson = False,
) -> None:
    """Approve the plan of a run as it stands in its plan.yaml, edits included."""
    from tunescope.cli.show import show_plan
    from tunescope.studies import approve as study

    done = study.run(run, by)
    digest = done.plan.sha256
    for line in done.notes:
        print(f"note: {line}", file=sys.stderr)
    if as_json:
        facts = {"by": done.by, "at": done.at, "sha256": digest, "already": done.already, "next": [done.resume]}
        print_json({"run": str(run), "plan": done.plan.to_dict(), **facts})
        return
    show_plan(open_console(stderr=False), done.plan)
    said = "was already approved" if done.already else "approved"
    print(f"plan {digest[:12]} {said} by {done.by} at {done.at}")
    print(f"next: {done.resume}")


@app.command()
def tune(
    config: ConfigFile,
    overrides: Overrides = None,
    arm: Annotated[str, typer.Option(help="What to tune: selected, random, top-third, lora-all or full.")] = "selected",
    search: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=100_000,
            help="First look for the best settings in N trials (tuning.search; needs the extra optuna).",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Tune one arm and save its weights; no comparison."""
    from tunescope.studies import tune as study

    settings = load_config(config, overrides)
    _blame(settings)
    with _progress() as progress:
        if dry_run:
            _print_preview(settings, *study.preview(settings, arm, progress), as_json=as_json)
            return
        folder = study.run(
            settings,
            arm,
            trials=search,
            command=_command(),
            overrides=overrides or [],
            resume=resume,
            progress=progress,
        )
    _finish(folder, as_json, f"weights: {folder.path / 'weights' / arm}")


@app.command()
def evaluate(
    config: ConfigFile,
    overrides: Overrides = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with tuned weights; may be given several times.", show_default=False),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="The same, with the name that the report shows.", show_default=False),
    ] = None,
    lm_eval: Annotated[
        list[Path] | None,
        typer.Option(
            "--lm-eval",
            metavar="TASK_YAML",
            help="Also run this task of lm-evaluation-harness (needs the extra lm-eval; local data only); may be given several times.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Measure the base model and saved weights on the test data of a config."""
    from tunescope.studies import evaluate as study

    settings = load_config(config, overrides)
    arms = _named_folders(arm or [])
    _blame(settings)
    with _progress() as progress:
        if dry_run:
            _print_preview(settings, *study.preview(settings, weights or [], progress, arms=arms), as_json=as_json)
            return
        folder = study.run(
            settings,
            weights or [],
            arms=arms,
            lm_eval=lm_eval or [],
            command=_command(),
            overrides=overrides or [],
            resume=resume,
            progress=progress,
        )
    _finish(folder, as_json)


@app.command()
def knowledge(
    config: ConfigFile,
    overrides: Overrides = None,
    tuned: Annotated[
        Path | None,
        typer.Option(help="Also compare this tuned model: an adapter, a whole model, or a run.", show_default=False),
    ] = None,
    intervene: Annotated[
        bool, typer.Option("--intervene", help="Also tune on groups of the questions and compare what each does.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Probe what the model already knows of your questions, and what tuning did to it."""
    from tunescope.cli.knowledge import finish_knowledge, show_knowledge_forecast
    from tunescope.studies import knowledge as study

    settings = load_config(config, overrides)
    _blame(settings)
    with _progress() as progress:
        if dry_run:
            forecast = study.preview(settings, tuned=tuned, intervention=intervene, progress=progress)
        else:
            folder = study.run(
                settings,
                tuned=tuned,
                intervention=intervene,
                command=_command(),
                overrides=overrides or [],
                resume=resume,
                progress=progress,
            )
    if dry_run:
        if as_json:
            print_json({"forecast": forecast.to_dict()})
        else:
            show_knowledge_forecast(open_console(stderr=False), forecast.to_dict())
        return
    found = finish_knowledge(open_console(stderr=as_json), folder, quiet=as_json)
    if as_json:
        print_json(found)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path(),
    lang: Annotated[Literal["en", "ja"], typer.Option("--lang", help="Language of comments and sample data.")] = "en",
) -> None:
    """Write a commented settings file and sample data to start from."""
    from tunescope.studies import init as study

    written = study.run(folder, language=lang)
    print(f"wrote {written[0]} and {len(written) - 1} data files in {folder / 'data'}")
    print(f"next: put your own files there, then run  tunescope data check {written[0]}")


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Also look at the model and the data of these settings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether everything is here that a run needs; changes and fetches nothing."""
    from tunescope.studies import doctor as study

    checks = study.run(load_config(config, None) if config else None)
    if as_json:
        print_json(study.as_json(checks))
    else:
        marks = {"ok": "[green]ok     [/green]", "warning": "[yellow]warning[/yellow]", "problem": "[red]problem[/red]"}
        for check in checks:
            open_console(stderr=False).print(
                f"{marks[check.state]}  {check.name:<10} {check.text}", highlight=False, soft_wrap=True
            )
    if any(check.state == "problem" for check in checks):
        raise typer.Exit(2)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run folder, or several to compare.")],
    lang: Language = None,
    out: Annotated[Path, typer.Option(help="File for a comparison of several runs.")] = Path("comparison.html"),
) -> None:
    """Rebuild the report of a run, or put several runs side by side."""
    from tunescope import report as reports

    print(reports.build(runs[0], lang=lang) if len(runs) == 1 else reports.compare(runs, out=out, lang=lang))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    arm: Annotated[str, typer.Argument(help="One of its tuned arms.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; must not exist or be empty.")],
    form: Annotated[
        Literal["merged", "adapter"], typer.Option("--format", help="A whole model, or the adapter alone.")
    ] = "merged",
) -> None:
    """Write tuned weights for a serving stack: the merged model, or the adapter."""
    from tunescope.studies import export as study

    print(study.run(run, arm, to, form=form))


def _poc(settings: Config, study_name: str, overrides: list[str], dry_run: bool, as_json: bool, resume: bool) -> None:
    from tunescope.errors import GateError
    from tunescope.studies import poc as study

    _blame(settings)
    with _progress() as progress:
        if dry_run:
            _print_preview(settings, *study.preview(settings, progress), as_json=as_json)
            return
        gate: GateError | None = None
        try:
            folder = study.run(
                settings, command=_command(), overrides=overrides, resume=resume, study=study_name, progress=progress
            )
        except GateError as error:  # the run is complete, only the verdict is not what the gate wants
            from tunescope.runs.folder import RunFolder

            folder, gate = RunFolder.open(settings.output_dir), error
    _finish(folder, as_json)
    if gate is not None:
        raise gate


def _named_folders(given: list[str]) -> dict[str, Path]:
    """Reads NAME=PATH options."""
    from tunescope.errors import ConfigError

    named: dict[str, Path] = {}
    problems = []
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            problems.append(f"--arm {text}: write NAME=PATH, such as nli=runs/nli/weights/lora-all")
        elif name in named:
            problems.append(f"--arm {text}: the name {name!r} is given twice")
        named[name] = Path(path)
    if problems:
        raise ConfigError(problems)
    return named


def _blame(settings: Config) -> None:
    """Notes where the traceback of a bug goes."""
    global current_run  # noqa: PLW0603 - only for that
    current_run = settings.output_dir


def _finish(folder: RunFolder, as_json: bool, line: str | None = None) -> None:
    """Builds the report and prints where it is."""
    from tunescope import report as reports
    from tunescope.cli.show import show_run, summary

    page = reports.build(folder.path)
    if as_json:
        print_json(summary(folder, page))
        return
    console = open_console(stderr=False)
    show_run(console, folder)
    if line:
        print(line)
    print(f"report: {page}")


def _print_preview(
    settings: Config, forecasts: list[Any], selections: dict[str, Any], *, as_json: bool, plan: Plan | None = None
) -> None:
    from tunescope.cli.show import show_alternatives, show_forecast

    if as_json:
        print_json(
            {
                "forecast": [f.to_dict() for f in forecasts],
                "selections": {a: s.to_dict() for a, s in selections.items()},
                **({"plan": plan.to_dict()} if plan else {}),
            }
        )
        return
    business = settings.business
    show_forecast(open_console(stderr=False), forecasts, selections, business.machine_cost_per_hour, business.currency)
    if plan:
        show_alternatives(open_console(stderr=False), plan)


def _progress() -> Any:
    from tunescope.cli.progress import TerminalProgress

    return TerminalProgress(open_console(stderr=True))


def _command() -> str:
    return shlex.join(["tunescope", *sys.argv[1:]])


add_learn(app, _blame)
