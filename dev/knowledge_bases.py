"""Print several knowledge runs side by side, as Markdown: which base is above chance where, and what each set of an intervention did.

python dev/knowledge_bases.py RUN [RUN ...] [--worst 12]

Each RUN is a folder that `tunescope knowledge` wrote. Domains are those that all runs asked; with many, only the `--worst` and as many of
the best of the first run are shown, and how many are above chance in each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tunescope.runs.folder import RunFolder


def share(row: dict[str, Any], key: str = "accuracy") -> str:
    """A share with its interval, in percent."""
    return f"{100 * row[key]:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def without_double(chance: dict[str, Any]) -> list[tuple[str, Any]]:
    """Roles with their rows; of a single role all together says nothing more."""
    return [(role, rows) for role, rows in chance.items() if role != "*" or len(chance) > 2]


def known(runs: dict[str, dict[str, Any]], worst: int) -> list[str]:
    """A row per role and domain, a column per run; what is above chance is bold."""
    tables = {
        name: {(role, row["domain"]): row for role, rows in without_double(found["before"]["chance"]) for row in rows}
        for name, found in runs.items()
    }
    first = next(iter(tables.values()))
    keys = [key for key in first if all(key in table for table in tables.values())]
    domains = sorted((key for key in keys if key[1] != "*"), key=lambda key: first[key]["accuracy"])
    shown = domains if len(domains) <= 2 * worst else [*domains[:worst], *domains[-worst:]]
    lines = [
        "| role | domain | n | chance | " + " | ".join(tables) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(tables),
    ]
    for key in [*shown, *(key for key in keys if key[1] == "*")]:
        cells = [f"**{share(t[key])}**" if t[key]["state"] == "above" else share(t[key]) for t in tables.values()]
        lines.append(
            f"| {key[0]} | {key[1]} | {first[key]['n']} | {100 * first[key]['chance']:.0f} | {' | '.join(cells)} |"
        )
    counts = [sum(table[key]["state"] == "above" for key in domains) for table in tables.values()]
    return [*lines, f"| | above chance, of {len(domains)} domains | | | {' | '.join(map(str, counts))} |"]


def sets(found: dict[str, Any]) -> list[str]:
    """A row per set: accuracy on each test, difference to the incompatible set, consistency."""
    facts, compared = found["facts"], found["comparison"]
    tests = list(facts["tests"])
    apart = {(d["first"], d["second"]): d["difference"] for d in compared["differences"] if d["test"] == "*"}
    lines = [
        f"| set | {' | '.join(tests)} | minus incompatible | consistency |",
        "| --- |" + " --- |" * (len(tests) + 2),
    ]
    base = [f"{100 * found['base_accuracy'][test]:.1f}" for test in tests]
    lines.append(f"| base, with demonstrations | {' | '.join(base)} | | |")
    for name in compared["n_seeds"]:
        near = [row["consistency"] for row in found["rows"] if row["set"] == name]
        gap, sign = apart.get((name, "incompatible")), 1
        if gap is None and (name, "incompatible") != ("incompatible", "incompatible"):
            gap, sign = apart.get(("incompatible", name)), -1
        ends = sorted((sign * gap["low"], sign * gap["high"])) if gap else []
        told = f"{100 * sign * gap['value']:+.1f} ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if gap else "–"
        cells = [share(compared["accuracy"][test][name], "value") for test in tests]
        lines.append(f"| {name} | {' | '.join(cells)} | {told} | {sum(near) / len(near):.2f} |")
    return [
        *lines,
        "",
        f"groups of {facts['group_size']} (of at most {facts['largest_group']}), {facts['general']} general examples, seeds {facts['seeds']}; "
        f"explanations: {facts['explanations']['why']} ({facts['explanations']['useful_in_sample']} useful in the sample)",
        f"order {' > '.join(compared['order'])}: holds {compared['order_holds']}, probability {compared['order_probability']}",
        f"partial Spearman of consistency and accuracy given the base: {found['partial']}",
        f"tuning seconds: {sum(cost['tuning_seconds'] for cost in found['costs']):.0f}",
    ]


def main() -> None:
    """Reads the runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--worst", type=int, default=12)
    given = parser.parse_args()
    names = [path.resolve().name for path in given.runs]
    shown = [str(path) if names.count(name) > 1 else name for path, name in zip(given.runs, names, strict=True)]
    found = {
        name: RunFolder.open(path).read_json("knowledge.json") for path, name in zip(given.runs, shown, strict=True)
    }
    print(*known(found, given.worst), sep="\n")
    for name, values in found.items():
        if values.get("intervention"):
            print(f"\n{name}\n", *sets(values["intervention"]), sep="\n")
        if values.get("after"):
            judged = values["after"]["judgement"]
            print(f"\n{name}: {judged['decision']}", *(f"- {code}" for code in judged["reasons"]), sep="\n")


if __name__ == "__main__":
    main()
