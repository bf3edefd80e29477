"""Every selector keeps the same contract at every granularity, and each scores what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from weights_to_score import CONTEXT, FAMILIES, LAYERS, N_LAYERS, layer_scores, offered

from tunescope.errors import UserError
from tunescope.models import PARTS
from tunescope.runs.records import Bands
from tunescope.select import GRANULARITIES, SELECTORS, Budget, Context, masks, score, unit_means, unit_sizes


def own(weights, statistics, context):
    """A user's function: the first column counts."""
    return {name: torch.arange(w.shape[1]).neg().double().expand(w.shape) for name, w in weights.items()}


ALL = {**SELECTORS, "own": own}
SHARE = 0.4


@pytest.fixture(scope="module")
def llama():
    return offered()


# --- the contract of all ---


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ALL)
def test_a_selector_scores_every_weight_and_its_best_pieces_move(name, granularity, llama):
    weights, statistics = llama
    before = {matrix: weight.clone() for matrix, weight in weights.items()}
    scores = score(ALL[name], weights, statistics, context=CONTEXT)
    assert list(scores) == list(weights)
    assert {(s.dtype, s.device.type, s.requires_grad) for s in scores.values()} == {(torch.float32, "cpu", False)}
    assert all(scores[matrix].shape == weights[matrix].shape for matrix in weights)
    assert all(torch.equal(weights[matrix], before[matrix]) for matrix in weights)

    mask = masks(scores, granularity=granularity, budget=Budget(share=SHARE))
    total = sum(w.numel() for w in weights.values())
    assert 0 < mask.count <= SHARE * total
    assert mask.total == total
    if granularity == "entry":
        assert mask.count == int(SHARE * total)
    again = score(ALL[name], weights, statistics, context=CONTEXT)
    assert masks(again, granularity=granularity, budget=Budget(share=SHARE)).sha256 == mask.sha256

    chosen = {matrix: mask.entries.get(matrix, torch.zeros(w.shape, dtype=torch.bool)) for matrix, w in weights.items()}
    inside, outside = units(scores, chosen, granularity)
    left = SHARE * total - mask.count
    assert all(size > left for size, _ in outside), "a piece that still fits was left out"
    for size in {size for size, _ in outside}:  # a piece that did not fit leaves no room for one as large after it
        as_large = [mean for other, mean in inside if other >= size]
        assert not as_large or max(mean for other, mean in outside if other == size) <= min(as_large)


def units(scores, chosen, granularity):
    """(size, mean score) of every piece that moves and of every piece that does not; no piece is cut."""
    found = ([], [])
    if granularity == "block":
        for block in LAYERS:
            names = [f"{block}.{part}" for part in PARTS]
            states = {bool(value) for name in names for value in chosen[name].flatten()}
            assert len(states) == 1
            together = torch.cat([scores[name].flatten() for name in names]).double()
            found[0 if states == {True} else 1].append((together.numel(), float(together.mean())))
        return found
    for name, matrix in scores.items():
        share = unit_means(chosen[name].float(), granularity)
        assert ((share == 0) | (share == 1)).all()
        sizes, means = unit_sizes(tuple(matrix.shape), granularity), unit_means(matrix, granularity)
        for moves, size, mean in zip(share.flatten(), sizes.flatten(), means.flatten(), strict=True):
            found[0 if moves else 1].append((int(size), float(mean)))
    return found


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_is_found_by_its_name(name, llama):
    weights, statistics = llama
    by_name = score(name, weights, statistics, context=CONTEXT)
    by_function = score(SELECTORS[name], weights, statistics, context=CONTEXT)
    assert all(torch.equal(by_name[matrix], by_function[matrix]) for matrix in weights)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_works_in_every_family_and_in_bfloat16(name, family):
    weights, statistics = offered(family, dtype=torch.bfloat16)
    assert list(weights) == [f"block.{i}.{part}" for i in range(N_LAYERS) for part in PARTS]
    scores = score(name, weights, statistics, context=CONTEXT)
    assert {s.dtype for s in scores.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["random", "magnitude", "gradient", "fisher", "snip", "low_rank_magnitude"])
def test_the_score_of_a_matrix_does_not_depend_on_what_else_is_offered(name, llama):
    weights, statistics = llama
    alone = {"block.1.down": weights["block.1.down"]}
    some = score(name, alone, statistics, context=CONTEXT)["block.1.down"]
    assert torch.equal(some, score(name, weights, statistics, context=CONTEXT)["block.1.down"])


# --- what each says ---


def test_random_is_uniform_and_depends_on_the_seed():
    weights = {"block.0.q": torch.zeros(300, 200), "block.1.q": torch.zeros(300, 200)}
    first, again, other = (score("random", weights, context=Context(seed=seed)) for seed in (0, 0, 1))
    values = first["block.0.q"].flatten().sort().values
    ideal = (torch.arange(60_000) + 0.5) / 60_000
    assert (values - ideal).abs().max() < 1.95 / 60_000**0.5  # Kolmogorov-Smirnov, p = 0.001
    assert torch.equal(first["block.0.q"], again["block.0.q"])
    for unlike in (other["block.0.q"], first["block.1.q"]):
        together = torch.stack([first["block.0.q"].flatten(), unlike.flatten()])
        assert abs(float(torch.corrcoef(together)[0, 1])) < 0.02


def test_scores_from_gradients_are_their_formulas(llama):
    weights, statistics = llama
    for matrix, weight in weights.items():
        mean = statistics.total[matrix].double() / statistics.n
        wanted = {
            "magnitude": weight.double().abs(),
            "gradient": mean.abs(),
            "fisher": statistics.squares[matrix].double(),
            "snip": (mean * weight.double()).abs(),
        }
        for name, values in wanted.items():
            torch.testing.assert_close(score(name, weights, statistics)[matrix].double(), values, rtol=1e-5, atol=1e-12)


def test_snip_predicts_what_removing_a_weight_does_to_the_loss():
    """On a loss that is linear in the weights the prediction is exact."""
    from tunescope.select import GradientStatistics

    slope, weight = torch.randn(4, 5), torch.randn(4, 5)
    statistics = GradientStatistics({"block.0.q": 3 * slope}, {"block.0.q": 3 * slope**2}, 3)
    scores = score("snip", {"block.0.q": weight}, statistics)["block.0.q"]
    for place in np.ndindex(4, 5):
        without = weight.clone()
        without[place] = 0
        change = (slope * without).sum() - (slope * weight).sum()
        assert float(scores[place]) == pytest.approx(abs(float(change)), abs=1e-6)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("rank", [1, 3, 11])
def test_low_rank_magnitude_agrees_with_projection_on_the_leading_eigenvectors(shape, rank):
    weight = torch.randn(shape)
    matrix = weight.double().numpy()
    _, vectors = np.linalg.eigh(matrix.T @ matrix)
    leading = vectors[:, -rank:]
    scores = score("low_rank_magnitude", {"block.0.q": weight}, context=Context(rank=rank))["block.0.q"]
    np.testing.assert_allclose(scores.numpy(), np.abs(matrix @ leading @ leading.T), atol=1e-4)


def test_low_rank_magnitude_of_a_matrix_of_that_rank_is_its_magnitude():
    weight = torch.randn(20, 3) @ torch.randn(3, 14)
    scores = score("low_rank_magnitude", {"block.0.q": weight}, context=Context(rank=3))["block.0.q"]
    torch.testing.assert_close(scores, weight.abs(), rtol=0, atol=1e-5)


def test_low_rank_magnitude_finds_weights_that_plain_magnitude_misses():
    """A weak rank-1 pattern under single large outliers: the pattern is what survives."""
    pattern = torch.zeros(40, 40)
    pattern[:20, :20] = 0.5
    weight = pattern.clone()
    weight[30, 30] = 3.0
    budget = Budget(weights=1)
    scores = {
        name: score(name, {"block.0.q": weight}, context=Context(rank=1))
        for name in ("magnitude", "low_rank_magnitude")
    }
    assert masks(scores["magnitude"], budget=budget).entries["block.0.q"][30, 30]
    assert masks(scores["low_rank_magnitude"], budget=budget).entries["block.0.q"][:20, :20].any()


def test_the_layer_map_gives_a_block_its_score(llama):
    weights, _ = llama
    for name in ("layer_map", "causal"):
        scores = score(name, weights, context=Context(layer_map=layer_scores(), causal=layer_scores()))
        for matrix, values in scores.items():
            assert set(values.flatten().tolist()) == {(0.5, -1.0, 2.0)[int(matrix.split(".")[1])]}


def test_bands_give_one_above_the_shared_band(llama):
    weights, _ = llama
    scores = score("layer_map", weights, context=CONTEXT)
    assert {m: float(v.mean()) for m, v in scores.items()} == {m: float(not m.startswith("block.0.")) for m in weights}


def test_equal_blocks_are_taken_from_the_top(llama):
    weights, _ = llama
    scores = score("layer_map", weights, context=CONTEXT)
    one_block = sum(w.numel() for name, w in weights.items() if name.startswith("block.2."))
    for granularity in ("entry", "row", "column", "tile", "module", "block"):
        assert masks(scores, granularity=granularity, budget=Budget(weights=one_block)).layers == ("block.2",)


# --- what is refused ---


@pytest.mark.parametrize("name", ["gradient", "fisher", "snip"])
def test_a_selector_that_needs_gradients_says_so(name, llama):
    weights, statistics = llama
    with pytest.raises(UserError, match=rf"selector {name} needs gradient statistics, got none"):
        score(name, weights)
    less = replace(statistics, total={k: v for k, v in statistics.total.items() if not k.endswith("q")})
    with pytest.raises(UserError, match=rf"do not cover {N_LAYERS} of .*the first is block\.0\.q"):
        score(name, weights, less)


@pytest.mark.parametrize("name", ["layer_map", "causal"])
def test_a_selector_that_needs_the_map_says_so(name, llama):
    weights, _ = llama
    with pytest.raises(UserError, match=rf"selector {name} needs scores of the blocks"):
        score(name, weights)
    short = layer_scores((1.0, 2.0))
    with pytest.raises(UserError, match=r"block\.2 has no score; scored are block\.0 to block\.1"):
        score(name, weights, context=Context(layer_map=short, causal=short))


def test_a_map_without_a_band_chooses_nothing(llama):
    none = Bands(False, "no change point", LAYERS)
    with pytest.raises(UserError, match=r"no transition band was found .no change point"):
        score("layer_map", llama[0], context=Context(layer_map=none))


@pytest.mark.parametrize("rank", [0, -1, 16, 99])
def test_a_rank_that_is_none_is_refused(rank, llama):
    with pytest.raises(UserError, match=rf"rank {rank} for block\.0\..* allowed are 1 to "):
        score("low_rank_magnitude", llama[0], context=Context(rank=rank))


def test_an_unknown_selector_names_the_nearest():
    with pytest.raises(UserError, match=r"selector 'fischer' is not known .did you mean fisher"):
        score("fischer", {"block.0.q": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="no weights to score"):
        score("random", {})


WEIGHTS = {"block.0.q": torch.ones(2, 3), "block.0.k": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"block.0.q": torch.ones(2, 3)}, "gave no scores for block.0.k"),
        ({**WEIGHTS, "block.0.v": torch.ones(2, 3)}, "gave scores for block.0.v, which was not offered .did you mean"),
        ({**WEIGHTS, "block.0.q": torch.ones(3, 2)}, r"block.0.q have shape \(3, 2\); the weights have \(2, 3\)"),
        ({**WEIGHTS, "block.0.q": torch.full((2, 3), torch.nan)}, "block.0.q are not all finite"),
        ({**WEIGHTS, "block.0.q": torch.full((2, 3), 1e300, dtype=torch.float64)}, "block.0.q are not all finite"),
        ({**WEIGHTS, "block.0.q": np.ones((2, 3))}, "block.0.q are a ndarray; allowed is a torch.Tensor"),
        ([1, 2], "gave list; it must give a mapping"),
        (None, "gave NoneType; it must give a mapping"),
    ],
)
def test_a_function_of_the_user_is_checked(found, said):
    def mine(weights, statistics, context):
        return found

    with pytest.raises(UserError, match=said) as caught:
        score(mine, WEIGHTS)
    assert all(problem.startswith("selector mine: ") for problem in caught.value.problems)


def test_all_faults_of_a_users_function_are_told_at_once():
    with pytest.raises(UserError) as caught:
        score(lambda *_: {"block.0.q": torch.ones(1, 1), "x": torch.ones(1)}, WEIGHTS)
    assert len(caught.value.problems) == 3
