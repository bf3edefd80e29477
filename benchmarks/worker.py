"""One side of one row in a process of its own: a round for every line on standard input, its figures as JSON on standard output."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict

from benchmarks import work


def main(row: str, side: str) -> None:
    """Warms up with one round, says so, then does one round per line until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    make = importlib.import_module(f"benchmarks.rows.{row}").SIDES[side]
    one_round = make()
    print(json.dumps(asdict(one_round())), file=out, flush=True)
    for _ in sys.stdin:
        found = asdict(one_round())
        found["peak_bytes"] = work.peak_bytes()
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
