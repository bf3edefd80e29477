"""How far an arm's confidence can be trusted, and what share of its answers should go to a person.

Examples with equal confidence are one group everywhere in this module: nothing depends on the order of the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RiskCoverage:
    """The error rate that remains when only the surest answers are kept.

    Attributes:
        coverage: share of the answers kept, ascending to 1; one point per distinct confidence.
        risk: error rate among them.
        threshold: the lowest confidence that is still kept at that point.
        area: area under the curve, in [0, 1]; lower is better.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    threshold: tuple[float, ...]
    area: float


@dataclass(frozen=True)
class HumanShare:
    """The share of answers for a person, chosen on one half of the examples and checked on the other.

    Attributes:
        share: share of the answers to hand to a person, or None if even the surest answers are wrong too often.
        threshold: answers with at least this confidence stay automatic, or None.
        checked_error: error rate of the automatic answers in the other half, or None where there are none.
        checked_share: share that goes to a person in the other half, or None.
        n_checked: automatic answers behind `checked_error`.
    """

    share: float | None
    threshold: float | None
    checked_error: float | None
    checked_share: float | None
    n_checked: int


def expected_calibration_error(
    confidence: Sequence[float] | Floats, correct: Sequence[float] | Floats, n_bins: int = 10
) -> float:
    """Gives how far confidence and share of right answers lie apart, on average over bins with equally many examples.

    Args:
        confidence: n probabilities of the chosen answer, in [0, 1].
        correct: n times 0 or 1 (shares in between are allowed).
        n_bins: number of bins; equal confidences share a bin, so bins can be uneven or empty.

    Returns:
        The error in [0, 1]; 0 is calibrated. Small samples overstate it: with n examples in b bins, noise alone gives
        about ``0.4 * sqrt(b / n)`` at medium confidence.

    Raises:
        ValueError: if the arrays are empty, differ in length, leave [0, 1], or `n_bins` is below 1.

    Source:
        Guo et al. (2017), section 2, equation 3; ours uses bins of equal mass instead of equal width (after Nguyen &
        O'Connor 2015), because a tuned model puts nearly all its confidences into the last equal-width bin.

    Example:
        >>> round(expected_calibration_error([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0]), 3)
        0.15
    """
    sure, right = _check(confidence, correct)
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}: use at least 1")
    _, group, counts = np.unique(sure, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    bins = (n_bins * (2 * before + counts) // (2 * len(sure)))[group]
    gaps = np.bincount(bins, weights=sure - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(sure))


def risk_coverage(confidence: Sequence[float] | Floats, correct: Sequence[float] | Floats) -> RiskCoverage:
    """Gives the error rate among the surest answers, for every share of answers kept.

    Args:
        confidence: n probabilities of the chosen answer, in [0, 1].
        correct: n times 0 or 1.

    Returns:
        The curve and its area: the mean over examples of the risk at the point where the example is first kept.

    Raises:
        ValueError: if the arrays are empty, differ in length or leave [0, 1].

    Source:
        Geifman & El-Yaniv (2017), section 2 (risk and coverage); the area as in Geifman, Uziel & El-Yaniv (2019). Ours
        adds answers with equal confidence together, so that ties do not depend on the order.

    Example:
        >>> curve = risk_coverage([0.9, 0.8, 0.8, 0.6], [1, 1, 0, 0])
        >>> curve.coverage, curve.risk[-1]
        ((0.25, 0.75, 1.0), 0.5)
    """
    sure, right = _check(confidence, correct)
    values, group, counts = np.unique(-sure, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=1 - right)
    kept = np.cumsum(counts)
    risk = np.cumsum(wrong) / kept
    return RiskCoverage(
        tuple((kept / len(sure)).tolist()),
        tuple(risk.tolist()),
        tuple((-values).tolist()),
        float((counts * risk).sum() / len(sure)),
    )


def choose_threshold(
    confidence: Sequence[float] | Floats, correct: Sequence[float] | Floats, target_error: float
) -> float | None:
    """Gives the lowest confidence from which answers may stay automatic within an error rate.

    Args:
        confidence: n probabilities of the chosen answer, in [0, 1], of held-out examples: never of those that check the choice.
        correct: n times 0 or 1.
        target_error: highest acceptable error rate of the automatic answers, in [0, 1].

    Returns:
        The threshold: answers with at least this confidence stay automatic. None if even the surest answers are wrong too often.

    Raises:
        ValueError: if the arrays are empty, differ in length or leave [0, 1], or `target_error` does.

    Source:
        Geifman & El-Yaniv (2017), algorithm 1 (selection with guaranteed risk); ours gives no guarantee with a probability. It is to be
        checked with `check_threshold` on examples that took no part in the choice, which is easier to explain and needs fewer examples.

    Example:
        >>> choose_threshold([0.9, 0.8, 0.8, 0.6], [1, 1, 1, 0], target_error=0.05)
        0.8
    """
    if not 0 <= target_error <= 1:
        raise ValueError(f"target_error is {target_error}: it is a share, use a number in [0, 1]")
    curve = risk_coverage(confidence, correct)
    within = [point for point, risk in enumerate(curve.risk) if risk <= target_error]
    return curve.threshold[within[-1]] if within else None


def check_threshold(
    confidence: Sequence[float] | Floats, correct: Sequence[float] | Floats, threshold: float
) -> HumanShare:
    """Says what a threshold does on examples that took no part in choosing it.

    Args:
        confidence: n probabilities of the chosen answer, in [0, 1].
        correct: n times 0 or 1.
        threshold: answers with at least this confidence stay automatic.

    Returns:
        The share for a person here (`share` and `checked_share` alike), and the error rate of the rest.

    Raises:
        ValueError: if the arrays are empty, differ in length or leave [0, 1].

    Example:
        >>> found = check_threshold([0.9, 0.7, 0.5], [1, 0, 0], threshold=0.7)
        >>> round(found.share, 3), found.checked_error, found.n_checked
        (0.333, 0.5, 2)
    """
    sure, right = _check(confidence, correct)
    automatic = sure >= threshold
    error = float(1 - right[automatic].mean()) if automatic.any() else None
    share = float(1 - automatic.mean())
    return HumanShare(share, threshold, error, share, int(automatic.sum()))


def halves(n: int, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Splits n examples at random: the smaller half to choose a threshold on, the other to check it.

    Args:
        n: number of examples.
        seed: of the split.

    Returns:
        Indices of both parts, ``n // 2`` of them in the first.

    Example:
        >>> [len(part) for part in halves(5, seed=0)]
        [2, 3]
    """
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 :]


def choose_human_share(
    confidence: Sequence[float] | Floats, correct: Sequence[float] | Floats, target_error: float, seed: int
) -> HumanShare:
    """Chooses the smallest share of answers for a person that keeps the rest within an error rate, and checks it.

    For where there are no held-out examples: the choice is made on a random half of the examples; the error rate to believe is
    `checked_error`, from the other half, because the chosen threshold flatters the half it was chosen on.

    Args:
        confidence: n probabilities of the chosen answer, in [0, 1].
        correct: n times 0 or 1.
        target_error: highest acceptable error rate of the automatic answers, in [0, 1].
        seed: of the split into halves.

    Returns:
        The share and its check. With fewer than 2 examples nothing can be chosen and checked: all fields are None.

    Raises:
        ValueError: if the arrays are empty, differ in length or leave [0, 1], or `target_error` does.

    Source:
        As `choose_threshold`.

    Example:
        >>> chosen = choose_human_share([0.9] * 20 + [0.4] * 20, [1] * 20 + [0] * 20, target_error=0.05, seed=0)
        >>> chosen.threshold, chosen.checked_error
        (0.9, 0.0)
    """
    sure, right = _check(confidence, correct)
    if not 0 <= target_error <= 1:
        raise ValueError(f"target_error is {target_error}: it is a share, use a number in [0, 1]")
    if len(sure) < 2:
        return HumanShare(None, None, None, None, 0)
    chosen_on, checked_on = halves(len(sure), seed)
    threshold = choose_threshold(sure[chosen_on], right[chosen_on], target_error)
    if threshold is None:
        return HumanShare(None, None, None, None, 0)
    found = check_threshold(sure[checked_on], right[checked_on], threshold)
    return HumanShare(
        float((sure[chosen_on] < threshold).mean()),
        threshold,
        found.checked_error,
        found.checked_share,
        found.n_checked,
    )


def _check(confidence: Sequence[float] | Floats, correct: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Returns both as arrays [n] of finite numbers in [0, 1]."""
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.ndim != 1 or sure.shape != right.shape or not len(sure):
        raise ValueError(
            f"confidence has shape {sure.shape} and correct {right.shape}: "
            "both must be one-dimensional, equally long and not empty"
        )
    for name, values in (("confidence", sure), ("correct", right)):
        if not ((values >= 0) & (values <= 1)).all():
            worst = values[~((values >= 0) & (values <= 1))][0]
            raise ValueError(f"{name} holds {worst}: every value must be in [0, 1]")
    return sure, right
