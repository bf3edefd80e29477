"""The layer map in the report: pictures that hold every task once and say nothing that is not in the numbers."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_map import N_BLOCKS, N_TASKS, make_layers, make_map_run, task_names
from fake_run import make_run
from pages import Page

from tunescope import report
from tunescope.errors import RunError, UserError
from tunescope.layers import find_bands
from tunescope.report import map_words
from tunescope.report.canvas import clean, fit, text_width, wrap
from tunescope.report.heat_map import colour, colour_limits
from tunescope.report.layer_map import read_map
from tunescope.report.wording import Words
from tunescope.runs.records import Bands

SVG = "{http://www.w3.org/2000/svg}"
ALL_FIGURES = ["heat_map.svg", "bands.svg", "dendrogram.svg", "causal.svg"]


def _write(folder: Path, layers: dict[str, Any], lang: str = "en") -> dict[str, ET.Element]:
    """Figure -> its root element; parsing it checks that it is XML."""
    return {path.name: ET.parse(path).getroot() for path in report.write_map_figures(folder, layers, lang=lang)}


@pytest.fixture(scope="module", params=["en", "ja"])
def figures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ET.Element]:
    return _write(tmp_path_factory.mktemp("figures"), make_layers(), request.param)


@pytest.fixture(scope="module", params=["mossa-en", "mossa-ja", "base-ja", "pair-en"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str, Path]:
    """(mode, language, text, folder) of the page of a map run."""
    mode, lang = request.param.split("-")
    folder = make_map_run(tmp_path_factory.mktemp("map") / "run", lang=lang, mode=mode, found=mode != "base")
    return mode, lang, report.build(folder).read_text(encoding="utf-8"), folder


def _tips(root: ET.Element, tag: str) -> list[str]:
    return [found.findtext(f"{SVG}title") or "" for found in root.iter(f"{SVG}{tag}")]


def _boxes(root: ET.Element) -> list[tuple[str, float, float, float, float]]:
    """(text, left, top, right, bottom) of every text."""
    boxes = []
    for element in root.iter(f"{SVG}text"):
        text = "".join(part for part in ([element.text] + [child.tail for child in element]) if part)
        size, x, y = (float(element.attrib[key]) for key in ("font-size", "x", "y"))
        width = text_width(text, size)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[element.attrib.get("text-anchor", "start")]
        boxes.append((text, left, y - 0.75 * size, left + width, y + 0.2 * size))
    return boxes


def test_all_four_pictures_are_written_as_files_that_need_nothing_else(figures: dict[str, ET.Element]) -> None:
    assert list(figures) == ALL_FIGURES
    for root in figures.values():
        assert root.tag == f"{SVG}svg"
        assert "Noto Sans JP" in root.attrib["font-family"]
        assert len(root.findtext(f"{SVG}title") or "") > 8
        ground = next(root.iter(f"{SVG}rect"))
        assert (ground.attrib["fill"], ground.attrib["width"]) == ("#fff", root.attrib["width"])
        assert not {element.tag for element in root.iter()} & {f"{SVG}{tag}" for tag in ("script", "image", "use", "a")}
        assert not [key for element in root.iter() for key in element.attrib if "href" in key or key.startswith("on")]


def test_the_heat_map_has_one_cell_for_each_task_and_block_with_its_value(figures: dict[str, ET.Element]) -> None:
    tips = [tip for tip in _tips(figures["heat_map.svg"], "rect") if "CKA" not in tip and re.search(r"\d\.\d{3}", tip)]
    layers = make_layers()
    scores = {
        row["task"]: row for row in layers["scores"] if row["name"] == "cka_tuned_specialist" and row["task"] != "*"
    }
    assert len(tips) == len(scores) * N_BLOCKS == N_TASKS * N_BLOCKS
    for task, row in list(scores.items())[::11]:
        start = clean(task)
        found = [tip for tip in tips if tip.startswith(start)]
        assert len(found) == N_BLOCKS
        for value, tip in zip(row["values"], found, strict=True):
            assert f"{abs(value):.3f}" in tip


@pytest.mark.parametrize("name", ["heat_map.svg", "dendrogram.svg"])
def test_every_task_is_named_once(figures: dict[str, ET.Element], name: str) -> None:
    tips = [tip for tip in _tips(figures[name], "text") if tip]
    assert len(tips) == N_TASKS
    for task in task_names():
        assert sum(tip.startswith((f"{clean(task)};", f"{clean(task)}（")) for tip in tips) == 1


def test_names_are_escaped_and_shown_as_they_are(tmp_path: Path) -> None:
    report.write_map_figures(tmp_path, make_layers())
    for name in ("heat_map.svg", "dendrogram.svg"):
        text = (tmp_path / "figures" / name).read_text(encoding="utf-8")
        assert "<script" not in text and "<i>" not in text
        assert "&lt;script&gt;" in text and "a&amp;b" in text


@pytest.mark.parametrize(
    "kinds", [{}, {"n_tasks": 4, "n_blocks": 2}, {"mode": "base", "n_blocks": 12}, {"n_tasks": 9, "n_blocks": 80}]
)
def test_everything_lies_inside_the_picture(tmp_path: Path, kinds: dict[str, Any]) -> None:
    for name, root in _write(tmp_path, make_layers(**kinds)).items():
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        count = 0
        for element in root.iter():
            if element.tag == f"{SVG}rect":
                x, y = float(element.attrib.get("x", 0)), float(element.attrib.get("y", 0))
                ends = (x + float(element.attrib["width"]), y + float(element.attrib["height"]))
                assert min(x, y) >= -0.5 and ends[0] <= width + 0.5 and ends[1] <= height + 0.5, (name, element.attrib)
                count += 1
            if element.tag == f"{SVG}path" and element.attrib["d"].startswith("M") and "h" not in element.attrib["d"]:
                numbers = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?", element.attrib["d"])]
                assert all(math.isfinite(number) and -0.5 <= number <= max(width, height) + 0.5 for number in numbers)
                count += 1
        for text, left, top, right, bottom in _boxes(root):
            assert left >= -1 and top >= 0 and right <= width + 1 and bottom <= height, (name, text)
            count += 1
        assert count > 15


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"n_tasks": 6, "n_blocks": 12, "mode": "pair"},
        {"mode": "base", "found": False},
        {"n_tasks": 20, "n_blocks": 80},
    ],
)
def test_no_two_texts_overlap(tmp_path: Path, kinds: dict[str, Any], lang: str) -> None:
    for name, root in _write(tmp_path, make_layers(**kinds), lang).items():
        boxes = _boxes(root)
        assert len(boxes) > 8
        for i, (text, left, top, right, bottom) in enumerate(boxes):
            for other, left2, top2, right2, bottom2 in boxes[i + 1 :]:
                apart = right <= left2 + 0.5 or right2 <= left + 0.5 or bottom <= top2 + 0.5 or bottom2 <= top + 0.5
                assert apart, (name, text, other)


def test_only_cells_no_higher_than_chance_are_hatched(tmp_path: Path) -> None:
    layers = make_layers()
    rows = [row for row in layers["scores"] if row["name"] == "cka_tuned_specialist" and row["task"] != "*"]
    below = sum(value <= chance for row in rows for value, chance in zip(row["values"], row["null"], strict=True))
    assert 0 < below < N_TASKS * N_BLOCKS / 10
    root = _write(tmp_path, layers)["heat_map.svg"]
    drawn = [path.attrib["d"].count("M") for path in root.iter(f"{SVG}path") if path.attrib.get("class") == "hatch"]
    assert sorted(drawn) == [1, below]  # the sample in the legend, and the cells
    for row in rows:
        row["null"] = None
    root = _write(tmp_path / "plain", layers)["heat_map.svg"]
    assert not [path for path in root.iter(f"{SVG}path") if path.attrib.get("class") == "hatch"]


def test_rows_stand_in_the_order_of_the_tree_and_clusters_are_apart(tmp_path: Path) -> None:
    layers = make_layers()
    clusters = layers["map"]["clusters"]
    root = _write(tmp_path, layers)["heat_map.svg"]
    named = [(float(text.attrib["y"]), text.findtext(f"{SVG}title") or "") for text in root.iter(f"{SVG}text")]
    named = [(y, tip) for y, tip in named if tip]
    assert [y for y, _ in named] == sorted(y for y, _ in named)
    for (_, tip), row in zip(named, clusters["order"], strict=True):
        assert tip.startswith(clean(clusters["names"][row]))
    steps = np.diff([y for y, _ in named])
    changes = np.diff([clusters["labels"][row] for row in clusters["order"]]) != 0
    assert changes.sum() == 2
    assert steps[changes].min() > steps[~changes].max() + 5
    letters = [
        text.text for text in root.iter(f"{SVG}text") if text.attrib.get("font-weight") and text.text in set("ABC")
    ]
    assert letters == ["A", "B", "C"]


def test_a_band_that_was_not_found_is_not_drawn_but_explained(tmp_path: Path) -> None:
    for lang, verdict, clause in (
        ("en", "No transition band was found.", "a smooth curve"),
        ("ja", "遷移帯は見つかりませんでした。", "滑らかな曲線"),
    ):
        root = _write(tmp_path / lang, make_layers("base", found=False), lang)["bands.svg"]
        text = "".join(text for text, *_ in _boxes(root))
        assert verdict in text and clause in text
        assert not [path for path in root.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]
    root = _write(tmp_path / "found", make_layers())["bands.svg"]
    assert len([path for path in root.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]) == 2 * 3 + 1


def test_bars_that_may_be_nothing_look_different(tmp_path: Path) -> None:
    layers = make_layers()
    row = next(row for row in layers["scores"] if row["name"] == "causal" and row["task"] == "*")
    unclear = sum(low <= 0 <= high for low, high in zip(row["low"], row["high"], strict=True))
    assert 0 < unclear < N_BLOCKS
    rects = [rect.attrib for rect in _write(tmp_path, layers)["causal.svg"].iter(f"{SVG}rect")]
    assert sum(rect["fill"] == "#9fb3c4" for rect in rects) == unclear + 1  # and its sample in the legend


def test_a_picture_that_the_map_lacks_is_not_written_and_an_old_one_removed(tmp_path: Path) -> None:
    assert len(report.write_map_figures(tmp_path, make_layers())) == 4
    paths = report.write_map_figures(tmp_path, make_layers("base"))
    assert [path.name for path in paths] == ["heat_map.svg", "bands.svg", "dendrogram.svg"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in paths)


def test_the_language_of_the_files_is_that_of_the_config(tmp_path: Path) -> None:
    folder = make_map_run(tmp_path / "run", lang="ja", n_tasks=5)
    layers = json.loads((folder / "layers.json").read_text(encoding="utf-8"))
    text = report.write_map_figures(folder, layers)[0].read_text(encoding="utf-8")
    assert "ブロック" in text and 'xml:lang="ja"' in text
    assert "ブロック" not in report.write_map_figures(folder, layers, lang="en")[0].read_text(encoding="utf-8")
    with pytest.raises(UserError, match="language 'fr'"):
        report.write_map_figures(folder, layers, lang="fr")


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = report.write_map_figures(tmp_path, make_layers(n_tasks=5))[0].read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", fail)
        with pytest.raises(RunError, match="No space left on device"):
            report.write_map_figures(tmp_path, make_layers(n_tasks=7))
    assert (tmp_path / "figures" / "heat_map.svg").read_bytes() == old
    assert not [path for path in (tmp_path / "figures").iterdir() if path.suffix != ".svg"]


def test_the_first_screen_says_it_in_two_sentences_with_blocks_and_price(page: tuple[str, str, str, Path]) -> None:
    mode, lang, text, _ = page
    first = text[text.index("<h1>") : text.index("<nav")]
    lead = re.findall(r'<p class="lead">(.*?)</p>', first)[0]
    assert len(re.findall(r"。" if lang == "ja" else r"\.(?:\s|$)", lead)) == 2
    assert ("83%" if mode != "base" else "78%") in lead
    assert first.count("<article") == (2 if mode == "base" else 4)
    assert first.count("<svg") == 1
    found = {"en": "A transition lies in blocks 10–15.", "ja": "遷移帯はブロック10–15です。"}
    assert (f"<h1>{found[lang]}</h1>" in first) == (mode != "base")


def test_the_page_is_whole_safe_and_fetches_nothing(page: tuple[str, str, str, Path]) -> None:
    _, lang, text, _ = page
    read = Page(text)
    assert read.open == []
    assert ("html", {"lang": lang}) in read.elements
    assert read.count("script") == read.count("img") == read.count("i") == 0
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    addresses = [attrs["href"] for _, attrs in read.elements if "href" in attrs]
    assert len(addresses) >= 7 and all(address.startswith("#") for address in addresses)
    assert {address[1:] for address in addresses} <= set(ids)


def test_sections_stand_in_order(page: tuple[str, str, str, Path]) -> None:
    keys = [attrs["id"] for tag, attrs in Page(page[2]).elements if tag == "section"]
    names = ("tasks", "bands", "causal", "proposals", "limits", "method")
    assert keys == ["map", *(f"map_{name}" for name in names), "reproduce"]


def test_a_japanese_page_is_japanese(page: tuple[str, str, str, Path]) -> None:
    _, lang, text, _ = page
    if lang != "ja":
        return
    shown = "".join(Page(re.sub(r'<section id="reproduce".*', "", text, flags=re.DOTALL)).texts)
    for task in task_names():
        shown = shown.replace(clean(task), "").replace(task, "")
    shown = re.sub(r"\S*…", "", shown)
    known = {
        "tunescope", "run", "smollm", "AMD", "EPYC", "CKA", "LoRA", "PoC", "MiB", "GiB", "nats", "arXiv", "Kornblith", "Song",
        "Zhao", "Ziser", "Cohen", "mossa", "base", "pair", "poc", "plan", "classification", "generation", "instruct",
    }  # fmt: skip
    assert {word for word in re.findall(r"[A-Za-z]+", shown) if len(word) > 1} - known - {"ABC"} == set()


def test_the_map_stands_in_report_json_unrounded(page: tuple[str, str, str, Path]) -> None:
    mode, _, _, folder = page
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    layers = json.loads((folder / "layers.json").read_text(encoding="utf-8"))
    assert facts["map"]["mode"] == mode
    assert {key: facts["map"][key] for key in layers["map"]} == layers["map"]
    assert facts["map"]["scores"][3]["values"] == layers["scores"][3]["values"]


def test_every_proposal_stands_in_the_table_with_its_price(page: tuple[str, str, str, Path]) -> None:
    _, lang, text, folder = page
    layers = json.loads((folder / "layers.json").read_text(encoding="utf-8"))
    body = text[text.index('id="map_proposals"') : text.index('id="map_limits"')]
    words = Words(lang)
    for row in layers["map"]["proposals"]:
        assert words(f"map_proposal.{row['name']}") in body
        assert words.share(row["relative_cost"]) in body


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_map_run(tmp_path / "run", n_tasks=8)
    first = report.build(folder).read_bytes()
    assert report.build(folder).read_bytes() == first


def test_a_map_without_bands_clusters_proposals_and_intervals_still_has_a_page(tmp_path: Path) -> None:
    folder = make_map_run(tmp_path / "run", mode="pair", n_tasks=3, n_blocks=4)
    layers = make_layers("pair", n_tasks=3, n_blocks=4, causal=False)
    layers["map"] |= {"bands": None, "clusters": None, "agreement": None, "proposals": [], "seconds": {}}
    layers["scores"] = [
        row | {"low": None, "high": None, "null": None} for row in layers["scores"] if row["task"] != "*"
    ]
    (folder / "layers.json").write_text(json.dumps(layers), encoding="utf-8")
    page = Page(report.build(folder).read_text(encoding="utf-8"))
    assert page.open == []
    assert "A layer map of 3 tasks." in page.text and "The map proposes no blocks." in page.text
    assert [path.name for path in report.write_map_figures(folder, layers)] == ["heat_map.svg"]


def test_the_poc_report_shows_the_map_where_there_is_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    plain = report.build(folder).read_text(encoding="utf-8")
    path = folder / "layers.json"
    old, new = json.loads(path.read_text(encoding="utf-8")), make_layers("base", n_tasks=6)
    path.write_text(
        json.dumps(new | {"selections": old["selections"], "scores": new["scores"] + old["scores"]}), encoding="utf-8"
    )
    text = report.build(folder).read_text(encoding="utf-8")
    section = re.compile(r'<section id="layers">.*?</section>', re.DOTALL)
    before, after = section.findall(plain)[0], section.findall(text)[0]
    assert (
        'id="heat-map-title"' in after and 'id="bands-title"' in after and "mean gradient norm per block" not in after
    )
    assert 'id="heat-map-title"' not in before and "mean gradient norm per block" in before
    assert ">selected</text>" in re.sub(r"<title>.*?</title>", "", after)
    assert Page(text).open == []
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["layers"]["map"]["mode"] == "base"


def test_maps_are_not_put_side_by_side(tmp_path: Path) -> None:
    runs = [make_map_run(tmp_path / "m", n_tasks=4), make_run(tmp_path / "p")]
    for pair in (runs, runs[::-1], [runs[0], runs[0]]):
        with pytest.raises(RunError, match=r"^m(, m)?: of study map") as caught:
            report.compare(pair, out=tmp_path / "both.html")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "both.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers["map"].update(mode="moss"), "map.mode is 'moss'"),
        (lambda layers: layers["scores"][0].update(values=[1.0]), "has 1 values for 30 blocks"),
        (lambda layers: layers["map"]["clusters"].update(order=[0, 0]), "clusters do not fit"),
        (lambda layers: layers["map"]["bands"].update(boundaries=[5, 99]), "lie outside 0 to 30"),
        (lambda layers: layers["map"]["bands"].update(boundaries=None), "found but have no boundaries"),
        (lambda layers: layers["map"]["tasks"].append(layers["map"]["tasks"][0]), "twice"),
        (lambda layers: layers["map"].update(tasks=[{"family": "x"}]), "MapTask 1 lacks"),
        (lambda layers: layers.update(scores=[]), "holds no cka_tuned_specialist"),
        (lambda layers: layers["map"].update(proposals=[{"name": "a", "layers": "block.1"}]), "layers is 'block.1'"),
        (lambda layers: layers.pop("map"), "holds no layer map"),
    ],
)
def test_a_broken_map_is_one_line(tmp_path: Path, change: Any, message: str) -> None:
    layers = make_layers(n_tasks=5)
    change(layers)
    with pytest.raises(RunError, match=re.escape(message)) as caught:
        report.write_map_figures(tmp_path, layers)
    assert "\n" not in str(caught.value) and "layers.json" in str(caught.value)


def test_every_reason_against_a_band_has_words_in_both_languages() -> None:
    random = np.random.default_rng(3)

    def noise(*shape: int) -> Any:
        return random.normal(0, 0.02, shape)

    line = np.linspace(0.9, 0.5, 16)
    found = [
        find_bands(line + noise(8, 16), n_bootstrap=20),
        find_bands(np.full((8, 16), 0.5) + noise(8, 16), n_bootstrap=20),
        find_bands(0.8 + noise(8, 16), 0.4 + 0.4 * line + noise(8, 16), n_bootstrap=20),
        find_bands(0.5 + 0.3 * np.exp(-((np.arange(16) - 7.3) ** 2)) + noise(8, 16), n_bootstrap=20),
        find_bands(line + 0.3 * np.exp(-((np.arange(16) - 7.3) ** 2)) + noise(8, 16), n_bootstrap=20),
        find_bands(line[None, :4] + noise(8, 4), n_bootstrap=20),
        find_bands(line[None] + noise(1, 16), n_bootstrap=20),
        find_bands(np.full((4, 16), 0.5) + np.arange(4)[:, None] * 1e-2, n_bootstrap=20),
        Bands(False, "no transition band found: the tuned model is the base below block.20", ("block.0",)),
    ]
    clauses = 0
    for bands in found:
        assert not bands.found
        for lang in ("en", "ja"):
            told = map_words.reasons(bands, Words(lang))
            assert told
            clauses += len(told)
            original = bands.why.removeprefix(map_words.NOT_FOUND)
            assert not [text for text in told if text in original and lang == "ja"], told
            if lang == "ja":
                assert all(re.search(r"[ぁ-ん]", text) for text in told)
    assert clauses >= 16


def test_an_unknown_reason_and_an_unknown_rule_are_shown_as_recorded(tmp_path: Path) -> None:
    layers = make_layers(n_tasks=5, found=False)
    layers["map"]["bands"]["why"] = "no transition band found: the moon was full"
    layers["map"]["proposals"][0] |= {"name": "by_moon_phase", "why": "it waxed"}
    found = read_map(layers, tmp_path / "layers.json")
    assert found is not None
    assert "the moon was full" in map_words.lead(found, Words("en"))
    assert "“by moon phase”" in map_words.lead(found, Words("en"))
    assert map_words.proposal_why(found.proposals[0], Words("en")) == "it waxed"


def test_dark_is_high_and_lightness_falls_evenly() -> None:
    def lightness(value: float) -> float:
        red, green, blue = (int(colour(value, 0, 1)[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y

    steps = np.diff([lightness(value) for value in np.linspace(0, 1, 11)])
    assert steps.max() < 0
    assert steps.min() / steps.max() < 2.5


@pytest.mark.parametrize(("states", "lowest"), [("last", "block 6"), ("mean", "block 0")])
def test_block_0_is_compared_with_the_others_only_where_its_number_is_of_their_kind(
    tmp_path: Path, states: str, lowest: str
) -> None:
    run = make_map_run(tmp_path / "run", mode="base", found=False)
    values = json.loads((run / "layers.json").read_text(encoding="utf-8"))
    values["map"]["states"] = states
    row = next(row for row in values["scores"] if (row["name"], row["task"]) == ("cka_in_out", "*"))
    row["values"] = [0.3, *(0.9 - 0.01 * (i == 6) for i in range(1, len(row["values"])))]
    (run / "layers.json").write_text(json.dumps(values), encoding="utf-8")
    page = report.build(run).read_text(encoding="utf-8")
    assert f"The median over tasks is lowest at {lowest} " in page
    assert ("its number is of another kind" in page) == (states == "last")


def test_the_end_of_the_scale_that_stands_for_lower_values_is_named_at_that_end(tmp_path: Path) -> None:
    picture = _write(tmp_path, make_layers("base", found=False))["heat_map.svg"]
    texts = {
        "".join(node.itertext()): float(node.get("x", "nan")) for node in picture.iter() if node.tag.endswith("text")
    }
    (mark,) = (x for text, x in texts.items() if text.startswith("≤ "))
    assert mark < min(x for text, x in texts.items() if text.startswith("0.9"))


def test_one_odd_block_does_not_bleach_the_others() -> None:
    values = [0.3] * 60 + list(np.linspace(0.9, 0.97, 29 * 60))
    low, high = colour_limits(values, n_blocks=30)
    assert 0.9 <= low < high == 0.97
    assert colour_limits([float("nan")]) == (0.0, 1.0)
    assert colour_limits([0.5, 0.5]) == (0.0, 1.0)


def test_texts_are_cut_and_wrapped_to_their_room() -> None:
    for text in ("x" * 200, "設備点検記録の異常判定" * 9, "a b c " * 40):
        assert text_width(fit(text, 150)) <= 150
        lines = wrap(text, 150)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        if "x" not in text:
            assert len(lines) > 3 and all(text_width(line) <= 150 for line in lines)
    assert not [line for line in wrap("帯は、ありません。" * 20, 100) if line[0] in "。、"]


def test_specialists_without_a_tuned_model_make_a_map_too(tmp_path: Path) -> None:
    folder = make_map_run(tmp_path / "run", n_tasks=8)
    layers = make_layers(n_tasks=8)
    layers["scores"] = [row for row in layers["scores"] if "tuned" not in row["name"] and row["name"] != "gain"]
    (folder / "layers.json").write_text(json.dumps(layers), encoding="utf-8")
    text = Page(report.build(folder).read_text(encoding="utf-8")).text
    assert "Similarity of base model and specialist (CKA)" in text
    assert "not yet a proven transition" in text and "grows like the specialists" not in text
    assert len(report.write_map_figures(folder, layers)) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "beyond chance: where the map shows change"),
        ({"shift_p_value": 0.4}, "no agreement beyond chance"),
        ({"correlation": -0.62}, "no agreement beyond chance"),
    ],
)
def test_agreement_with_the_causal_check_is_judged(tmp_path: Path, change: dict[str, float], said: str) -> None:
    folder = make_map_run(tmp_path / "run", n_tasks=5)
    layers = make_layers(n_tasks=5)
    layers["map"]["agreement"] |= change
    (folder / "layers.json").write_text(json.dumps(layers), encoding="utf-8")
    assert said in report.build(folder).read_text(encoding="utf-8")


def test_no_block_is_named_as_the_one_that_matters_where_all_are_inside_the_noise(tmp_path: Path) -> None:
    folder = make_map_run(tmp_path / "run", n_tasks=5)
    layers = make_layers(n_tasks=5)
    assert "Putting block 13 back" in report.build(folder).read_text(encoding="utf-8")
    for row in layers["scores"]:
        if row["name"] == "causal":
            row["low"] = [-0.1] * N_BLOCKS
    (folder / "layers.json").write_text(json.dumps(layers), encoding="utf-8")
    text = report.build(folder).read_text(encoding="utf-8")
    assert "does not raise the loss beyond the noise" in text and "Putting block" not in text
