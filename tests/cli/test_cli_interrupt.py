"""Ctrl-C while it tunes: a checkpoint, a word on how to go on, and a run that goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Outcome

from tunescope.runs import ledger

OVERRIDES = ("arms=[nothing, selected]", "tuning.num_epochs=20", "tuning.patience=0", "tuning.learning_rate=1e-5")


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_goes_on(
    small_study: Path, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["poc", str(small_study), *OVERRIDES, f"output_dir={run}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tunescope", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    steps = run / "steps.jsonl"
    deadline = time.monotonic() + 100
    while not steps.is_file() or steps.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and "Traceback" not in err
    assert "stopping at the next safe point" in err and err.splitlines()[-1].endswith("--resume to go on")
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "stopped by the user")
    done = steps.read_bytes().count(b"\n")
    assert (run / "arms" / "selected" / "checkpoint.safetensors").is_file() and 5 <= done < 40
    said = command(*arguments, "--resume")
    assert said.code == 0 and f"continues after step {done} of 40" in said.err
    assert [json.loads(line)["step"] for line in steps.read_text().splitlines()] == list(range(1, 41))
    assert ledger.verify(run / "ledger.jsonl").n == 4  # overrides, data, plan, verdict


@pytest.mark.parametrize("stage", ["load the model", "score the blocks"])
def test_ctrl_c_at_any_other_time_ends_with_130(
    stage: str, small_study: Path, command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunescope.cli.progress import TerminalProgress

    def begin(self: TerminalProgress, name: str, total: int | None = None) -> None:
        if name == stage:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TerminalProgress, "stage", begin)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
    try:
        said = command("poc", small_study, f"output_dir={tmp_path / 'run'}")
        assert said.code == 130 and "--resume" in said.err and said.out == ""
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
