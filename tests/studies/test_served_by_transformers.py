"""Against a server that somebody else wrote: `transformers serve`, on this machine, with a small random model."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_study import save_model, settings, write_study

from tunescope.config import load
from tunescope.errors import ModelError
from tunescope.runs.folder import RunFolder
from tunescope.studies import poc

NEEDS = ("fastapi", "uvicorn", "openai")
missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("loopback"),
    pytest.mark.skipif(bool(missing), reason=f"transformers serve needs {', '.join(missing)}: pip install -e '.[dev]'"),
]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", n_layers=2, d_model=32)


@pytest.fixture
def server(weights: Path, tmp_path: Path, loopback: None) -> Iterator[str]:
    """Its address; the model's name there is the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(weights), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ)) as process,
    ):
        try:
            deadline = time.monotonic() + 240
            while not _listens(port):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def texts(run: RunFolder) -> list[tuple[str, str, str | None]]:
    rows = run.read_jsonl("samples.jsonl")
    return [(arm, given["text"], given["answered_by"]) for row in rows for arm, given in sorted(row["answers"].items())]


def test_its_answers_are_those_of_greedy_generation_here(weights: Path, server: str, tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        weights,
        dtype="float32",
        arms=["nothing", "prompt"],
        tasks=settings(weights)["tasks"][2:],
        guard=[],
        evaluation={"max_new_tokens": 16, "demonstrations": 2, "n_bootstrap": 200, "latency_requests": 0},
    )
    served = [f"generation.endpoint={server}", f"generation.model={weights}", "generation.concurrency=2"]
    here = poc.run(load(study, [f"output_dir={tmp_path / 'here'}"]))
    there = poc.run(load(study, [f"output_dir={tmp_path / 'there'}", *served]))
    assert [text[:2] for text in texts(there)] == [text[:2] for text in texts(here)]
    assert {by for *_, by in texts(there)} == {f"{weights} at {server}"} and {by for *_, by in texts(here)} == {None}
    assert len({text for _, text, _ in texts(here)}) > 10
    assert there.read_json("results.json")["results"] == here.read_json("results.json")["results"]

    found = sorted({c for _, text, _ in texts(here) for c in text[1:-1] if c.isalnum()})
    stop = f"evaluation.stop={json.dumps([found[0], found[-1]])}"
    here = poc.run(load(study, [f"output_dir={tmp_path / 'here-stopped'}", stop]))
    there = poc.run(load(study, [f"output_dir={tmp_path / 'there-stopped'}", stop, *served]))
    assert [text[:2] for text in texts(there)] == [text[:2] for text in texts(here)]

    with pytest.raises(ModelError, match=r"status 400 .*pinned to.*check address, model") as caught:
        poc.run(load(study, [f"output_dir={tmp_path / 'other'}", *served, "generation.model=another"]))
    assert caught.value.exit_code == 2
