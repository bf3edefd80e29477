"""Words and numbers: both languages say the same, and no number is written badly."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

import tunescope.report
from tunescope.report import sentences
from tunescope.report.wording import NONE, Words, load_texts, shorten, visible

PACKAGE = Path(tunescope.report.__file__).parent
REASONS = {
    "gain": {"arm": "selected", "against": "prompt", "value": 0.114, "low": 0.071, "high": 0.156, "n": 420},
    "no_gain": {"arm": "selected", "against": "prompt", "value": -0.01, "low": -0.02, "high": -0.001},
    "within_noise": {
        "arm": "selected",
        "against": "prompt",
        "value": 0.01,
        "low": -0.02,
        "high": 0.04,
        "noise_floor": 0.03,
    },
    "thin_evidence": {"n": 18, "needed": 120},
    "guard_worse": {"arm": "full", "value": 0.31, "limit": 0.1},
    "guard_ok": {"arm": "selected", "value": 0.021, "limit": 0.1},
    "money": {
        "arm": "selected",
        "against": "prompt",
        "value": 5703.0,
        "low": 4603.0,
        "high": 6803.0,
        "months": 12,
        "currency": "EUR",
    },
    "money_negative": {"arm": "selected", "against": "prompt", "value": -310.0, "currency": "EUR"},
    "cheapest_of_equals": {"arm": "selected", "equals": ["selected", "lora-all"]},
    "ood_gain": {"arm": "selected", "value": 0.09, "low": 0.02, "high": 0.16},
    "ood_loss": {"arm": "selected", "value": -0.09, "low": -0.16, "high": -0.02},
    "ood_unclear": {"arm": "selected", "value": 0.01, "low": -0.05, "high": 0.07},
    "random_as_good": {"arm": "selected", "value": 0.01, "low": -0.02, "high": 0.05},
    "selected_better_than_random": {"value": 0.05, "low": 0.02, "high": 0.08},
    "top_third_better": {"arm": "random", "against": "top-third", "value": 0.05, "low": 0.02, "high": 0.08},
    "top_third_as_good": {"arm": "random", "against": "top-third", "value": 0.05, "low": 0.02, "high": 0.08},
    "top_third_worse": {"arm": "random", "against": "top-third", "value": 0.05, "low": 0.02, "high": 0.08},
    "no_tuned_arm": {},
    "no_untuned_arm": {},
}
STEPS = {
    "collect_test_examples": {"have": 18, "need": 120},
    "collect_ood_examples": {},
    "collect_training_examples": {},
    "pilot": {"arm": "selected", "requests": 1000},
    "use_untuned": {"arm": "prompt"},
    "review_guard": {"arm": "full"},
    "human_review": {"arm": "selected", "share": 0.34, "error": 0.05},
    "check_wrong_but_sure": {"arm": "selected"},
    "rerun_more_seeds": {},
}


def _placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_keys() -> None:
    assert set(load_texts("en")) == set(load_texts("ja"))
    assert len(load_texts("en")) > 300


def test_both_languages_show_the_same_numbers() -> None:
    english, japanese = load_texts("en"), load_texts("ja")
    differing = [key for key in english if _placeholders(english[key]) != _placeholders(japanese[key])]
    assert differing == []
    assert sum(bool(_placeholders(text)) for text in english.values()) > 100


def test_japanese_sentences_are_japanese() -> None:
    same = {key for key, text in load_texts("ja").items() if text == load_texts("en")[key]}
    names = {
        "metric.rouge_l",
        "metric.chrf",
        "reproduce.tunescope",
        "reproduce.python",
        "samples.where",
        "samples.partly",
        "mark.none",
    }
    assert same <= names


def test_every_sentence_that_the_code_names_exists_and_the_others_are_gone() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2"))
    named = set(re.findall(r"(?<![\w.])(?:words|t|words\.get)\(\s*\"([a-z_]+(?:\.[a-z_0-9]+)*)\"", code))
    assert len(named) > 150
    assert named <= set(load_texts("en"))
    prefixes = set(re.findall(r"f\"([a-z_]+\.[a-z_]*)\{", code)) | set(re.findall(r"\"([a-z_]+\.)\" ~", code))
    prefixes |= {f"{kind}." for kind in ("reason", "step", "break_even")}
    titles = {key for key in load_texts("en") if key.endswith(".title")}
    unused = {key for key in load_texts("en") if not any(key.startswith(prefix) for prefix in prefixes)} - titles
    assert {key for key in unused if f'"{key}"' not in code} == set()


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("code", REASONS)
def test_every_reason_is_a_sentence(lang: str, code: str) -> None:
    text = sentences.reason({"code": code, **REASONS[code]}, Words(lang))
    assert text.endswith(("。", "."))
    assert code not in text.split()
    assert all(words in text for words in REASONS[code].get("equals", ()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("code", STEPS)
def test_every_step_is_a_sentence(lang: str, code: str) -> None:
    text = sentences.step({"code": code, **STEPS[code]}, Words(lang))
    assert text.endswith(("。", ".", "です。"))
    assert "{" not in text


def test_reasons_write_numbers_in_their_units() -> None:
    words = Words("en")
    assert "+11.4 points against “prompt” (interval +7.1 to +15.6, 420" in sentences.reason(
        {"code": "gain", **REASONS["gain"]}, words
    )
    assert "EUR +5,703" in sentences.reason({"code": "money", **REASONS["money"]}, words)
    assert "EUR +4,603 to +6,803" in sentences.reason({"code": "money", **REASONS["money"]}, words)
    assert "+0.310 nats per token; the limit is 0.100" in sentences.reason(
        {"code": "guard_worse", **REASONS["guard_worse"]}, words
    )
    assert "inside the noise" in sentences.reason({"code": "within_noise", **REASONS["within_noise"]}, words)


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_an_unknown_code_and_a_lacking_number_are_shown_readably(lang: str) -> None:
    words = Words(lang)
    text = sentences.reason({"code": "moon_phase", "degree": 4.50001, "names": ["a", "b"], "none": None}, words)
    assert "moon phase" in text and "degree: 4.5" in text and NONE in text
    assert "thin evidence" in sentences.reason({"code": "thin_evidence", "n": 18}, words)
    assert sentences.step({"code": "wait"}, words) == "wait"
    assert sentences.step({}, words) == NONE


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        ("score", 0.714, "71.4"),
        ("score", None, NONE),
        ("score", float("nan"), NONE),
        ("points", -0.0312, "−3.1"),
        ("points", -0.0001, "±0.0"),
        ("share", 0.34, "34%"),
        ("share", 0.05, "5%"),
        ("share", 0.0197, "2.0%"),
        ("share", 0.987, "99%"),
        ("share", 0.996, "99.6%"),
        ("share", 1.0, "100%"),
        ("share", 0, "0%"),
        ("money", 1234567.8, "EUR 1,234,568"),
        ("money", -0.4, "EUR −0.40"),
        ("money", 0.000031, "EUR 0.000031"),
        ("money", 0.0, "EUR 0"),
        ("money", float("inf"), NONE),
        ("duration", 0.21, "0.21 s"),
        ("duration", 59.97, "1 min 00 s"),
        ("duration", 3 * 3600 + 119, "3 h 01 min"),
        ("size", 3_256_320, "3.1 MiB"),
        ("size", 1_069_547_520, "1.0 GiB"),
        ("size", 999 * 1024**2, "999 MiB"),
        ("size", 12, "12 B"),
        ("compact", 134_515_008, "135 M"),
        ("count", 12345, "12,345"),
        ("count", "12", NONE),
    ],
)
def test_numbers_are_written_for_people(write: str, value: object, expected: str) -> None:
    assert getattr(Words("en"), write)(value) == expected


def test_japanese_numbers_follow_japanese_habits() -> None:
    words = Words("ja", currency="JPY")
    assert words.money(1234.4) == "1,234 JPY"
    assert words.duration(75) == "1分15秒"
    assert words.compact(134_515_008) == "1.3億"
    assert words.interval(0.1, 0.2, words.score) == "10.0～20.0"


def test_nothing_hides_in_a_text() -> None:
    assert visible("a\u200bb\u2066c\x7f\ud800") == "a[U+200B]b[U+2066]c␡[U+D800]"
    assert visible("tab\tline\nｶﾅ漢字 é 👩‍🔧") == "tab\tline\nｶﾅ漢字 é 👩‍🔧"
    assert shorten("abc", 3) == "abc"
