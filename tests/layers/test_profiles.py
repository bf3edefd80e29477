"""Comparing many blocks at once gives, number by number, what comparing them one by one gives."""

from __future__ import annotations

import numpy as np
import pytest

from tunescope import layers
from tunescope.errors import UserError


def blocks(n: int, d: int, n_blocks: int = 3) -> np.ndarray:
    random = np.random.default_rng([n, d])
    return np.cumsum(random.standard_normal((n_blocks, n, d)), axis=0).astype(np.float32)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize(("n", "d"), [(5, 3), (30, 7), (30, 80)])
def test_scores_resamples_and_null_are_those_of_the_single_functions(n: int, d: int, estimator: str) -> None:
    states = blocks(n, d)
    draws = layers.Comparison(n, n_bootstrap=40, n_permutations=25, seed=3, estimator=estimator)
    shared = [draws.geometry(block) for block in states]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        found = draws.similarity(shared[i], shared[j])
        how = {"seed": 3, "estimator": estimator}
        assert found.value == pytest.approx(layers.cka(states[i], states[j], estimator=estimator), abs=1e-12)
        np.testing.assert_allclose(
            found.resampled, layers.cka_bootstrap(states[i], states[j], n_bootstrap=40, **how), atol=1e-12
        )
        np.testing.assert_allclose(
            found.null, layers.permutation_null(states[i], states[j], n_permutations=25, **how), atol=1e-12
        )
        assert found.resampled.std() > 0 and found.null.std() > 0


def test_four_prompts_have_a_score_and_a_null_but_no_resamples() -> None:
    states = blocks(4, 6)
    draws = layers.Comparison(4, n_bootstrap=20, n_permutations=20, seed=0)
    found = draws.similarity(draws.geometry(states[0]), draws.geometry(states[1]))
    assert found.resampled is None
    assert found.null.shape == (20,)
    assert found.value == pytest.approx(layers.cka(states[0], states[1]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n": 3}, "3 prompts"),
        ({"n_bootstrap": 0}, "n_bootstrap is 0"),
        ({"n_permutations": 0}, "n_permutations is 0"),
        ({"estimator": "unbiased"}, "'unbiased'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], says: str) -> None:
    values = {"n": 10, "n_bootstrap": 20, "n_permutations": 20, "seed": 0} | settings
    with pytest.raises(UserError, match=says):
        layers.Comparison(values.pop("n"), **values)


def test_states_that_cannot_be_compared_are_refused_by_the_name_they_were_given() -> None:
    draws = layers.Comparison(10, n_bootstrap=400, n_permutations=20, seed=0)
    good = np.random.default_rng(0).standard_normal((10, 4))
    two_differ = np.zeros((10, 4))
    two_differ[:2] = good[:2]
    with pytest.raises(UserError, match=r"all 10 rows of block\.3 are the same"):
        draws.geometry(np.ones((10, 4)), "block.3")
    with pytest.raises(UserError, match=r"without some of the prompts .* of block\.3"):
        draws.geometry(two_differ, "block.3")
    with pytest.raises(UserError, match=r"block\.3 has 9 rows, wanted 10"):
        draws.geometry(good[:9], "block.3")
    with pytest.raises(UserError, match=r"block\.3 holds nan at row 0, column 0"):
        draws.geometry(np.where(good == good[0, 0], np.nan, good), "block.3")
