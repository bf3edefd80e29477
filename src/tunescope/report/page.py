"""Puts sections into one self-contained page, and writes files so that a reader never sees half of one."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tunescope import __version__
from tunescope.errors import RunError
from tunescope.report.wording import Words, visible


def render(template: str, words: Words, **values: object) -> str:
    """Returns a page; every text in it is escaped and its invisible characters are written out.

    Args:
        template: file name under ``templates``.
        words: sentences of the page.
        values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        finalize=_show,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(_source("style.css"))
    return environment.get_template(template).render(t=words, style=style, version=__version__, **values) + "\n"


def _source(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _show(value: object) -> object:
    """What a template prints: texts from outside with nothing hidden in them, our own mark-up as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return visible(value)


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place and swaps it in, so that there is always a whole one.

    Raises:
        RunError: the file cannot be written (no such folder, no right to it, disk full).
    """
    part: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        # Lone surrogates can stand in JSON; they have no UTF-8 form, and `visible` names them in the page.
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except OSError as error:
        if part is not None:
            Path(part).unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes an object as JSON, as `write_text` does; numbers that JSON does not know become null.

    Raises:
        RunError: the file cannot be written.
    """
    write_text(path, json.dumps(_plain(values), ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """The value with lists for tuples and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
