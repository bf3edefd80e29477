"""The knowledge study in the report: the numbers of the file, a sentence beside each picture, and no traceback for a broken file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_knowledge import DOMAINS, content, make_knowledge_run
from fake_run import make_run
from pages import Page

from tunescope import report
from tunescope.errors import RunError
from tunescope.report.knowledge import read_knowledge
from tunescope.report.knowledge_charts import SHAPES, CountRow, Point, ScatterWords, count_bars, scatter
from tunescope.report.knowledge_parts import set_name
from tunescope.report.wording import Words

HOSTILE = "<script>alert('x')</script> \x1b[31m {{ 7*7 }}"


@pytest.fixture(scope="module", params=["en", "ja"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(language, page) of a run with all parts."""
    folder = make_knowledge_run(tmp_path_factory.mktemp("knowledge") / "run", lang=request.param)
    return request.param, report.build(folder).read_text(encoding="utf-8")


def section(text: str, key: str) -> str:
    return text.partition(f'<section id="{key}"')[2].partition("</section>")[0]


def test_a_page_with_all_parts_is_well_formed_and_complete(page: tuple[str, str]) -> None:
    lang, text = page
    parsed = Page(text)
    assert parsed.open == []
    keys = [attributes["id"] for name, attributes in parsed.elements if name == "section"]
    assert keys == [
        *(f"knowledge_{part}" for part in ("overview", "probe", "advice", "change", "style", "sets", "limits")),
        "reproduce",
    ]
    assert not re.search(r"\{[a-z_]+\}", parsed.text), "a number that was not filled in"
    means = Words(lang)("page.means")
    for key in ("probe", "change", "sets"):
        part = section(text, f"knowledge_{key}")
        assert part.count(means) >= part.count("<svg") >= 1


def test_the_pictures_show_every_domain_and_set_with_its_numbers(page: tuple[str, str]) -> None:
    _, text = page
    probe = section(text, "knowledge_probe")
    assert all(probe.count(f"<title>{name.replace('_', ' ')}") == 2 for name in DOMAINS)  # a dot per role
    assert section(text, "knowledge_change").count("stroke-dasharray") == 0
    sets = section(text, "knowledge_sets")
    assert len(re.findall(r"<title>[^<]*0\.\d\d[^<]*%", sets)) == 5 * 2 * 3
    found = content()["before"]["chance"]["homo"][0]
    assert f"{100 * found['accuracy']:.0f}%" in probe


def test_the_first_screen_says_what_tuning_did_or_how_much_is_known(tmp_path: Path) -> None:
    decision = content()["after"]["judgement"]["decision"]
    whole = report.build(make_knowledge_run(tmp_path / "a")).read_text(encoding="utf-8")
    assert Words("en")(f"knowledge_decision.{decision}") in section(whole, "knowledge_overview")
    alone = make_knowledge_run(tmp_path / "b", content(after=False, intervention=False))
    text = report.build(alone).read_text(encoding="utf-8")
    assert "of the questions correctly; guessing gives" in section(text, "knowledge_overview")
    assert "add --tuned" in section(text, "knowledge_change") and "add --intervene" in section(text, "knowledge_sets")


@pytest.mark.parametrize(("known", "said"), [(0.3, "shows no knowledge"), (0.02, "worse than guessing")])
def test_a_base_that_is_not_above_chance_is_said_to_be_so(tmp_path: Path, known: float, said: str) -> None:
    folder = make_knowledge_run(tmp_path / "run", content(known=known, after=False, intervention=False))
    text = report.build(folder).read_text(encoding="utf-8")
    assert said in section(text, "knowledge_overview")
    assert "build no claim on it" in section(text, "knowledge_advice")


def test_every_code_of_the_package_has_its_sentence_in_both_languages() -> None:
    found = content()
    codes = [code["code"] for code in found["before"]["advice"]]
    assert {"behaviour_examples"} <= set(codes)
    source = Path(report.__file__).parents[1] / "knowledge"
    told = set(re.findall(r'"code": "(\w+)"', (source / "judgement.py").read_text(encoding="utf-8")))
    asked = set(re.findall(r"^ {8}``(\w+)`` \(", (source / "advice.py").read_text(encoding="utf-8"), re.MULTILINE))
    assert len(told) > 5 and len(asked) > 7
    for lang in ("en", "ja"):
        words = Words(lang)
        assert all(f"knowledge_reason.{code}" in words for code in told)
        assert all(f"knowledge_collect.{code}" in words for code in asked)


def test_a_code_of_another_version_is_shown_with_its_numbers(tmp_path: Path) -> None:
    found = content(after=False, intervention=False)
    found["before"]["advice"] = [{"code": "moon_phase", "degree": 4.5}, {"code": "known", "domain": "x"}]
    text = section(
        report.build(make_knowledge_run(tmp_path / "run", found)).read_text(encoding="utf-8"), "knowledge_advice"
    )
    assert "moon phase" in text and "4.50" in text
    assert "known" in text  # a number is lacking: still no traceback


def test_names_from_outside_cannot_break_the_page(tmp_path: Path) -> None:
    text = json.dumps(content()).replace('"wines"', json.dumps(HOSTILE))
    built = report.build(make_knowledge_run(tmp_path / "run", json.loads(text))).read_text(encoding="utf-8")
    assert Page(built).open == []
    assert "<script>" not in built and "\x1b" not in built and "alert" in built


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("before"), "has no row over all domains"),
        (lambda found: found["before"]["chance"]["homo"].pop(), "has no row over all domains"),
        (lambda found: found["before"]["chance"].pop("*"), "lacks a role"),
        (lambda found: found["before"]["chance"]["homo"][0].pop("chance"), "lacks"),
        (lambda found: found["before"].update(threshold="high"), "expected a number"),
        (lambda found: found["before"].update(advice="none"), "expected a list of codes"),
        (lambda found: found["after"]["judgement"].pop("balance"), "lacks"),
        (lambda found: found["intervention"]["comparison"]["accuracy"].pop("homo"), "lacks a set or a test"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, change: Any, said: str) -> None:
    found = content()
    change(found)
    with pytest.raises(RunError, match=said) as caught:
        report.build(make_knowledge_run(tmp_path / "run", found))
    assert "knowledge.json" in str(caught.value) and "\n" not in str(caught.value)


def test_differences_are_read_whichever_way_round_they_are_stored() -> None:
    found = read_knowledge(content(), Path("knowledge.json"))
    assert found is not None and found.intervention is not None
    one = found.intervention.against("harmonious", "incompatible")
    other = found.intervention.against("incompatible", "harmonious")
    assert one is not None and other is not None and one.value is not None
    assert (other.value, other.low, other.high) == (-one.value, -(one.high or 0), -(one.low or 0))
    assert found.intervention.against("harmonious", "nothing") is None


def test_a_proof_of_concept_without_questions_says_how_to_get_them(tmp_path: Path) -> None:
    text = report.build(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "Name files of questions under knowledge.questions" in section(text, "knowledge")


def test_pictures_of_few_or_equal_numbers_are_drawn() -> None:
    words = ScatterWords("x", "y", [], str, str)
    same = [Point(0.5, 0.5, "a", SHAPES[0], "tip")] * 3
    assert "<svg" in scatter(same, name="s", words=words).inline("t")
    empty = [CountRow("none", (0, 0), "tip"), CountRow("one", (1, 0), "tip")]
    drawn = count_bars(empty, [("a", "#000"), ("b", "#111")], name="c", number=str).inline("t")
    assert drawn.count("<title>tip</title>") == 1


def test_names_of_sets_are_words() -> None:
    words = Words("en")
    assert set_name("mix-0.05", words) == "Own wrong answers in 5% of the unknown questions"
    assert set_name("harmonious", words) == "Right answers to known questions"
    assert set_name("something", words) == "something"
