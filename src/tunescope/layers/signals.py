"""What bands are read off: signals over the blocks, the same in units of their noise, resampled, and as chance would have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Resampled = Sequence[tuple[NDArray[Any], NDArray[Any] | None]]

N_SURROGATES = 199  # the smallest p is 0.005
_LEAST_NOISE = 0.05  # of a signal's standard deviation: keeps a noiseless signal from drowning the others
_FAR = 4.0  # standard deviations of the noise
_ALONE = 3.0  # times as far from its neighbours as one of them is from its own
_CONSTANT = 1e-9  # of the largest number: variation below it is rounding


def signals_of(base: Floats, tuned: Floats | None) -> Floats:
    """Returns median and spread over tasks and, with a tuned model, g, each without blocks that differ alone.

    Args:
        base: profiles (..., n_tasks, n_blocks).
        tuned: profiles of the same tasks, or None.

    Returns:
        (..., n_blocks, 2 or 3): the median and the interquartile range, both of the tuned model where there is one, and
        g = median(tuned - base). The quartiles do not move if all tasks are copied.

    Example:
        >>> signals_of(np.array([[0.1, 0.5, 0.5], [0.3, 0.5, 0.5]]), None).round(2).tolist()
        [[0.2, 0.2], [0.5, 0.0], [0.5, 0.0]]
    """
    profile = base if tuned is None else tuned
    lower, upper = np.quantile(profile, [0.25, 0.75], axis=-2, method="averaged_inverted_cdf")
    signals = [np.median(profile, axis=-2), upper - lower]
    if tuned is not None:
        signals.append(np.median(tuned - base, axis=-2))
    return without_single_blocks(np.stack(signals, axis=-1))


def without_single_blocks(signals: Floats) -> Floats:
    """Returns signals in which a block far from both of its neighbours has the running median of three blocks; the others keep every bit.

    The first and the last block of real models nearly always differ from their neighbours; without this they were taken for bands in
    39 of 40 simulated profiles of one model.

    Args:
        signals: (..., n_blocks, n_signals), at least 3 blocks.

    Returns:
        The same shape.

    Source:
        Tukey (1977), Exploratory Data Analysis, chapter 7, for the running median and its end-point rule, which compares an end with
        where the line through its two neighbours would have it. Ours takes it only for blocks that lie further from it than 4
        standard deviations of the noise, since running medians everywhere would turn noise into waves, and three times as far as
        the blocks beside lie from theirs: without its top a bump would be a plateau.

    Example:
        >>> profile = np.array([0.0, 5, 5, 5, 5, 19, 5, 5, 7, 7, 7, 7])
        >>> without_single_blocks(profile[:, None]).ravel().astype(int).tolist()
        [5, 5, 5, 5, 5, 5, 5, 5, 7, 7, 7, 7]
    """
    median = signals.copy()
    triples = np.stack([signals[..., i : signals.shape[-2] - 2 + i, :] for i in range(3)])
    median[..., 1:-1, :] = np.median(triples, axis=0)
    for end, first, second in ((0, 1, 2), (-1, -2, -3)):
        line = 3 * median[..., first, :] - 2 * median[..., second, :]
        median[..., end, :] = np.median(np.stack([signals[..., end, :], median[..., first, :], line]), axis=0)
    away = np.abs(signals - median)
    steps = np.abs(np.diff(signals, axis=-2))
    course = np.full_like(
        away, np.inf
    )  # how far a neighbour lies from its own: the top of a bump does not differ alone
    course[..., :-2, :] = steps[..., 1:, :]
    course[..., 2:, :] = np.minimum(course[..., 2:, :], steps[..., :-1, :])
    beside = np.zeros_like(away)
    beside[..., 1:, :] = away[..., :-1, :]
    beside[..., :-1, :] = np.maximum(
        beside[..., :-1, :], away[..., 1:, :]
    )  # a neighbour's median holds the block itself
    alone = (away > _FAR * _noise(signals)) & (away > _ALONE * course) & (away >= beside)
    return np.where(alone, median, signals)


def standardised(signals: Floats) -> Floats:
    """Returns signals centred and in units of their noise, so that a noisy one weighs less; constant signals become 0.

    Args:
        signals: (..., n_blocks, n_signals).

    Returns:
        The same shape.
    """
    centred = signals - signals.mean(axis=-2, keepdims=True)
    deviation = centred.std(axis=-2, keepdims=True)
    moves = deviation > _CONSTANT * np.abs(signals).max(axis=(-2, -1), keepdims=True)
    scale = np.where(moves, np.maximum(_noise(signals), _LEAST_NOISE * deviation), 1)
    return np.where(moves, centred / scale, 0)


def _noise(signals: Floats) -> Floats:
    """Standard deviation of the noise, (..., 1, n_signals); by the median of second differences, which breaks and slopes hardly touch."""
    return np.asarray(1.4826 * np.median(np.abs(np.diff(signals, 2, axis=-2)), axis=-2, keepdims=True) / np.sqrt(6))


def surrogates(signals: Floats, rng: np.random.Generator) -> Floats:
    """Returns signals with the same line and power spectrum and random phases.

    The phases are turned by the same angles in all signals, so that how they move together is kept.

    Args:
        signals: (n_blocks, n_signals).
        rng: draws the angles.

    Returns:
        (N_SURROGATES, n_blocks, n_signals).

    Source:
        Theiler et al. (1992), Physica D 58, for phase randomisation; Prichard & Theiler (1994) for several signals at once.
    """
    n_blocks = len(signals)
    line = np.linalg.qr(np.vander(np.linspace(-1, 1, n_blocks), 2))[0]
    trend = line @ (line.T @ signals)
    spectrum = np.fft.rfft(signals - trend, axis=0)
    turns = np.exp(2j * np.pi * rng.random((N_SURROGATES, len(spectrum), 1)))
    turns[:, 0] = 1
    if n_blocks % 2 == 0:
        turns[:, -1] = np.sign(turns[:, -1].real)  # the highest frequency has no phase here, only a sign
    return np.asarray(trend + np.fft.irfft(spectrum * turns, n=n_blocks, axis=1))


def resampled_signals(draws: Resampled, n_bootstrap: int, rng: np.random.Generator) -> Floats:
    """Returns the signals of resampled tasks, prompts drawn too where there are several draws.

    Args:
        draws: pairs of profiles (n_tasks, n_blocks), base and tuned or None.
        n_bootstrap: resamples.
        rng: draws tasks, and which pair.

    Returns:
        (n_bootstrap, n_blocks, n_signals).
    """
    result = []
    for _ in range(n_bootstrap):
        base, tuned = draws[int(rng.integers(len(draws)))]
        tasks = rng.integers(len(base), size=len(base))
        result.append(signals_of(base[tasks], None if tuned is None else tuned[tasks]))
    return np.stack(result)
