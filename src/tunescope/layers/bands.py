"""Where shared, transition and refinement blocks begin and end, or why the profiles do not say so.

The signals over the blocks are the median over tasks, the spread over tasks (interquartile range) and, where there are a base and a
tuned model, g = median(tuned - base), each without single blocks that differ from both neighbours. Three families of curves with two
breaks are fitted to all signals together: three *levels* (piecewise constant: what a change-point search with an l2 cost finds), a
*plateau* that comes back to the level it left, and three joined *slopes* (a band in which the similarity climbs from one course to
another). Profiles that are cumulative over the depth move by slopes: on simulated ones of the published form, levels alone put the
boundaries within two blocks in none of 60 cases.

A band is reported only if it passes three tests, each stated in `Bands.why` with its number:

* against simpler shapes (no break, one break, a line, a smooth curve, a bump) by a criterion that charges each break, and the place
  and width of a bump, for having been searched for;
* against chance: signals with the same line and the same power spectrum, but random phases, rarely do as well;
* against resampling of the tasks (and prompts): the boundaries stay where they are.

With a base and a tuned model the signs that the paper describes must hold too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope.errors import UserError
from tunescope.layers.curves import SHORTEST_BAND, Fit, best_cuts, fit_two_breaks
from tunescope.layers.signals import (
    N_SURROGATES,
    Floats,
    Resampled,
    resampled_signals,
    signals_of,
    standardised,
    surrogates,
)
from tunescope.models import block_names
from tunescope.runs.records import Bands

FEWEST_BLOCKS = (
    12  # below, three bands and their test against chance share too few numbers (hit rates: tests/layers/test_bands.py)
)
FEWEST_TASKS = 4  # quartiles of three numbers are the numbers themselves
LEAST_STABILITY = 0.6  # share of resamples that put a boundary within one block of the reported place
LARGEST_AFTERMATH = 0.5  # slope above the transition, as a share of the slope in it: "afterwards little changes"
ZERO_SHARE = 0.1  # of the range of g: a smaller mean of g below the transition counts as not above 0

# Highest degree of the smooth curves that two breaks must beat. A smooth rise that fits every sign is a transition; without signs it is
# just a curve, and curves that turn every three blocks are as smooth as noise between neighbours makes them.
_DEGREE_WITH_SIGNS, _LEAST_DEGREE, _BLOCKS_PER_DEGREE = 3, 6, 3


def find_bands(
    base: NDArray[Any],
    tuned: NDArray[Any] | None = None,
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
    min_blocks: int = FEWEST_BLOCKS,
    resampled: Resampled | None = None,
) -> Bands:
    """Finds the transition band of a layer map, or says what is missing.

    Tasks with exactly the same profiles count once. Nothing depends on the order of the tasks, nor on the unit of the similarity.

    Args:
        base: (n_tasks, n_layers) similarity of the base model to each task's specialist; or, with `tuned` left out, any one
            profile per task (block input against output, base against tuned model).
        tuned: (n_tasks, n_layers) similarity of the tuned model to the same specialists. Only with it do the paper's signs apply.
        n_bootstrap: resamples of the tasks.
        seed: of the resampling and of the test against chance.
        confidence: level of the intervals; the test against chance must give less than 1 - confidence.
        min_blocks: fewest blocks in which bands are looked for, at least 6.
        resampled: profiles computed anew from resampled prompts, each a pair shaped like (base, tuned) with the same tasks in the
            same order (for example the r-th column of `cka_bootstrap` for every task and block). Each resample of the tasks then
            draws one of them, so that stability is over tasks and prompts; without it, over tasks alone.

    Returns:
        The bands; `found` is False, with the reasons in `why`, where the profiles do not show them.

    Raises:
        UserError: a profile has the wrong shape or a number that is not finite, or a setting is out of range.

    Source:
        Zhao, Ziser & Cohen (2024), arXiv 2410.20008: shared, transition and refinement layers, read off a plot there. Procedure and
        tests here are ours. Signs asked for: in the transition the tuned model's median similarity and g rise and the spread
        shrinks; below it g is not above 0, after it g is above 0 and the median changes at most half as fast.

    Example:
        >>> level = np.repeat([0.9, 0.5, 0.8], [5, 5, 6])
        >>> tasks = np.random.default_rng(0).normal(0, 0.02, (8, 16))
        >>> bands = find_bands(level + tasks)
        >>> bands.boundaries, bands.transition[0]
        ((5, 10), 'block.5')
        >>> find_bands(np.linspace(0.9, 0.5, 16) + tasks).found
        False
    """
    _check_settings(n_bootstrap, confidence, min_blocks)
    first, second = _check_profiles(base, tuned)
    draws = [
        _check_profiles(b, t, like=first, of=f"resampled profiles {r}") for r, (b, t) in enumerate(resampled or ())
    ]
    if any((t is None) != (second is None) for _, t in draws):
        raise UserError("resampled profiles must have a tuned part exactly if there are tuned profiles")
    layers = block_names(first.shape[1])
    rows = first if second is None else np.concatenate([first, second], axis=1)
    kept = np.unique(rows, axis=0, return_index=True)[1]  # sorted: the order of the tasks does not matter
    first, second = first[kept], None if second is None else second[kept]
    draws = [(b[kept], None if t is None else t[kept]) for b, t in draws] or [(first, second)]
    missing = _too_little(first, second, min_blocks)
    if missing:
        return Bands(False, f"no transition band found: {missing}", layers, n_tasks=len(first))

    degree = _DEGREE_WITH_SIGNS
    if second is None:
        degree = max(_LEAST_DEGREE, len(layers) // _BLOCKS_PER_DEGREE)
    signals = signals_of(first, second)
    fit = fit_two_breaks(signals[None], degree)
    rng = np.random.default_rng([seed, 0xBA2D5])
    chance = fit_two_breaks(surrogates(signals, rng), degree)
    as_good = (chance.margin >= fit.margin) & _signs(chance).all(axis=1)
    p = float(1 + as_good.sum()) / (1 + N_SURROGATES)
    cuts = best_cuts(resampled_signals(draws, n_bootstrap, rng), degree)
    stability = (np.abs(cuts - fit.cuts) <= 1).mean(axis=0)

    start, end = (int(c) for c in fit.cuts[0])
    reasons = _failures(fit, p, 1 - confidence, stability)
    kind = "slopes" if fit.shape[0] == 1 else "levels"
    basis = "median, spread and g, with the published signs"
    if second is None:
        basis = "median and spread of one profile, without the published signs, which need specialists"
    evidence = (
        f"two breaks in the {kind} of {basis}; {len(first)} tasks, chance p {p:.3f}, boundaries within one block in "
        f"{stability[0]:.0%} and {stability[1]:.0%} of {n_bootstrap} resamples of tasks{' and prompts' if resampled else ''}"
    )
    if reasons:
        why = f"no transition band found: {'; '.join(reasons)} (best candidate block.{start} to block.{end - 1}: {evidence})"
        return Bands(False, why, layers, n_tasks=len(first))
    tail = (1 - confidence) / 2
    low, high = np.quantile(cuts, [tail, 1 - tail], axis=0, method="inverted_cdf").astype(int).tolist()
    return Bands(
        found=True,
        why=evidence,
        layers=layers,
        boundaries=(start, end),
        low=(low[0], low[1]),
        high=(high[0], high[1]),
        stability=(float(stability[0]), float(stability[1])),
        n_tasks=len(first),
    )


_SIGNS = (
    "the median similarity does not rise in it",
    "the spread over tasks does not shrink in it",
    "the median goes on changing above it",
    "g does not rise in it",
    "g is above 0 below it",
    "g is not above 0 after it",
)


def _signs(fit: Fit) -> NDArray[np.bool_]:
    """Which of `_SIGNS` are not violated, (batch, 6), read off the fitted curves; without g there is nothing to violate."""
    curves = fit.curves
    if curves.shape[2] < 3:
        return np.ones((len(curves), 1), dtype=bool)
    n_blocks, every = curves.shape[1], np.arange(len(curves))
    start, end = fit.cuts[:, 0], fit.cuts[:, 1]
    entry, leaving = curves[every, start - 1], curves[every, end]
    slope = (leaving - entry) / (end - start + 1)[:, None]
    aftermath = (curves[:, -1, 0] - leaving[:, 0]) / (n_blocks - 1 - end)
    shared = np.arange(n_blocks) < start[:, None]
    g = curves[:, :, 2]
    below = (g * shared).sum(axis=1) / start
    return np.stack(
        [
            slope[:, 0] > 0,
            slope[:, 1] < 0,
            np.abs(aftermath) <= LARGEST_AFTERMATH * np.abs(slope[:, 0]),
            slope[:, 2] > 0,
            below <= ZERO_SHARE * np.ptp(g, axis=1),
            leaving[:, 2] > 0,
        ],
        axis=1,
    )


def _failures(fit: Fit, p: float, level: float, stability: Floats) -> list[str]:
    """What speaks against the band, in words."""
    reasons = []
    if fit.margin[0] <= 0:
        reasons.append(
            f"two breaks explain the profiles no better than {fit.rival} (criterion {fit.margin[0]:.1f}, above 0 wanted)"
        )
    if p > level:
        reasons.append(f"signals with random phases do as well with p {p:.3f}, at most {level:.3f} wanted")
    reasons += [text for text, holds in zip(_SIGNS, _signs(fit)[0].tolist(), strict=False) if not holds]
    if stability.min() < LEAST_STABILITY:
        reasons.append(
            f"a boundary stays within one block in only {stability.min():.0%} of the resamples, {LEAST_STABILITY:.0%} wanted"
        )
    return reasons


def _too_little(base: Floats, tuned: Floats | None, min_blocks: int) -> str:
    """What makes looking for bands pointless, or the empty string."""
    n_tasks, n_blocks = base.shape
    if n_blocks < min_blocks:
        return f"{n_blocks} blocks, at least {min_blocks} are needed"
    if n_tasks < FEWEST_TASKS:
        return f"{n_tasks} tasks with different profiles, at least {FEWEST_TASKS} are needed for a spread over tasks"
    if not standardised(signals_of(base, tuned)).any():
        return "the median and the spread are the same in every block"
    return ""


def _check_settings(n_bootstrap: int, confidence: float, min_blocks: int) -> None:
    if n_bootstrap < 1:
        raise UserError(f"n_bootstrap {n_bootstrap}: at least 1 resample is needed; 200 is the default")
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: must be above 0 and below 1")
    if min_blocks < 3 * SHORTEST_BAND:
        raise UserError(
            f"min_blocks {min_blocks}: three bands of {SHORTEST_BAND} blocks need at least {3 * SHORTEST_BAND}"
        )


def _check_profiles(
    base: NDArray[Any], tuned: NDArray[Any] | None, *, like: Floats | None = None, of: str = "profiles"
) -> tuple[Floats, Floats | None]:
    """Both as float64, of one shape, every number finite."""
    first = np.asarray(base, dtype=np.float64)
    second = None if tuned is None else np.asarray(tuned, dtype=np.float64)
    if first.ndim != 2 or not first.size:
        raise UserError(f"{of}: shape {first.shape}, wanted (tasks, blocks) with at least one of each")
    for name, profile in (("base", first), ("tuned", second)):
        wanted = first.shape if like is None else like.shape
        if profile is None:
            continue
        if profile.shape != wanted:
            raise UserError(
                f"{of}: {name} has shape {profile.shape}, wanted {wanted}: the same tasks and blocks everywhere"
            )
        bad = np.argwhere(~np.isfinite(profile))
        if len(bad):
            task, block = bad[0]
            raise UserError(
                f"{of}: {name} is {profile[task, block]} for task {task} (counted from 0) at block.{block}, and {len(bad)} "
                "numbers are not finite in all: find out which states are constant or NaN, or leave these tasks out"
            )
    return first, second
