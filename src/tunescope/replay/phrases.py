"""Key phrases of a text in any language, without a dictionary or a model.

Words of scripts with spaces are read as they stand. Scripts without spaces are cut where the writing changes: Japanese content words are mostly
kanji or katakana, endings and particles hiragana, so that hiragana separates. Runs that are longer than a word (Chinese, Thai) become
overlapping pairs of characters, as search engines index them. A morphological analyser cuts better, but is a dictionary to fetch.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

_LONGEST_RUN = 4  # characters of a script without spaces that are still taken for one word
_MOST_CHARACTERS = 4000  # of an instruction; what follows is mostly material to work on

# Closed-class words only: they join words and name nothing. Verbs such as "write" stay, they are what an instruction is about.
_CLOSED_CLASS = (
    "a about above after again against all also am an and any are as at be because been before being below between both but by can could did "
    "do does doing down during each either else every few for from further given had has have having he her here hers herself him himself his how "
    "i if in into is it its itself just may me might more most must my myself neither no nor not now of off on once one only or other our "
    "ours ourselves out over own per please shall she should so some such than that the their theirs them themselves then there these they "
    "this those through to too under until up upon very was we were what when where whether which while who whom whose why will with within "
    "without would you your yours yourself yourselves"
)
_JOINING = frozenset(_CLOSED_CLASS.split())

_MARKS = re.compile(r"[.,;:!?()\[\]{}<>\"“”«»。、，；：！？（）「」『』【】|/\\\n\r\t]+")
_SPACELESS = {"han", "hiragana", "katakana", "thai", "lao", "khmer", "myanmar"}


@functools.cache
def _word() -> re.Pattern[str]:
    """Letters with their combining marks: in `re` alone a vowel sign of Hindi or Thai would end a word."""
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
    letter = rf"(?:[^\W\d_][{marks}]*)+"
    return re.compile(rf"{letter}(?:[’'-]{letter})*")


@functools.lru_cache(maxsize=1 << 16)
def script(character: str) -> str:
    """Returns the script of a letter by its Unicode name: ``latin``, ``han``, ``hiragana``, ``cyrillic`` ...; empty for anything else.

    Example:
        >>> [script(c) for c in "aж分かカ가ก1"]
        ['latin', 'cyrillic', 'han', 'hiragana', 'katakana', 'hangul', 'thai', '']
    """
    if unicodedata.category(character)[0] not in "LM":
        return ""
    name = unicodedata.name(character, "")
    if name.startswith("CJK ") or character in "々〆〇":
        return "han"
    if "KATAKANA" in name:  # KATAKANA-HIRAGANA PROLONGED SOUND MARK included
        return "katakana"
    return name.split(" ")[0].split("-")[0].lower()


def key_phrases(text: str, *, longest: int = 3) -> Iterator[str]:
    """Yields the phrases that could name what a text is about, in its order, repeated ones included.

    A phrase is a run of up to `longest` words between joining words ("the", "of"), sentence marks and line ends; every part of a run counts.

    Args:
        text: at most its first 4,000 characters are read.
        longest: most words in a phrase.

    Source:
        Runs between stop words: Rose et al. 2010, RAKE; ours also yields the parts of a run, knows scripts without spaces, and has a list
        of closed-class English words only.

    Example:
        >>> list(key_phrases("Translate the court ruling."))
        ['translate', 'court', 'court ruling', 'ruling']
        >>> list(key_phrases("次の文を要約してください。"))
        ['次', '文', '要約']
    """
    folded = unicodedata.normalize("NFKC", text[:_MOST_CHARACTERS]).lower()
    for clause in _MARKS.split(folded):
        for run in _runs(clause):
            for start in range(len(run)):
                for end in range(start + 1, min(start + longest, len(run)) + 1):
                    yield " ".join(run[start:end])


def _runs(clause: str) -> Iterator[list[str]]:
    """Yields the runs of content words of a clause."""
    run: list[str] = []
    end = 0
    for match in _word().finditer(clause):
        word = match.group()
        if (
            clause[end : match.start()].strip() or word in _JOINING
        ):  # digits or signs between two words, or a joining word
            yield run
            run = []
        end = match.end()
        if word in _JOINING:
            continue
        if _spaceless(word):
            yield run
            run = []
            for piece in _pieces(word):
                yield [piece]
        else:
            run.append(word)
    yield run


def _spaceless(word: str) -> bool:
    return not word.isascii() and any(script(character) in _SPACELESS for character in word)


def _pieces(word: str) -> Iterator[str]:
    """Cuts a run of a script without spaces where the writing changes, and drops hiragana."""
    start = 0
    for i in range(1, len(word) + 1):
        if i < len(word) and script(word[i]) == script(word[start]):
            continue
        kind, piece = script(word[start]), word[start:i]
        start = i
        if kind == "hiragana":
            continue
        if kind in ("katakana", "latin") or len(piece) <= _LONGEST_RUN:
            yield piece
        else:
            yield from (piece[j : j + 2] for j in range(len(piece) - 1))
