"""Loss curves: what each tuned arm learned, and whether it went on too long."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from tunescope.report import charts
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, absent, number
from tunescope.report.wording import NONE, Words
from tunescope.runs.records import StepRecord

KEY = "curves"
WINDOW = 10  # steps of the running mean
OVERFIT = 0.02  # rise of the held-out loss above its best, as a share, from which the report speaks of overfitting


def section(run: RunSource, words: Words) -> Section:
    """Returns training and held-out loss of each tuned arm."""
    arms = [arm for arm in run.arms if any(row.arm == arm for row in run.steps)]
    if not arms:
        return absent(KEY, words, "steps.jsonl")
    steps = {arm: _in_order([row for row in run.steps if row.arm == arm]) for arm in arms}
    content = {
        "meaning": _meaning(steps, words),
        "chart": _chart(steps, run, words),
        "note": words("curves.note", window=words.count(WINDOW)),
        "table": _table(steps, run, words),
    }
    return Section(KEY, words("curves.title"), content, facts={arm: _summary(rows) for arm, rows in steps.items()})


def _in_order(rows: Sequence[StepRecord]) -> list[StepRecord]:
    """Rows by step; after a resume the later record of a step counts, and a held-out check is not lost to it."""
    latest: dict[int, StepRecord] = {}
    for row in rows:
        before = latest.get(row.step)
        latest[row.step] = (
            before if before is not None and row.validation_loss is None and before.validation_loss is not None else row
        )
    return [latest[step] for step in sorted(latest)]


def _checks(rows: Sequence[StepRecord]) -> list[tuple[int, float]]:
    return [(row.step, row.validation_loss) for row in rows if row.validation_loss is not None]


def _summary(rows: Sequence[StepRecord]) -> dict[str, object]:
    checks = _checks(rows)
    best = min(checks, key=lambda check: check[1]) if checks else None
    return {
        "steps": rows[-1].step,
        "epochs": rows[-1].epoch,
        "seconds": sum(row.seconds for row in rows),
        "first_held_out": checks[0][1] if checks else None,
        "best_held_out": best[1] if best else None,
        "best_step": best[0] if best else None,
        "last_held_out": checks[-1][1] if checks else None,
        "last_training": running_mean([row.loss for row in rows])[-1],
    }


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Returns the mean of the last `window` values at each position (fewer at the start).

    Example:
        >>> running_mean([3.0, 1.0, 2.0], window=2)
        [3.0, 2.0, 1.5]
    """
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])]


def _chart(steps: dict[str, list[StepRecord]], run: RunSource, words: Words) -> Markup:
    panes = []
    for arm, rows in steps.items():
        x = [float(row.step) for row in rows]
        colour = charts.arm_colour(arm, run.arms)
        checks = _checks(rows)
        raw = charts.Curve("", x, [row.loss for row in rows], colour, width=0.8, alpha=0.3)
        smooth = charts.Curve(words("curves.training"), x, running_mean([row.loss for row in rows]), colour)
        held = charts.Curve(
            words("curves.held_out"),
            [float(step) for step, _ in checks],
            [loss for _, loss in checks],
            "#1b2733",
            marker="o",
            dash="--",
            width=1.4,
        )
        panes.append((arm, [raw, smooth, held] if checks else [raw, smooth]))
    return charts.curves(
        panes,
        name="curves",
        title=words("curves.chart_title"),
        x_label=words("curves.x"),
        y_label=words("curves.y"),
        x_tick=words.number,
        y_tick=lambda value: words.number(value, 1),
    )


def _meaning(steps: dict[str, list[StepRecord]], words: Words) -> str:
    parts = []
    for arm, rows in steps.items():
        checks = _checks(rows)
        if not checks:
            parts.append(words("curves.no_checks", arm=words.arm(arm)))
            continue
        step, best = min(checks, key=lambda check: check[1])
        over = checks[-1][1] > best * (1 + OVERFIT)
        key = "curves.overfit" if over else "curves.settled" if len(checks) > 1 else "curves.one_check"
        parts.append(
            words(
                key,
                arm=words.arm(arm),
                first=words.loss(checks[0][1]),
                best=words.loss(best),
                step=words.count(step),
                last=words.loss(checks[-1][1]),
            )
        )
    return words("format.sentences").join(parts)


def _table(steps: dict[str, list[StepRecord]], run: RunSource, words: Words) -> Table:
    head = [words(f"curves.{name}") for name in ("arm", "steps", "best", "best_step", "last", "rate", "rate_why")]
    body = []
    for arm, rows in steps.items():
        facts, cost = _summary(rows), run.actual.get(arm) or run.forecast.get(arm)
        rate = cost.learning_rate if cost else None
        body.append(
            [
                Cell(arm),
                number(words.count(facts["steps"])),
                number(words.loss(facts["best_held_out"])),
                number(words.count(facts["best_step"])),
                number(words.loss(facts["last_held_out"])),
                number(f"{rate:.2g}" if rate else NONE),
                Cell((cost.learning_rate_why if cost else "") or NONE),
            ]
        )
    return Table(words("curves.caption"), head, body)
