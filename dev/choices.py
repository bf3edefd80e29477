"""Compare what scores choose with chance and with the rule of thumb, and print the answer as Markdown.

python dev/choices.py CONFIG [key=value ...] [--scores layer_map gradient_norm] [--seeds 42 43 44]

Called again with the same settings it goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tunescope.cli.progress import TerminalProgress
from tunescope.config import load
from tunescope.studies import choices


def percent(value: float) -> str:
    """A difference in points."""
    return f"{100 * value:+.1f}"


def table(found: dict[str, Any], role: str) -> list[str]:
    """One row per choice: its score per seed, and its difference to each control."""
    compared = found["compared"][role]
    lines = ["| choice | mean score per seed | minus random | minus top-third |", "| --- | --- | --- | --- |"]
    for name, by_seed in compared["means"].items():
        cells = []
        for control in ("random", "top-third"):
            row = next((r for r in compared["differences"] if {r["choice"], r["against"]} == {name, control}), None)
            if row is None:
                cells.append("–")
                continue
            sign = 1 if row["choice"] == name else -1
            low, high = sorted((sign * row["low"], sign * row["high"]))
            cells.append(f"{percent(sign * row['difference'])} ({percent(low)} to {percent(high)})")
        lines.append(f"| `{name}` | {' · '.join(f'{100 * v:.1f}' for v in by_seed)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Runs the study and prints both roles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--scores", nargs="+", default=["layer_map", "gradient_norm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    given = parser.parse_args()
    with TerminalProgress(Console(stderr=True)) as progress:
        found = choices.run(
            load(given.config, overrides=given.overrides),
            scores=given.scores,
            seeds=given.seeds,
            command=" ".join(sys.argv),
            progress=progress,
        )
    for role in ("in_domain", "out_of_domain"):
        print(f"\n{role.replace('_', '-')}, percent, 95 % intervals\n", *table(found, role), sep="\n")
    print("\nblocks chosen\n")
    for name, by_seed in found["chosen"].items():
        print(f"- {name}: " + " · ".join(", ".join(b.removeprefix("block.") for b in blocks) for blocks in by_seed))
    print(f"\nguard loss: {found['guard_loss']}\ntuning seconds: {found['tuning_seconds']}")


if __name__ == "__main__":
    main()
