"""The page as a whole: self-contained, safe, well-formed, the same each time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_run import ARMS, HOSTILE, TASKS, make_run
from pages import Page

from tunescope import report
from tunescope.errors import RunError
from tunescope.report.wording import visible

SECTIONS = (
    "overview",
    "arms",
    "tasks",
    "generalisation",
    "money",
    "forecast",
    "risk",
    "layers",
    "curves",
    "data_amount",
    "data",
    "samples",
    "reproduce",
)


def test_every_element_is_closed_in_order(built: tuple[str, str]) -> None:
    page = Page(built[1])
    assert page.open == []
    assert page.count("table") > 20


def test_sections_stand_in_the_promised_order(built: tuple[str, str]) -> None:
    found = [attrs["id"] for tag, attrs in Page(built[1]).elements if tag == "section"]
    assert [key for key in found if key in SECTIONS] == list(SECTIONS)


def test_the_language_is_declared(built: tuple[str, str]) -> None:
    lang, text = built
    assert ("html", {"lang": lang}) in Page(text).elements


def test_nothing_is_fetched_from_anywhere(built: tuple[str, str]) -> None:
    page = Page(built[1])
    addresses = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "href", "action", "data")
    ]
    assert addresses, "the table of contents links somewhere"
    assert all(address.startswith("#") for address in addresses)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    styles = built[1] if "<style" in built[1] else ""
    assert "@import" not in styles
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", styles))


def test_the_page_forbids_scripts_and_connections(built: tuple[str, str]) -> None:
    policies = [
        attrs["content"]
        for tag, attrs in Page(built[1]).elements
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_hostile_texts_are_shown_and_not_run(built: tuple[str, str]) -> None:
    page = Page(built[1])
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert page.count("script") == page.count("img") == page.count("i") == 0
    assert "help<i>desk</i>" in page.text
    for text in HOSTILE:
        assert visible(text) in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_control_characters_never_reach_the_page(built: tuple[str, str]) -> None:
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", built[1])
    assert "␇" in built[1]
    assert "[U+202E]" in built[1]


def test_ids_are_unique_and_references_resolve(built: tuple[str, str]) -> None:
    page = Page(built[1])
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", built[1]))
    used |= {attrs["href"][1:] for _, attrs in page.elements if attrs.get("href", "").startswith("#")}
    used |= {attrs["aria-labelledby"] for _, attrs in page.elements if "aria-labelledby" in attrs}
    assert len(used) > 20
    assert used <= set(ids)


def test_every_chart_has_a_title_and_its_text_stays_text(built: tuple[str, str]) -> None:
    lang, text = built
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(charts) >= 7
    for chart in charts:
        assert 'role="img"' in chart
        assert re.search(r"<title id=[^>]+>[^<]{6,}</title>", chart)
        assert chart.count("<text") > 5
        assert "Noto Sans JP" in chart
    first = charts[0]
    assert all(f">{arm}</text>" in first for arm in ARMS)
    if lang == "ja":
        assert "平均スコア" in first


def test_every_chart_stands_with_a_table(built: tuple[str, str]) -> None:
    sections = re.findall(r"<section id=\"(\w+)\".*?</section>", built[1], flags=re.DOTALL)
    bodies = dict(zip(sections, re.findall(r"<section id=.*?</section>", built[1], flags=re.DOTALL), strict=True))
    drawn = {key for key, body in bodies.items() if "<svg" in body} - {"overview"}
    assert drawn == {"arms", "generalisation", "money", "risk", "layers", "curves", "data_amount"}
    assert all("<table" in bodies[key] for key in drawn)


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = report.build(run).read_bytes()
    facts = (run / "report.json").read_bytes()
    assert report.build(run).read_bytes() == first
    assert (run / "report.json").read_bytes() == facts


def test_the_json_holds_unrounded_numbers_and_the_verdict(run: Path) -> None:
    report.build(run)
    facts = json.loads((run / "report.json").read_text(encoding="utf-8"))
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))["results"]
    mean = next(row for row in results if (row["arm"], row["task"], row["role"]) == ("selected", "*", "in_domain"))
    assert facts["arms"]["selected"]["quality"]["in_domain"]["value"] == mean["value"]
    assert facts["overview"]["decision"] == "tune"
    assert facts["missing_files"] == []
    assert len(facts["tasks"]["results"]) == len(ARMS) * len(TASKS) * 2


def test_the_config_chooses_the_language_and_an_argument_overrides_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", lang="ja")
    assert '<html lang="ja">' in report.build(folder).read_text(encoding="utf-8")
    assert '<html lang="en">' in report.build(folder, lang="en").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_report_and_no_rest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = report.build(run).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", fail)
        with pytest.raises(RunError, match="No space left on device"):
            report.build(run, lang="ja")
    assert (run / "report.html").read_bytes() == old
    assert not list(run.glob("*.part")) + list(run.glob(".*.part"))


def test_the_report_package_loads_neither_torch_nor_data_nor_models() -> None:
    code = (
        "import sys, tunescope.report\n"
        "heavy = ('torch', 'transformers', 'tunescope.data', 'tunescope.models', 'tunescope.engine')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
