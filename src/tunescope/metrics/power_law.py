"""How the error falls with the number of training examples, and what more of them would probably bring.

The law is ``error = floor + scale * n ** -exponent``: a floor that no amount of data removes, and a part that does. Three numbers from a
handful of points are easily not told apart, so a forecast is refused where the points do not carry it, with the reason as a code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEWEST_SIZES = 4
SMALLEST_SPAN = 4.0
_EXPONENTS = (0.01, 2.0)
_GRID = np.geomspace(*_EXPONENTS, 120)
_ROUNDS = 6
_LARGEST_RESIDUAL = 0.5
_SMALLEST_DEVIATION = 1e-3
_REFITS = 1000


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law.

    Attributes:
        floor: error that remains however much data there is, in [0, 1].
        scale: at least 0.
        exponent: in [0.01, 2].
    """

    floor: float
    scale: float
    exponent: float

    def error(self, n: float) -> float:
        """Returns the error with n training examples."""
        return float(self.floor + self.scale * n**-self.exponent)


@dataclass(frozen=True)
class DataForecast:
    """What more training data would probably bring.

    Attributes:
        law: the fitted law, or None with too few sizes.
        gain: fall of the error that `factor` times the data would probably bring, or None where it cannot be told.
        low: lower end of its interval.
        high: upper end of it.
        why: code of why there is no forecast: ``too_few_sizes``, ``narrow_range``, ``no_fall``, ``misfit``, ``too_wide``; empty where there is.
        details: the numbers behind it.
    """

    law: PowerLaw | None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    details: Mapping[str, float] = field(default_factory=dict)


def fit_power_law(
    sizes: Sequence[float] | Floats,
    errors: Sequence[float] | Floats,
    *,
    deviations: Sequence[float] | Floats | None = None,
) -> PowerLaw:
    """Fits the law to points.

    For every exponent floor and scale follow from a straight line, so the best start is found without guessing; the robust loss pulls less at
    a point far from the others than squares would.

    Args:
        sizes: k numbers of training examples, above 0; at least 3 different ones.
        errors: k error rates, in [0, 1].
        deviations: k standard deviations of the errors, above 0; None: all the same.

    Returns:
        The law within its bounds: floor in [0, 1], scale at least 0, exponent in [0.01, 2].

    Raises:
        ValueError: the arrays differ in length, a number is out of range or not finite, or there are fewer than 3 different sizes.

    Source:
        Hestness et al. (2017) and Rosenfeld et al. (2020) for the law with a floor; ours bounds all three and uses the soft L1 loss of
        `scipy.optimize.least_squares`.

    Example:
        >>> law = fit_power_law([25, 50, 100, 200], [0.1 + 2 * n**-0.5 for n in (25, 50, 100, 200)])
        >>> round(law.floor, 3), round(law.scale, 2), round(law.exponent, 3)
        (0.1, 2.0, 0.5)
    """
    from scipy.optimize import least_squares

    n, y, sigma = _check(sizes, errors, deviations)
    if len(set(n.tolist())) < 3:
        raise ValueError(f"got {len(set(n.tolist()))} different sizes: three numbers of a law need at least 3")
    x = n / n.max()  # so that all three numbers are of one order

    def residuals(law: Floats) -> Floats:
        found: Floats = (law[0] + law[1] * x ** -law[2] - y) / sigma
        return found

    start = _fit_many(x, y[None], sigma)[0]
    bounds = (np.array([0.0, 0.0, _EXPONENTS[0]]), np.array([1.0, np.inf, _EXPONENTS[1]]))
    inside = np.clip(start, bounds[0], bounds[1])
    found = least_squares(
        residuals, inside, bounds=bounds, loss="soft_l1", x_scale=(0.1, 0.1, 0.3), xtol=1e-12, ftol=1e-12
    )
    floor, at_most, exponent = found.x if found.cost <= _soft_cost(residuals(inside)) else inside
    return PowerLaw(float(floor), float(at_most * n.max() ** exponent), float(exponent))


def forecast_gain(
    sizes: Sequence[float] | Floats,
    errors: Sequence[float] | Floats,
    resamples: Floats,
    *,
    factor: float = 2.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> DataForecast:
    """Says what `factor` times the training data would probably bring, or why that cannot be told.

    The interval comes from fitting the law again to resampled points. To each resample of the test examples the distances of the points
    from the law are added with random signs, since another seed of the tuning moves a point too. It is refused

    * with fewer than 4 different sizes, or sizes that span less than a factor of 4 (``too_few_sizes``, ``narrow_range``),
    * where the error does not fall from the fewest to the most examples beyond the noise (``no_fall``),
    * where a point lies further from the law than half of that fall (``misfit``),
    * where the interval of the gain is wider than the whole fall that was seen (``too_wide``).

    Args:
        sizes: k numbers of training examples, above 0.
        errors: k error rates, in [0, 1].
        resamples: the error rates in resamples of the test examples [k, n_resamples], paired over the sizes.
        factor: how much more data, above 1.
        confidence: level of the interval, in (0, 1).
        seed: of the signs.

    Returns:
        The gain with its interval, or the reason.

    Raises:
        ValueError: as `fit_power_law`; or the resamples have another number of rows, none, or `factor` or `confidence` is out of range.

    Source:
        Wu (1986) and Liu (1988) for residuals with random signs; the rules of refusal are ours.

    Example:
        >>> sizes = np.array([32, 64, 128, 256])
        >>> errors = 0.1 + 2 * sizes**-0.5
        >>> noise = np.random.default_rng(0).normal(0, 0.003, (4, 500))
        >>> found = forecast_gain(sizes, errors, errors[:, None] + noise)
        >>> round(found.gain, 3), found.low < 0.0366 < found.high
        (0.037, True)
        >>> forecast_gain([32, 64], [0.3, 0.2], np.full((2, 50), 0.2)).why
        'too_few_sizes'
    """
    n, y, _ = _check(sizes, errors, None)
    samples = np.asarray(resamples, dtype=np.float64)
    if samples.ndim != 2 or samples.shape[0] != len(n) or samples.shape[1] < 2 or not np.isfinite(samples).all():
        raise ValueError(f"resamples have shape {samples.shape}: {len(n)} rows of at least 2 finite numbers are needed")
    if not factor > 1 or not math.isfinite(factor) or not 0 < confidence < 1:
        raise ValueError(
            f"factor is {factor} and confidence {confidence}: use a factor above 1 and a level between 0 and 1"
        )
    distinct, span = len(set(n.tolist())), float(n.max() / n.min())
    if distinct < FEWEST_SIZES:
        return DataForecast(None, why="too_few_sizes", details={"have": distinct, "need": FEWEST_SIZES})
    deviations = np.maximum(samples.std(axis=1, ddof=1), _SMALLEST_DEVIATION)
    law = fit_power_law(n, y, deviations=deviations)
    if span < SMALLEST_SPAN:
        return DataForecast(law, why="narrow_range", details={"have": span, "need": SMALLEST_SPAN})
    residuals = y - np.array([law.error(size) for size in n])
    moved = _moved(y - residuals, samples, residuals, seed)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    few, most = n == n.min(), n == n.max()
    fall = float(y[few].mean() - y[most].mean())
    low, high = np.quantile(moved[:, few].mean(axis=1) - moved[:, most].mean(axis=1), ends).tolist()
    if low <= 0 or fall <= 0:
        return DataForecast(law, why="no_fall", details={"fall": fall, "low": low, "high": high})
    worst = float(np.abs(residuals).max())
    if worst > _LARGEST_RESIDUAL * fall:
        return DataForecast(law, why="misfit", details={"distance": worst, "fall": fall})
    _, scales, exponents = _fit_many(n / n.max(), np.clip(moved, 0, 1), deviations).T  # scale: what may still fall
    low, high = np.quantile(scales * (1 - factor**-exponents), ends).tolist()
    gain = law.error(float(n.max())) - law.error(factor * float(n.max()))
    if high - low > fall:
        return DataForecast(law, why="too_wide", details={"low": low, "high": high, "fall": fall})
    return DataForecast(law, gain, min(low, gain), max(high, gain))


def _moved(fitted: Floats, samples: Floats, residuals: Floats, seed: int) -> Floats:
    """The points of the law (n_refits, k), moved as the resamples move and by the residuals with random signs."""
    dice = np.random.default_rng([seed, 0xDA7A])
    chosen = dice.permutation(samples.shape[1])[:_REFITS]
    larger = math.sqrt(
        len(residuals) / (len(residuals) - 3)
    )  # three numbers were fitted, which made the residuals smaller
    shifts = (samples - samples.mean(axis=1, keepdims=True))[:, chosen].T
    moved: Floats = fitted + shifts + larger * residuals * dice.choice([-1, 1], shifts.shape)
    return moved


def _fit_many(x: Floats, y: Floats, sigma: Floats) -> Floats:
    """Laws (rows, 3) of points y (rows, k): for every exponent of a grid the best floor and scale, then the best exponent.

    Floor and scale come from weighted squares, the weights from the soft L1 loss of the round before.
    """
    z = x[None] ** -_GRID[:, None]  # (exponents, k)
    weights = np.ones((len(y), len(_GRID), len(x))) / sigma**2
    for _ in range(_ROUNDS):
        floor, scale = _lines(z, y, weights)
        residuals = (floor[..., None] + scale[..., None] * z - y[:, None]) / sigma
        weights = 1 / sigma**2 / np.sqrt(1 + residuals**2)
    best = _soft_cost(residuals).argmin(axis=1)
    rows = np.arange(len(y))
    return np.stack([floor[rows, best], scale[rows, best], _GRID[best]], axis=1)


def _lines(z: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Best floor and scale (rows, exponents) of floor + scale * z, neither below 0."""
    total = weights.sum(-1)
    mean_z, mean_y = (weights * z).sum(-1) / total, (weights * y[:, None]).sum(-1) / total
    spread = (weights * (z - mean_z[..., None]) ** 2).sum(-1)
    together = (weights * (z - mean_z[..., None]) * (y[:, None] - mean_y[..., None])).sum(-1)
    scale = np.maximum(0.0, together / spread)
    floor = mean_y - scale * mean_z
    through_zero = (weights * z * y[:, None]).sum(-1) / (weights * z * z).sum(-1)
    return np.where(floor < 0, 0.0, floor), np.where(floor < 0, through_zero, scale)


def _soft_cost(residuals: Floats) -> Floats:
    cost: Floats = (np.sqrt(1 + residuals**2) - 1).sum(-1)
    return cost


def _check(
    sizes: Sequence[float] | Floats, errors: Sequence[float] | Floats, deviations: Sequence[float] | Floats | None
) -> tuple[Floats, Floats, Floats]:
    n, y = np.asarray(sizes, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    sigma = np.full_like(y, 0.01) if deviations is None else np.asarray(deviations, dtype=np.float64)
    if n.ndim != 1 or n.shape != y.shape or n.shape != sigma.shape or not len(n):
        raise ValueError(
            f"sizes {n.shape}, errors {y.shape}, deviations {sigma.shape}: equally long and not empty, please"
        )
    if not (np.isfinite(n) & (n > 0)).all():
        raise ValueError(f"sizes hold {n[~(np.isfinite(n) & (n > 0))][0]}: every number of examples must be above 0")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError(f"errors hold {y[~((y >= 0) & (y <= 1))][0]}: every error rate must be in [0, 1]")
    if not (np.isfinite(sigma) & (sigma > 0)).all():
        raise ValueError("deviations must be finite and above 0")
    return n, y, sigma
