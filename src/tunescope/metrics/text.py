"""Scores of one generated answer against one right answer, for every language.

Every scorer takes ``(prediction, reference)`` and gives a number in [0, 1], 1 being right; `SCORERS` in
`tunescope.metrics` names them. Two equal texts score 1 in all of them, two empty ones included.

The rule of `tokenise`, on which `token_f1` and `rouge_l` stand:

1. NFKC and case folding, so that full-width, half-width and capital letters are one.
2. In scripts written with spaces (Latin, Cyrillic, Greek, Arabic, Devanagari, **Hangul** ...) a token is a run of
   letters, digits and their combining marks. Apostrophes, hyphens and underscores separate.
3. In scripts written without (Han, Hiragana, Katakana, Bopomofo, Thai, Lao, Myanmar, Khmer, Tibetan) a token is one
   character with its combining marks.
4. Everything else (spaces, punctuation, symbols, emoji) separates and is dropped; invisible format characters are
   dropped without separating.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

# Above this many cells rouge-score's table gets slow and large; the same length is then found with bits.
_LARGEST_TABLE_CELLS = 1_000_000

# First and last code point of the scripts written without spaces.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),  # Khmer symbols
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # Han iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Han numerals
    (0x3038, 0x303B),
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0x1AFF0, 0x1B16F),  # Kana supplements
    (0x20000, 0x323AF),  # Han
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_SURROUNDING = "\"'`“”‘’«»„「」『』.。!?,;:、· "


def fold(text: str) -> str:
    """Returns the text in NFKC with case folded: the form in which all scorers compare.

    Example:
        >>> fold("ＡＢＣ ｱﾌﾟﾘ Straße")
        'abc アプリ strasse'
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@functools.lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    """Says what a character does to tokens: word, single, mark, hidden or gap."""
    category = unicodedata.category(character)
    if category == "Cf":
        return "hidden"
    if category[0] == "M":
        return "mark"
    if category[0] not in "LN":
        return "gap"
    code = ord(character)
    return "single" if any(first <= code <= last for first, last in _UNSPACED) else "word"


def tokenise(text: str) -> list[str]:
    """Cuts a text of any language into the tokens that the scorers count (the rule is at the top of this module).

    Args:
        text: any text.

    Returns:
        The tokens in order; on ASCII text the same as rouge-score's own tokeniser without stemming.

    Example:
        >>> tokenise("The pump's No. 7 LEAKS")
        ['the', 'pump', 's', 'no', '7', 'leaks']
        >>> tokenise("No.7の水漏れ")
        ['no', '7', 'の', '水', '漏', 'れ']
    """
    folded = fold(text)
    if folded.isascii():
        return _ASCII_WORD.findall(folded)
    tokens: list[str] = []
    grows = marked = False  # may the last token take more letters, may it take a combining mark
    for character in folded:
        kind = _kind(character)
        if kind == "hidden":
            continue
        if (kind == "word" and grows) or (kind == "mark" and marked):
            tokens[-1] += character
        elif kind in ("word", "single"):
            tokens.append(character)
        grows = kind == "word" or (kind == "mark" and grows)
        marked = kind in ("word", "single") or (kind == "mark" and marked)
    return tokens


Tokens = Callable[[str], Sequence[str]]
"""Cuts a text into tokens."""


def normalise(text: str) -> str:
    """Returns the text as `exact_match` compares it: folded, spaces collapsed, outer quotes and punctuation removed.

    A minus, a percent sign, brackets and all inner punctuation stay.

    Example:
        >>> normalise('  "Facility  Management". ')
        'facility management'
        >>> normalise("-5 %"), normalise("...")
        ('-5 %', '...')
    """
    spaced = " ".join(fold(text).split())
    return spaced.strip(_SURROUNDING) or spaced


def exact_match(prediction: str, reference: str) -> float:
    """Says whether the prediction is the reference, up to case, width, spaces, outer quotes and outer punctuation.

    Args:
        prediction: the answer given.
        reference: the right answer.

    Returns:
        1.0 or 0.0.

    Source:
        After SQuAD (Rajpurkar et al. 2016, section 6.1); ours keeps articles and inner punctuation, which mean
        something in other languages and in codes.

    Example:
        >>> exact_match("Facility.", "facility")
        1.0
        >>> exact_match("not facility", "facility")
        0.0
    """
    return float(normalise(prediction) == normalise(reference))


def token_f1(prediction: str, reference: str, *, tokens: Tokens = tokenise) -> float:
    """Gives the F1 of the tokens that both texts share, order ignored.

    Args:
        prediction: the answer given.
        reference: the right answer.
        tokens: cuts a text into tokens, for example by the words of a language without spaces.

    Returns:
        F1 in [0, 1]; where one text has no token, `exact_match`.

    Source:
        SQuAD (Rajpurkar et al. 2016, section 6.1); ours uses `tokenise` and removes no articles.

    Example:
        >>> token_f1("pump seven leaks", "pump seven is dry")
        0.5714285714285714
    """
    predicted, right = tokens(prediction), tokens(reference)
    if not predicted or not right:
        return exact_match(prediction, reference)
    shared = sum((Counter(predicted) & Counter(right)).values())
    return 2 * shared / (len(predicted) + len(right))


class _Tokeniser:
    """The shape in which rouge-score wants a tokeniser."""

    def tokenize(self, text: str) -> list[str]:
        """Returns `tokenise`'s tokens."""
        return tokenise(text)


@functools.cache
def _rouge() -> Any:
    """Returns rouge-score's scorer; imported here because the import takes seconds."""
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Tokeniser())


def rouge_l(prediction: str, reference: str, *, tokens: Tokens = tokenise) -> float:
    """Gives ROUGE-L: the F1 of the longest common subsequence of tokens, in any language.

    Args:
        prediction: the answer given.
        reference: the right answer.
        tokens: cuts a text into tokens, for example by the words of a language without spaces.

    Returns:
        F1 in [0, 1]; where one text has no token, `exact_match`.

    Source:
        Lin (2004), section 3, in rouge-score's implementation; ours differs in the tokeniser (`tokenise`), without
        which Japanese would score 0, in giving 1 to two equal texts without tokens, and in counting very long texts
        with bits (same value, bounded memory).

    Example:
        >>> rouge_l("the pump leaks", "the old pump leaks")
        0.8571428571428571
        >>> rouge_l("ポンプが漏れた", "ポンプから水が漏れた") > 0.7
        True
        >>> rouge_l("ポンプ が 漏れた", "ポンプ から 水 が 漏れた", tokens=str.split)
        0.75
    """
    predicted, right = tokens(prediction), tokens(reference)
    if not predicted or not right:
        return exact_match(prediction, reference)
    if tokens is not tokenise or len(predicted) * len(right) > _LARGEST_TABLE_CELLS:
        return 2 * _common_length(predicted, right) / (len(predicted) + len(right))
    return float(_rouge().score(reference, prediction)["rougeL"].fmeasure)


def _common_length(x: Sequence[str], y: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence, bit-parallel (Hyyrö 2004), in the memory of the shorter."""
    short, long = sorted((x, y), key=len)
    places: dict[str, int] = {}
    for place, token in enumerate(short):
        places[token] = places.get(token, 0) | (1 << place)
    every = (1 << len(short)) - 1
    row = every
    for token in long:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & every
    return len(short) - row.bit_count()


@functools.cache
def _chrf() -> Any:
    """Returns sacrebleu's chrF scorer."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def chrf(prediction: str, reference: str) -> float:
    """Gives chrF2: the F-score of character n-grams up to 6, recall counting double; good for languages without spaces.

    Args:
        prediction: the answer given.
        reference: the right answer.

    Returns:
        The score in [0, 1] (sacrebleu's number divided by 100).

    Source:
        Popović (2015), in sacrebleu's implementation; ours brings both texts to NFKC first (case stays), and gives 1 to
        two equal texts without any visible character.

    Example:
        >>> chrf("ポンプが漏れた", "ポンプが漏れた")
        1.0
    """
    predicted, right = unicodedata.normalize("NFKC", prediction), unicodedata.normalize("NFKC", reference)
    if not predicted.strip() or not right.strip():
        return float(predicted.split() == right.split())
    return min(1.0, float(_chrf().sentence_score(predicted, [right]).score) / 100)


def best_over_references(metric: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    """Gives the score against the reference that fits best.

    Args:
        metric: any ``(prediction, reference) -> score``.
        prediction: the answer given.
        references: the right answers, at least one.

    Returns:
        The highest score.

    Raises:
        ValueError: if there is no reference.

    Example:
        >>> best_over_references(exact_match, "IT", ["helpdesk", "it"])
        1.0
    """
    if not references:
        raise ValueError("got no reference: a score needs at least one right answer, check the targets of the example")
    return max(metric(prediction, reference) for reference in references)
