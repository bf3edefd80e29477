"""``python -m benchmarks [ROW ...]``: interleaved comparisons, results in ``benchmarks/results/``, the table in the README."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pairs import fastest, interleave
from benchmarks.table import write_table
from tunescope.errors import ConfigError
from tunescope.runs.environment import describe_environment
from tunescope.studies.machine import pick_device

ROWS = ("tuning", "tail", "demonstrations", "layer_map", "layer_map_top", "few_shot")
_RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "peft", "trl", "lm-eval", "POT")


def main() -> None:
    """Runs the rows that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs per comparison (default 5)")
    parser.add_argument(
        "--device", type=_device, help="cpu, cuda or cuda:N, for both sides; default: the GPU where there is one"
    )
    parser.add_argument(
        "--table", action="store_true", help="only write the README's table from the results that are there"
    )
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"unknown row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if given.pairs < 1:
        parser.error(f"--pairs: got {given.pairs}, allowed: at least 1")
    if given.device:
        try:
            os.environ["TUNESCOPE_BENCH_DEVICE"] = pick_device(given.device)  # the sides are processes of their own
        except ConfigError as error:
            parser.error(str(error))
    console = Console(stderr=True)
    for row in () if given.table else given.rows or ROWS:
        _run(row, given.pairs, console)
    write_table([_RESULTS / f"{row}.json" for row in ROWS], Path(__file__).parents[1] / "README.md")


def _run(row: str, n_pairs: int, console: Console) -> None:
    module = importlib.import_module(f"benchmarks.rows.{row}")
    console.print(f"[bold]{row}[/bold]: {module.TITLE}")
    from benchmarks import work  # which reads the device that was chosen

    machine = {"processor": work.processor(), "packages": _versions()}
    tried = _tried(row, getattr(module, "TRIED_IN", None), module.PEERS, machine, console)
    peer = min(tried, key=tried.__getitem__) if tried else module.PEERS[0]
    console.print(f"  the peer's setting: {peer}")
    found: dict[str, Any] = {
        "schema_version": 1,
        "row": row,
        "title": module.TITLE,
        "target": module.TARGET,
        "peer_settings_seconds": tried,
        "against_peer": interleave(row, module.OURS, peer, n_pairs, console),
        "beside": {
            name: {"target": target} | interleave(row, module.OURS, name, n_pairs, console)
            for name, target in getattr(module, "BESIDE", {}).items()
        },
        "environment": describe_environment() | machine,
    }
    _RESULTS.mkdir(exist_ok=True)
    part = _RESULTS / f".{row}.json.part"
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(_RESULTS / f"{row}.json")


def _tried(
    row: str, borrowed: str | None, peers: Sequence[str], machine: dict[str, Any], console: Console
) -> dict[str, float]:
    """Seconds of each of the peer's settings: in the row itself, or in one with the same work, as measured on this machine before."""
    if len(peers) == 1:
        return {}
    if borrowed is not None and (_RESULTS / f"{borrowed}.json").is_file():
        before = json.loads((_RESULTS / f"{borrowed}.json").read_text(encoding="utf-8"))
        seconds: dict[str, float] = before["peer_settings_seconds"]
        if set(seconds) == set(peers) and machine.items() <= before["environment"].items():
            return seconds
    return fastest(borrowed or row, peers, console)


def _device(text: str) -> str:
    if re.fullmatch(r"cpu|cuda(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: cpu, cuda or cuda:N")
    return text


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
