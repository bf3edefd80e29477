"""The controls keep the budget of the choice, differ from it, and favour no size of piece."""

from __future__ import annotations

import pytest
import torch

from tunescope.errors import UserError
from tunescope.select import (
    GRANULARITIES,
    Budget,
    Context,
    Mask,
    masks,
    random_control,
    score,
    top_third_control,
    training_flops,
    unit_sizes,
)

N_LAYERS = 6
SHAPES = {"q": (12, 12), "v": (6, 12), "down": (12, 24)}


def offered() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"block.{i}.{part}": torch.randn(shape) for i in range(N_LAYERS) for part, shape in SHAPES.items()}


SIZES = {name: weight.numel() for name, weight in offered().items()}
TOTAL = sum(SIZES.values())


def smallest_left_out(like: Mask, found: Mask) -> int:
    """Weights in the smallest piece that the control did not take."""
    if like.granularity == "block":
        return min(TOTAL // N_LAYERS for i in range(N_LAYERS) if f"block.{i}" not in found.layers)
    sizes = []
    for name, weight in offered().items():
        shape = (weight.shape[0], weight.shape[1])
        pieces = unit_sizes(shape, like.granularity)
        taken = found.entries.get(name, torch.zeros(shape, dtype=torch.bool))
        if not taken.all():
            sizes.append(int(pieces.min()))
    return min(sizes)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.83])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_random_control_has_the_budget_of_the_choice_and_is_another_one(granularity: str, share: float) -> None:
    weights = offered()
    budget = Budget(share=share)
    chosen = masks(score("magnitude", weights), granularity=granularity, budget=budget)
    for seed in range(5):
        found = random_control(chosen, weights, budget=budget, seed=seed)
        assert found.granularity == granularity and found.total == chosen.total == TOTAL
        assert found.sha256 != chosen.sha256
        assert 0 <= chosen.count - found.count < smallest_left_out(chosen, found)
        if granularity == "entry":
            assert found.count == chosen.count == int(share * TOTAL)


def test_the_same_seed_draws_the_same_and_another_seed_another_one() -> None:
    weights, budget = offered(), Budget(share=0.1)
    chosen = masks(score("magnitude", weights), budget=budget)
    hashes = [random_control(chosen, weights, budget=budget, seed=seed).sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("order", [list, lambda names: list(reversed(list(names)))])
def test_the_order_in_which_matrices_are_offered_does_not_matter(order) -> None:
    weights, budget = offered(), Budget(share=0.1)
    chosen = masks(score("magnitude", weights), budget=budget)
    other = {name: weights[name] for name in order(weights)}
    assert random_control(chosen, other, budget=budget, seed=3).sha256 == (
        random_control(chosen, weights, budget=budget, seed=3).sha256
    )


def test_every_piece_has_the_same_chance_whatever_its_size() -> None:
    """Scores drawn per weight would choose small rows far more often: the mean of few numbers varies more."""
    weights = {"block.0.q": torch.ones(200, 8), "block.0.down": torch.ones(200, 24)}
    budget = Budget(share=0.1)

    def shares(found: Mask) -> list[float]:
        nothing = torch.zeros(1, 1, dtype=torch.bool)
        return [float(found.entries.get(name, nothing).any(dim=1).float().mean()) for name in weights]

    per_weight = masks(score("random", weights, context=Context(seed=9)), granularity="row", budget=budget)
    drawn = torch.tensor([shares(random_control(per_weight, weights, budget=budget, seed=s)) for s in range(60)])
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.1, 0.1], abs=0.02)
    assert shares(per_weight)[0] > 0.15  # what it would have been


def test_a_part_per_matrix_is_drawn_per_matrix() -> None:
    weights, budget = offered(), Budget(share=0.1, per_matrix=True)
    chosen = masks(score("magnitude", weights), budget=budget)
    assert random_control(chosen, weights, budget=budget, seed=0).counts == chosen.counts


@pytest.mark.parametrize("granularity", ["block", "module"])
def test_a_bound_on_the_cost_holds_for_both_controls(granularity: str) -> None:
    weights = offered()
    budget = Budget(flops=0.75 * training_flops(SIZES, SIZES, tokens=1), tokens=1)
    chosen = masks(score("magnitude", weights), granularity=granularity, budget=budget)
    upper = top_third_control(chosen, score("magnitude", weights), budget=budget, n_layers=N_LAYERS)
    for found in (upper, *(random_control(chosen, weights, budget=budget, seed=seed) for seed in range(5))):
        assert training_flops(SIZES, found.entries, tokens=1) <= budget.flops_limit  # type: ignore[operator]
    assert upper.layers[-1] == f"block.{N_LAYERS - 1}"
    numbers = [int(name.partition(".")[2]) for name in upper.layers]
    assert numbers == list(range(numbers[0], N_LAYERS))


def test_a_budget_that_leaves_one_choice_is_refused() -> None:
    weights = {"block.0.q": torch.ones(4, 4), "block.1.down": torch.ones(8, 8)}
    chosen = masks(score("magnitude", weights), granularity="module", budget=Budget(weights=16))
    assert list(chosen.entries) == ["block.0.q"]
    with pytest.raises(UserError, match="leave only one choice with granularity module"):
        random_control(chosen, weights, budget=Budget(weights=16), seed=0)


def test_a_choice_of_everything_may_be_drawn_again() -> None:
    weights = offered()
    chosen = masks(score("magnitude", weights), budget=Budget(share=1.0))
    assert random_control(chosen, weights, budget=Budget(share=1.0), seed=0).sha256 == chosen.sha256


@pytest.mark.parametrize("granularity", ["entry", "row", "column", "tile", "module"])
def test_the_top_third_takes_the_best_pieces_of_the_upper_blocks(granularity: str) -> None:
    scores, budget = score("magnitude", offered()), Budget(share=0.2)
    chosen = masks(scores, granularity=granularity, budget=budget)
    found = top_third_control(chosen, scores, budget=budget, n_layers=N_LAYERS)
    assert set(found.layers) <= {"block.4", "block.5"}
    assert found.total == TOTAL and found.granularity == granularity
    top = {name: s for name, s in scores.items() if name.startswith(("block.4", "block.5"))}
    assert found.sha256 == masks(top, granularity=granularity, budget=Budget(weights=chosen.count)).sha256


def test_the_top_third_grows_as_far_as_the_budget_needs_and_no_further() -> None:
    scores, budget = score("magnitude", offered()), Budget(share=0.6)
    chosen = masks(scores, budget=budget)
    found = top_third_control(chosen, scores, budget=budget, n_layers=N_LAYERS)
    assert found.layers == ("block.2", "block.3", "block.4", "block.5")
    assert found.count == chosen.count
