"""Texts that are nearly equal: an index by MinHash, verified by the true similarity.

The similarity is the Jaccard index of the sets of character 5-grams.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

GRAM = 5
_PERMUTATIONS = 128
_CANDIDATES = 20
# Four standard errors of a similarity estimated from 128 permutations near 0.85.
_MARGIN = 0.12
_COMPARED_CHARACTERS = 10_000


def near_across(texts: Sequence[str], others: Sequence[str], threshold: float) -> Iterator[tuple[str, str, float]]:
    """Yields (text, other, similarity) for every text that is near, but not equal to, one of the others."""
    if threshold >= 1 or not texts or not others:
        return
    index = NearIndex(others, threshold)
    for number in range(len(others)):
        index.insert(number)
    for text, signature in zip(texts, _signatures(texts), strict=True):

        def differs(other: int, own: str = text) -> bool:
            return others[other] != own

        near = index.nearest(signature, text, differs)
        if near is not None:
            yield text, others[near[0]], near[1]


class NearIndex:
    """Finds the nearest of the inserted texts by MinHash, and verifies it by the true similarity.

    Source: datasketch's `MinHashLSH`; ours verifies the 20 likeliest candidates and looks only at the first 10,000
    characters of a text.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        from datasketch import MinHashLSH

        self._texts = texts
        self._threshold = threshold
        self.signatures = _signatures(texts)
        self._values = np.array([signature.hashvalues for signature in self.signatures])
        # A missed pair is lost, a false candidate costs only time: hence the weights.
        self._lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))

    def insert(self, number: int) -> None:
        """Makes a text findable."""
        self._lsh.insert(number, self.signatures[number], check_duplication=False)

    def nearest(self, signature: Any, text: str, accept: Callable[[int], bool]) -> tuple[int, float] | None:
        """Returns (number, similarity) of the likeliest accepted text that reaches the threshold, or None."""
        numbers = np.array(sorted(self._lsh.query(signature)), dtype=np.intp)
        if not len(numbers):
            return None
        likeness = (self._values[numbers] == signature.hashvalues).mean(axis=1)
        order = np.argsort(-likeness, kind="stable")
        likely = numbers[order[likeness[order] >= self._threshold - _MARGIN]]
        accepted = (number for number in likely.tolist() if accept(number))
        for number in itertools.islice(accepted, _CANDIDATES):
            similarity = _jaccard(text, self._texts[number])
            if similarity >= self._threshold:
                return number, similarity
        return None


def _signatures(texts: Sequence[str]) -> list[Any]:
    """Returns a MinHash per text; equal texts have equal ones in every process."""
    from datasketch import MinHash

    empty = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)
    signatures = []
    for text in texts:
        signature = empty.copy()
        hashes = _gram_hashes(text[:_COMPARED_CHARACTERS])
        signature.update_batch(hashes.tolist())
        signatures.append(signature)
    return signatures


def _gram_hashes(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Returns a 32-bit hash per distinct gram."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    n = max(1, len(codes) - GRAM + 1)
    hashes = np.zeros(n, dtype=np.uint64)
    for offset in range(min(GRAM, len(codes))):
        hashes = (hashes ^ codes[offset : offset + n]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes >> np.uint64(32))


@lru_cache(maxsize=256)
def _grams(text: str) -> frozenset[str]:
    text = text[:_COMPARED_CHARACTERS]
    return frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))


def _jaccard(x: str, y: str) -> float:
    a, b = _grams(x), _grams(y)
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
