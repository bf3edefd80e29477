"""From every selector to tuned weights: the same budget, the same choice every time, and every bit outside it as it was."""

from __future__ import annotations

import pytest
import torch
from weights_to_score import CONTEXT, N_LAYERS, offered, rows

from tunescope.engine import Recipe, Tuner, describe, prepare, to_inference
from tunescope.models import canonical_name, family_of
from tunescope.select import GRANULARITIES, SELECTORS, Budget, Context, masks, score, selection_of, training_flops
from tunescope.testing import tiny_model

FAMILY = family_of("llama")
SHARE = 0.4
RECIPE = Recipe(1e-2, num_epochs=2, batch_size=4, weight_decay=0.2)


def own(weights, statistics, context):
    """A user's function: large weights with small gradients."""
    return {name: weight.abs() - statistics.total[name].abs() for name, weight in weights.items()}


ALL = {**SELECTORS, "own": own}


@pytest.fixture(scope="module")
def llama():
    return offered()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The tiny matrices are below 256 x 256: with tiles of 16 x 16 they have several."""
    monkeypatch.setattr("tunescope.select.granularity.TILE", 16)


def choose(name, llama, granularity, budget, *, seed=CONTEXT.seed, sizes=None):
    context = Context(seed, CONTEXT.rank, CONTEXT.layer_map, CONTEXT.causal)
    return masks(score(ALL[name], *llama, context=context), granularity=granularity, budget=budget, sizes=sizes)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ALL)
def test_no_budget_is_exceeded(name, granularity, llama):
    sizes = {matrix: weight.numel() for matrix, weight in llama[0].items()}
    total = sum(sizes.values())
    half = 0.75 * training_flops(sizes, sizes, tokens=100)
    least = total // N_LAYERS if granularity == "block" else max(sizes.values())
    for weights in (least, least + 1, total - 1, total):
        count = choose(name, llama, granularity, Budget(weights=weights)).count
        assert 0 < count <= weights
        assert granularity != "entry" or count == weights
    mask = choose(name, llama, granularity, Budget(flops=half, tokens=100), sizes=sizes)
    assert training_flops(sizes, mask.entries, tokens=100) <= half
    if granularity not in ("module", "block"):
        mask = choose(name, llama, granularity, Budget(share=SHARE, per_matrix=True))
        assert all(mask.counts.get(matrix, 0) <= SHARE * size for matrix, size in sizes.items())


def test_all_selectors_move_as_many_single_entries(llama):
    counts = {choose(name, llama, "entry", Budget(share=0.05)).count for name in ALL}
    assert counts == {int(0.05 * sum(weight.numel() for weight in llama[0].values()))}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_for_random_alone(name, granularity, llama):
    budget = Budget(share=SHARE)
    found = {seed: choose(name, llama, granularity, budget, seed=seed).sha256 for seed in range(8)}
    assert found == {seed: choose(name, llama, granularity, budget, seed=seed).sha256 for seed in range(8)}
    assert (len(set(found.values())) > 1) is (name == "random")


def bits(model):
    """Canonical name -> the bits of a weight, whatever wraps it; the numbers of an adapter left out."""
    return {
        canonical_name(name.replace(".base_layer", ""), FAMILY): parameter.detach().clone().view(torch.int32)
        for name, parameter in model.named_parameters()
        if "shira_" not in name
    }


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ALL)
def test_tuning_with_weight_decay_moves_the_selection_and_keeps_every_other_bit(name, granularity, llama):
    mask = choose(name, llama, granularity, Budget(share=SHARE))
    whole = all(chosen.all() for chosen in mask.entries.values())
    assert whole or granularity not in ("module", "block")
    model = tiny_model(n_layers=N_LAYERS)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[:, ::3] = -0.0  # a zero that an addition can change
    before = bits(model)
    selection = selection_of(mask, method="weights" if whole else "sparse", why="test")
    moving = prepare(model, FAMILY, selection, mask=None if whole else mask)
    assert describe(moving).startswith(f"{mask.count:,} of ")
    assert len(list(Tuner(moving, rows(8), RECIPE).steps())) == 4
    after = bits(to_inference(moving))
    assert list(after) == list(before)
    moved = 0
    for matrix, found in after.items():
        chosen = mask.entries.get(matrix.removesuffix(".weight"), torch.zeros(found.shape, dtype=torch.bool))
        assert torch.equal(found[~chosen], before[matrix][~chosen]), matrix
        moved += int((found[chosen] != before[matrix][chosen]).sum())
    assert 0.95 * mask.count < moved <= mask.count
