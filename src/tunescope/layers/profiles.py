"""CKA over many blocks of the same prompts: resamples, permutations and Gram matrices are made once and shared.

A map compares tens of blocks for tens of tasks. Every number is the one that `cka`, `cka_bootstrap` and `permutation_null` give for the
same seed; what is saved is that they would draw the same subsets and permutations, and build the same Gram matrices, for every pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunescope.errors import UserError
from tunescope.layers.gram import (
    Estimator,
    Floats,
    Matrix,
    as_matrix,
    as_wide_as_all,
    at_least_one,
    centred,
    subset_lengths,
    subset_products,
    subsets,
    unit_gram,
)


@dataclass(frozen=True)
class Geometry:
    """How the prompts lie to each other in one set of states.

    Attributes:
        name: what messages call the states.
        gram: centred Gram matrix (n, n) of length 1.
        sums: per resample and prompt in it, the sum of its row over the resample (n_bootstrap, n); None where n is 4.
        lengths: per resample the squared length of its own re-centred Gram matrix (n_bootstrap,), or None.
    """

    name: str
    gram: Floats
    sums: Floats | None
    lengths: Floats | None


@dataclass(frozen=True)
class Similarity:
    """CKA of two sets of states, with what resampling and chance make of it.

    Attributes:
        value: the score of all prompts.
        resampled: scores over resampled prompts (n_bootstrap,), as `cka_bootstrap` gives them; None where n is 4.
        null: scores with the rows of one side dealt out anew (n_permutations,), as `permutation_null` gives them.
    """

    value: float
    resampled: Floats | None
    null: Floats


class Comparison:
    """Compares sets of states of the same n prompts, all on the same resamples and permutations.

    Memory: 8 · n · (n_bootstrap + n_permutations) bytes for the draws, and 8 · n · (n + n_bootstrap) for each geometry.

    Args:
        n: prompts, at least 4. With exactly 4 there are no resamples.
        n_bootstrap: resamples of the prompts.
        n_permutations: permutations of the prompts.
        seed: of both; the scores are those of `cka_bootstrap` and `permutation_null` with this seed.
        estimator: as in `cka`.

    Raises:
        UserError: fewer than 4 prompts, no resample or no permutation, or an unknown estimator.

    Example:
        >>> from tunescope.layers import cka
        >>> x = np.random.default_rng(0).standard_normal((3, 20, 6))
        >>> blocks = Comparison(20, n_bootstrap=50, n_permutations=50, seed=0)
        >>> first, second, third = (blocks.geometry(states, f"block.{i}") for i, states in enumerate(x))
        >>> bool(abs(blocks.similarity(first, second).value - cka(x[0], x[1])) < 1e-12)
        True
        >>> blocks.similarity(first, third).resampled.shape
        (50,)
    """

    def __init__(
        self, n: int, *, n_bootstrap: int, n_permutations: int, seed: int, estimator: Estimator = "debiased"
    ) -> None:
        if n < 4:
            raise UserError(f"{n} prompts: similarity needs at least 4, give more")
        if estimator not in ("debiased", "biased"):
            raise UserError(f"estimator is {estimator!r}: use debiased or biased")
        at_least_one(n_bootstrap, "n_bootstrap")
        at_least_one(n_permutations, "n_permutations")
        self.n = n
        self.estimator = estimator
        self._kept = subsets(n, n_bootstrap, seed=seed) if n > 4 else None
        random = np.random.default_rng(seed)
        self._orders = [random.permutation(n) for _ in range(n_permutations)]

    def geometry(self, states: Matrix, name: str = "the states") -> Geometry:
        """Returns what comparing needs of states (n, d), to be used for every comparison they take part in.

        Raises:
            UserError: another number of rows, NaN or infinity, or rows that are all the same, with or without a few of them.
        """
        matrix = as_matrix(states, name, at_least=4)
        if len(matrix) != self.n:
            raise UserError(f"{name} has {len(matrix)} rows, wanted {self.n}: give the states of the same prompts")
        gram = unit_gram(centred(matrix, name), self.estimator, name)
        if self._kept is None:
            return Geometry(name, gram, None, None)
        return Geometry(name, gram, *subset_lengths(gram, self._kept, self.estimator, name))

    def similarity(self, x: Geometry, y: Geometry) -> Similarity:
        """Compares two sets of states."""
        value = min(1.0, max(-1.0, float(np.vdot(x.gram, y.gram))))
        resampled: Floats | None = None
        if (
            self._kept is not None
            and x.sums is not None
            and y.sums is not None
            and x.lengths is not None
            and y.lengths is not None
        ):
            products = subset_products(self._kept, x.gram * y.gram, x.sums, y.sums, self.estimator)
            resampled = as_wide_as_all(value, products / np.sqrt(x.lengths * y.lengths), self._kept)
        null = np.array([np.vdot(x.gram, y.gram[order].take(order, axis=1)) for order in self._orders])
        return Similarity(value, resampled, null)
