"""Run a command and turn every error into one line per problem and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path

import typer

from tunescope.errors import TunescopeError

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with the code that `tunescope.errors` gives."""
    from tunescope.cli.app import app

    sys.exit(_run(app, arguments))


def _run(app: typer.Typer, arguments: list[str] | None) -> int:
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except TunescopeError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        from tunescope.cli.app import current_run

        _say(
            "stopped"
            if current_run is None
            else "stopped. What was done is kept: run the same command with --resume to go on"
        )
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _is_disk_full(error):
            where = getattr(error, "filename", None) or "the disk"
            _say(f"error: {where}: no space left; free some, then run the command again (a study with --resume)")
            return 2
        # Usage errors are click's; typer carries a copy of click inside, whose classes have no public name.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return 2
        return _unexpected(error)


def _is_disk_full(error: Exception) -> bool:
    """Whether there is no room left; safetensors tells so only in the text of an error of its own."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def _unexpected(error: Exception) -> int:
    """A bug: the traceback goes to a file, the terminal gets a line."""
    from tunescope.cli.app import current_run

    folder = (
        current_run if current_run is not None and current_run.is_dir() else Path(tempfile.mkdtemp(prefix="tunescope-"))
    )
    target = folder / "error.txt"
    target.write_text(f"{sys.argv}\n\n{''.join(traceback.format_exception(error))}", encoding="utf-8")
    first = (str(error).splitlines() or [""])[0]
    _say(
        f"error: unexpected {type(error).__name__}: {first[:300]}\nThis is a bug in tunescope; the traceback is in {target}"
    )
    return 1


def _say(text: str) -> None:
    # Control characters of a file's content must not reach the terminal.
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    print(safe, file=sys.stderr)
