from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.replay import key_phrases
from tunescope.replay.phrases import script


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Summarize the following contract law article.", ["summarize", "contract law article", "law", "following"]),
        ("List 3 facts about Tokyo, Kyoto", ["list", "facts", "tokyo", "kyoto"]),
        ("次の映画レビューの感情を分類してください。", ["映画", "レビュー", "感情", "分類"]),
        ("ﾃｷｽﾄを要約", ["テキスト", "要約"]),
        ("将下面的句子翻译成英语", ["翻译", "英语"]),
        ("Übersetze den Satz ins Französische", ["übersetze", "satz", "französische"]),
        ("텍스트를 요약하세요", ["텍스트를 요약하세요"]),
        ("निम्नलिखित वाक्य का अनुवाद करें", ["अनुवाद", "वाक्य"]),
        ("JSON形式で出力", ["json", "形式", "出力"]),
        ("l'œuvre e-mail", ["l'œuvre", "e-mail"]),
    ],
)
def test_what_a_text_is_about_is_among_its_phrases(text, phrases):
    assert set(phrases) <= set(key_phrases(text))


@pytest.mark.parametrize("text", ["", " ", "123 + 4", "the of and", "してください", "!?"])
def test_a_text_that_names_nothing_has_no_phrases(text):
    assert list(key_phrases(text)) == []


def test_phrases_end_at_joining_words_marks_and_numbers():
    found = set(key_phrases("write a poem. rhyme 2 lines; count\nwords"))
    assert found == {"write", "poem", "rhyme", "lines", "count", "words"}


def test_no_phrase_has_more_words_than_asked_for():
    assert set(key_phrases("red green blue", longest=1)) == {"red", "green", "blue"}
    assert max(phrase.count(" ") for phrase in key_phrases("p q r s t u v w x", longest=3)) == 2


@given(text=st.text(max_size=200))
def test_any_text_is_read_and_gives_letters(text):
    for phrase in key_phrases(text):
        assert phrase == phrase.strip() != ""
        assert any(unicodedata.category(c)[0] == "L" for c in phrase)


def test_only_the_start_of_a_long_text_is_read():
    assert "zebra" in set(key_phrases("x " * 1990 + "zebra"))
    assert "zebra" not in set(key_phrases("x " * 2000 + "zebra"))


def test_letters_are_told_by_their_script():
    assert [script(c) for c in "ñЖあアｱ々가ع1 _-"] == [
        *["latin", "cyrillic", "hiragana", "katakana", "katakana", "han", "hangul", "arabic"],
        *[""] * 4,
    ]
