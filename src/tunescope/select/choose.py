"""Choose transformer blocks: by score, at random with the same budget, or by name and pattern."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tunescope.errors import ModelError, UserError, did_you_mean
from tunescope.runs.records import Bands, LayerScores


def budget_layers(n_layers: int, share: float) -> int:
    """Returns how many of `n_layers` blocks a share allows: rounded, at least one.

    Raises:
        UserError: the share is not in (0, 1].

    Example:
        >>> budget_layers(30, 1 / 3)
        10
    """
    if not 0 < share <= 1:
        raise UserError(f"budget {share}: a share of the blocks must be above 0 and at most 1")
    return max(1, round(n_layers * share))


def choose_top(scores: LayerScores, count: int) -> tuple[str, ...]:
    """Returns the `count` blocks with the highest scores, in the order of the model; ties go to the upper block, which is cheaper.

    Args:
        scores: one number per block.
        count: how many.

    Raises:
        UserError: a score is not finite, or more blocks are wanted than there are.

    Example:
        >>> s = LayerScores("gradient_norm", "1", ("block.0", "block.1", "block.2"), (3.0, 1.0, 3.0), n=8, higher_means="moves")
        >>> choose_top(s, 1)
        ('block.2',)
    """
    values = np.asarray(scores.values, dtype=float)
    if not np.isfinite(values).all():
        bad = [name for name, value in zip(scores.layers, values, strict=True) if not np.isfinite(value)]
        raise UserError(
            f"scores {scores.name}: not finite at {', '.join(bad[:5])}; the model or the data produced NaN or infinity"
        )
    _check_count(count, len(values))
    order = sorted(range(len(values)), key=lambda i: (-values[i], -i))
    return tuple(scores.layers[i] for i in sorted(order[:count]))


def choose_random(layers: Sequence[str], count: int, *, seed: int, avoid: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns `count` blocks drawn uniformly: the control that every other choice has to beat at the same budget.

    Args:
        layers: canonical block names in the order of the model.
        count: how many.
        seed: of the draw.
        avoid: a set that must not come out exactly (the one to be compared with); drawn again until it differs.

    Raises:
        UserError: more blocks are wanted than there are.

    Example:
        >>> len(choose_random(["block.0", "block.1", "block.2"], 2, seed=0))
        2
    """
    _check_count(count, len(layers))
    rng = np.random.default_rng([seed, 0x5E1EC7])
    while True:
        chosen = tuple(layers[i] for i in sorted(rng.choice(len(layers), size=count, replace=False).tolist()))
        if set(chosen) != set(avoid) or count == len(layers):
            return chosen


def put_last(scores: LayerScores, last: Sequence[str]) -> LayerScores:
    """Returns scores by which some blocks come after all others, in their own order: those whose number is of another kind.

    Args:
        scores: one number per block, finite.
        last: names of the blocks; none of them, or all, changes nothing.

    Raises:
        UserError: a score is not finite.
        ModelError: a name is not among the blocks.

    Example:
        >>> s = LayerScores("change", "1", ("block.0", "block.1", "block.2"), (0.9, 0.1, 0.2), n=8, higher_means="changes more")
        >>> choose_top(put_last(s, ["block.0"]), 2), choose_top(put_last(s, ["block.0"]), 3)
        (('block.1', 'block.2'), ('block.0', 'block.1', 'block.2'))
    """
    choose_top(scores, 1)  # refuses what is not finite
    behind = set(match_layers(list(last), scores.layers)) if last else set()
    values = dict(zip(scores.layers, scores.values, strict=True))
    others = [value for name, value in values.items() if name not in behind]
    if not behind or not others:
        return scores
    drop = 1 + max(values[name] for name in behind) - min(others)
    shifted = tuple(value - drop if name in behind else value for name, value in values.items())
    return replace(scores, values=shifted, low=None, high=None, null=None)


def above_shared_first(scores: LayerScores, bands: Bands | None) -> LayerScores:
    """Puts the blocks of a layer map in the order in which they are chosen: those above the shared band first, each part by its score.

    Without bands, or where no transition was found, the scores alone decide. That tuning above the shared band is better is a hypothesis.

    Args:
        scores: one number per block, from the layer map; finite.
        bands: shared, transition and refinement blocks of the same model, or None.

    Returns:
        Places from n_layers (chosen first) down to 1, for `choose_top` and `layer_map`; of equal scores the upper block comes first.

    Raises:
        UserError: a score is not finite, or the bands are of other blocks than the scores.

    Source:
        The bands are those of Zhao, Ziser and Cohen (arXiv 2410.20008), who tune no part of the layers; choosing by them is ours.

    Example:
        >>> s = LayerScores("change", "1", ("block.0", "block.1", "block.2"), (0.9, 0.1, 0.2), n=8, higher_means="changes more")
        >>> above_shared_first(s, None).values
        (3.0, 1.0, 2.0)
        >>> above_shared_first(s, Bands(True, "example", s.layers, boundaries=(1, 2))).values
        (1.0, 2.0, 3.0)
    """
    if bands is not None and tuple(bands.layers) != tuple(scores.layers):
        raise UserError(
            f"the bands are over {len(bands.layers)} blocks and the scores {scores.name} over {len(scores.layers)}; both must come from one map"
        )
    above = () if bands is None or not bands.found else (*bands.transition, *bands.refinement)
    choose_top(scores, 1)  # refuses what is not finite
    values = dict(zip(scores.layers, scores.values, strict=True))
    order = sorted(range(len(values)), key=lambda i: (scores.layers[i] in above, values[scores.layers[i]], i))
    places = {scores.layers[i]: float(place) for place, i in enumerate(order, 1)}
    return LayerScores(
        name="layer_map",
        unit="place",
        layers=tuple(scores.layers),
        values=tuple(places[name] for name in scores.layers),
        n=scores.n,
        higher_means="is chosen earlier",
        task=scores.task,
    )


def match_layers(patterns: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    """Returns the blocks that names or patterns mean, in the order of the model.

    Args:
        patterns: ``block.20``, a wildcard (``block.2?``, ``block.*``), a range (``block.20-29``), or a bare number or range.
        layers: canonical block names in the order of the model.

    Raises:
        ModelError: a pattern matches nothing, or there is none; the message names the nearest real names.

    Example:
        >>> match_layers(["block.1-2"], ["block.0", "block.1", "block.2"])
        ('block.1', 'block.2')
    """
    if not patterns:
        raise ModelError(f"no layer pattern given, so nothing would move; this model has {layers[0]} to {layers[-1]}")
    problems: list[str] = []
    chosen: set[str] = set()
    for pattern in patterns:
        found = _matching(pattern.strip(), layers)
        if not found:
            problems.append(
                f"layer pattern {pattern!r} matches nothing{did_you_mean(pattern, list(layers))}; "
                f"this model has {layers[0]} to {layers[-1]}"
            )
        chosen.update(found)
    if problems:
        raise ModelError(problems)
    return tuple(name for name in layers if name in chosen)


def _matching(pattern: str, layers: Sequence[str]) -> list[str]:
    span = re.fullmatch(r"(?:block\.)?(\d+)\s*-\s*(?:block\.)?(\d+)", pattern)
    if span:
        first, last = int(span[1]), int(span[2])
        if last >= len(layers) or first > last:
            return []
        return list(layers[first : last + 1])
    name = f"block.{pattern}" if pattern.isdigit() else pattern
    return [layer for layer in layers if fnmatch.fnmatchcase(layer, name)]


def _check_count(count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise UserError(f"got {count} blocks to choose, the model has {available}; allowed: 1 to {available}")
