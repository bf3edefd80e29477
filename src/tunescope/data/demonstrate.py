"""Which finished examples stand before a prompt: fixed ones, drawn ones, or those most like it.

Nothing here depends on the order in which examples are asked, nor, for ``random`` and ``nearest``, on the order of the pool.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tunescope.data.check import normalise
from tunescope.data.example import Example
from tunescope.errors import DataError

Choice = Literal["first", "random", "nearest"]

_GRAM = 3
_COMPARED_CHARACTERS = 4000
_TIE = 1e-9


class Demonstrations:
    """Chooses the finished examples that stand before a prompt; call it with the example that is asked.

    * ``first``: the first of the pool, the same before every prompt, in the order of the pool.
    * ``random``: drawn for every example from the seed, its task and its id: the same in every epoch, and whoever asks.
    * ``nearest``: the most similar inputs of the pool, the most similar last, next to the question. Similarity is the cosine of TF-IDF
      vectors of character trigrams: cheap, without a model, and the same for languages without spaces.

    With ``random`` and ``nearest`` an example is never shown to itself, nor to one with the same prompt.

    Args:
        pool: finished examples of one task.
        count: how many to show, at least 1.
        choice: how they are chosen.
        seed: of ``random``.

    Raises:
        DataError: the pool holds fewer than `count`.
        ValueError: `count` is below 1, or `choice` is not known.

    Source:
        Yang et al. (2024), "Unveiling the Generalization Power of Fine-Tuned Large Language Models", section on tuning with in-context
        learning, for ``first``. ``random`` and ``nearest`` are ours; retrieving similar examples for a prompt follows Liu et al. (2022),
        who compare sentence embeddings, where ours compares trigrams.

    Example:
        >>> pool = [Example(str(i), "desk", "Which desk?", text, (desk,)) for i, (text, desk) in enumerate(
        ...     [("The printer jams.", "it"), ("My leave is wrong.", "hr"), ("The screen is dark.", "it")])]
        >>> asked = Example("9", "desk", "Which desk?", "Printer jams again.", ("it",))
        >>> [e.input for e in Demonstrations(pool, 2, choice="nearest")(asked)]
        ['My leave is wrong.', 'The printer jams.']
    """

    def __init__(self, pool: Sequence[Example], count: int, *, choice: Choice = "first", seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"count is {count}: a prompt needs at least 1 demonstration, or none of this")
        if choice not in ("first", "random", "nearest"):
            raise ValueError(f"choice is {choice!r}; allowed: first, random, nearest")
        self.count, self.choice, self.seed = count, choice, seed
        ordered = (
            list(pool[:count]) if choice == "first" else sorted(pool, key=lambda e: (prompt_key(e), e.targets, e.id))
        )
        if len(ordered) < count:
            raise DataError(_too_few(pool, count))
        self._pool, self._keys = ordered, [prompt_key(e) for e in ordered]
        self._index = _Trigrams([_compared(e) for e in ordered]) if choice == "nearest" else None

    def __call__(self, example: Example) -> tuple[Example, ...]:
        """Returns `count` demonstrations for an example, in the order in which they are shown.

        Raises:
            DataError: with ``first``, the example itself or one with the same prompt is a demonstration, so its answer would stand in its
                prompt; with the others, too few other examples are left.
        """
        key = prompt_key(example)
        if self.choice == "first":
            if key in self._keys:
                raise DataError(_leaks(example, self._pool[self._keys.index(key)]))
            return tuple(self._pool)
        order = self._nearest_first(example) if self._index is not None else self._drawn(example)
        found = [self._pool[i] for i in order if self._keys[i] != key][: self.count]
        if len(found) < self.count:
            raise DataError(_too_few(found, self.count, example))
        return tuple(found[::-1])

    def _drawn(self, example: Example) -> list[int]:
        name = json.dumps(["demonstrations", self.seed, example.task, example.id])
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16]))
        return [int(i) for i in rng.permutation(len(self._pool))]

    def _nearest_first(self, example: Example) -> list[int]:
        assert self._index is not None
        likeness = self._index.similarities(_compared(example))
        # Those with the same prompt are passed over, and there may be several: sort some more than are needed, else all.
        same = sum(key == prompt_key(example) for key in self._keys)
        kth = np.sort(likeness)[::-1][min(len(likeness), self.count + same) - 1]
        near = np.flatnonzero(likeness >= kth - _TIE)
        return sorted((int(i) for i in near), key=lambda i: (-round(float(likeness[i]), 9), i))


class _Trigrams:
    """TF-IDF vectors of character trigrams, of length 1; the weights come from the pool alone."""

    def __init__(self, texts: Sequence[str]) -> None:
        from scipy import sparse

        counts = [Counter(_grams(text)) for text in texts]
        self._column = {gram: i for i, gram in enumerate(sorted({gram for row in counts for gram in row}))}
        places = [[self._column[gram] for gram in row] for row in counts]
        known = np.bincount([i for row in places for i in row], minlength=len(self._column))
        self._weight = np.log((1 + len(texts)) / (1 + known)) + 1
        values = [
            np.array(list(row.values()), dtype=float) * self._weight[at] for row, at in zip(counts, places, strict=True)
        ]
        ends = np.cumsum([0, *map(len, places)])
        flat = (
            np.concatenate([v / np.sqrt(v @ v) for v in values]),
            np.concatenate([np.array(p, dtype=int) for p in places]),
        )
        self._rows: Any = sparse.csr_array((*flat, ends), shape=(len(texts), len(self._column)))

    def similarities(self, text: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Returns the cosine of a text with every text of the pool, up to one factor for all of them."""
        vector = np.zeros(len(self._column))
        for gram, count in Counter(_grams(text)).items():
            if gram in self._column:
                vector[self._column[gram]] = count * self._weight[self._column[gram]]
        length = float(np.sqrt(vector @ vector))
        return np.asarray(self._rows @ (vector / length if length else vector), dtype=np.float64)


def prompt_key(example: Example) -> tuple[tuple[tuple[str, str], ...], str]:
    r"""Returns what two examples share that ask the same: earlier turns and the last one, up to case, width and spaces.

    Example:
        >>> a, b = (Example("1", "t", "Which desk?", text, (answer,)) for text, answer in (("Stuck.", "it"), (" STUCK.\n", "hr")))
        >>> prompt_key(a) == prompt_key(b)
        True
    """
    return tuple((role, normalise(text)) for role, text in example.history), normalise(example.prompt_text)


def _compared(example: Example) -> str:
    """What makes an example like another: its input, or the instruction where that says it all."""
    return normalise(example.input if example.input.strip() else example.instruction)[:_COMPARED_CHARACTERS]


def _grams(text: str) -> list[str]:
    return [text[i : i + _GRAM] for i in range(len(text) - _GRAM + 1)] or [text]


def _where(example: Example) -> str:
    return f"{example.file}:{example.line}" if example.file else f"example {example.id!r}"


def _leaks(example: Example, shown: Example) -> str:
    same = (
        "it is"
        if (example.file, example.line, example.id) == (shown.file, shown.line, shown.id)
        else f"{_where(shown)} is"
    )
    return (
        f"{_where(example)}: asks the same as a demonstration ({same} one), so its answer would stand in its own prompt; remove one of the "
        "two, or choose demonstrations by random or nearest"
    )


def _too_few(pool: Sequence[Example], count: int, example: Example | None = None) -> str:
    name = f"task {pool[0].task!r}: " if pool else ""
    who = f" for {_where(example)}" if example else ""
    return f"{name}{count} demonstrations are wanted{who} and there are {len(pool)}; lower demonstrations.count, or add examples"
