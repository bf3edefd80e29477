"""The command line: every command's work is imported inside it, so that ``--help`` answers at once."""

from tunescope.cli.main import main

__all__ = ["main"]
