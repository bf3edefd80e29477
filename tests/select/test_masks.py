"""Masks: never over the budget, the best pieces first, the same ones every time; and a file that cannot lie."""

import math
import resource

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import IntegrityError, ModelError, RunError, UserError
from tunescope.models import PARTS
from tunescope.select import (
    GRANULARITIES,
    Budget,
    Mask,
    affordable,
    hand_mask,
    masks,
    score,
    selection_of,
    spread_units,
    training_flops,
    unit_means,
    unit_sizes,
)
from tunescope.select.granularity import check_granularity

SHAPES = {"block.0.q": (3, 4), "block.0.down": (2, 5), "block.1.q": (3, 4), "block.1.down": (2, 5), "block.2.v": (1, 6)}
TOTAL = sum(h * w for h, w in SHAPES.values())


def matrices(values):
    numbers = iter(values)
    return {
        name: torch.tensor([[float(next(numbers)) for _ in range(w)] for _ in range(h)])
        for name, (h, w) in SHAPES.items()
    }


# Few different values, so that most scores are equal to others.
tied_scores = st.lists(st.integers(-2, 2), min_size=TOTAL, max_size=TOTAL).map(matrices)
any_scores = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=TOTAL, max_size=TOTAL).map(
    matrices
)


def naive(scores, granularity, limit):
    """Piece after piece, in plain Python: best mean first, later matrix, lower index."""
    pieces = []
    for place, (name, matrix) in enumerate(scores.items()):
        height, width = matrix.shape
        if granularity == "entry":
            slots = [[(i, j)] for i in range(height) for j in range(width)]
        elif granularity == "row":
            slots = [[(i, j) for j in range(width)] for i in range(height)]
        elif granularity == "column":
            slots = [[(i, j) for i in range(height)] for j in range(width)]
        else:
            slots = [[(i, j) for i in range(height) for j in range(width)]]
        for index, slot in enumerate(slots):
            mean = math.fsum(float(matrix[i, j]) for i, j in slot) / len(slot)
            key = -1 - int(name.split(".")[1]) if granularity == "block" else -place
            pieces.append([-mean, key, index, [(name, i, j) for i, j in slot]])
    if granularity == "block":
        together = {}
        for _, key, _, slot in pieces:
            together.setdefault(key, []).extend(slot)
        pieces = [
            [-math.fsum(float(scores[n][i, j]) for n, i, j in slot) / len(slot), key, 0, slot]
            for key, slot in together.items()
        ]
    chosen = set()
    for _, _, _, slot in sorted(pieces, key=lambda piece: piece[:3]):
        if len(chosen) + len(slot) <= limit:
            chosen |= set(slot)
    return chosen


def places(mask):
    return {(name, i, j) for name, chosen in mask.entries.items() for i, j in chosen.nonzero().tolist()}


@pytest.mark.parametrize("granularity", [g for g in GRANULARITIES if g != "tile"])
@given(scores=tied_scores, limit=st.integers(22, TOTAL))
def test_the_pieces_are_those_of_a_plain_loop(granularity, scores, limit):
    mask = masks(scores, granularity=granularity, budget=Budget(weights=limit))
    assert places(mask) == naive(scores, granularity, limit)


@given(scores=any_scores, limit=st.integers(1, TOTAL))
def test_the_number_of_entries_is_exact_and_none_left_out_scores_more(scores, limit):
    mask = masks(scores, budget=Budget(weights=limit))
    assert mask.count == limit
    chosen = places(mask)
    inside = [float(scores[n][i, j]) for n, i, j in chosen]
    outside = [float(m[i, j]) for n, m in scores.items() for i, j in np.ndindex(*m.shape) if (n, i, j) not in chosen]
    assert not outside or min(inside) >= max(outside)


def test_the_threshold_is_exact_among_numbers_that_differ_in_the_last_bit():
    one = np.float32(1.0)
    near = [one]
    for _ in range(TOTAL - 1):
        near.append(np.nextafter(near[-1], np.float32(2)))
    scores = matrices(np.random.default_rng(0).permutation(np.array(near, dtype=np.float32)))
    for limit in (1, 7, TOTAL - 1):
        chosen = places(masks(scores, budget=Budget(weights=limit)))
        assert sorted(float(scores[n][i, j]) for n, i, j in chosen) == sorted(map(float, near))[-limit:]


def test_zero_has_no_sign():
    scores = {"block.0.q": torch.tensor([[-0.0, 0.0, -0.0, 0.0]])}
    assert masks(scores, budget=Budget(weights=2)).entries["block.0.q"].tolist() == [[True, True, False, False]]


def test_a_large_model_is_cut_exactly():
    scores = {f"block.{i}.{p}": torch.rand(300, 700) for i in range(4) for p in ("q", "down")}
    mask = masks(scores, budget=Budget(share=0.005))
    values = np.sort(np.concatenate([s.numpy().ravel() for s in scores.values()]))
    assert mask.count == int(0.005 * len(values))
    inside = np.concatenate([scores[n].numpy()[c.numpy()] for n, c in mask.entries.items()])
    np.testing.assert_array_equal(np.sort(inside), values[-mask.count :])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_order_in_which_matrices_are_given_does_not_matter(granularity):
    scores = matrices(torch.randn(TOTAL).tolist())
    turned = dict(reversed(scores.items()))
    budget = Budget(weights=25)
    first, second = (masks(s, granularity=granularity, budget=budget) for s in (scores, turned))
    assert first.sha256 == second.sha256
    # Within a block the parts stand in the order of PARTS.
    assert list(first.entries) == sorted(
        first.entries, key=lambda n: (int(n.split(".")[1]), PARTS.index(n.split(".")[2]))
    )


@given(scores=tied_scores, limit=st.integers(1, TOTAL - 1))
def test_a_larger_budget_keeps_every_entry_of_a_smaller_one(scores, limit):
    smaller, larger = (places(masks(scores, budget=Budget(weights=n))) for n in (limit, limit + 1))
    assert smaller < larger


def test_the_mean_does_not_favour_large_pieces():
    """A sum would choose the large matrix; a maximum the one with an outlier."""
    scores = {
        "block.0.q": torch.full((8, 8), 1.0),
        "block.1.q": torch.full((2, 2), 2.0),
        "block.2.q": torch.tensor([[50.0] + [0.0] * 63]).view(8, 8),
    }
    assert list(masks(scores, granularity="module", budget=Budget(weights=4)).entries) == ["block.1.q"]
    assert list(masks(scores, granularity="module", budget=Budget(weights=68)).entries) == ["block.0.q", "block.1.q"]


# --- pieces ---


@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (300, 700), (257, 255), (2, 1000)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_pieces_cover_a_matrix_once(shape, granularity):
    sizes = unit_sizes(shape, granularity)
    assert int(sizes.sum()) == shape[0] * shape[1]
    seen = torch.zeros(shape, dtype=torch.int64)
    places = [(0, 0), (sizes.shape[0] - 1, sizes.shape[1] - 1), (sizes.shape[0] // 2, sizes.shape[1] // 2)]
    for place in places:
        chosen = torch.zeros(sizes.shape, dtype=torch.bool)
        chosen[place] = True
        spread = spread_units(chosen, shape, granularity)
        assert int(spread.sum()) == int(sizes[place])
        seen += spread
    assert spread_units(torch.ones(sizes.shape, dtype=torch.bool), shape, granularity).all()
    assert int(seen.max()) == len([p for p in places if p == places[0]]) or len(set(places)) > 1


def test_tiles_are_256_by_256_and_smaller_at_the_edge():
    scores = torch.randn(300, 600)
    means = unit_means(scores, "tile")
    assert means.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            tile = scores[256 * i : 256 * (i + 1), 256 * j : 256 * (j + 1)].double()
            assert float(means[i, j]) == pytest.approx(float(tile.mean()), abs=1e-9)
            assert int(unit_sizes((300, 600), "tile")[i, j]) == tile.numel()
    best = masks({"block.0.q": scores}, granularity="tile", budget=Budget(weights=256 * 256))
    assert 0 < best.count <= 256 * 256


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_mean_lies_between_the_scores_and_is_exact_for_equal_ones(granularity):
    scores = torch.randn(300, 70)
    means = unit_means(scores, granularity)
    assert scores.min() <= means.min() and means.max() <= scores.max()
    assert set(unit_means(torch.full((300, 70), 0.1), granularity).flatten().tolist()) == {float(torch.tensor(0.1))}


# --- budgets ---


@given(share=st.floats(0, 1, exclude_min=True), size=st.integers(1, 10**9))
def test_a_share_is_never_exceeded(share, size):
    limit = Budget(share=share).limit(size)
    assert 0 <= limit <= size
    assert limit <= share * size + 1e-6
    assert limit > share * size - 1 - 1e-6


@pytest.mark.parametrize(
    ("share", "size", "limit"), [(0.29, 100, 29), (0.1, 30, 3), (0.7, 10, 7), (1, 7, 7), (0.5, 3, 1)]
)
def test_a_share_means_what_is_written(share, size, limit):
    assert Budget(share=share).limit(size) == limit


@given(scores=tied_scores, share=st.floats(0.2, 1))
def test_per_matrix_every_matrix_gets_its_part(scores, share):
    mask = masks(scores, budget=Budget(share=share, per_matrix=True))
    for name, (height, width) in SHAPES.items():
        assert mask.counts.get(name, 0) == Budget(share=share).limit(height * width)


@given(scores=tied_scores, number=st.integers(10, TOTAL))
def test_a_number_per_matrix_is_divided_by_size_and_never_exceeded(scores, number):
    mask = masks(scores, budget=Budget(weights=number, per_matrix=True))
    assert mask.count <= number
    for name, (height, width) in SHAPES.items():
        assert mask.counts.get(name, 0) == number * height * width // TOTAL


def test_the_whole_budget_is_everything():
    for granularity in GRANULARITIES:
        mask = masks(matrices(range(TOTAL)), granularity=granularity, budget=Budget(share=1))
        assert mask.count == mask.total == TOTAL


def test_the_cost_is_what_pytorch_counts():
    """Six linear layers, two to a block; the forecast lies above the count by no more than the lowest block's inputs."""
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    names = [f"block.{i}.{part}" for i in range(3) for part in ("q", "v")]
    layers = [nn.Linear(16, 16, bias=False) for _ in names]
    sizes = dict.fromkeys(names, 256)
    tokens = 5
    for touched in (["block.0.q"], ["block.1.q"], ["block.2.v"], ["block.1.v", "block.2.q"], names):
        for name, layer in zip(names, layers, strict=True):
            layer.weight.requires_grad_(name in touched)
        with FlopCounterMode(display=False) as counter:
            hidden = torch.randn(tokens, 16)
            for layer in layers:
                hidden = layer(hidden)
            hidden.sum().backward()
        forecast = training_flops(sizes, touched, tokens=tokens)
        assert counter.get_total_flops() <= forecast <= counter.get_total_flops() + 2 * 2 * 256 * tokens


def test_tuning_higher_up_costs_less():
    sizes = {f"block.{i}.q": 100 for i in range(5)}
    costs = [training_flops(sizes, [f"block.{i}.q"], tokens=10) for i in range(5)]
    assert costs == sorted(costs, reverse=True)
    assert training_flops(sizes, sizes, tokens=10) == 3 * training_flops(sizes, [], tokens=10) == 6 * 500 * 10


def test_a_bound_on_the_cost_keeps_the_choice_high_up():
    scores = {f"block.{i}.q": torch.rand(10, 10) for i in range(5)}
    sizes = {f"block.{i}.{part}": 100 for i in range(5) for part in ("q", "up")}
    tokens = 1000
    cheap = training_flops(sizes, ["block.3.q", "block.4.q"], tokens=tokens)
    mask = masks(scores, budget=Budget(flops=cheap, tokens=tokens), sizes=sizes)
    assert training_flops(sizes, mask.entries, tokens=tokens) <= cheap
    assert mask.lowest_block >= 3
    assert mask.count == 100 * len(mask.entries)
    both = masks(scores, budget=Budget(flops=cheap, tokens=tokens, weights=30), sizes=sizes)
    assert both.count == 30 and both.lowest_block >= 3
    # Seconds are the same thing through a rate.
    seconds = masks(scores, budget=Budget(seconds=cheap / 1e6, flops_per_second=1e6, tokens=tokens), sizes=sizes)
    assert seconds.sha256 == mask.sha256
    # With room for everything the cost changes nothing.
    rich = masks(scores, budget=Budget(flops=1e30, tokens=tokens, weights=30), sizes=sizes)
    assert rich.sha256 == masks(scores, budget=Budget(weights=30)).sha256


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(scores=tied_scores, factor=st.floats(0.4, 1))
def test_a_cost_is_never_exceeded(granularity, scores, factor):
    sizes = {name: h * w for name, (h, w) in SHAPES.items()}
    limit = factor * training_flops(sizes, sizes, tokens=7)
    least = min(training_flops(sizes, [name], tokens=7) for name in sizes)
    if granularity == "block":
        least = training_flops(sizes, ["block.2.v"], tokens=7)
    if limit < least:
        with pytest.raises(UserError, match="do not pay for tuning anything"):
            masks(scores, granularity=granularity, budget=Budget(flops=limit, tokens=7))
        return
    mask = masks(scores, granularity=granularity, budget=Budget(flops=limit, tokens=7))
    assert training_flops(sizes, mask.entries, tokens=7) <= limit


def test_affordable_takes_what_fits_in_the_order_given():
    sizes = {f"block.{i}.q": 10 for i in range(4)}
    order = [("block.0.q",), ("block.3.q",), ("block.2.q",)]
    limit = training_flops(sizes, ["block.2.q", "block.3.q"], tokens=1)
    assert affordable(order, sizes, Budget(flops=limit, tokens=1)) == [("block.3.q",), ("block.2.q",)]
    assert affordable(order, sizes, Budget(share=0.1)) == order


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "nothing is bounded"),
        ({"share": 0}, "share 0 of the weights; allowed is above 0 and at most 1"),
        ({"share": 1.01}, "share 1.01"),
        ({"share": math.nan}, "share nan"),
        ({"weights": 0}, "0 weights; allowed is 1 or more"),
        ({"share": 0.1, "weights": 5}, "bound the same thing"),
        ({"flops": 1e9, "seconds": 5, "tokens": 1, "flops_per_second": 1}, "bound the same thing"),
        ({"flops": 1e9}, "needs the number of tokens"),
        ({"seconds": 5, "tokens": 10}, "seconds need a rate"),
        ({"flops": -1, "tokens": 10}, "flops -1; allowed is a finite number above 0"),
        ({"flops": math.inf, "tokens": 0}, "tokens 0; allowed"),
    ],
)
def test_a_budget_that_is_none_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Budget(**settings)


def test_a_budget_in_which_nothing_fits_is_refused():
    scores = matrices(range(TOTAL))
    with pytest.raises(UserError, match="5 weights hold not even one module; the smallest has 6; raise the budget"):
        masks(scores, granularity="module", budget=Budget(weights=5))
    with pytest.raises(UserError, match="not even one block; the smallest has 6"):
        masks(scores, granularity="block", budget=Budget(weights=5))
    with pytest.raises(UserError, match="spread over all matrices hold not even one entry"):
        masks(scores, budget=Budget(weights=1, per_matrix=True))
    with pytest.raises(UserError, match="a block is more than a matrix"):
        masks(scores, granularity="block", budget=Budget(share=0.5, per_matrix=True))


def test_scores_that_cannot_be_ordered_are_refused():
    for bad in (math.nan, math.inf, -math.inf):
        scores = matrices(range(TOTAL))
        scores["block.1.q"][0, 0] = bad
        with pytest.raises(UserError, match=r"scores of block\.1\.q .1 of 5.: allowed are matrices of finite numbers"):
            masks(scores, budget=Budget(share=0.5))
    for name in ("q", "block.x.q", "block.1.norm"):
        with pytest.raises(UserError, match="not the name of a matrix"):
            masks({name: torch.ones(2, 2)}, budget=Budget(share=0.5))
    with pytest.raises(UserError, match="no scores to choose by"):
        masks({}, budget=Budget(share=0.5))
    with pytest.raises(UserError, match=r"'colum' is not known .did you mean column"):
        check_granularity("colum")


# --- the mask itself ---


def a_mask():
    return masks(score("random", {n: torch.zeros(s) for n, s in SHAPES.items()}), budget=Budget(weights=20))


def test_a_mask_says_what_it_holds():
    mask = Mask(
        {
            "block.2.v": torch.ones(1, 6, dtype=torch.bool),
            "block.0.q": torch.zeros(3, 4, dtype=torch.bool),
            "block.1.down": torch.eye(2, 5, dtype=torch.bool),
        },
        total=TOTAL,
        granularity="row",
    )
    assert mask.counts == {"block.1.down": 2, "block.2.v": 6}
    assert list(mask.entries) == ["block.1.down", "block.2.v"]
    assert (mask.count, mask.total, mask.lowest_block) == (8, TOTAL, 1)
    assert (mask.layers, mask.modules) == (("block.1", "block.2"), ("v", "down"))


def test_the_hash_is_recorded():
    """PCG64 and the packing are the same on every machine (recorded 2026-11-22)."""
    assert a_mask().sha256 == RECORDED


RECORDED = "54d16fc015ebe2cc8b3638a42d00e064ff91dc1cf7a4723b9b7d1c0cd181e7cd"


def test_the_hash_tells_every_bit_apart():
    mask = a_mask()
    seen = {mask.sha256}
    for name, (height, width) in SHAPES.items():
        for place in np.ndindex(height, width):
            entries = {n: c.clone() for n, c in mask.entries.items()}
            entries.setdefault(name, torch.zeros(height, width, dtype=torch.bool))[place] ^= True
            seen.add(Mask(entries, mask.total, "entry").sha256)
    assert len(seen) == TOTAL + 1
    turned = Mask({"block.0.q": torch.ones(4, 3, dtype=torch.bool)}, TOTAL, "entry")
    assert turned.sha256 != Mask({"block.0.q": torch.ones(3, 4, dtype=torch.bool)}, TOTAL, "entry").sha256
    assert Mask(mask.entries, 999, "row").sha256 == mask.sha256


def test_a_mask_survives_its_file(tmp_path):
    mask = a_mask()
    mask.save(tmp_path / "new" / "mask.safetensors")
    again = Mask.load(tmp_path / "new" / "mask.safetensors")
    assert (again.sha256, again.total, again.granularity) == (mask.sha256, mask.total, mask.granularity)
    assert list(again.entries) == list(mask.entries)
    assert all(torch.equal(again.entries[n], mask.entries[n]) for n in mask.entries)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mask.safetensors"]
    first = (tmp_path / "new" / "mask.safetensors").read_bytes()
    again.save(tmp_path / "new" / "mask.safetensors")
    assert (tmp_path / "new" / "mask.safetensors").read_bytes() == first


def test_a_file_takes_a_bit_per_entry(tmp_path):
    mask = masks({"block.0.q": torch.rand(400, 500)}, budget=Budget(share=0.5))
    mask.save(tmp_path / "mask.safetensors")
    assert 0 < (tmp_path / "mask.safetensors").stat().st_size - 400 * 500 / 8 < 1000


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    a_mask().save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 128])):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"mask\.safetensors: .*make it again"):
            Mask.load(path)
    path.unlink()
    with pytest.raises(IntegrityError, match="no mask, or a damaged one"):
        Mask.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(IntegrityError, match="no mask, or a damaged one"):
        Mask.load(path)


def test_a_disk_that_takes_no_more_is_the_users_matter(tmp_path):
    mask = masks({"block.0.q": torch.rand(400, 500)}, budget=Budget(share=0.5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
    try:
        with pytest.raises(RunError, match=r"the mask cannot be written .*free some space"):
            mask.save(tmp_path / "mask.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "no entry may move"),
        ({"block.0.q": torch.zeros(2, 2, dtype=torch.bool)}, "no entry may move"),
        ({"block.0.q": torch.ones(2, 2)}, r"block\.0\.q is torch\.float32 .2, 2.; allowed are bool matrices"),
        ({"block.0.q": torch.ones(2, dtype=torch.bool)}, "allowed are bool matrices"),
        ({"block.0.norm": torch.ones(2, 2, dtype=torch.bool)}, "'block.0.norm' is no matrix"),
    ],
)
def test_a_mask_of_something_else_is_refused(entries, said):
    with pytest.raises(UserError, match=said):
        Mask(entries, 4, "entry")


# --- by hand, and in words ---

OFFERED = {f"block.{i}.{part}": torch.zeros(2, 3) for i in range(12) for part in PARTS}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["block.3.q"], {"block.3.q"}),
        (["block.1?.v"], {"block.10.v", "block.11.v"}),
        (["*.down"], {f"block.{i}.down" for i in range(12)}),
        (["block.9-11.q", "2-3.k"], {"block.9.q", "block.10.q", "block.11.q", "block.2.k", "block.3.k"}),
        (["block.9 - block.9.*"], {f"block.9.{part}" for part in PARTS}),
    ],
)
def test_a_pattern_means_whole_matrices(patterns, names):
    mask = hand_mask(OFFERED, patterns)
    assert set(mask.entries) == names
    assert mask.count == 6 * len(names)
    assert mask.total == 6 * len(OFFERED)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["block.3.w"], r"'block\.3\.w' matches no matrix .did you mean block\.3\."),
        (["block.12-13.q"], "matches no matrix"),
        (["block.11-9.q"], "matches no matrix"),
        (["block.3"], "matches no matrix"),
        ([], "no pattern of matrices given"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(patterns, said):
    with pytest.raises(ModelError, match=said):
        hand_mask(OFFERED, patterns)


def test_a_selection_says_what_its_mask_says():
    mask = a_mask()
    selection = selection_of(mask, method="sparse", why="test")
    assert (selection.layers, selection.modules) == (mask.layers, mask.modules)
    assert (selection.granularity, selection.mask_sha256) == ("entry", mask.sha256)
    assert selection.counts == mask.counts
    assert selection.matrices == ()
    for method in ("lora", "weights"):
        with pytest.raises(UserError, match=f"method {method} moves whole matrices, and of block"):
            selection_of(mask, method=method, why="test")


def test_matrices_are_named_only_where_blocks_differ():
    uneven = hand_mask(OFFERED, ["block.1.q", "block.2.v"])
    assert selection_of(uneven, method="lora", why="").matrices == ("block.1.q", "block.2.v")
    even = hand_mask(OFFERED, ["block.1.q", "block.2.q"])
    selection = selection_of(even, method="weights", why="")
    assert (selection.layers, selection.modules, selection.matrices) == (("block.1", "block.2"), ("q",), ())
