"""Differences between models that were tuned with several seeds and measured on several test files.

Two kinds of chance meet here: which examples are in a test file, and which seed a model was tuned with. Both are resampled: the examples
of a file for all models together, since they answer the same ones, and the seeds for all files together. Of two or three seeds a
bootstrap knows little; look at the single seeds as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tunescope.metrics.bootstrap import Difference, paired_difference

Floats = npt.NDArray[np.float64]


def crossed_difference(
    a: Mapping[tuple[Hashable, Hashable], Floats],
    b: Mapping[tuple[Hashable, Hashable], Floats],
    *,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compares two ways of tuning over several models and test files.

    Args:
        a: (model, test file) -> scores in [0, 1], (n_seeds, n_examples).
        b: the same keys; either as many seeds, in the same order, or one row that all seeds of `a` are held against.
        n_bootstrap: resamples.
        confidence: level of the interval, in (0, 1).
        seed: of the resampling.

    Returns:
        Mean of a minus mean of b, every key weighing the same, with an interval over examples and seeds that is never narrower than the
        one over examples alone (`paired_difference`).

    Raises:
        ValueError: there are no keys, the keys differ, or the shapes do not fit.

    Example:
        >>> better = {("m", "t"): np.full((2, 30), 0.9)}
        >>> found = crossed_difference(better, {("m", "t"): np.full((1, 30), 0.4)})
        >>> round(found.value, 3), found.decides
        (0.5, True)
    """
    if not a or set(a) != set(b):
        raise ValueError(
            f"a has {len(a)} pairs of model and file and b {len(b)}: the same pairs are needed, at least 1"
        )
    gaps = {key: _gap(key, values, b[key]) for key, values in a.items()}
    draws = resample_seeds_and_examples(gaps, n_bootstrap, seed)
    settings: dict[str, Any] = {"n_bootstrap": n_bootstrap, "confidence": confidence, "seed": seed}
    pairs = [(key, np.asarray(a[key]).mean(axis=0), np.asarray(b[key]).mean(axis=0)) for key in a]
    alone = paired_difference(
        np.concatenate([x for _, x, _ in pairs]),
        np.concatenate([y for _, _, y in pairs]),
        strata=[str(key) for key, x, _ in pairs for _ in x],
        **settings,
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    low, high = min(low, alone.low), max(high, alone.high)
    positive = float((draws > 0).mean() + (draws == 0).mean() / 2)
    return Difference(alone.value, low, high, (high - low) / 2, positive, alone.n)


def resample_seeds_and_examples(gaps: Mapping[Any, Floats], n_bootstrap: int, seed: int) -> Floats:
    """Gives the mean of differences in resamples of seeds and of examples.

    Args:
        gaps: name of a test file, or (model, test file) -> differences (n_seeds, n_examples); entries of the same file have the same examples
            in the same order. Entries may have different numbers of seeds only if some have 1.
        n_bootstrap: resamples.
        seed: of the resampling.

    Returns:
        (n_bootstrap,) means, every entry weighing the same.

    Example:
        >>> draws = resample_seeds_and_examples({"t": np.full((3, 20), 0.5)}, 100, seed=0)
        >>> draws.shape, bool(np.allclose(draws, 0.5))
        ((100,), True)
    """
    random = np.random.default_rng([seed, 0xC401CE])
    n_seeds = max(len(values) for values in gaps.values())
    seeds = random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_bootstrap) / n_seeds
    draws = np.zeros(n_bootstrap)
    examples: dict[Any, Floats] = {}
    for key, values in gaps.items():
        file = key[1] if isinstance(key, tuple) else key
        n = values.shape[1]
        if file not in examples:
            examples[file] = random.multinomial(n, np.full(n, 1 / n), n_bootstrap) / n
        by_seed = np.ones((n_bootstrap, 1)) if len(values) == 1 else seeds
        draws += ((by_seed @ values) * examples[file]).sum(axis=1) / len(gaps)
    return draws


def _gap(key: object, a: Floats, b: Floats) -> Floats:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    fits = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1] > 0
    if not fits or 0 in (len(first), len(second)) or (len(first) != len(second) and 1 not in (len(first), len(second))):
        raise ValueError(
            f"{key}: shapes {first.shape} and {second.shape} do not compare: (n_seeds, n_examples) each, the same examples, and as many "
            "seeds or one row"
        )
    gap: Floats = first - second
    return gap
