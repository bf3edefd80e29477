"""Two sides in turn, on the same machine in the same minutes: what counts is the ratio of each pair."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

_ROOT = Path(__file__).parents[1]


class Worker:
    """A side in its own process, warm and waiting.

    Args:
        row: module in ``benchmarks.rows``.
        side: key of its SIDES.
    """

    def __init__(self, row: str, side: str) -> None:
        self.side = side
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", row, side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )
        self.warm_up = self._read()

    def round(self) -> dict[str, Any]:
        """Does one round while the other side waits."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"side {self.side} ended with exit code {self._process.wait()}; its message stands above")
        return dict(json.loads(line))


def fastest(row: str, sides: Sequence[str], console: Console) -> dict[str, float]:
    """Tries a peer's settings, one round each after a warm-up, and returns the seconds of each.

    A setting whose warm-up alone takes twice as long as the best round is out: its seconds are those of the warm-up.
    """
    seconds: dict[str, float] = {}
    for side in sides:
        worker = Worker(row, side)
        first = worker.warm_up["seconds"]
        hopeless = bool(seconds) and first > 2 * min(seconds.values())
        seconds[side] = first if hopeless else worker.round()["seconds"]
        worker.close()
        console.print(f"  {side}: {seconds[side]:.1f} s")
    return seconds


def interleave(row: str, ours: str, peer: str, n_pairs: int, console: Console) -> dict[str, Any]:
    """Runs the two sides in turn.

    Returns:
        Per side the rounds; the ratios peer / ours of every pair, their median and range; peak memory of both.
    """
    workers = {side: Worker(row, side) for side in (ours, peer)}
    rounds: dict[str, list[dict[str, Any]]] = {ours: [], peer: []}
    for pair in range(n_pairs):
        for side in (ours, peer) if pair % 2 == 0 else (peer, ours):  # neither is always first
            rounds[side].append(workers[side].round())
        times = [rounds[side][-1]["seconds"] for side in (ours, peer)]
        console.print(
            f"  pair {pair + 1} of {n_pairs}: {ours} {times[0]:.2f} s, {peer} {times[1]:.2f} s, ratio {times[1] / times[0]:.2f}"
        )
    for worker in workers.values():
        worker.close()
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(rounds[ours], rounds[peer], strict=True)]
    peaks = {side: max(r["peak_bytes"] for r in rounds[side]) for side in rounds}
    return {
        "ours": ours,
        "peer": peer,
        "ratio": {"median": median(ratios), "low": min(ratios), "high": max(ratios), "n_pairs": n_pairs},
        "seconds": {side: median(r["seconds"] for r in rounds[side]) for side in rounds},
        "done": {side: rounds[side][-1]["done"] for side in rounds},
        "quality": {side: rounds[side][-1]["quality"] for side in rounds},
        "peak_bytes": peaks,
        "memory_ratio": peaks[ours] / peaks[peer],
        "to_same_quality": _to_same_quality(rounds[ours], rounds[peer]),
    }


def _to_same_quality(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Ratio of the times until both have the held-out loss with which the worse of the two ended; None without curves."""
    if "curve" not in ours[0]["quality"]:
        return None
    wanted = max(r["quality"]["held-out loss"] for r in (*ours, *theirs))
    times = [
        [next(p["seconds"] for p in r["quality"]["curve"] if p["held-out loss"] <= wanted) for r in rounds]
        for rounds in (ours, theirs)
    ]
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return {"held-out loss": wanted, "median": median(ratios), "low": min(ratios), "high": max(ratios)}
