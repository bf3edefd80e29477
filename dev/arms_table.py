"""Print the arms of finished runs as a Markdown table, as the README shows them.

python dev/arms_table.py RUN [RUN ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast, Result


def cell(results: list[Result], arm: str, role: str) -> str:
    """One score with its interval; a star where the difference to `nothing` is beyond the noise."""
    found = next(
        (r for r in results if r.arm == arm and r.role == role and r.task == ("*" if role != "guard" else "guard")),
        None,
    )
    if found is None:
        return "–"
    star = (
        "*"
        if found.difference_low is not None and (found.difference_low > 0 or (found.difference_high or 0) < 0)
        else ""
    )
    if role == "guard":
        return f"{found.value:.2f}{star}"
    return f"{100 * found.value:.1f}{star} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def main() -> None:
    """Prints one table for all runs."""
    print("| seed | arm | in-domain | out-of-domain | guard loss | tuning | peak memory | weights that move |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for path in map(Path, sys.argv[1:]):
        run = RunFolder.open(path)
        results = [Result.from_dict(r) for r in run.read_json("results.json")["results"]]
        seed = run.read_json("environment.json")["seed"]
        for values in run.read_json("costs.json")["actual"]:
            cost = Forecast.from_dict(values)
            time = f"{cost.tuning_seconds:.0f} s" if cost.tuning_seconds else "–"
            moving = f"{cost.trainable_parameters:,}" if cost.trainable_parameters else "–"
            scores = " | ".join(cell(results, cost.arm, role) for role in ("in_domain", "out_of_domain", "guard"))
            print(
                f"| {seed} | `{cost.arm}` | {scores} | {time} | {cost.peak_memory_bytes / 2**30:.1f} GiB | {moving} |"
            )


if __name__ == "__main__":
    main()
