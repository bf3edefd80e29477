"""Generalisation: what tuning did on the own tasks, on their out-of-domain data, and on other tasks."""

from __future__ import annotations

import math

from markupsafe import Markup

from tunescope.report import charts
from tunescope.report.matrix_picture import Column, MatrixWords, Square, matrix_picture
from tunescope.report.select_results import OVERALL, focus_arm
from tunescope.report.source import RunSource
from tunescope.report.tables import TEST_ROLES, Cell, Mark, Section, Table, absent, number
from tunescope.report.wording import NONE, Words
from tunescope.runs.generalisation import MatrixCell

KEY = "generalisation"
_COLLAPSE_WORTH_SAYING = 0.05
_RELATIONS = ("same", "other", "unknown")


def section(run: RunSource, words: Words) -> Section:
    """Returns the matrix as a picture and in numbers, how far weights moved, and whether other wordings change answers."""
    if not run.cells:
        return absent(KEY, words, "generalisation.json")
    content = {
        "meaning": _meaning(run, words),
        "picture": _picture(run, words),
        "means": _means(run, words),
        "change": _change_table(run, words),
        "change_chart": _change_chart(run, words),
        "reworded": _reworded(run, words),
        "wordings": [(task, list(texts)) for task, texts in run.paraphrases.items()],
    }
    facts = {
        "cells": [cell.to_dict() for cell in run.cells],
        "weight_change": [row.to_dict() for row in run.weight_change],
        "reworded": [row.to_dict() for row in run.reworded],
    }
    return Section(KEY, words("generalisation.title"), content, facts=facts)


def reading(cell: MatrixCell) -> Mark:
    """Returns how a cell's difference to `nothing` is to be read."""
    if cell.difference is None:
        return ""
    if not cell.beyond_noise:
        return "noise"
    return "better" if cell.difference > 0 else "worse"


def _meaning(run: RunSource, words: Words) -> str:
    arm = focus_arm(run)
    parts = []
    for cell in _overall(run, arm):
        if cell.difference is not None:
            where = words(f"generalisation.where_{cell.relation}_{cell.role}")
            parts.append(
                words(
                    f"generalisation.meaning_{reading(cell)}",
                    arm=words.arm(arm),
                    where=where,
                    change=words.points(cell.difference),
                )
            )
        if cell.collapse_rate is not None and cell.collapse_rate >= _COLLAPSE_WORTH_SAYING:
            where = words(f"generalisation.where_{cell.relation}_{cell.role}")
            parts.append(
                words(
                    "generalisation.collapsed", arm=words.arm(arm), where=where, share=words.share(cell.collapse_rate)
                )
            )
    own = [row for row in run.reworded if row.arm == arm]
    if own:
        least = min(own, key=lambda row: row.consistency)
        parts.append(
            words("generalisation.steady", arm=words.arm(arm), task=least.task, share=words.share(least.consistency))
        )
    return words("format.sentences").join(parts) or words("generalisation.no_meaning")


def _overall(run: RunSource, arm: str | None) -> list[MatrixCell]:
    """The means of an arm: own tasks first, in-domain first."""
    cells = [cell for cell in run.cells if cell.arm == arm and cell.task == OVERALL]
    return sorted(cells, key=lambda cell: (_RELATIONS.index(cell.relation), TEST_ROLES.index(cell.role)))


def _picture(run: RunSource, words: Words) -> Markup:
    single = [cell for cell in run.cells if cell.task != OVERALL]
    keys = list(dict.fromkeys((cell.task, cell.role, cell.dataset) for cell in single))
    known = {(cell.arm, cell.task, cell.role, cell.dataset): cell for cell in single}
    arms = [arm for arm in run.arms if any(cell.arm == arm for cell in single)]
    tuned = {row.arm for row in run.weight_change}
    rows = [(arm, [_square(known.get((arm, *key)), words, tuned=arm in tuned) for key in keys]) for arm in arms]
    columns = [Column(task, words(f"role.{role}")) for task, role, _ in keys]
    return matrix_picture(rows, columns, name="matrix", words=_picture_words(words)).inline(
        words("generalisation.picture_title")
    )


def _picture_words(words: Words) -> MatrixWords:
    return MatrixWords(
        scale=words("generalisation.scale"),
        better=words("generalisation.better"),
        worse=words("generalisation.worse"),
        own=words("generalisation.own"),
        collapsed=words("generalisation.collapsed_mark"),
        score=words.score,
        points=words.points,
    )


def _square(cell: MatrixCell | None, words: Words, *, tuned: bool) -> Square:
    if cell is None:
        return Square(math.nan, tip=words("not_measured"))
    parts = [
        f"{cell.arm}, {cell.dataset}: {words.score(cell.value)} ({words.interval(cell.low, cell.high, words.score)})"
    ]
    if cell.difference is not None:
        parts.append(
            words(
                "generalisation.tip_difference",
                change=words.points(cell.difference),
                floor=words.points(cell.noise_floor),
            )
        )
    if cell.unrelated_rate is not None:
        parts.append(words("generalisation.tip_unrelated", share=words.share(cell.unrelated_rate)))
    return Square(
        cell.value,
        cell.difference,
        cell.beyond_noise,
        own=tuned and cell.relation == "same",
        collapsed=cell.collapse_rate,
        tip=words("format.semicolon").join(parts),
    )


def _means(run: RunSource, words: Words) -> Table:
    """Per arm: mean on own tasks in-domain and out-of-domain, on other tasks; and the rates of beside-the-point output."""
    kinds = list(dict.fromkeys((c.relation, c.role) for arm in run.arms for c in _overall(run, arm)))
    kinds.sort(key=lambda kind: (_RELATIONS.index(kind[0]), TEST_ROLES.index(kind[1])))
    body = []
    for arm in run.arms:
        means = {(c.relation, c.role): c for c in _overall(run, arm)}
        if means:
            shown = max(cell.demonstrations for cell in means.values())
            hint = words("generalisation.shown", count=words.count(shown)) if shown else ""
            body.append([Cell(arm, hint), *(_mean_cell(means.get(kind), words) for kind in kinds)])
    head = [
        words("generalisation.arm"),
        *(words(f"generalisation.column_{relation}_{role}") for relation, role in kinds),
    ]
    return Table(words("generalisation.means_caption"), head, body)


def _mean_cell(cell: MatrixCell | None, words: Words) -> Cell:
    if cell is None:
        return number(NONE)
    mark = reading(cell)
    note = words(f"mark.{mark}", change=words.points(cell.difference)) if mark else ""
    sub = words.interval(cell.low, cell.high, words.score)
    if cell.unrelated_rate is not None:
        rates = words(
            "generalisation.rates", collapse=words.share(cell.collapse_rate), unrelated=words.share(cell.unrelated_rate)
        )
        sub = words("format.semicolon").join((sub, rates))
    return Cell(words.score(cell.value), sub, mark, note, css="n")


def _change_table(run: RunSource, words: Words) -> Table | None:
    if not run.weight_change:
        return None
    body = []
    for row in run.weight_change:
        if row.mean_abs is None:
            body.append([Cell(row.arm, row.why), number(words("not_measured")), number(NONE), number(NONE)])
            continue
        most = max(row.blocks, key=lambda block: row.blocks[block], default="")
        body.append(
            [
                Cell(row.arm),
                number(f"{row.mean_abs:.2e}"),
                number(f"{row.blocks[most]:.2e}" if most else NONE, most),
                number(words.share(row.changed_fraction)),
            ]
        )
    head = [words(f"generalisation.change_{name}") for name in ("arm", "mean", "most", "share")]
    return Table(words("generalisation.change_caption"), head, body)


def _change_chart(run: RunSource, words: Words) -> Markup | None:
    rows = [row for row in run.weight_change if row.mean_abs is not None and len(row.blocks) > 1]
    if not rows:
        return None
    lines = [
        charts.Curve(
            row.arm,
            range(len(row.blocks)),
            [1e5 * value for value in row.blocks.values()],
            charts.arm_colour(row.arm, run.arms),
        )
        for row in rows
    ]
    return charts.curves(
        [("", lines)],
        name="weight-change",
        title=words("generalisation.change_title"),
        x_label=words("layers.x"),
        y_label=words("generalisation.change_y"),
        x_tick=lambda value: f"{value:g}",
        y_tick=lambda value: f"{value:g}",
    )


def _reworded(run: RunSource, words: Words) -> Table | None:
    if not run.reworded:
        return None
    body = [
        [
            Cell(row.arm, f"{row.task}, {words(f'role.{row.role}')}"),
            number(words.count(row.n), words("generalisation.wordings", count=words.count(row.n_wordings))),
            number(words.share(row.consistency), words.interval(row.low, row.high, words.share)),
            number(words.score(row.value)),
            number(words("format.comma").join(words.score(value) for value in row.values)),
        ]
        for row in run.reworded
    ]
    head = [words(f"generalisation.reworded_{name}") for name in ("arm", "n", "same", "own", "others")]
    return Table(words("generalisation.reworded_caption"), head, body)
