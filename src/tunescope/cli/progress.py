"""Progress on the terminal: a bar with the time left, plain lines where there is no terminal; and a polite Ctrl-C."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class TerminalProgress:
    """Shows stages on stderr; the first Ctrl-C asks the study to save and stop, the second one ends at once.

    Args:
        console: on stderr.
        quiet: show nothing but notes.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._started = time.monotonic()
        self._planned: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._stage: str | None = None
        self._stage_started = 0.0
        self._total: int | None = None
        self._count = 0
        self._asked = False
        self._task: Any = None
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._live = Progress(*columns, console=console, transient=True) if console.is_terminal and not quiet else None

    def __enter__(self) -> TerminalProgress:
        self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_stage(whole=error is None)
        if self._live:
            self._live.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def plan(self, seconds: dict[str, float]) -> None:
        """Remembers the forecast, from which the time left in all is estimated."""
        self._planned = dict(seconds)
        if seconds and not self.quiet:
            self.console.print(f"[dim]forecast: about {_minutes(sum(seconds.values()))} for tuning and measuring[/dim]")

    def stage(self, name: str, total: int | None = None) -> None:
        """Starts a bar, or prints a line where there is no terminal."""
        self._finish_stage()
        self._stage, self._total, self._count, self._stage_started = name, total, 0, time.monotonic()
        if self._live:
            self._task = self._live.add_task(name, total=total, left=self._left())
        elif not self.quiet:
            elapsed = time.monotonic() - self._started
            size = f" ({total} steps)" if total else ""
            self.console.print(f"[{elapsed:6.0f} s] {name}{size}{self._left()}", highlight=False, markup=False)

    def advance(self, units: int = 1) -> None:
        """Moves the bar."""
        self._count += units
        if self._live and self._task is not None:
            self._live.update(self._task, advance=units, left=self._left())

    def note(self, text: str) -> None:
        """Prints a line."""
        if not self.quiet:
            self.console.print(f"  {text}", highlight=False, markup=False)

    def stopping(self) -> bool:
        """True after the first Ctrl-C."""
        return self._asked

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._asked or (number == signal.SIGTERM and self._stage is None):
            raise KeyboardInterrupt
        self._asked = True
        self.console.print("stopping at the next safe point (once more to stop at once) ...", highlight=False)

    def _finish_stage(self, *, whole: bool = True) -> None:
        if self._stage is None:
            return
        seconds = time.monotonic() - self._stage_started
        if self._live and self._task is not None:
            self._live.remove_task(self._task)
            if whole:
                self.console.print(f"[green]✓[/green] {self._stage} [dim]{seconds:.0f} s[/dim]", highlight=False)
        key = self._key()
        if key and whole:
            self._spent[key] = self._spent.get(key, 0.0) + seconds
            if self._stage == key:
                self._done[key] = self._planned[key]
        self._stage, self._task = None, None

    def _key(self) -> str | None:
        """The planned stage that the current one belongs to: choosing a learning rate is part of tuning."""
        if self._stage is None:
            return None
        name = self._stage.replace(": choose the learning rate", ": tune")
        return name if name in self._planned else None

    def _left(self) -> str:
        """Time left in all: what is still planned, corrected by how the plan held so far."""
        if not self._planned:
            return ""
        done = sum(self._done.values())
        spent = sum(self._spent[key] for key in self._done)
        # The first stages say little about the rest: the forecast counts as much as a fifth of the whole plan.
        prior = 0.2 * sum(self._planned.values())
        pace = (spent + prior) / (done + prior)
        left = (sum(self._planned.values()) - done) * pace
        key = self._key()
        if key:
            here = (
                time.monotonic() - self._stage_started + (self._spent.get(key, 0.0) if key not in self._done else 0.0)
            )
            left -= min(here, self._planned[key] * pace)
        return f"  about {_minutes(max(left, 0))} left"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
