"""Cost and benefit: what each arm is worth, and how far that hangs on the assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tunescope.report import charts
from tunescope.report.sections.overview import break_even
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words
from tunescope.runs.records import MoneyLine, Sensitivity, Verdict

KEY = "money"
AMOUNTS = (
    "value_of_right_answer",
    "cost_of_wrong_answer",
    "machine_cost_per_hour",
    "person_cost_per_hour",
    "electricity_per_kwh",
)


def section(run: RunSource, words: Words) -> Section:
    """Returns the money per arm, the assumptions, and what changes with them."""
    verdict = run.verdict
    if verdict is None or not verdict.money:
        return absent(KEY, words, "verdict.json")
    focus = verdict.arm
    like = max(abs(end) for line in verdict.money for end in (line.net_low, line.net_high))
    rows = [
        [
            charts.Dot(
                line.arm,
                line.net_over_horizon,
                line.net_low,
                line.net_high,
                words.amount(line.net_over_horizon, like=like),
                charts.arm_colour(line.arm, run.arms),
                line.arm == focus,
            )
        ]
        for line in verdict.money
    ]
    months = words.number(run.setting("business.horizon_months"))
    title = words("money.chart_title", months=months)
    chart = charts.dots(
        [charts.Panel(title, rows, zero=True)],
        name="money",
        title=title,
        width=1040,
        tick=words.number,
        x_label=words.currency,
    )
    content = {
        "meaning": _meaning(run, words),
        "chart": chart,
        "table": _table(verdict.money, run, words),
        "assumptions": _assumptions(run, words),
        "sensitivity": _sensitivity(verdict.sensitivity, verdict, words),
        "sensitivity_meaning": _sensitivity_meaning(verdict.sensitivity, verdict, words),
    }
    facts = {
        "lines": [line.to_dict() for line in verdict.money],
        "sensitivity": [row.to_dict() for row in verdict.sensitivity],
    }
    return Section(KEY, words("money.title"), content, facts=facts)


def _meaning(run: RunSource, words: Words) -> str:
    assert run.verdict is not None
    ordered = sorted(run.verdict.money, key=lambda line: -line.net_over_horizon)
    best = ordered[0]
    key = "money.meaning_loss" if best.net_over_horizon < 0 else "money.meaning"
    overlap = [line.arm for line in ordered[1:] if line.net_high >= best.net_low]
    text = words(
        key,
        arm=words.arm(best.arm),
        value=words.money(best.net_over_horizon),
        interval=words.money_interval(best.net_low, best.net_high),
    )
    recommended = run.verdict.arm
    if recommended not in (None, best.arm):
        text += words("format.sentences") + words("money.not_the_verdict", arm=words.arm(recommended))
    if overlap:
        text += words("format.sentences") + words(
            "money.overlap", arms=words.listing([words.arm(arm) for arm in overlap])
        )
    return text


def _amounts(value: float, low: float, high: float, words: Words) -> Cell:
    """An amount with its interval, all rounded alike; the currency stands in the caption."""
    like = max(abs(value), abs(low), abs(high))
    write = partial(words.amount, like=like)
    return number(write(value), words.interval(low, high, write))


def _table(lines: Sequence[MoneyLine], run: RunSource, words: Words) -> Table:
    head = [words(f"money.{name}") for name in ("arm", "benefit", "fixed", "running", "net", "break_even")]
    body = [
        [
            Cell(line.arm),
            _amounts(1000 * line.benefit_per_request, 1000 * line.benefit_low, 1000 * line.benefit_high, words),
            number(words.amount(line.fixed_cost)),
            number(words.amount(1000 * line.running_cost_per_request)),
            _amounts(line.net_over_horizon, line.net_low, line.net_high, words),
            Cell(break_even(line, run, words, short=True) if line.arm in run.tuned_arms else NONE),
        ]
        for line in lines
    ]
    return Table(words("money.caption"), head, body)


def assumption_value(name: str, value: object, words: Words) -> str:
    """Returns one assumption written in its unit."""
    if name in AMOUNTS:
        return words.money(value)
    whole = isinstance(value, int | float) and float(value).is_integer()
    return words.number(value, 0 if whole else 1)


def _assumptions(run: RunSource, words: Words) -> Table | None:
    settings = run.setting("business")
    if not isinstance(settings, dict):
        return None
    rows = [
        [Cell(words.get(f"assumption.{name}", name)), number(assumption_value(name, value, words))]
        for name, value in settings.items()
        if name != "currency"
    ]
    return Table(words("money.assumptions"), [words("money.assumption"), words("money.value")], rows)


def _sensitivity(rows: Sequence[Sensitivity], verdict: Verdict, words: Words) -> Table | None:
    """Assumptions down, factors across; the column in the middle is the verdict as it is."""
    if not rows:
        return None
    names = list(dict.fromkeys(row.assumption for row in rows))
    factors = sorted({row.factor for row in rows} - {1.0})
    found = {(row.assumption, row.factor): row for row in rows}
    as_it_is = Cell(_outcome(verdict.decision, verdict.arm, words))
    body = []
    for name in names:
        base = next(row.base for row in rows if row.assumption == name)
        cells = [_if(found.get((name, factor)), verdict, words) for factor in factors]
        middle = sum(factor < 1 for factor in factors)
        title = Cell(words.get(f"assumption.{name}", name), assumption_value(name, base, words))
        body.append([title, *cells[:middle], as_it_is, *cells[middle:]])
    heads = [words("money.factor", factor=f"{factor:g}") for factor in factors]
    middle = sum(factor < 1 for factor in factors)
    head = [words("money.assumption"), *heads[:middle], words("money.as_it_is"), *heads[middle:]]
    return Table(words("money.sensitivity"), head, body, strong=frozenset({middle + 1}))


def _if(row: Sensitivity | None, verdict: Verdict, words: Words) -> Cell:
    """The verdict under one changed assumption, marked where it is another one."""
    if row is None:
        return Cell(NONE)
    value = assumption_value(row.assumption, row.base * row.factor, words)
    changed = (row.decision, row.arm) != (verdict.decision, verdict.arm)
    gain = words.money_change(row.net_over_horizon) if row.net_over_horizon else ""
    sub = words("money.at", value=value, gain=gain) if gain else value
    return Cell(
        _outcome(row.decision, row.arm, words),
        sub,
        note=words("money.flips") if changed else "",
        css="flip" if changed else "",
    )


def _outcome(decision: str, arm: str | None, words: Words) -> str:
    text = words.get(f"decision.{decision}", decision.replace("_", " "))
    return text + words("format.colon") + words.arm(arm) if arm else text


def _sensitivity_meaning(rows: Sequence[Sensitivity], verdict: Verdict, words: Words) -> str:
    if not rows:
        return words("money.no_sensitivity")
    flips = [row for row in rows if (row.decision, row.arm) != (verdict.decision, verdict.arm)]
    total = words.count(len(rows))
    if not flips:
        return words("money.never_flips", total=total)
    names = list(dict.fromkeys(words.get(f"assumption.{row.assumption}", row.assumption) for row in flips))
    return words("money.some_flip", flips=words.count(len(flips)), total=total, names=words.listing(names))
