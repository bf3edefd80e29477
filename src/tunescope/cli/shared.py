"""What all commands share: arguments, the console, JSON on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tunescope.config import Config

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


def load_config(config: Path, overrides: list[str] | None) -> Config:
    """Reads a settings file with what is replaced on the command line."""
    from tunescope.config import load

    return load(config, overrides or [])


def open_console(*, stderr: bool) -> Console:
    """Where tables and progress are printed."""
    from rich.console import Console

    return Console(stderr=stderr)


def print_json(values: Any) -> None:
    """Prints one JSON object on stdout."""
    json.dump(values, sys.stdout, ensure_ascii=False, indent=1)
    print()
