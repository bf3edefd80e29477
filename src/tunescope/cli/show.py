"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunescope.runs.folder import RunFolder
from tunescope.runs.plan import WHOLE_BLOCKS, Alternative, Plan, PlannedArm, duration, moves_text, size
from tunescope.runs.records import Forecast, Result, Selection, Verdict

_DECISIONS = {
    "tune": "Tune: use the arm {arm}.",
    "do_not_tune": "Do not tune: the arm {arm} is as good or worth more.",
    "not_enough_evidence": "Not enough evidence to decide.",
}


def show_forecast(
    console: Console, forecasts: Sequence[Forecast], selections: Mapping[str, Selection], price: float, currency: str
) -> None:
    """Prints what each arm would do and cost."""
    table = Table(title="Forecast from calibrated steps on this machine; nothing was written", title_justify="left")
    for name in ("arm", "what moves", "weights", "tuning", "measuring", "memory", "machine cost"):
        table.add_column(name, justify="left" if name in ("arm", "what moves") else "right")
    for f in forecasts:
        why = selections[f.arm].why if f.arm in selections else "nothing"
        seconds = f.tuning_seconds + f.evaluation_seconds
        table.add_row(
            f.arm,
            Text(why),
            f"{f.trainable_parameters:,}",
            f"{f.tuning_seconds:.0f} s",
            f"{f.evaluation_seconds:.0f} s",
            f"{f.peak_memory_bytes / 1e9:.1f} GB",
            f"{seconds / 3600 * price:.3f} {currency}",
        )
    console.print(table)
    console.print(f"in all about {sum(f.tuning_seconds + f.evaluation_seconds for f in forecasts) / 60:.0f} min")


def show_plan(console: Console, plan: Plan) -> None:
    """Prints what each arm of a plan moves and costs, and what else there is."""
    table = Table(title="Plan", title_justify="left")
    for name in ("arm", "what moves", "weights", "tuning", "measuring", "memory", "machine cost"):
        table.add_column(name, justify="left" if name in ("arm", "what moves") else "right")
    for arm in plan.arms:
        parts = "" if arm.whole_model else f" ({', '.join(arm.modules) or WHOLE_BLOCKS})"
        moves = Text(f"{moves_text(arm)}{parts}\n").append(arm.why, style="dim")
        table.add_row(arm.arm, moves, *_price(arm, plan.currency))
    console.print(table)
    show_alternatives(console, plan)


def show_alternatives(console: Console, plan: Plan) -> None:
    """Prints what else could be tuned, with its price."""
    if not plan.alternatives:
        return
    table = Table(title="What else could be tuned, worked out from these steps", title_justify="left")
    for name in ("alternative", "what moves", "weights", "tuning", "measuring", "memory", "machine cost"):
        table.add_column(name, justify="left" if name in ("alternative", "what moves") else "right")
    for other in plan.alternatives:
        table.add_row(Text(other.name), moves_text(other), *_price(other, plan.currency))
    console.print(table)


def _price(item: PlannedArm | Alternative, currency: str) -> list[str]:
    price = item.forecast
    about = "~" if price.basis == "estimated" else ""
    times = [f"{about}{duration(seconds)}" for seconds in (price.tuning_seconds, price.evaluation_seconds)]
    memory = f"{about}{size(price.peak_memory_bytes)}"
    return [f"{item.trainable_parameters:,}", *times, memory, f"{about}{price.machine_cost:.3f} {currency}"]


def show_run(console: Console, folder: RunFolder) -> None:
    """Prints verdict and arms of a finished run."""
    if folder.has("verdict.json"):
        verdict = Verdict.from_dict(folder.read_json("verdict.json"))
        console.print(Text(_DECISIONS[verdict.decision].format(arm=verdict.arm), style="bold"))
    if not folder.has("results.json"):
        return
    results = [Result.from_dict(r) for r in folder.read_json("results.json")["results"]]
    costs = {c["arm"]: Forecast.from_dict(c) for c in folder.read_json("costs.json")["actual"]}
    table = Table()
    for name in ("arm", "in-domain", "out-of-domain", "guard loss", "tuning", "memory", "weights"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, cost in costs.items():
        table.add_row(
            arm,
            _cell(results, arm, "in_domain"),
            _cell(results, arm, "out_of_domain"),
            _cell(results, arm, "guard"),
            f"{cost.tuning_seconds:.0f} s" if cost.tuning_seconds else "-",
            f"{cost.peak_memory_bytes / 1e9:.1f} GB",
            f"{cost.trainable_parameters:,}" if cost.trainable_parameters else "-",
        )
    console.print(table)


def summary(folder: RunFolder, report: Path | None) -> dict[str, Any]:
    """Returns what ``--json`` prints of a run."""
    values: dict[str, Any] = {"run": str(folder.path), "state": folder.read_json("status.json")["state"]}
    if report is not None:
        values["report"] = str(report)
    for name in ("verdict", "costs", "results"):
        if folder.has(f"{name}.json"):
            values[name] = folder.read_json(f"{name}.json")
    return values


def _cell(results: Sequence[Result], arm: str, role: str) -> str:
    mine = [r for r in results if r.arm == arm and r.role == role]
    found = next((r for r in mine if r.task == "*"), mine[0] if len(mine) == 1 else None)
    if found is None:
        return "-"
    if role == "guard":
        return f"{found.value:.2f}"
    beyond = found.difference_low is not None and (found.difference_low > 0 or (found.difference_high or 0) < 0)
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]{' *' if beyond else ''}"
