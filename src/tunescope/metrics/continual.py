"""What a stream of tasks does to the earlier ones, as functions of the score matrix.

``scores[i][j]`` is the score of task j after stage i, higher being better; stage i learns task i. Rows may end after
the diagonal (``[[.9], [.7, .8]]``): leave out what was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def forgetting(scores: Matrix) -> list[float]:
    """Gives what was lost of every task except the last: its best earlier score minus its final score.

    Args:
        scores: a row per stage (see the module), at least one.

    Returns:
        One number per task but the last, in the unit of the scores; positive is worse, negative means it still
        improved.

    Raises:
        ValueError: if a row is too short or too long, or a score is not finite.

    Source:
        Chaudhry et al. (2018), section 3, equation 3: the best over all earlier stages, one before the task itself
        included.

    Example:
        >>> [round(lost, 3) for lost in forgetting([[0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.6, 0.85, 0.9]])]
        [0.3, -0.05]
    """
    matrix = _check(scores)
    last = len(matrix) - 1
    return [max(row[j] for row in matrix[:last] if j < len(row)) - matrix[last][j] for j in range(last)]


def backward_transfer(scores: Matrix) -> float:
    """Gives the mean change of the earlier tasks between the stage that learnt them and the last one.

    Args:
        scores: a row per stage (see the module), at least two.

    Returns:
        Mean change in the unit of the scores; negative is forgetting.

    Raises:
        ValueError: if there are fewer than two stages, a row is too short or too long, or a score is not finite.

    Source:
        Lopez-Paz & Ranzato (2017), section 2, equation 3.

    Example:
        >>> round(backward_transfer([[0.9, 0.1], [0.7, 0.8]]), 3)
        -0.2
    """
    matrix = _check(scores, n_stages_needed=2)
    last = len(matrix) - 1
    return sum(matrix[last][j] - matrix[j][j] for j in range(last)) / last


def forward_transfer(scores: Matrix, base: Sequence[float]) -> float:
    """Gives what learning the tasks before it brought to a task before it was learnt itself, on average.

    Args:
        scores: a row per stage (see the module), at least two; row i has to reach task i + 1.
        base: the score of the untuned model, for every task.

    Returns:
        ``mean_j(scores[j - 1][j] - base[j])`` over the tasks after the first, in the unit of the scores; positive is a gain.

    Raises:
        ValueError: if there are fewer than two stages, a row is too short or too long, a score is not finite, or `base` has another
            length than there are tasks.

    Source:
        Lopez-Paz & Ranzato (2017), section 2, equation 4. Theirs compares with a model of random weights, ours with the model before
        the first stage.

    Example:
        >>> round(forward_transfer([[0.9, 0.4], [0.7, 0.8]], base=[0.5, 0.1]), 3)
        0.3
    """
    matrix = _check(scores, n_stages_needed=2)
    if len(base) != len(matrix) or not all(math.isfinite(score) for score in base):
        raise ValueError(
            f"base has {len(base)} numbers for {len(matrix)} tasks: give one finite score of the untuned model per task"
        )
    gains = []
    for j in range(1, len(matrix)):
        if len(matrix[j - 1]) <= j:
            raise ValueError(
                f"scores[{j - 1}] has {len(matrix[j - 1])} numbers: forward transfer needs task {j} measured before it is learnt"
            )
        gains.append(matrix[j - 1][j] - float(base[j]))
    return sum(gains) / len(gains)


def relative_gain(scores: Matrix, upper: Sequence[float]) -> float:
    """Gives how much of an expert's score the earlier tasks still reach after the last stage, in percent.

    Args:
        scores: a row per stage (see the module), at least two.
        upper: the score of an expert trained on task j alone, for every task, or for every task but the last.

    Returns:
        ``mean_j(scores[last][j] / upper[j]) * 100`` over the tasks before the last; 100 means that nothing was lost.

    Raises:
        ValueError: if there are fewer than two stages, a row is too short or too long, a score is not finite, `upper`
            has the wrong length, or an expert's score is not a positive number.

    Source:
        Wang et al. (2024), InsCL, section 4.1. A percentage, as in the paper.

    Example:
        >>> round(relative_gain([[0.9, 0.1], [0.6, 0.8]], upper=[0.8, 0.9]), 3)
        75.0
    """
    matrix = _check(scores, n_stages_needed=2)
    last = len(matrix) - 1
    if len(upper) not in (last, last + 1):
        raise ValueError(
            f"upper has {len(upper)} numbers for {last + 1} tasks: give one per task (the last may be left out)"
        )
    for j, expert in enumerate(upper[:last]):
        if not (math.isfinite(expert) and expert > 0):
            raise ValueError(
                f"upper[{j}] is {expert}: an expert's score must be a positive number, or no share of it exists"
            )
    return sum(matrix[last][j] / upper[j] for j in range(last)) / last * 100


def _check(scores: Matrix, n_stages_needed: int = 1) -> list[list[float]]:
    """Returns the matrix as lists of numbers, every row reaching at least the diagonal."""
    matrix = [[float(score) for score in row] for row in scores]
    n_stages = len(matrix)
    if n_stages < n_stages_needed:
        raise ValueError(f"got {n_stages} stage(s): this measure needs at least {n_stages_needed}")
    for i, row in enumerate(matrix):
        needed = n_stages if i == n_stages - 1 else i + 1
        if not needed <= len(row) <= n_stages:
            raise ValueError(
                f"scores[{i}] has {len(row)} numbers in a stream of {n_stages} tasks: "
                f"it needs {needed} to {n_stages}, one per task up to the stage"
            )
        for j, score in enumerate(row):
            if not math.isfinite(score):
                raise ValueError(f"scores[{i}][{j}] is {score}: every score must be a finite number")
    return matrix
