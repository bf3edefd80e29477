"""Tune on one task, test on all, without and with in-context examples, and print what of the published findings appears.

python dev/matrix.py CONFIG [key=value ...] [--seeds 42 43] [--half paraphrase] [--dry-run]

Called again with the same settings it goes on where it was interrupted. Beside matrix.json it writes matrix.svg.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tunescope.cli.progress import TerminalProgress
from tunescope.config import load
from tunescope.report.matrix_picture import Column, MatrixWords, Square, matrix_picture
from tunescope.studies import matrix

NAMES = {"base": "untuned", "ft": "tuned", "fticl": "tuned with examples", "half": "tuned on half"}
SHORT = {"base": "untuned", "ft": "FT", "fticl": "FTICL", "half": "FT on half"}
SHOTS = {"zero": "asked without examples", "few": "asked with examples"}


def row_name(cell: dict[str, Any]) -> str:
    """How a model was tuned and is asked."""
    source = f"{cell['tuned_on']}: " if cell["tuned_on"] else ""
    return f"{source}{NAMES[cell['mode']]}, {SHOTS[cell['shots']]}"


def short_name(cell: dict[str, Any]) -> str:
    """The same in the field's abbreviations, for the picture."""
    source = f"{cell['tuned_on']}: " if cell["tuned_on"] else ""
    return f"{source}{SHORT[cell['mode']]}, {cell['shots']}-shot"


def table(cells: list[dict[str, Any]], role: str) -> list[str]:
    """Models down, test tasks across: score, difference to the base asked alike, a mark where it is beyond the noise."""
    mine = [cell for cell in cells if cell["role"] == role]
    tasks = list(dict.fromkeys(cell["task"] for cell in mine))
    lines = ["| model | " + " | ".join(tasks) + " |", "| --- |" + " --- |" * len(tasks)]
    for name in dict.fromkeys(map(row_name, mine)):
        found = {cell["task"]: cell for cell in mine if row_name(cell) == name}
        lines.append(f"| {name} | " + " | ".join(words(found[t]) if t in found else "–" for t in tasks) + " |")
    return lines


def words(cell: dict[str, Any]) -> str:
    """One cell: score, difference, collapse."""
    text = f"{100 * cell['value']:.1f}"
    if "difference" in cell:
        mark = ("▲" if cell["difference"] > 0 else "▼") if cell["beyond_noise"] else ""
        text += f" ({100 * cell['difference']:+.1f}{mark})"
    if cell["collapse_rate"]:
        text += f" L{100 * cell['collapse_rate']:.0f}%"
    return f"**{text}**" if cell["relation"] == "same" else text


def picture(found: dict[str, Any]) -> str:
    """The matrix as a picture that stands alone."""
    cells = [cell for cell in found["cells"] if cell["mode"] != "half"]
    keys = list(dict.fromkeys((cell["task"], cell["role"]) for cell in cells))
    rows = []
    for name in dict.fromkeys(map(short_name, cells)):
        known = {(c["task"], c["role"]): c for c in cells if short_name(c) == name}
        rows.append((name, [square(known.get(key)) for key in keys]))
    told = MatrixWords(
        scale="Difference to the untuned model asked alike, points",
        better="better beyond the noise",
        worse="worse beyond the noise",
        own="tuned on this task",
        collapsed="a tenth or more of the answers are labels of another task",
        score=lambda value: f"{100 * value:.0f}",
        points=lambda value: f"{100 * value:+.0f}",
    )
    columns = [Column(task, role.replace("_", " ")) for task, role in keys]
    return matrix_picture(rows, columns, name="matrix", words=told).standalone("Tuned on one task, tested on all")


def square(cell: dict[str, Any] | None) -> Square:
    """One cell of the picture."""
    if cell is None:
        return Square(math.nan)
    return Square(
        cell["value"],
        cell.get("difference"),
        cell.get("beyond_noise", False),
        own=cell["relation"] == "same",
        collapsed=cell["collapse_rate"],
        tip=f"{row_name(cell)}; {cell['task']}, {cell['role']}: {words(cell)}",
    )


def main() -> None:
    """Runs the study and prints matrix and findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43])
    parser.add_argument("--half", nargs="*", default=[], help="tasks that are also tuned on half of their examples")
    parser.add_argument("--dry-run", action="store_true", help="list the models and what they read, and tune nothing")
    given = parser.parse_args()
    config = load(given.config, overrides=given.overrides)
    if given.dry_run:
        for line in matrix.preview(config, seeds=given.seeds, half=given.half):
            print(line)
        return
    with TerminalProgress(Console(stderr=True)) as progress:
        found = matrix.run(config, seeds=given.seeds, half=given.half, command=" ".join(sys.argv), progress=progress)
    (config.output_dir / "matrix.svg").write_text(picture(found), encoding="utf-8")
    for role in ("in_domain", "out_of_domain"):
        print(f"\n{role.replace('_', '-')}; in brackets the difference to the base asked alike, ▲▼ beyond the noise\n")
        print(*table(found["cells"], role), sep="\n")
    print("\nmean absolute change of the weights, by seed\n")
    for row in found["weight_change"]:
        print(f"- {row['task']}, {NAMES[row['mode']]}: " + ", ".join(f"{v:.3e}" for v in row["by_seed"]))
    print("\nfindings\n")
    for f in found["findings"]:
        effect = (
            "" if f["effect"] is None else f": {f['what']} {f['effect']:+.4f} ({f['low']:+.4f} to {f['high']:+.4f})"
        )
        details = "; ".join(f"{name} {value:.4g}" for name, value in f["details"].items())
        print(f"{f['number']}. {f['claim']}: **{f['answer']}**{effect}. {details}")


if __name__ == "__main__":
    main()
