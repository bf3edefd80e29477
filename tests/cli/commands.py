"""How a command is run in these tests, and the small study that it runs on."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "studies"))  # tiny_study, which both folders share

from tiny_study import write_study

from tunescope.cli.main import main

HOSTILE = "<script>alert('x')</script> \x1b[31mred\x1b[0m \x00 {{ 7*7 }} <img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The lines on stderr that name a problem."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    @property
    def object(self) -> Any:
        """Everything on stdout, which must be one JSON object."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def run_command(*arguments: object) -> Outcome:
    """Runs a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    code = stopped.value.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Finished:
    """A finished run, and what the command said."""

    study: Path
    run: Path
    said: Outcome


def small(model: Path, folder: Path, **changes: Any) -> Path:
    """A study of one task and three arms, which takes a second or two."""
    task = {
        "name": "routing",
        "family": "classification",
        "train": "data/routing.train.jsonl",
        "test": "data/routing.test.jsonl",
        "out_of_domain": ["data/routing.plant_b.jsonl"],
        "labels": ["it", "hr", "ops"],
    }
    quick = {"num_epochs": 1, "lora_rank": 2, "learning_rate": 1e-3}
    values = {"tasks": [task], "arms": ["nothing", "selected", "random"], "tuning": quick}
    return write_study(folder, model, **(values | changes))
