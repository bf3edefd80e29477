"""How much data: quality over the number of training examples, and what doubling it would probably bring."""

from __future__ import annotations

import math

from markupsafe import Markup

from tunescope.report import charts
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, number
from tunescope.report.wording import NONE, Words
from tunescope.runs.generalisation import DataCurve

KEY = "data_amount"
_STEPS = 40


def section(run: RunSource, words: Words) -> Section:
    """Returns the curve with its fitted law, and the forecast or why there is none."""
    if not run.data_curves:
        return Section(KEY, words("data_amount.title"), None, words("data_amount.not_asked"), {"curves": []})
    content = {
        "meaning": words("format.sentences").join(_meaning(curve, words) for curve in run.data_curves),
        "chart": _chart(run, words),
        "tables": [_table(curve, words) for curve in run.data_curves],
        "laws": [_law(curve, words) for curve in run.data_curves if curve.exponent is not None],
    }
    return Section(KEY, words("data_amount.title"), content, facts={"curves": [c.to_dict() for c in run.data_curves]})


def _meaning(curve: DataCurve, words: Words) -> str:
    values = {
        "arm": words.arm(curve.arm),
        "role": words(f"role.{curve.role}"),
        "n": words.count(curve.points[-1].n_train),
    }
    if curve.gain is None:
        numbers = {
            name: f"{value:g}" if name in ("have", "need") else words.points(value)
            for name, value in curve.details.items()
        }
        known = f"data_amount.why_{curve.why}" in words
        reason = (
            words(f"data_amount.why_{curve.why}", **numbers)
            if known
            else words("unknown_code", code=curve.why, numbers=NONE)
        )
        return words("data_amount.no_forecast", reason=reason, **values)
    return words(
        "data_amount.forecast",
        gain=words.points(curve.gain),
        interval=words.interval(curve.gain_low, curve.gain_high, words.points),
        **values,
    )


def _law(curve: DataCurve, words: Words) -> str:
    assert curve.floor is not None and curve.scale is not None and curve.exponent is not None
    return words(
        "data_amount.law",
        role=words(f"role.{curve.role}"),
        floor=words.number(curve.floor, 3),
        scale=words.number(curve.scale, 3),
        exponent=words.number(curve.exponent, 3),
    )


def _chart(run: RunSource, words: Words) -> Markup:
    panes = []
    for curve in run.data_curves:
        colour = charts.arm_colour(curve.arm, run.arms)
        counts = [point.n_train for point in curve.points]
        lines = [
            charts.Curve(curve.arm, counts, [100 * p.value for p in curve.points], colour, marker="o", dash=""),
            charts.Curve("", counts, [100 * p.low for p in curve.points], colour, width=1.0, alpha=0.45, dash="--"),
            charts.Curve("", counts, [100 * p.high for p in curve.points], colour, width=1.0, alpha=0.45, dash="--"),
        ]
        lines += _fitted(curve, counts, colour, words)
        if curve.untuned is not None:
            ends = [counts[0], counts[-1] * (2 if curve.gain is not None else 1)]
            lines.append(charts.Curve("nothing", ends, [100 * curve.untuned] * 2, charts.GREY, dash=":"))
        panes.append((words(f"role.{curve.role}"), lines))
    return charts.curves(
        panes,
        name="data-amount",
        title=words("data_amount.chart_title"),
        x_label=words("data_amount.x"),
        y_label=words("data_amount.y"),
        x_tick=words.count,
        y_tick=lambda value: f"{value:g}",
        y_from_zero=False,
    )


def _fitted(curve: DataCurve, counts: list[int], colour: str, words: Words) -> list[charts.Curve]:
    """The fitted law: over the sizes that were tuned, and to twice the most only where a forecast is given."""
    if curve.floor is None or curve.scale is None or curve.exponent is None:
        return []
    end = counts[-1] * (2 if curve.gain is not None else 1)
    x = [counts[0] * (end / counts[0]) ** (i / (_STEPS - 1)) for i in range(_STEPS)]
    y = [100 * (1 - curve.floor - curve.scale * n**-curve.exponent) for n in x]
    lines = [charts.Curve(words("data_amount.fitted"), x, y, colour)]
    if curve.gain is not None and curve.gain_low is not None and curve.gain_high is not None:
        most = 100 * (1 - curve.floor - curve.scale * counts[-1] ** -curve.exponent)
        ends = [most + 100 * curve.gain_low, most + 100 * curve.gain_high]
        lines.append(charts.Curve(words("data_amount.expected"), [end, end], ends, charts.ORANGE, width=4.0, alpha=0.7))
    return [line for line in lines if all(map(math.isfinite, line.y))]


def _table(curve: DataCurve, words: Words) -> Table:
    body = [
        [
            Cell(words.count(point.n_train), words.share(point.share)),
            number(words.score(point.value), words.interval(point.low, point.high, words.score)),
            number(words.duration(point.tuning_seconds) if point.tuning_seconds else words("data_amount.already")),
        ]
        for point in curve.points
    ]
    head = [words(f"data_amount.{name}") for name in ("n", "score", "time")]
    return Table(words("data_amount.caption", role=words(f"role.{curve.role}"), arm=curve.arm), head, body)
