"""Compare replay policies over orders and seeds of a stream, and print the answer as Markdown.

python dev/stream.py CONFIG [key=value ...] [--policies inscl random none ...] [--orders as_given reverse random] [--seeds 1 2 3] [--table]

Every run is a folder in output_dir. Called again it skips what is finished and goes on where it was interrupted; the table, also written to
policies.json and policies.md there, is about everything that is finished. --table only writes the table. With `replay.experts=true` it
has the relative gain.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tunescope.cli.progress import TerminalProgress
from tunescope.config import load
from tunescope.runs.folder import RunFolder, write_text
from tunescope.studies import learn_policies as study

FACTORS = {"relative_gain": 1.0, "average": 100.0, "forgetting": 100.0}


def shown(row: Mapping[str, Any], name: str, *, sign: str = "") -> str:
    """A measure with its interval; nothing where it was not measured."""
    if name not in row:
        return "–"
    value, low, high = (FACTORS[name] * row[name][key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def table(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = ["| policy | runs | relative gain, % | average | forgetting |", "| --- | --- | --- | --- | --- |"]
    for policy, row in found["policies"].items():
        lines.append(f"| `{policy}` | {row['runs']} | " + " | ".join(shown(row, name) for name in FACTORS) + " |")
    lines += [
        "",
        "| against `random`, paired | pairs | relative gain, points | average | forgetting |",
        "| --- | --- | --- | --- | --- |",
    ]
    for policy, row in found["against_random"].items():
        lines.append(
            f"| `{policy}` | {row['pairs']} | " + " | ".join(shown(row, name, sign="+") for name in FACTORS) + " |"
        )
    orders = list(found["by_order"])
    lines += ["", "| mean by order | " + " | ".join(orders) + " |", "| --- |" + " --- |" * len(orders)]
    for policy in found["policies"]:
        cells = []
        for order in orders:
            row = found["by_order"][order].get(policy, {})
            name = "relative_gain" if "relative_gain" in row else "average"
            cells.append(f"{FACTORS[name] * row[name]:.1f}" if row else "–")
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    if (why := found.get("distance_and_loss")) is not None:
        lines += [
            "",
            f"Distance to the new task against what a task loses in a stage without repetition, rank correlation within stages: "
            f"{why['value']:+.2f} ({why['low']:+.2f} to {why['high']:+.2f}), {why['pairs']} pairs in {why['stages']} stages.",
        ]
    hours = {policy: f"{seconds / 3600:.1f} h" for policy, seconds in found["seconds"].items()}
    return "\n".join([*lines, "", f"Work: {hours}. Intervals are over orders, seeds and test examples.", ""])


def main() -> None:
    """Runs the study, or only its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--policies", nargs="+", default=["inscl", "random", "none"])
    parser.add_argument("--orders", nargs="+", default=list(study.ORDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--table", action="store_true", help="only write the table of what is finished")
    given = parser.parse_args()
    config = load(given.config, overrides=given.overrides)
    if given.table:
        found = study.compare(
            study.read_finished(config),
            n_bootstrap=config.evaluation.n_bootstrap,
            confidence=config.evaluation.confidence,
        )
        RunFolder(config.output_dir).write_json(study.RESULT, found)
    else:
        with TerminalProgress(Console(stderr=True)) as progress:
            found = study.run(
                config,
                policies=given.policies,
                orders=given.orders,
                seeds=given.seeds,
                command=" ".join(sys.argv),
                progress=progress,
            )
    write_text(config.output_dir / "policies.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
