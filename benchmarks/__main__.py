"""``python -m benchmarks [ROW ...]``: interleaved comparisons, results in ``benchmarks/results/``, the table in the README."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pairs import fastest, interleave
from benchmarks.table import write_table
from tunescope.runs.environment import describe_environment

ROWS = ("tuning", "tail", "demonstrations", "layer_map", "few_shot")
_RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "peft", "trl", "lm-eval", "POT")


def main() -> None:
    """Runs the rows that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs per comparison (default 5)")
    parser.add_argument(
        "--table", action="store_true", help="only write the README's table from the results that are there"
    )
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"unknown row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if given.pairs < 1:
        parser.error(f"--pairs: got {given.pairs}, allowed: at least 1")
    console = Console(stderr=True)
    for row in () if given.table else given.rows or ROWS:
        _run(row, given.pairs, console)
    write_table([_RESULTS / f"{row}.json" for row in ROWS], Path(__file__).parents[1] / "README.md")


def _run(row: str, n_pairs: int, console: Console) -> None:
    module = importlib.import_module(f"benchmarks.rows.{row}")
    console.print(f"[bold]{row}[/bold]: {module.TITLE}")
    peer, tried = module.PEERS[0], {}
    if len(module.PEERS) > 1:
        peer, tried = _best_setting(getattr(module, "TRIED_IN", row), tuple(module.PEERS), console)
        console.print(f"  the peer's best setting here: {peer}")
    found: dict[str, Any] = {
        "schema_version": 1,
        "row": row,
        "title": module.TITLE,
        "target": module.TARGET,
        "peer_settings_seconds": tried,
        "against_peer": interleave(row, module.OURS, peer, n_pairs, console),
        "beside": {
            name: interleave(row, module.OURS, name, n_pairs, console) for name in getattr(module, "BESIDE", ())
        },
        "environment": describe_environment() | {"processor": _processor(), "packages": _versions()},
    }
    _RESULTS.mkdir(exist_ok=True)
    part = _RESULTS / f".{row}.json.part"
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(_RESULTS / f"{row}.json")


@functools.cache
def _best_setting(row: str, peers: tuple[str, ...], console: Console) -> tuple[str, dict[str, float]]:
    """The peer's fastest setting in the work of a row; rows that do the same work for longer share it."""
    return fastest(row, peers, console)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


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
