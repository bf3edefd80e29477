from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import UserError
from tunescope.replay import language, length_bin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Summarize the article for a reader who is in a hurry.", "en"),
        ("Fassen Sie den Artikel für die Leser zusammen und nennen Sie das Ergebnis.", "de"),
        ("Résumez les points de cette page pour le lecteur, avec une liste des sources.", "fr"),
        ("Resume los puntos de la página para el lector y no olvides las fuentes.", "es"),
        ("Riassumi gli argomenti della pagina per il lettore, che non sono molti.", "it"),
        ("Resuma os pontos da página para uma pessoa que não tem tempo.", "pt"),
        ("Vat het artikel samen voor een lezer die niet veel tijd heeft en op reis is.", "nl"),
        ("次の記事を要約してください。", "ja"),
        ("テキスト", "ja"),
        ("请总结以下文章的要点", "zh"),
        ("다음 기사를 요약하세요", "ko"),
        ("Кратко изложите статью", "cyrillic"),
        ("لخص المقال", "arabic"),
        ("xyzzy plugh", "latin"),
        ("12 + 3 = ?", "none"),
        ("", "none"),
        ("Translate the text into English: 次の記事を要約してください。明日までにお願いします。", "en+ja"),
        ("JSON で 出力してください。形式は次のとおりです。必ず守ってください。", "ja"),
    ],
)
def test_writing_and_short_words_tell_the_language(text, expected):
    assert set(language(text).split("+")) == set(expected.split("+"))


@given(text=st.text(max_size=100))
def test_any_text_has_one(text):
    assert language(text)


@given(length=st.integers(0, 10**6))
def test_every_length_lies_in_its_bin(length):
    name = length_bin(length)
    low, _, high = name.rstrip("+").partition("-")
    assert int(low) <= length <= (int(high) if high else length)


def test_edges_can_be_chosen_and_are_checked():
    assert [length_bin(n, [10]) for n in (9, 10)] == ["0-9", "10+"]
    assert length_bin(5, []) == "0+"
    for wrong in ([0], [5, 5], [9, 3]):
        with pytest.raises(UserError, match="edges ascend"):
            length_bin(1, wrong)
    with pytest.raises(UserError, match="length -1"):
        length_bin(-1)
