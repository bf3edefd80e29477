"""The README's table, written from the results alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- benchmarks: written by make bench -->", "<!-- end of benchmarks -->"


def write_table(results: Sequence[Path], readme: Path) -> None:
    """Replaces what stands between the two marks in the README; rows without a result are left out.

    Raises:
        SystemExit: the marks are missing.
    """
    text = readme.read_text(encoding="utf-8")
    if _BEGIN not in text or _END not in text:
        raise SystemExit(f"{readme}: the marks {_BEGIN} and {_END} are missing; put them where the table goes")
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results if path.is_file()]
    readme.write_text(f"{before}{_BEGIN}\n{table(found)}\n{_END}{after}", encoding="utf-8")


def table(found: list[dict[str, Any]]) -> str:
    """Returns the Markdown table of results."""
    head = "| work | against | times as fast | wanted | quality, ours · theirs | peak memory, ours · theirs |"
    lines = [head, "| --- " * 6 + "|"]
    for result in found:
        comparisons = [(result["against_peer"], result["target"])]
        comparisons += [(beside, beside["target"]) for beside in result["beside"].values()]
        lines += [_row(result["title"], comparison, target) for comparison, target in comparisons]
    return "\n".join(lines)


def _row(title: str, compared: dict[str, Any], target: float) -> str:
    ratio = compared["to_same_quality"] or compared["ratio"]
    ours, peer = compared["ours"], compared["peer"]
    spread = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
    peaks = " · ".join(f"{compared['peak_bytes'][side] / 2**30:.2f} GiB" for side in (ours, peer))
    wanted = f"{target:g}{' ✓' if ratio['median'] >= target else ' **missed**'}"
    return f"| {title} | {peer} | {spread} | {wanted} | {_quality(compared)} | {peaks} |"


def _quality(compared: dict[str, Any]) -> str:
    ours, theirs = (compared["quality"][compared[side]] for side in ("ours", "peer"))
    shown = []
    for name in ours:
        if name not in theirs or name == "curve":
            continue
        if isinstance(ours[name], list):
            same = sum(a == b for a, b in zip(ours[name], theirs[name], strict=True))
            shown.append(f"{name}: {same} of {len(ours[name])} the same")
        else:
            shown.append(f"{name} {ours[name]:.3f} · {theirs[name]:.3f}")
    return "; ".join(shown) or "–"
