"""Which tokens of tuned answers the base would have written too, and whether the others are style or substance.

A token of the tuned model's answer is **unshifted** if it is the base's most likely one at that place (given the question and the answer so far),
**marginal** if it is the base's second or third, and **shifted** beyond.

A shifted token is **stylistic** by one of two stated rules:

* ``list``: it is on a list of tokens that was given;
* ``frequency``: it is shifted in at least 2 answers and in at least a stated share of all. What an answer says differs from question to
  question; how it is said comes back.

Tokens compare after normalisation (case, width, outer white space); one of white space alone compares as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunescope.data.check import normalise
from tunescope.errors import UserError
from tunescope.knowledge.resampling import Estimate, ratio_estimate
from tunescope.runs.records import Record

Ranks = npt.NDArray[np.int64]

MARGINAL_RANK = 3
"""Last rank in the base that counts as marginal (Lin et al. 2023)."""
_FEWEST_ANSWERS = 2


@dataclass(frozen=True)
class TokenShift(Record):
    """Shares of the tokens of tuned answers by their rank in the base.

    Attributes:
        n_answers: answers, empty ones included.
        n_tokens: tokens of all answers.
        unshifted: share whose token is the base's first. Like the next three a share of tokens; the interval draws whole answers, n counts
            those with tokens.
        marginal: share that is the base's second or third.
        shifted: share beyond.
        stylistic: share of the shifted tokens that are stylistic; value None where nothing is shifted, or with fewer than 2 answers and
            no list.
        by_position: first position, last position (from 0), tokens, share shifted; ranges that double in length.
        stylistic_tokens: stylistic token -> number of answers in which it is shifted, most frequent first.
        rule: ``list`` or ``frequency``.
    """

    n_answers: int
    n_tokens: int
    unshifted: Estimate
    marginal: Estimate
    shifted: Estimate
    stylistic: Estimate
    by_position: tuple[tuple[int, int, int, float], ...]
    stylistic_tokens: Mapping[str, int]
    rule: str


def token_shift(
    base_ranks: Sequence[Sequence[int]] | Sequence[Ranks],
    tokens: Sequence[Sequence[str]],
    *,
    stylistic: Collection[str] | None = None,
    min_answer_share: float = 0.05,
    n_bootstrap: int,
    confidence: float = 0.95,
    seed: int,
) -> TokenShift:
    """Says how many tokens of tuned answers the base would not have written, and how many of those are style.

    Args:
        base_ranks: for each answer the rank in the base of each token that the tuned model wrote; 1 is the base's most likely.
        tokens: for each answer the same tokens as text.
        stylistic: tokens that count as style (rule ``list``); None: rule ``frequency``.
        min_answer_share: rule ``frequency``: share of the answers in which a token has to be shifted, in (0, 1].
        n_bootstrap: resamples behind the intervals.
        confidence: level of the intervals, in (0, 1).
        seed: of the resampling.

    Returns:
        The shares. Without any token all are None.

    Raises:
        UserError: if there are no answers, ranks and tokens are not of the same lengths, a rank is no whole number of at least 1, or a
            setting is out of range.

    Source:
        Lin et al. 2023 (arXiv 2312.01552), section 2: the three classes. There what is stylistic was read off the most frequent
        shifted tokens by eye; here a rule says it.

    Example:
        >>> found = token_shift([[9, 1, 1], [7, 1, 8]], [["Sure", "it", "leaks"], ["sure", "the", "pump"]], n_bootstrap=100, seed=0)
        >>> found.shifted.value, found.stylistic_tokens, round(found.stylistic.value, 2)
        (0.5, {'sure': 2}, 0.67)
    """
    if not 0 < min_answer_share <= 1:
        raise UserError(
            f"min_answer_share is {min_answer_share}: it is a share of the answers, use a number above 0, up to 1"
        )
    ranks = _ranks(base_ranks, tokens)
    plain = [[normalise(token) or token for token in answer] for answer in tokens]
    shifted = [rows > MARGINAL_RANK for rows in ranks]
    answers_with = Counter(
        token
        for answer, flags in zip(plain, shifted, strict=True)
        for token in {token for token, flag in zip(answer, flags, strict=True) if flag}
    )
    if stylistic is None:
        least = max(_FEWEST_ANSWERS, math.ceil(min_answer_share * len(ranks) - 1e-9))
        style = {token for token, count in answers_with.items() if count >= least}
    else:
        style = {normalise(token) or token for token in stylistic} & answers_with.keys()
    stylish = [
        sum(flag and token in style for token, flag in zip(answer, flags, strict=True))
        for answer, flags in zip(plain, shifted, strict=True)
    ]
    lengths = np.array([len(rows) for rows in ranks], dtype=np.float64)
    n_shifted = np.array([flags.sum() for flags in shifted], dtype=np.float64)
    can_tell = stylistic is not None or len(ranks) >= _FEWEST_ANSWERS

    def share(counts: Sequence[int] | npt.NDArray[np.float64], of: npt.NDArray[np.float64]) -> Estimate:
        top = np.asarray(counts, dtype=np.float64)
        return ratio_estimate(top, of, n_bootstrap=n_bootstrap, confidence=confidence, seed=seed)

    return TokenShift(
        n_answers=len(ranks),
        n_tokens=int(lengths.sum()),
        unshifted=share([int((rows == 1).sum()) for rows in ranks], lengths),
        marginal=share([int(((rows > 1) & (rows <= MARGINAL_RANK)).sum()) for rows in ranks], lengths),
        shifted=share(n_shifted, lengths),
        stylistic=share(stylish, n_shifted) if can_tell else Estimate(None, None, None, 0),
        by_position=_by_position(shifted),
        stylistic_tokens=dict(
            sorted(((t, answers_with[t]) for t in style), key=lambda counted: (-counted[1], counted[0]))
        ),
        rule="frequency" if stylistic is None else "list",
    )


def _ranks(base_ranks: Sequence[Sequence[int]] | Sequence[Ranks], tokens: Sequence[Sequence[str]]) -> list[Ranks]:
    """Returns the ranks of each answer as an array, checked."""
    if not len(base_ranks) or len(base_ranks) != len(tokens):
        raise UserError(
            f"got ranks of {len(base_ranks)} answers and tokens of {len(tokens)}: give both, of at least one answer"
        )
    found = []
    for number, (rows, texts) in enumerate(zip(base_ranks, tokens, strict=True)):
        values = np.asarray(rows)
        if values.ndim != 1 or len(values) != len(texts):
            raise UserError(
                f"answer {number} has ranks of shape {values.shape} and {len(texts)} tokens: give one rank per token"
            )
        wrong = [value for value in values.tolist() if not (float(value).is_integer() and value >= 1)]
        if wrong:
            raise UserError(
                f"answer {number} has the rank {wrong[0]}: ranks are whole numbers, 1 is the base's most likely token"
            )
        found.append(values.astype(np.int64))
    return found


def _by_position(shifted: Sequence[npt.NDArray[np.bool_]]) -> tuple[tuple[int, int, int, float], ...]:
    """Returns how the share falls along the answers: positions 0, 1, 2-3, 4-7 and so on."""
    longest = max(len(flags) for flags in shifted)
    rows, first = [], 0
    while first < longest:
        last = max(2 * first - 1, first)
        inside = np.concatenate([flags[first : last + 1] for flags in shifted])
        rows.append((first, min(last, longest - 1), len(inside), float(inside.mean())))
        first = last + 1
    return tuple(rows)
