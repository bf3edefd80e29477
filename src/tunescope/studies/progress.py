"""How a study tells what it is doing; the command line shows it, a test or a notebook may ignore it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a study."""

    def plan(self, seconds: dict[str, float]) -> None:
        """The stages to come and how long each is forecast to take, in seconds."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; `total` is its number of units, if known."""

    def advance(self, units: int = 1) -> None:
        """Some units of the stage are done."""

    def note(self, text: str) -> None:
        """Something a person should read."""

    def stopping(self) -> bool:
        """True once the user asked to stop; the study then saves and ends."""


def ticker(progress: Progress) -> Callable[[int], None]:
    """Returns a callback for long work without checkpoints: it advances, and raises KeyboardInterrupt once the user asked to stop."""

    def tick(units: int = 1) -> None:
        progress.advance(units)
        if progress.stopping():
            raise KeyboardInterrupt

    return tick


class Silent:
    """Shows nothing and never stops."""

    def plan(self, seconds: dict[str, float]) -> None:
        """Ignored."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Ignored."""

    def advance(self, units: int = 1) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

    def stopping(self) -> bool:
        """Returns False."""
        return False
