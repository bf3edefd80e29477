"""What a model knows, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunescope.runs.folder import RunFolder
from tunescope.runs.plan import duration

_STATES = {"above": "above chance", "below": "BELOW chance", "not_above": "not above chance"}
_DECISIONS = {
    "mostly_self_aligning": "Tuning mostly brought out what the model already held.",
    "mostly_learning": "Tuning mostly added knowledge.",
    "mixed": "Tuning did both: it brought out what was there, and added to it.",
    "not_enough_evidence": "Not enough evidence to say what tuning did.",
}
_MOST_ADVICE = 12
_MOST_ROWS = 12  # domains of a role; with more, the report has them


def finish_knowledge(console: Console, folder: RunFolder, *, quiet: bool) -> dict[str, Any]:
    """Builds the report, prints what was found unless `quiet`, and returns what ``--json`` prints."""
    from tunescope import report

    found = folder.read_json("knowledge.json")
    page = report.build(folder.path)
    if not quiet:
        show_knowledge(console, found)
        console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
    state = folder.read_json("status.json")["state"]
    return {"run": str(folder.path), "state": state, "report": str(page), "knowledge": found}


def show_knowledge(console: Console, found: Mapping[str, Any]) -> None:
    """Prints the probe, and what else the run holds.

    Args:
        console: where to.
        found: content of a ``knowledge.json``.
    """
    _show_probe(console, found["before"])
    if found.get("after"):
        _show_after(console, found["after"])
    if found.get("intervention"):
        _show_intervention(console, found["intervention"])


def _show_probe(console: Console, before: Mapping[str, Any]) -> None:
    title = f"What the base knows, {before['demonstrations']} demonstrations; sure above {before['threshold']:g}"
    table = Table(title=title, title_justify="left")
    for name in ("role", "domain", "n", "right", "chance", "against chance", "harmonious", "incompatible", "unsure"):
        table.add_column(name, justify="left" if name in ("role", "domain", "against chance") else "right")
    roles = [role for role in before["chance"] if role != "*" or len(before["chance"]) > 2]
    for role in roles:
        counts = {row["domain"]: row for row in before["groups"][role]}
        rows = before["chance"][role]
        for row in rows[:1] if len(rows) == 2 else rows if len(rows) <= _MOST_ROWS else rows[-1:]:
            group = counts[row["domain"]]
            cells = [str(group[kind]) for kind in ("harmonious", "incompatible", "unsure")]
            against = f"{_STATES[row['state']]} (p {row['p_adjusted']:.3f})"
            table.add_row(
                role, Text(row["domain"]), str(row["n"]), _share(row), f"{100 * row['chance']:.0f}", against, *cells
            )
    console.print(table)
    total = before["calibration"]["*"]
    console.print(
        f"confidence {100 * total['confidence']:.0f}, right {100 * total['accuracy']:.0f} of 100; calibration error {100 * total['ece']:.1f} points",
        highlight=False,
    )
    for code in before["advice"][:_MOST_ADVICE]:
        numbers = ", ".join(f"{key} {_plain(value)}" for key, value in code.items() if key != "code")
        console.print(Text(f"advice: {code['code'].replace('_', ' ')} ({numbers})"), soft_wrap=True)
    if len(before["advice"]) > _MOST_ADVICE:
        console.print(f"and {len(before['advice']) - _MOST_ADVICE} more in the report", highlight=False)


def _show_after(console: Console, after: Mapping[str, Any]) -> None:
    table = Table(title="Base (with demonstrations) against tuned (without)", title_justify="left")
    for name in ("role", "domain", "kept", "lost", "learned", "unknown", "change", "p", "consistency", "KL"):
        table.add_column(name, justify="left" if name in ("role", "domain") else "right")
    for role, rows in after["transitions"].items():
        near = {row["domain"]: row for row in after["agreement"][role]}
        for row in rows[:1] if len(rows) == 2 else rows if len(rows) <= _MOST_ROWS else rows[-1:]:
            close = near[row["domain"]]
            counts = [str(row[key]) for key in ("kept", "lost", "learned", "still_unknown")]
            kl = "∞" if close["kl"] is None else f"{close['kl']:.3f}"
            table.add_row(
                role,
                Text(row["domain"]),
                *counts,
                _points(row["change"]),
                f"{row['p_value']:.3f}",
                f"{close['consistency']:.2f}",
                kl,
            )
    console.print(table)
    console.print(Text(_DECISIONS[after["judgement"]["decision"]], style="bold"))
    if after["style"]:
        shifted, stylistic = after["style"]["shifted"]["value"], after["style"]["stylistic"]["value"]
        told = "" if stylistic is None else f", of these {100 * stylistic:.0f}% are style"
        if shifted is not None:
            console.print(
                f"{100 * shifted:.0f}% of the tuned model's tokens are not among the base's first three{told}",
                highlight=False,
            )


def _show_intervention(console: Console, found: Mapping[str, Any]) -> None:
    facts, compared = found["facts"], found["comparison"]
    tests = list(facts["tests"])
    title = f"Tuned on {facts['group_size']} questions and {facts['general']} general examples; seeds {', '.join(map(str, facts['seeds']))}"
    table = Table(title=title, title_justify="left")
    table.add_column("set")
    for test in tests:
        table.add_column(test, justify="right")
    table.add_column("minus incompatible", justify="right")
    table.add_column("consistency", justify="right")
    apart = {(d["first"], d["second"]): d["difference"] for d in compared["differences"] if d["test"] == "*"}
    for name in compared["n_seeds"]:
        cells = [_share(compared["accuracy"][test][name], key="value") for test in tests]
        near = [row["consistency"] for row in found["rows"] if row["set"] == name]
        table.add_row(name, *cells, _against(apart, name, "incompatible"), f"{sum(near) / len(near):.2f}")
    console.print(table)
    console.print(
        "base with demonstrations: " + ", ".join(f"{test} {100 * found['base_accuracy'][test]:.1f}" for test in tests),
        highlight=False,
    )
    partial = found["partial"]
    if partial["value"] is not None:
        console.print(
            f"consistency and accuracy, given the base's: partial Spearman {partial['value']:.2f} (n {partial['n']})",
            highlight=False,
        )
    if not facts["explanations"]["used"]:
        console.print("the targets are answers without explanations", highlight=False)


def _against(apart: Mapping[tuple[str, str], Any], name: str, other: str) -> str:
    if (name, other) in apart:
        return _points(apart[name, other])
    if (other, name) in apart:
        turned = apart[other, name]
        return _points({"value": -turned["value"], "low": -turned["high"], "high": -turned["low"]})
    return "-"


def _share(row: Mapping[str, Any], *, key: str = "accuracy") -> str:
    return f"{100 * row[key]:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _points(row: Mapping[str, Any]) -> str:
    return f"{100 * row['value']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def _plain(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_knowledge_forecast(console: Console, forecast: Mapping[str, Any]) -> None:
    """Prints what a knowledge study would ask and tune, and how long it would take."""
    asked = ", ".join(f"{role} {n:,}" for role, n in forecast["questions"].items())
    console.print(
        f"questions: {asked}; {forecast['domains']} domains, {forecast['demonstrations']} demonstrations, {forecast['probe_tokens']:,} tokens",
        highlight=False,
        soft_wrap=True,
    )
    if forecast["sets"]:
        console.print(
            f"{forecast['sets']} tunings with {forecast['group_size']} questions and as many general examples ({forecast['tuning_tokens']:,} tokens "
            "each); how many questions each group gets is known after the probe, unless it is set",
            highlight=False,
            soft_wrap=True,
        )
    table = Table(title="Forecast from a few questions on this machine; nothing was written", title_justify="left")
    seconds: Sequence[tuple[str, float]] = list(forecast["seconds"].items())
    for part, _ in seconds:
        table.add_column(part, justify="right")
    table.add_row(*(duration(spent) for _, spent in seconds))
    console.print(table)
    console.print(f"in all about {duration(sum(spent for _, spent in seconds))}", highlight=False)
