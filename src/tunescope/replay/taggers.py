"""Where the tags of instructions come from: found in the texts, asked of a language model, or read from a file.

A tagger is called with distinct instructions and returns their raw tags, which `merge_tags` makes comparable.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from tunescope.errors import DataError, UserError
from tunescope.replay.phrases import key_phrases

_PROMPT = """List the intents of the instruction below as short tags of one to three words, in English, most important first: what has to be done,
on what kind of text, in which field. Answer with a JSON list of strings and nothing else, for example ["translation", "contract law"].

Instruction:
{instruction}"""


class Tagger(Protocol):
    """Gives every instruction its raw tags; a list may be empty."""

    @property
    def name(self) -> str:
        """Says which tagger it was, for the record."""

    def __call__(self, instructions: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns one tuple of tags per instruction."""


class LocalTagger:
    """Finds the key phrases of each instruction by TF-IDF over all that are given together; needs no model and asks nobody.

    A phrase weighs (times in the instruction) x ln(N / instructions that hold it). Phrases that another instruction shares come first: they can
    name an intent, while a phrase of one instruction only says that it is different. Of two that weigh the same the longer comes
    first; phrases that share a word with a chosen one are left out.

    Counting is exact up to `max_phrases` different phrases. Above that the rarest are dropped whenever the count is full (lossy
    counting, Manku & Motwani 2002), so that memory stays bounded with a million instructions; a rare phrase may then seem rarer than it is.

    Args:
        max_tags: most tags per instruction.
        max_phrases: different phrases counted at a time; 1,000,000 take about 200 MB.

    Raises:
        UserError: a setting is below 1.

    Example:
        >>> LocalTagger(max_tags=2)(["Translate the court ruling.", "Translate this review.", "Classify this review."])
        [('translate', 'court ruling'), ('review', 'translate'), ('review', 'classify')]
    """

    def __init__(self, *, max_tags: int = 5, max_phrases: int = 1_000_000) -> None:
        if max_tags < 1 or max_phrases < 1:
            raise UserError(f"max_tags {max_tags} and max_phrases {max_phrases}: both must be at least 1")
        self.max_tags = max_tags
        self.max_phrases = max_phrases

    @property
    def name(self) -> str:
        """``local``."""
        return "local"

    def __call__(self, instructions: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns at most `max_tags` phrases per instruction, the weightiest first; none for a text without letters."""
        held = self._held(instructions)
        return [self._tags(text, held, len(instructions)) for text in instructions]

    def _held(self, instructions: Sequence[str]) -> dict[str, int]:
        """Counts for each phrase the instructions that hold it; sorted, so that dropping does not depend on their order."""
        held: dict[str, int] = {}
        floor = 0
        for text in sorted(instructions):
            for phrase in dict.fromkeys(key_phrases(text)):
                held[phrase] = held.get(phrase, 0) + 1
            while len(held) > self.max_phrases:
                floor += 1
                held = {phrase: count for phrase, count in held.items() if count > floor}
        return held

    def _tags(self, text: str, held: dict[str, int], n: int) -> tuple[str, ...]:
        times = Counter(key_phrases(text))
        weight = {phrase: times[phrase] * math.log(n / held.get(phrase, 1)) for phrase in times}
        ranked = sorted(
            times, key=lambda phrase: (held.get(phrase, 1) < 2, -weight[phrase], -phrase.count(" "), phrase)
        )
        chosen: list[str] = []
        used: set[str] = set()
        for phrase in ranked:
            words = set(phrase.split())
            if not words & used:
                chosen.append(phrase)
                used |= words
                if len(chosen) == self.max_tags:
                    break
        return tuple(chosen)


class EndpointTagger:
    """Asks a language model for the intents of each instruction.

    Args:
        ask: function of prompts that returns one answer each, for example ``models.endpoint.ChatEndpoint(...).complete``, which notes answers
            so that nothing is asked twice.
        name: name of the model, for the record.
        tolerated_fraction: share of answers, in [0, 1], that may be no list of tags; these instructions get none, and `unreadable` counts them.

    Raises:
        UserError: the share is not in [0, 1].

    Example:
        >>> tagger = EndpointTagger(lambda prompts: ['["translation", "law"]'] * len(prompts), name="fake")
        >>> tagger(["Translate the ruling."]), tagger.name
        ([('translation', 'law')], 'endpoint fake')
    """

    def __init__(
        self, ask: Callable[[Sequence[str]], Sequence[str]], *, name: str, tolerated_fraction: float = 0.0
    ) -> None:
        if not 0 <= tolerated_fraction <= 1:
            raise UserError(f"tolerated_fraction {tolerated_fraction}: a share must be in [0, 1]")
        self.model = name
        self.unreadable = 0
        self._ask = ask
        self._tolerated = tolerated_fraction

    @property
    def name(self) -> str:
        """``endpoint`` and the name of the model."""
        return f"endpoint {self.model}"

    def __call__(self, instructions: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns the tags that the model names.

        Raises:
            DataError: more answers than tolerated are no JSON list of strings.
        """
        answers = self._ask([_PROMPT.format(instruction=text) for text in instructions])
        read = [_list_of_tags(answer) for answer in answers]
        wrong = [i for i, tags in enumerate(read) if tags is None]
        self.unreadable = len(wrong)
        if len(wrong) > self._tolerated * len(read):
            first = wrong[0]
            raise DataError(
                f"tags from {self.model}: {len(wrong)} of {len(read)} answers are no JSON list of tags (instruction {instructions[first][:60]!r} "
                f"got {answers[first][:60]!r}); use a model that follows the format, tags from a file, or tolerate a share of them"
            )
        return [tags or () for tags in read]


def _list_of_tags(answer: str) -> tuple[str, ...] | None:
    """Reads a JSON list of strings, alone or in a code fence."""
    body = re.sub(r"\A\s*```\w*\s*|\s*```\s*\Z", "", answer)
    try:
        tags = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        return None
    return tuple(tags)
