"""What the sections say: true to the numbers, and no more than they carry."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest
from fake_run import make_run
from pages import Page

from tunescope import report
from tunescope.report.sections import arms, curves, gaps, layers, overview, risk, samples
from tunescope.report.select_results import focus_arm, headline, merge_seeds
from tunescope.report.source import RunSource, read_run
from tunescope.report.tables import reading
from tunescope.report.wording import Words
from tunescope.runs.records import Answer, Result, Risk, Sample, Verdict


@pytest.fixture(scope="module")
def source(finished: Path) -> RunSource:
    return read_run(finished)


def _cards(run: RunSource) -> dict[str, dict[str, str]]:
    content = overview.section(run, Words("en")).content
    assert content is not None
    return {card["key"]: card for card in content["cards"]}


@pytest.mark.parametrize(
    ("decision", "english", "japanese"),
    [
        ("tune", "Tune: use the arm “selected”.", "チューニングを推奨：方式「selected」を使う。"),
        ("do_not_tune", "Do not tune: use the arm “prompt”.", "チューニングは不要：方式「prompt」を使う。"),
        ("not_enough_evidence", "Not enough evidence yet.", "まだ判断できません（証拠不足）。"),
    ],
)
def test_the_first_screen_opens_with_the_verdict(tmp_path: Path, decision: str, english: str, japanese: str) -> None:
    folder = make_run(tmp_path / "run", decision=decision)
    for lang, expected in (("en", english), ("ja", japanese)):
        text = report.build(folder, lang=lang).read_text(encoding="utf-8")
        assert f"<h1>{expected}</h1>" in text
        assert text.index("<h1>") < text.index("<nav")
        cards = text[text.index("<h1>") : text.index("<nav")]
        assert cards.count("<article") == 4


def test_without_evidence_no_gain_is_promised(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", decision="not_enough_evidence"))
    cards = _cards(run)
    assert cards["money"]["value"] == "Open"
    assert cards["sure"]["value"] == "Cannot be said"
    assert cards["risk"]["value"] == "Deciding too early"


def test_how_sure_is_worded_by_its_share(source: RunSource) -> None:
    assert source.verdict is not None
    labels = []
    for share in (0.99, 0.85, 0.6):
        run = dataclasses.replace(source, verdict=dataclasses.replace(source.verdict, confidence=share))
        labels.append(_cards(run)["sure"]["label"])
    assert labels == ["High", "Fair", "Low"]


def _with_reasons(source: RunSource, *codes: str) -> RunSource:
    rows = tuple(
        {"code": code, "arm": "selected", "value": 0.2, "low": 0.1, "high": 0.3, "limit": 0.1} for code in codes
    )
    assert source.verdict is not None
    return dataclasses.replace(source, verdict=dataclasses.replace(source.verdict, reasons=rows))


def test_the_gravest_risk_comes_first(source: RunSource) -> None:
    assert _cards(_with_reasons(source, "ood_loss", "guard_worse"))["risk"]["value"] == "General ability got worse"
    assert _cards(_with_reasons(source, "ood_unclear", "ood_loss"))["risk"]["value"] == "Worse on unfamiliar inputs"
    calm = dataclasses.replace(
        _with_reasons(source), risks=tuple(row for row in source.risks if row.role == "in_domain")
    )
    assert _cards(calm)["risk"]["value"] == "34% of answers need a person"
    untested = tuple(row for row in source.results if row.role != "out_of_domain")
    assert _cards(dataclasses.replace(calm, results=untested))["risk"]["value"] == "Unfamiliar inputs not tested"


def test_no_label_task_is_not_called_unsafe(source: RunSource) -> None:
    empty = Risk("selected", "in_domain", 0, None, (), (), None, None, 0.05, None, 0.0, 0.0)
    run = dataclasses.replace(_with_reasons(source), risks=(empty,))
    assert _cards(run)["risk"]["value"] == "Not measured"
    section = risk.section(run, Words("en"))
    assert section.content is not None
    assert section.content["coverage"] is None
    assert section.content["tables"][0].rows[0][5].text == "not measured"


@pytest.mark.parametrize(
    ("error", "high", "said"),
    [
        (0.04, 0.09, "the rule held"),
        (0.0, 0.30, "within the target, but these are too few to be sure of it"),
        (0.2, 0.4, "above the target, so plan a larger share"),
    ],
)
def test_a_rule_holds_only_where_its_interval_does(source: RunSource, error: float, high: float, said: str) -> None:
    checked = {"human_share": 0.3, "target_error": 0.1, "checked_error": error, "checked_high": high, "n_checked": 9}
    risks = tuple(dataclasses.replace(row, checked_low=0.0, **checked) for row in source.risks)
    content = risk.section(dataclasses.replace(source, risks=risks), Words("en")).content
    assert content is not None and said in content["meaning"]


def test_a_difference_inside_the_noise_is_said_in_words_and_not_coloured(run: Path) -> None:
    for path, rows in ((run / "results.json", "results"), (run / "generalisation.json", "cells")):
        values = json.loads(path.read_text(encoding="utf-8"))
        for row in values[rows]:
            if row["difference"] is not None:
                row.update(difference=0.01, difference_low=-0.02, difference_high=0.04, noise_floor=0.03)
        path.write_text(json.dumps(values), encoding="utf-8")
    text = report.build(run).read_text(encoding="utf-8")
    body = text[text.index("<body") :]
    assert "heat-better" not in body and "heat-worse" not in body
    assert "▲" not in body and "▼" not in body
    assert body.count("inside the noise") > 50


@pytest.mark.parametrize(
    ("difference", "low", "high", "floor", "higher", "expected"),
    [
        (0.1, 0.02, 0.18, 0.08, True, "better"),
        (0.1, 0.02, 0.18, 0.08, False, "worse"),
        (-0.1, -0.18, -0.02, 0.08, True, "worse"),
        (-0.1, -0.18, -0.02, 0.08, False, "better"),
        (0.1, 0.0, 0.2, 0.1, True, "noise"),
        (0.05, 0.01, 0.09, 0.06, True, "noise"),
        (math.nan, math.nan, math.nan, 0.1, True, "noise"),
        (None, None, None, None, True, ""),
    ],
)
def test_a_difference_is_read_by_its_interval_and_direction(
    difference: float | None, low: float | None, high: float | None, floor: float | None, *, higher: bool, expected: str
) -> None:
    row = Result("a", "*", "in_domain", "m", 0.5, 0.4, 0.6, 9, higher, difference, low, high, floor)
    assert reading(row) == expected


def test_the_guard_file_that_got_worst_stands_for_the_guard_set(source: RunSource) -> None:
    rows = tuple(
        Result(
            "selected", "guard", "guard", "loss", 2.0 + rise, 1.9, 2.4, 40, False, rise, rise, rise, 0.0, dataset=name
        )
        for name, rise in (("mild", 0.01), ("bad", 0.3), ("fine", -0.1))
    )
    found = headline(dataclasses.replace(source, results=rows), "selected", "guard")
    assert found is not None and found.dataset == "bad"


def test_one_task_stands_for_itself_and_two_without_a_mean_for_nothing(source: RunSource) -> None:
    one = Result("selected", "routing", "in_domain", "accuracy", 0.7, 0.6, 0.8, 40, dataset="routing.test")
    two = dataclasses.replace(one, task="policy", dataset="policy.test")
    assert headline(dataclasses.replace(source, results=(one,)), "selected", "in_domain") == one
    assert headline(dataclasses.replace(source, results=(one, two)), "selected", "in_domain") is None


def test_seeds_are_merged_without_narrowing_an_interval(source: RunSource) -> None:
    rows = [row for row in source.results if (row.arm, row.task, row.role) == ("selected", "*", "in_domain")]
    other = dataclasses.replace(rows[0], value=rows[0].value - 0.1, low=rows[0].low - 0.1, seed=7)
    merged = merge_seeds([rows[0], other])
    assert merged.low == other.low and merged.high == rows[0].high
    assert other.value < merged.value < rows[0].value
    with pytest.raises(ValueError, match="no results"):
        merge_seeds([])


def test_the_followed_arm_is_the_recommended_one(source: RunSource) -> None:
    assert focus_arm(source) == "selected"
    assert focus_arm(dataclasses.replace(source, verdict=Verdict("do_not_tune", "prompt", None, (), ()))) == "prompt"
    assert focus_arm(dataclasses.replace(source, verdict=None)) == "selected"


@pytest.mark.parametrize(
    ("lang", "wanted"),
    [
        ("en", ("“selected” is better by +6.0 points", "“random” is worse: −4.0 points", "“random” differs by −1.0")),
        ("ja", ("「selected」は+6.0ポイント上回る", "「random」は下回る：−4.0ポイント", "「random」の差は−1.0")),
    ],
)
def test_chosen_and_drawn_blocks_are_compared_with_the_top_third_where_it_ran(
    source: RunSource, lang: str, wanted: tuple[str, str, str]
) -> None:
    assert source.verdict is not None
    better, worse, noise = wanted
    thirds = {
        "selected": {"difference": 0.06, "low": 0.02, "high": 0.10},
        "random": {"difference": -0.04, "low": -0.07, "high": -0.01},
    }
    run = dataclasses.replace(source, verdict=dataclasses.replace(source.verdict, against_top_third=thirds))
    said = arms.meaning(run, Words(lang))
    assert better in said and worse in said and said.count("top-third") == 1
    thirds["random"] = {"difference": -0.01, "low": -0.05, "high": 0.03}
    assert noise in arms.meaning(run, Words(lang))
    assert "top-third" not in arms.meaning(source, Words(lang))


def test_the_layer_map_says_what_its_score_cannot_tell(source: RunSource) -> None:
    section = layers.section(source, Words("en"))
    assert section.content is not None
    assert "mean gradient norm" in section.content["limits"] and "cannot tell" in section.content["limits"]
    assert section.content["table"].head[-2:] == ["selected", "random"]
    marked = [sum(row[column].text == "●" for row in section.content["table"].rows) for column in (3, 4)]
    assert marked == [10, 10]


def test_overfitting_is_named_where_the_held_out_loss_rose(source: RunSource) -> None:
    section = curves.section(source, Words("en"))
    assert section.content is not None
    said = section.content["meaning"]
    assert "“lora-all”: held-out loss" in said and said.count("it went on too long") == 1
    assert said.index("“lora-all”") < said.index("it went on too long")


def test_a_single_held_out_check_is_no_development(source: RunSource) -> None:
    rows = [row for row in source.steps if row.arm == "selected"]
    last = max(row.step for row in rows if row.validation_loss is not None)
    once = [row if row.step == last else dataclasses.replace(row, validation_loss=None) for row in rows]
    section = curves.section(dataclasses.replace(source, steps=tuple(once)), Words("en"))
    assert section.content is not None
    assert "looked at once, at step" in section.content["meaning"] and " from " not in section.content["meaning"]


def test_a_resumed_step_is_counted_once_and_keeps_its_check(source: RunSource) -> None:
    rows = [row for row in source.steps if row.arm == "selected"]
    repeated = [dataclasses.replace(row, validation_loss=None) for row in rows[30:40]]
    run = dataclasses.replace(source, steps=(*rows, *repeated))
    facts = curves.section(run, Words("en")).facts
    assert facts == curves.section(dataclasses.replace(source, steps=tuple(rows)), Words("en")).facts


def test_a_confidence_diagram_needs_every_example_behind_it(source: RunSource) -> None:
    points = risk.reliability(source, "selected", "in_domain")
    assert len(points) == risk.N_BINS
    assert [sure for sure, _ in points] == sorted(sure for sure, _ in points)
    assert risk.reliability(dataclasses.replace(source, samples=source.samples[:200]), "selected", "in_domain") == []


def test_what_was_not_measured_is_listed(source: RunSource) -> None:
    full = gaps.section(source, Words("en")).facts["not_measured"]
    assert "energy" in full and "seeds" in full and "guard" not in full
    bare = dataclasses.replace(source, results=tuple(row for row in source.results if row.role == "in_domain"))
    assert {"guard", "out_of_domain"} <= set(gaps.section(bare, Words("en")).facts["not_measured"])


def test_energy_that_was_not_measured_is_not_a_zero(built: tuple[str, str]) -> None:
    expected = {"en": "not measurable here", "ja": "この環境では測定不可"}[built[0]]
    assert Page(built[1]).text.count(expected) == 5


def _scored(number: int, ours: float, theirs: float, confidence: float = 0.5, task: str = "t") -> Sample:
    answers = {
        "selected": Answer("x", ours, confidence).to_dict(),
        "nothing": Answer("y", theirs, 0.5).to_dict(),
    }
    return Sample(f"s{number}", task, "in_domain", "d", "p", ("r",), answers)


def test_samples_follow_their_stated_rule() -> None:
    rows = [_scored(i, float(i % 2), float(i % 3 == 0), i / 100, f"task{i % 4}") for i in range(60)]
    groups = dict(samples.choose(rows, "selected", "nothing", 12))
    chosen = [row.id for found in groups.values() for row in found]
    assert len(chosen) == len(set(chosen)) == 12
    gap = {row.id: row.answers["selected"]["score"] - row.answers["nothing"]["score"] for row in rows}
    assert all(gap[row.id] == -1 for row in groups["worst"])
    assert all(gap[row.id] == 1 for row in groups["best"])
    most_sure = max((row for row in rows if gap[row.id] == -1), key=lambda row: row.answers["selected"]["confidence"])
    assert groups["worst"][0] == most_sure
    assert len({row.task for row in groups["worst"]}) > 1


def test_the_draw_does_not_look_at_scores() -> None:
    rng = random.Random(0)
    one = [_scored(i, rng.random(), rng.random()) for i in range(50)]
    other = [_scored(i, rng.random(), rng.random()) for i in range(50)]
    drawn = [[row.id for row in dict(samples.choose(rows, "selected", "nothing", 2))["drawn"]] for rows in (one, other)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2


def test_the_number_of_samples_follows_the_setting(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("samples: 24", "samples: 5"), encoding="utf-8")
    assert report.build(run).read_text(encoding="utf-8").count('<article class="sample">') == 5


def test_long_texts_are_folded_and_very_long_ones_cut(run: Path) -> None:
    huge = Sample(
        "huge", "summary", "in_domain", "d", "word " * 10_000, ("r",), {"selected": Answer("a", 0.5).to_dict()}
    )
    (run / "samples.jsonl").write_text(json.dumps({"schema_version": 1, **huge.to_dict()}) + "\n", encoding="utf-8")
    text = report.build(run).read_text(encoding="utf-8")
    assert text.count('<details class="text">') == 1
    assert "50,000 characters in all" in text
    assert text.count("word ") < 3000


def test_a_gpu_is_named_where_it_computed(run: Path) -> None:
    path = run / "environment.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["cpu"] in report.build(run).read_text(encoding="utf-8").partition("<nav")[0]
    path.write_text(json.dumps(values | {"device": "cuda:1", "gpu": "NVIDIA H100 80GB"}), encoding="utf-8")
    text = report.build(run).read_text(encoding="utf-8")
    assert "NVIDIA H100 80GB" in text.partition("<nav")[0]
    assert "cuda:1 · NVIDIA H100 80GB" in text
