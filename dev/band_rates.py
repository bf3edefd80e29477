"""How often bands are found in simulated maps: where none was planted, and where one was. Run: python dev/band_rates.py [MAPS].

Each family is drawn MAPS times (120) with 10, 20, 40 or 60 tasks and 24, 30 or 36 blocks; noise between tasks 0.02, noise that all tasks
share 0.003 or 0.01, neighbouring blocks correlated by 0.3 and 0.5. The table is in docs/map.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tunescope.layers import find_bands

Floats = NDArray[np.float64]
Random = np.random.Generator
TASKS, BLOCKS, SHARED = (10, 20, 40, 60), (24, 30, 36), (0.003, 0.01)


def correlated(rng: Random, shape: tuple[int, ...], correlation: float) -> Floats:
    """Autoregressive noise of variance 1 over the last axis."""
    noise = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = correlation * noise[..., i - 1] + np.sqrt(1 - correlation**2) * noise[..., i]
    return noise


def tasks(rng: Random, n_tasks: int, course: Floats, shared: float) -> Floats:
    """Profiles of tasks that follow one course, each by 0.8 to 1.2 of it."""
    own = 0.02 * correlated(rng, (n_tasks, len(course)), 0.3)
    common = shared * correlated(rng, (1, len(course)), 0.5)
    level = 0.8 + 0.05 * rng.standard_normal((n_tasks, 1))
    profiles: Floats = level + rng.uniform(0.8, 1.2, (n_tasks, 1)) * course + own + common
    return profiles


def bump(rng: Random, n: int, width: float, kind: str = "bell") -> Floats:
    """A hill or a valley of height 0.05 to 0.3."""
    u = (np.arange(n) - rng.uniform(2, n - 3)) / width
    shapes = {
        "bell": np.exp(-(u**2) / 2),
        "cosine": np.where(np.abs(u) < 1, np.cos(np.pi * u / 2) ** 2, 0),
        "triangle": np.maximum(0, 1 - np.abs(u)),
        "wide feet": 1 / (1 + u**2),
    }
    return np.asarray(rng.choice([-1, 1]) * rng.uniform(0.05, 0.3) * shapes[kind])


def line(rng: Random, n: int) -> Floats:
    """A straight line."""
    return np.asarray(rng.choice([-1, 1]) * rng.uniform(0.1, 0.5) * np.linspace(0, 1, n))


def smooth(rng: Random, n: int, scale: float) -> Floats:
    """A Gaussian process; its length scale is a share of the depth."""
    x = np.linspace(0, 1, n)
    covariance = np.exp(-(((x[:, None] - x) / scale) ** 2) / 2) + 1e-8 * np.eye(n)
    return np.asarray(0.1 * np.linalg.cholesky(covariance) @ rng.standard_normal(n))


WITHOUT: dict[str, Callable[[Random, int], Floats]] = {
    "flat": lambda rng, n: np.zeros(n),
    "straight line": line,
    **{
        f"autocorrelated, {r}": lambda rng, n, r=r: rng.uniform(0.03, 0.12) * correlated(rng, (n,), r)
        for r in (0.5, 0.8, 0.95)
    },
    **{f"bump, sd {w} blocks": lambda rng, n, w=w: bump(rng, n, w) for w in (0.7, 1.0, 1.5, 2.0, 3.0)},
    "bump, cosine": lambda rng, n: bump(rng, n, rng.uniform(2.5, 4), "cosine"),
    "bump, triangle": lambda rng, n: bump(rng, n, rng.uniform(2.5, 4), "triangle"),
    "bump, wide feet": lambda rng, n: bump(rng, n, 1.0, "wide feet"),
    "bump on a line": lambda rng, n: bump(rng, n, rng.uniform(0.8, 2)) + line(rng, n),
    "two bumps": lambda rng, n: bump(rng, n, rng.uniform(0.8, 2)) + bump(rng, n, rng.uniform(0.8, 2)),
    **{f"smooth, scale {s}": lambda rng, n, s=s: smooth(rng, n, s) for s in (0.05, 0.1, 0.2, 0.4)},
}


def planted(form: str, height: float, n: int, start: int, end: int) -> Floats:
    """A band from `start` to before `end`."""
    i = np.arange(n)
    inside, after = (i >= start) & (i < end), i >= end
    return (
        height
        * {
            "in and out": -1.0 * inside,
            "two steps": -1.0 * inside - 2.0 * after,
            "up, then down": 1.0 * inside - 1.0 * after,
            "ramp": np.clip((i - start + 1) / (end - start + 1), 0, 1),
        }[form]
    )


def main() -> None:
    """Prints one line per family."""
    maps = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    for name, course in WITHOUT.items():
        found = np.zeros(2)
        for seed in range(maps):
            rng = np.random.default_rng([seed, 1])
            n_tasks, n, shared = TASKS[seed % 4], BLOCKS[seed // 4 % 3], SHARED[seed % 2]
            base, tuned = (tasks(rng, n_tasks, course(rng, n), shared) for _ in range(2))
            found += [
                find_bands(base, n_bootstrap=50, seed=seed).found,
                find_bands(base, tuned, n_bootstrap=50, seed=seed).found,
            ]
        print(f"no band: {name}: one profile {found[0] / maps:.3f}, with signs {found[1] / maps:.3f}", flush=True)
    for form in ("in and out", "two steps", "up, then down", "ramp"):
        for height in (0.05, 0.1, 0.2):
            boundaries = []
            for seed in range(maps):
                rng = np.random.default_rng([seed, 2])
                n_tasks, n, shared = TASKS[seed % 4], BLOCKS[seed // 4 % 3], SHARED[seed % 2]
                start = int(rng.integers(n // 5, n // 2))
                end = start + int(rng.integers(4, n // 3 + 1))
                bands = find_bands(
                    tasks(rng, n_tasks, planted(form, height, n, start, end), shared), n_bootstrap=50, seed=seed
                )
                if bands.boundaries is not None:
                    boundaries.append(max(abs(bands.boundaries[0] - start), abs(bands.boundaries[1] - end)) <= 2)
            right = float(np.mean(boundaries)) if boundaries else float("nan")
            print(
                f"{form}, {height}: found {len(boundaries) / maps:.3f}, of these within two blocks {right:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
