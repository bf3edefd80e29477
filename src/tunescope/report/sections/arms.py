"""Arms side by side: quality, effort, size, speed, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from tunescope.report import charts
from tunescope.report.select_results import headline, n_seeds
from tunescope.report.source import RunSource
from tunescope.report.tables import MARKS, ROLES, TEST_ROLES, Cell, Section, Table, absent, number, reading
from tunescope.report.wording import NONE, Words
from tunescope.runs.records import Forecast, MoneyLine, Result, Role

KEY = "arms"
_NUMBERS = frozenset({"difference", "low", "high"})


def section(run: RunSource, words: Words) -> Section:
    """Returns the table of all arms and the chart of their differences to `nothing`."""
    if not run.arms or not (run.results or run.actual):
        return absent(KEY, words, "results.json", "costs.json")
    arms = run.arms
    found = {(arm, role): headline(run, arm, role) for arm in arms for role in ROLES}
    focus = run.verdict.arm if run.verdict else None
    table = Table(
        caption=words("arms.caption"),
        head=["", *arms],
        rows=[*_quality(found, arms, words), *_effort(run, arms, words), *_cost(run, arms, words)],
        strong=frozenset({arms.index(focus) + 1}) if focus in arms else frozenset(),
    )
    seeds = n_seeds(run)
    content = {
        "meaning": meaning(run, words),
        "table": table,
        "legend": [(arm, words.get(f"arm.{arm}", words("arm.other"))) for arm in arms],
        "chart": _chart(found, arms, focus, words),
        "seeds": words("arms.seeds", count=words.count(seeds)) if seeds > 1 else words("arms.one_seed"),
    }
    facts = {
        arm: {
            "quality": {role: row.to_dict() for role in ROLES if (row := found[arm, role])},
            "cost": run.actual[arm].to_dict() if arm in run.actual else None,
        }
        for arm in arms
    }
    return Section(KEY, words("arms.title"), content, facts=facts)


def meaning(run: RunSource, words: Words) -> str:
    """Returns in one or two sentences what the table says; differences inside the noise are called that."""
    parts = []
    for role in TEST_ROLES:
        marks = {arm: reading(row) for arm in run.tuned_arms if (row := headline(run, arm, role))}
        found = []
        for mark in MARKS:
            arms = [words.arm(arm) for arm, got in marks.items() if got == mark]
            if arms:
                found.append(words(f"arms.meaning_{mark}", arms=words.listing(arms)))
        if found:
            parts.append(words("arms.meaning", role=words(f"role.{role}"), found=words("format.semicolon").join(found)))
    control = run.verdict.selected_beats_random if run.verdict else None
    if control and set(control) >= _NUMBERS:
        parts.append(_difference("control", control, words))
    thirds = run.verdict.against_top_third if run.verdict else {}
    found = [
        _difference("top_third", row, words, arm=words.arm(arm)) for arm, row in thirds.items() if set(row) >= _NUMBERS
    ]
    if found:
        against = words.arm("top-third")
        parts.append(words("arms.top_third", against=against, found=words("format.semicolon").join(found)))
    return words("format.sentences").join(parts) or words("arms.no_meaning")


def _difference(what: str, row: Mapping[str, float], words: Words, *, arm: str = "") -> str:
    """A paired difference between two choices of blocks: better, worse, or inside the noise as the verdict has it."""
    value, low, high = row["difference"], row["low"], row["high"]
    decides = (low > 0 or high < 0) and abs(value) > (high - low) / 2
    side = ("better" if value > 0 else "worse") if decides else "noise"
    interval = words.interval(low, high, words.points)
    return words(f"arms.{what}_{side}", value=words.points(value), interval=interval, arm=arm)


def quality_cell(row: Result | None, words: Words) -> Cell:
    """Returns a result with its interval and its difference to `nothing`, in words where it is inside the noise."""
    if row is None:
        return number(words("not_measured"))
    loss = row.metric == "loss"
    value, change = (words.loss, words.loss_change) if loss else (words.score, words.points)
    note = ""
    mark = reading(row)
    if row.difference is not None:
        note = words(f"mark.{mark or 'none'}", change=change(row.difference))
    return Cell(value(row.value), words.interval(row.low, row.high, value), mark, note, css="n")


def _quality(found: dict[tuple[str, Role], Result | None], arms: Sequence[str], words: Words) -> list[list[Cell]]:
    rows = [[Cell(words("arms.group_quality"))]]
    for role in ROLES:
        results = [found[arm, role] for arm in arms]
        if any(results):
            n = next(row.n for row in results if row is not None)
            rows.append(
                [
                    Cell(words(f"role.{role}"), words(f"arms.{role}_hint", n=words.count(n))),
                    *(quality_cell(row, words) for row in results),
                ]
            )
        else:
            rows.append([Cell(words(f"role.{role}")), *(number(words("not_measured")) for _ in arms)])
    return rows


def _effort(run: RunSource, arms: Sequence[str], words: Words) -> list[list[Cell]]:
    costs = [run.actual.get(arm) for arm in arms]
    if not any(costs):
        return []

    def row(key: str, write: Callable[[Forecast], str], sub: Callable[[Forecast], str] = lambda cost: "") -> list[Cell]:
        cells = [number(write(cost), sub(cost)) if cost else number(words("not_measured")) for cost in costs]
        return [Cell(words(f"arms.{key}"), words(f"arms.{key}_hint")), *cells]

    none = words("none")
    model = run.model.get("parameters")

    def part(cost: Forecast) -> str:
        if not isinstance(model, int) or model <= 0 or not cost.trainable_parameters:
            return ""
        return words("arms.part_of_model", share=words.share(cost.trainable_parameters / model))

    return [
        [Cell(words("arms.group_effort"))],
        row("tuning_time", lambda cost: words.duration(cost.tuning_seconds) if cost.tuning_seconds else none),
        row(
            "peak_memory",
            lambda cost: words.size(cost.peak_memory_bytes) if cost.peak_memory_bytes else words("not_measured"),
        ),
        row(
            "energy",
            lambda cost: (
                words("not_measurable") if cost.energy_kwh is None else f"{words.number(cost.energy_kwh, 3)} kWh"
            ),
        ),
        [Cell(words("arms.group_size"))],
        row(
            "trainable",
            lambda cost: words.compact(cost.trainable_parameters) if cost.trainable_parameters else none,
            part,
        ),
        row("adapter", lambda cost: words.size(cost.adapter_bytes) if cost.adapter_bytes else none),
        [Cell(words("arms.group_speed"))],
        row("latency_p50", lambda cost: _latency(cost.latency_p50_seconds, words)),
        row("latency_p95", lambda cost: _latency(cost.latency_p95_seconds, words)),
    ]


def _latency(seconds: float | None, words: Words) -> str:
    return words("not_measured") if seconds is None else words.duration(seconds)


def _cost(run: RunSource, arms: Sequence[str], words: Words) -> list[list[Cell]]:
    lines = {line.arm: line for line in run.verdict.money} if run.verdict else {}
    if not lines:
        return []

    def row(key: str, write: Callable[[MoneyLine], str]) -> list[Cell]:
        cells = [number(write(lines[arm]) if arm in lines else NONE) for arm in arms]
        return [Cell(words(f"arms.{key}"), words(f"arms.{key}_hint")), *cells]

    return [
        [Cell(words("arms.group_cost"))],
        row("fixed_cost", lambda line: words.money(line.fixed_cost)),
        row("running_cost", lambda line: words.money(1000 * line.running_cost_per_request)),
    ]


def _chart(
    found: dict[tuple[str, Role], Result | None], arms: Sequence[str], focus: str | None, words: Words
) -> Markup | None:
    """Differences to `nothing` with paired intervals, one pane a role."""
    compared = [arm for arm in arms if any((row := found[arm, role]) and row.difference is not None for role in ROLES)]
    if not compared:
        return None
    panels = []
    for role in ROLES:
        factor, write = (1.0, words.loss_change) if role == "guard" else (100.0, words.points)
        rows = []
        for arm in compared:
            row = found[arm, role]
            if row is None or row.difference is None or row.difference_low is None or row.difference_high is None:
                rows.append([charts.Dot(arm, float("nan"), None, None, NONE, charts.GREY)])
                continue
            ends = (factor * row.difference, factor * row.difference_low, factor * row.difference_high)
            rows.append([charts.Dot(arm, *ends, write(row.difference), charts.arm_colour(arm, arms), arm == focus)])
        panels.append(charts.Panel(words(f"arms.chart_{role}"), rows, zero=True))
    return charts.dots(
        panels, name="arms", title=words("arms.chart_title"), tick=lambda value: f"{value:g}".replace("-", "−")
    )
