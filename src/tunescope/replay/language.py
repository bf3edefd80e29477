"""In which language a text is, roughly, and how long it is: what a bias table compares."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from tunescope.errors import UserError
from tunescope.replay.phrases import script

_MOST_CHARACTERS = 2000
_SECOND_SCRIPT_FRACTION = 0.3

# The commonest short words that the languages do not share with each other.
_WORDS = {
    "en": "the and of to is that with for are this what which you your from by an",
    "de": "der die und das ist nicht ein eine mit zu den auf für von dem sie werden oder",
    "fr": "le les et des est une dans pour vous avec qui sur pas ou du cette être votre",
    "es": "el los las y es una para con por del que su más como pero esta usted",
    "it": "il di che è non per gli sono della una con nel alla questo più anche",
    "pt": "os uma não para com que é do da em ou mais seu são pelo você",
    "nl": "het een van en de niet voor zijn op met dat aan deze wordt naar",
}
_LANGUAGE_OF = {
    word: [k for k, v in _WORDS.items() if word in v.split()] for v in _WORDS.values() for word in v.split()
}


def language(text: str) -> str:
    """Returns a guess of the language: a two-letter code where the writing or common words tell, else the name of the script.

    Japanese is told by its kana, Korean by hangul, Chinese by han without kana; English, German, French, Spanish, Italian, Portuguese and
    Dutch by common short words; other languages are named by their script (``latin``, ``cyrillic``, ``arabic`` ...). A second
    script with 30 % of the letters or more is added after a plus sign. Texts without letters give ``none``. The first 2,000 characters
    decide. Meant for counting, not for a single text.

    Example:
        >>> [language(t) for t in ["Write the summary of this text.", "次の文を要約してください。", "Привет", "12 34"]]
        ['en', 'ja', 'cyrillic', 'none']
        >>> language("Translate this into Japanese: 次の文を要約してください。今日は天気がいいですね。")
        'en+ja'
    """
    head = text[:_MOST_CHARACTERS]
    letters = Counter(found for character in head if (found := script(character)))
    kana = letters["hiragana"] + letters["katakana"]
    if kana:
        letters = Counter({**letters, "ja": kana + letters["han"], "hiragana": 0, "katakana": 0, "han": 0})
    total = sum(letters.values())
    if not total:
        return "none"
    ranked = sorted((name for name in letters if letters[name]), key=lambda name: (-letters[name], name))
    main = [name for name in ranked[:2] if name == ranked[0] or letters[name] >= _SECOND_SCRIPT_FRACTION * total]
    named = {"ja": "ja", "han": "zh", "hangul": "ko", "latin": _latin(head)}
    return "+".join(named.get(name, name) for name in main)


def _latin(text: str) -> str:
    votes: dict[str, float] = {}
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        for code in _LANGUAGE_OF.get(word, ()):
            votes[code] = votes.get(code, 0.0) + 1 / len(_LANGUAGE_OF[word])
    most = max(votes.values(), default=0.0)
    best = [code for code, share in votes.items() if share == most]
    return best[0] if len(best) == 1 else "latin"


def length_bin(length: int, edges: Sequence[int] = (50, 200, 800, 3200)) -> str:
    """Returns the bin of a length as text, for example ``50-199``.

    Args:
        length: characters or tokens, at least 0.
        edges: ascending starts of all bins but the first.

    Raises:
        UserError: the length is negative, or the edges are not ascending and above 0.

    Example:
        >>> [length_bin(n) for n in (0, 49, 50, 5000)]
        ['0-49', '0-49', '50-199', '3200+']
    """
    bounds = [0, *edges]
    if length < 0 or any(low >= high for low, high in itertools.pairwise(bounds)):
        raise UserError(f"length {length}, edges {list(edges)}: a length is at least 0, edges ascend from above 0")
    place = sum(length >= edge for edge in edges)
    return f"{bounds[place]}-{bounds[place + 1] - 1}" if place < len(edges) else f"{bounds[place]}+"
