"""A layer map on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunescope.runs.folder import RunFolder
from tunescope.runs.plan import duration, ranges, size

# Mode of a map -> the score by which it is read; see the page on the layer map.
_PROFILES = {
    "base": ("cka_in_out",),
    "pair": ("cka_base_tuned",),
    "mossa": ("cka_tuned_specialist", "cka_base_specialist"),
}


def show_map(console: Console, found: Mapping[str, Any]) -> None:
    """Prints a layer map, block by block, and what it proposes.

    Args:
        console: where to.
        found: content of a ``layers.json``.
    """
    facts = found["map"]
    over_all = {row["name"]: row for row in found["scores"] if row["task"] == "*"}
    profile = next(name for name in _PROFILES[facts["mode"]] if name in over_all)
    columns = {
        "median": over_all[profile],
        "spread": over_all.get(f"spread:{profile}"),
        "g": over_all.get("gain"),
        "separability": over_all.get("separability"),
        "causal": over_all.get("causal"),
    }
    prompts = sum(task["n_prompts"] for task in facts["tasks"])
    table = Table(
        title=f"{profile} of {len(facts['tasks'])} tasks, {prompts} prompts, d = {facts['d_model']} ({facts['estimator']})",
        title_justify="left",
    )
    table.add_column("block")
    shown = {name: row for name, row in columns.items() if row is not None}
    for name in shown:
        table.add_column(name, justify="right")
    table.add_column("band")
    for place, block in enumerate(over_all[profile]["layers"]):
        cells = [_with_interval(row, place, whole=name == "median") for name, row in shown.items()]
        table.add_row(block, *cells, _band(facts["bands"], place))
    console.print(table)
    if facts["bands"]:
        console.print(Text(f"bands: {facts['bands']['why']}"), soft_wrap=True)
    if agreement := facts["agreement"]:
        console.print(
            f"rank correlation of map and causal check: {agreement['correlation']:.2f} (p {agreement['p_value']:.3f}, by shifts "
            f"{agreement['shift_p_value']:.2f})",
            highlight=False,
            soft_wrap=True,
        )
    _show_proposals(console, facts["proposals"])


def _with_interval(row: Mapping[str, Any], place: int, *, whole: bool) -> str:
    value = row["values"][place]
    digits = 3 if row["unit"] == "CKA" or row["name"] == "separability" else 4
    if not whole or row["low"] is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{row['low'][place]:.{digits}f}, {row['high'][place]:.{digits}f}]"


def _band(bands: Mapping[str, Any] | None, place: int) -> str:
    if not bands or not bands["found"]:
        return "-"
    start, end = bands["boundaries"]
    return "shared" if place < start else "transition" if place < end else "refinement"


def _show_proposals(console: Console, proposals: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="What could be tuned; cost of training against LoRA on all blocks", title_justify="left")
    for name in ("proposal", "blocks", "weights", "cost", "memory"):
        table.add_column(name, justify="left" if name in ("proposal", "blocks") else "right")
    for one in proposals:
        blocks = Text(", ".join(ranges(one["layers"])) + "\n").append(one["why"], style="dim")
        weights = f"{one['trainable_parameters']:,}"
        table.add_row(one["name"], blocks, weights, f"{one['relative_cost']:.2f}", f"~{size(one['memory_bytes'])}")
    console.print(table)


def show_map_forecast(console: Console, forecast: Mapping[str, Any]) -> None:
    """Prints what a map would do and how long it would take."""
    console.print(
        f"mode {forecast['mode']}: {forecast['tasks']} tasks, {forecast['prompts']} prompts, {forecast['tokens']:,} tokens, read by "
        f"{forecast['models']} model(s)",
        highlight=False,
        soft_wrap=True,
    )
    if forecast["mode"] == "mossa":
        console.print(
            f"{forecast['specialists']} specialists to tune, {forecast['cached']} in the cache", highlight=False
        )
    table = Table(title="Forecast from a few prompts on this machine; nothing was written", title_justify="left")
    for part in forecast["seconds"]:
        table.add_column(part, justify="right")
    table.add_row(*(duration(seconds) for seconds in forecast["seconds"].values()))
    console.print(table)
    console.print(f"in all about {duration(sum(forecast['seconds'].values()))}", highlight=False)


def finish_map(console: Console, folder: RunFolder, *, quiet: bool) -> dict[str, Any]:
    """Draws the pictures, builds the report, prints the map unless `quiet`, and returns what ``--json`` prints."""
    from tunescope import report

    found = folder.read_json("layers.json")
    figures = report.write_map_figures(folder.path, found)
    page = report.build(folder.path)
    if not quiet:
        show_map(console, found)
        names = ", ".join(path.name for path in figures)
        console.print(f"figures: {names} in {folder.path / 'figures'}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
    paths = {"report": str(page), "figures": [str(path) for path in figures]}
    return {"run": str(folder.path), "state": folder.read_json("status.json")["state"], **paths, "layers": found}
