"""Rules for output that has nothing to do with the instruction.

* ``empty``: no visible character.
* ``label_of_other_task``: the whole output is a label of another task, and no right answer.
* ``copies_demonstration``: the whole output is the answer of an example that stood in the prompt, and no right answer.
* ``copies_prompt``: at least 90 % of the output's 4-grams of tokens stand in the prompt, the output either begins like
  the prompt (8 tokens) or holds half of the prompt's 4-grams, and no right answer does the same; an output or a prompt
  under 8 tokens must be equal to the other.
* ``wrong_script``: more than half of at least 3 letters are in scripts that no right answer uses (or the prompt, where
  the right answers have no letters). Han, Hiragana and Katakana are one script, but at least 10 Han letters without
  kana are wrong where a right answer has kana.
* ``endless``: the token limit was hit while the end repeated itself, at least 3 times and over 30 characters.

The rules are strict on purpose: a plain wrong answer is not flagged.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from tunescope.metrics.text import normalise, tokenise

_GRAM = 4
_SHORT = 8
_COPIED_SHARE = 0.9
_COVERED_SHARE = 0.5
_SCRIPT_SHARE = 0.1
_FEWEST_LETTERS = 3
_HAN_WITHOUT_KANA = 10
_TAIL_CHARACTERS = 1200
_LONGEST_PERIOD = 300
_FEWEST_REPEATS = 3
_FEWEST_REPEATED = 30


def unrelated_flags(
    output: str,
    *,
    prompt: str,
    references: Sequence[str],
    other_labels: Collection[str],
    hit_limit: bool,
    shown: Sequence[str] = (),
) -> tuple[str, ...]:
    """Says by which rules an output has nothing to do with the instruction; see the list at the top.

    Args:
        output: what the model generated.
        prompt: the user's text, not the rendered template.
        references: the right answers; what they do is never flagged.
        other_labels: labels of the other tasks of the study.
        hit_limit: the generation ended because the token limit was reached.
        shown: answers of the finished examples that stood in the prompt.

    Returns:
        The flags in the order of the list; empty if the output is an honest try.

    Example:
        >>> unrelated_flags("positive", prompt="Summarise: ...", references=["Pump stopped."],
        ...                 other_labels=["positive", "negative"], hit_limit=False)
        ('label_of_other_task',)
    """
    if not _visible(output):
        return ("empty",)
    flags = []
    answer = normalise(output)
    right = {normalise(reference) for reference in references}
    if answer not in right:
        if answer in {normalise(label) for label in other_labels}:
            flags.append("label_of_other_task")
        if answer in {normalise(text) for text in shown}:
            flags.append("copies_demonstration")
        if _copies(output, prompt) and not any(_copies(reference, prompt) for reference in references):
            flags.append("copies_prompt")
        if _wrong_script(output, prompt, references):
            flags.append("wrong_script")
    if hit_limit and _repeats(output):
        flags.append("endless")
    return tuple(flags)


def _visible(text: str) -> bool:
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


def _grams(tokens: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]


def _copies(text: str, prompt: str) -> bool:
    """Says whether the text is mostly a stretch of the prompt."""
    tokens, source = tokenise(text), tokenise(prompt)
    if min(len(tokens), len(source)) < _SHORT:
        return bool(tokens) and tokens == source
    grams, known = _grams(tokens), set(_grams(source))
    if sum(gram in known for gram in grams) < _COPIED_SHARE * len(grams):
        return False
    covered = len(known.intersection(grams)) >= _COVERED_SHARE * len(known)
    return covered or tokens[:_SHORT] == source[:_SHORT]


@functools.lru_cache(maxsize=65536)
def _script(character: str) -> str | None:
    """Returns the script of a letter by the first word of its Unicode name, None for what is no letter."""
    if unicodedata.category(character)[0] != "L":
        return None
    script = unicodedata.name(character, "UNNAMED").split()[0].split("-")[0]
    return "KANA" if script in ("HIRAGANA", "KATAKANA") else "HAN" if script in ("CJK", "IDEOGRAPHIC") else script


def _scripts(text: str) -> Counter[str]:
    """Counts letters by script, full-width Latin and half-width kana as what they stand for."""
    return Counter(script for character in unicodedata.normalize("NFKC", text) if (script := _script(character)))


def _wrong_script(output: str, prompt: str, references: Sequence[str]) -> bool:
    found = _scripts(output)
    expected = _scripts("\n".join(references)) or _scripts(prompt)
    if found.total() < _FEWEST_LETTERS or not expected:
        return False
    allowed = {script for script, count in expected.items() if count >= _SCRIPT_SHARE * expected.total()}
    if allowed & {"HAN", "KANA"}:
        allowed |= {"HAN", "KANA"}
    foreign = sum(count for script, count in found.items() if script not in allowed)
    without_kana = expected["KANA"] > 0 and found["HAN"] >= _HAN_WITHOUT_KANA and not found["KANA"]
    return foreign > found.total() / 2 or without_kana


def _repeats(text: str) -> bool:
    """Says whether the end of the text is one piece over and over."""
    tail = " ".join(text.split())[-_TAIL_CHARACTERS:]
    for period in range(1, min(_LONGEST_PERIOD, len(tail) // _FEWEST_REPEATS) + 1):
        start = len(tail) - period
        while start > 0 and tail[start - 1] == tail[start - 1 + period]:
            start -= 1
        if len(tail) - start >= max(_FEWEST_REPEATS * period, _FEWEST_REPEATED):
            return True
    return False
