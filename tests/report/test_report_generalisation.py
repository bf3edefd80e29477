"""The sections on generalisation and on the amount of data: what is marked, what is said, and what is not promised."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tunescope.report.matrix_picture import NEUTRAL, Column, MatrixWords, Square, difference_colour, matrix_picture
from tunescope.report.sections import data_amount, gaps, generalisation, risk
from tunescope.report.source import RunSource, read_run
from tunescope.report.wording import Words
from tunescope.runs.generalisation import DataCurve

WORDS = MatrixWords("scale", "up", "down", "own", "labels", lambda v: f"{v:.2f}", lambda v: f"{v:+.2f}")


@pytest.fixture(scope="module")
def source(finished: Path) -> RunSource:
    return read_run(finished)


def drawn(*squares: Square) -> str:
    columns = [Column(f"task {i}", "in domain") for i in range(len(squares))]
    return str(matrix_picture([("model", squares)], columns, name="m", words=WORDS).inline("title"))


def test_only_what_is_beyond_the_noise_gets_a_mark() -> None:
    inside, better, worse = Square(0.5, 0.2), Square(0.7, 0.2, beyond_noise=True), Square(0.3, -0.2, beyond_noise=True)
    assert "▲" not in drawn(inside) and "▼" not in drawn(inside)
    assert drawn(better).count("▲") == 2 and "▼" not in drawn(better)  # the cell and the legend
    assert drawn(worse).count("▼") == 2
    assert drawn(inside, better, worse).count("▲") == 2


def test_the_dot_marks_collapsed_cells_and_the_frame_own_ones() -> None:
    assert drawn(Square(0.1, collapsed=0.3)).count("●") == 2
    assert "●" not in drawn(Square(0.1, collapsed=0.05)) and "●" not in drawn(Square(0.1))
    assert "own" in drawn(Square(0.1, own=True)) and ">own<" not in drawn(Square(0.1))


def test_colours_tell_the_direction_and_grow_with_the_difference() -> None:
    def channels(value: float) -> tuple[int, int, int]:
        text = difference_colour(value, 0.2)
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)

    red, blue = channels(-0.2), channels(0.2)
    assert red[0] > red[2] and blue[2] > blue[0]
    assert channels(0.1)[0] > blue[0] and channels(0.5) == blue
    assert difference_colour(None, 0.2) == difference_colour(math.nan, 0.2) == NEUTRAL


def test_a_cell_that_was_not_measured_is_empty_and_many_columns_still_fit() -> None:
    text = drawn(Square(math.nan, tip="not measured"), Square(0.25))
    assert "0.25" in text and text.count(">0.") == 1
    wide = drawn(*[Square(0.5, 0.1, beyond_noise=True)] * 60)
    places = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', wide)]
    assert max(places) < 1120


def test_hostile_names_do_not_leave_the_picture() -> None:
    square = Square(0.5, tip="<script>")
    text = str(matrix_picture([("<b>x", [square])], [Column("<i>", "</svg>")], name="m", words=WORDS).inline("t"))
    assert "<script>" not in text and "<b>" not in text and text.count("</svg>") == 1


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_meaning_says_what_was_taken_away_and_what_collapsed(lang: str, source: RunSource) -> None:
    def changed(cell: Any) -> Any:
        if (cell.arm, cell.task, cell.role) != ("selected", "*", "in_domain"):
            return cell
        worse = {"difference": -0.2, "difference_low": -0.3, "difference_high": -0.1, "noise_floor": 0.1}
        return dataclasses.replace(cell, relation="other", collapse_rate=0.4, **worse)

    run = dataclasses.replace(source, cells=tuple(map(changed, source.cells)))
    content = generalisation.section(run, Words(lang)).content
    assert content is not None
    said = {
        "en": ["tuning took something away", "40% of the free answers", "not tuned on"],
        "ja": ["失われたもの", "40%", "学習していない"],
    }
    assert all(text in content["meaning"] for text in said[lang])


def test_untuned_arms_have_no_frame_and_a_foreign_adapter_says_why_it_is_not_told(source: RunSource) -> None:
    change = dataclasses.replace(source.weight_change[0], mean_abs=None, why="DoRA is no plain sum", blocks={})
    run = dataclasses.replace(
        source, weight_change=(change,), cells=tuple(c for c in source.cells if c.arm == "nothing")
    )
    content = generalisation.section(run, Words("en")).content
    assert content is not None and content["change"].rows[0][0].sub == "DoRA is no plain sum"
    assert content["change_chart"] is None
    assert "the arm was tuned on this task" not in str(content["picture"])


def test_a_run_without_these_files_says_so(source: RunSource) -> None:
    run = dataclasses.replace(source, cells=(), data_curves=(), reworded=())
    assert generalisation.section(run, Words("en")).content is None
    amount = data_amount.section(run, Words("en"))
    assert amount.content is None and "evaluation.curve" in amount.missing
    assert {"data_amount", "rephrasing"} <= set(gaps.section(run, Words("en")).facts["not_measured"])
    assert not {"data_amount", "rephrasing"} & set(gaps.section(source, Words("en")).facts["not_measured"])


DETAILS = {
    "too_few_sizes": {"have": 3, "need": 4},
    "narrow_range": {"have": 2.5, "need": 4.0},
    "no_fall": {"fall": 0.01, "low": -0.02, "high": 0.04},
    "misfit": {"distance": 0.08, "fall": 0.1},
    "too_wide": {"low": 0.0, "high": 0.3, "fall": 0.2},
}


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("why", DETAILS)
def test_a_refused_forecast_says_why_with_its_numbers_and_promises_nothing(
    why: str, lang: str, source: RunSource
) -> None:
    curve = dataclasses.replace(
        source.data_curves[0], gain=None, gain_low=None, gain_high=None, why=why, details=DETAILS[why]
    )
    content = data_amount.section(dataclasses.replace(source, data_curves=(curve,)), Words(lang)).content
    assert content is not None
    text = content["meaning"]
    assert {"en": "cannot be told", "ja": "言えません"}[lang] in text
    assert "{" not in text and re.search(r"\d", text)
    assert {"en": "expected", "ja": "予測"}[lang] not in str(content["chart"])


def test_a_forecast_stands_with_its_interval(source: RunSource) -> None:
    content = data_amount.section(source, Words("en")).content
    assert content is not None
    assert "+3.6 points (interval +1.0 to +7.0)" in content["meaning"]
    assert "expected" in str(content["chart"])


def test_a_reason_of_a_newer_version_is_shown_as_it_is(source: RunSource) -> None:
    curve = DataCurve("selected", "in_domain", source.data_curves[0].points, why="other_reason")
    content = data_amount.section(dataclasses.replace(source, data_curves=(curve,)), Words("en")).content
    assert content is not None and "other_reason" in content["meaning"]


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_rule_for_people_says_on_what_it_was_chosen_and_checked(lang: str, source: RunSource) -> None:
    content = risk.section(source, Words(lang)).content
    assert content is not None and "64" in content["chosen"]
    assert "185" in content["meaning"]


def test_broken_files_are_named(run: Path) -> None:
    for name, rows in (("generalisation.json", "cells"), ("curve.json", "curves")):
        whole = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(json.dumps({"schema_version": 1, rows: [{"arm": 3}]}), encoding="utf-8")
        with pytest.raises(Exception, match=name):
            read_run(run)
        (run / name).write_text(whole, encoding="utf-8")
