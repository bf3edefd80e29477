"""What an arm moves is what the settings ask for: every score, granularity and budget, by hand, and the controls at the same budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunescope import config as settings
from tunescope import select
from tunescope.config import BLOCK_SCORES, load
from tunescope.errors import ConfigError, UserError
from tunescope.models import block_names
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Bands, LayerScores, Selection
from tunescope.select import Mask
from tunescope.studies import scored, setup
from tunescope.studies.bench import Bench
from tunescope.studies.choose import Choice, choose
from tunescope.studies.mask_files import mask_of
from tunescope.studies.progress import Silent

BLOCKS = block_names(4)
MAPS = ("layer_map", "causal")
WEIGHT_SCORES = ("magnitude", "gradient", "fisher", "snip", "low_rank_magnitude")
PIECES = ("entry", "row", "column", "tile")
CONTROLS = "arms=[selected, random, top-third]"
FIXED = ["dtype=float32", "tuning.learning_rate=1e-3", "tuning.num_epochs=1", "selection.rank=2"]


def checked(study: Path, folder: Path, *overrides: str) -> tuple[Bench, setup.Checked]:
    config = load(study, [f"output_dir={folder / 'own'}", *FIXED, CONTROLS, *overrides])
    found = setup.check(config, Silent())
    run = RunFolder.create(config.output_dir, settings.dump(config), study="poc", command="")
    return Bench(config, found.located, found.inputs, found.chat, found.device, run), found


def chosen(study: Path, folder: Path, *overrides: str) -> tuple[Bench, Choice]:
    bench, found = checked(study, folder, *overrides)
    return bench, choose(bench, found.loaded, Silent())


def mask(bench: Bench, choice: Choice, arm: str) -> Mask:
    found = mask_of(bench.run, arm, choice.selections[arm])
    assert found is not None
    return found


def by_place(values: tuple[float, ...], name: str, **more: Any) -> LayerScores:
    return LayerScores(name, "CKA", BLOCKS, values, n=12, higher_means="", **more)


class FakeMap:
    """A layer map with known numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bands: Bands | None, *scores: LayerScores) -> None:
        self.result = SimpleNamespace(scores=list(scores), bands=bands, proposals=(), facts={"mode": "base"}, tuned=0)
        monkeypatch.setattr(scored, "layer_map", lambda bench, loaded, progress, **more: self.result)


NOT_FOUND = Bands(False, "two breaks explain no more than a line", BLOCKS)
FOUND = Bands(True, "3 tasks", BLOCKS, boundaries=(2, 3))
IN_OUT = by_place((0.1, 0.9, 0.7, 0.8), "cka_in_out")


# Whole blocks.


def test_without_further_settings_it_is_the_gradient_norm_and_a_third_of_the_blocks(
    study: Path, tmp_path: Path
) -> None:
    _, choice = chosen(study, tmp_path, "selection={}")
    (scores,) = choice.scores
    assert scores.name == "gradient_norm" and scores.n == 32
    best = max(range(4), key=lambda i: scores.values[i])
    assert choice.selections["selected"].layers == (f"block.{best}",)
    assert choice.selections["selected"].why == (
        "the 1 of 4 blocks with the largest mean gradient norm over 32 training examples"
    )
    assert choice.map is None


@pytest.mark.parametrize("score", [score for score in settings.BLOCK_SCORES if score not in MAPS] + [*WEIGHT_SCORES])
def test_the_blocks_with_the_highest_scores_are_chosen_and_the_controls_have_as_many(
    score: str, study: Path, tmp_path: Path
) -> None:
    arms = "arms=[selected, random]" if score == "top_third" else CONTROLS
    _, choice = chosen(study, tmp_path, f"selection.score={score}", arms)
    scores, found = choice.scores[0], choice.selections
    assert scores.name == score and len(scores.values) == 4
    assert found["selected"].layers == select.choose_top(scores, 2)
    assert len(found["random"].layers) == 2 and found["random"].layers != found["selected"].layers
    if score == "top_third":
        assert found["selected"].layers == ("block.2", "block.3")
    else:
        assert found["top-third"].layers == ("block.2", "block.3")
    assert {selection.method for selection in found.values()} == {"lora"}
    assert len({selection.modules for selection in found.values()}) == 1


def test_a_score_of_weights_over_blocks_is_the_mean_over_their_weights(study: Path, tmp_path: Path) -> None:
    bench, choice = chosen(study, tmp_path, "selection.score=magnitude", "tuning.target_modules=[q, v]")
    loaded = bench.load()
    for block, value in zip(BLOCKS, choice.scores[0].values, strict=True):
        offered = select.weight_matrices(loaded.model, loaded.family, parts=["q", "v"], layers=[block])
        whole = torch.cat([weight.flatten() for weight in offered.values()])
        assert value == pytest.approx(float(whole.abs().mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("bands", "budget", "layers", "said"),
    [
        (NOT_FOUND, 0.5, ("block.2", "block.3"), "no transition band to go by (two breaks explain"),
        (
            None,
            0.25,
            ("block.2",),
            "block.0 behind all others; the layer map has no transition band to go by (bands were not",
        ),
        (NOT_FOUND, 1, ("block.0", "block.1", "block.2", "block.3"), "two breaks explain"),
        (FOUND, 0.25, ("block.2",), "above the shared band (from block.2)"),
        (FOUND, 0.5, ("block.2", "block.3"), "above the shared band (from block.2)"),
        (FOUND, 0.75, ("block.1", "block.2", "block.3"), "above the shared band (from block.2)"),
    ],
)
def test_the_map_chooses_above_the_shared_band_and_then_by_the_change_of_the_state(
    bands: Bands | None, budget: float, layers: tuple[str, ...], said: str,
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    FakeMap(monkeypatch, bands, by_place((0.0, 0.0, 0.0, 9.0), "cka_in_out", task="routing"), IN_OUT)
    _, choice = chosen(study, tmp_path, "selection.score=layer_map", f"selection.budget={budget}")
    assert choice.selections["selected"].layers == layers
    assert said in choice.selections["selected"].why
    assert choice.map == {"mode": "base"}
    assert choice.scores[0].name == "layer_map"
    assert choice.scores[0].values == pytest.approx((0.9, 0.1, 0.3, 0.2))
    assert [row.name for row in choice.scores[1:]] == ["cka_in_out", "cka_in_out"]


def test_with_mean_states_all_blocks_are_compared_alike_and_block_0_takes_part(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeMap(monkeypatch, NOT_FOUND, IN_OUT)
    more = ["selection.score=layer_map", "selection.budget=0.25", "map.states=mean"]
    assert chosen(study, tmp_path, *more)[1].selections["selected"].layers == ("block.0",)


def test_intervals_of_a_similarity_change_ends_when_it_becomes_a_change(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = (0.0, 0.8, 0.6, 0.7), (0.2, 1.0, 0.8, 0.9)
    FakeMap(monkeypatch, None, dataclasses.replace(IN_OUT, low=low, high=high))
    shown = chosen(study, tmp_path, "selection.score=layer_map")[1].scores[0]
    assert shown.low == pytest.approx((0.8, 0.0, 0.2, 0.1)) and shown.high == pytest.approx((1.0, 0.2, 0.4, 0.3))
    assert all(a <= v <= b for a, v, b in zip(shown.low or (), shown.values, shown.high or (), strict=True))


@pytest.mark.parametrize(
    ("score", "mode", "name", "layers"),
    [
        ("layer_map", "mossa", "gain", ("block.1",)),
        ("layer_map", "mossa", "cka_base_specialist", ("block.0",)),
        ("causal", "mossa", "causal", ("block.1",)),
    ],
)
def test_the_map_of_specialists_chooses_by_gain_or_change_or_causal_effect(
    score: str, mode: str, name: str, layers: tuple[str, ...],
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    FakeMap(monkeypatch, NOT_FOUND, by_place((0.1, 0.9, 0.7, 0.8), name))
    more = ["selection.budget=0.25", f"map.mode={mode}"]
    assert chosen(study, tmp_path, f"selection.score={score}", *more)[1].selections["selected"].layers == layers


def test_a_map_without_what_the_score_needs_is_refused(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeMap(monkeypatch, NOT_FOUND, IN_OUT)
    with pytest.raises(ConfigError, match="map in mode mossa gives no gain or cka_base_specialist"):
        chosen(study, tmp_path, "selection.score=layer_map", "map.mode=mossa")


def test_a_real_map_of_the_base_model_chooses_and_its_facts_are_kept(study: Path, tmp_path: Path) -> None:
    fast = ["map.n_bootstrap=20", "map.n_permutations=20", "selection.score=layer_map"]
    bench, found = checked(study, tmp_path, *fast)
    selections = setup.choose_once(bench, found.loaded, Silent())
    written = bench.run.read_json("layers.json")
    assert written["map"]["mode"] == "base" and [t["name"] for t in written["map"]["tasks"]] == [
        "routing",
        "mood",
        "summary",
    ]
    rows = [LayerScores.from_dict(row) for row in written["scores"]]
    similarity = next(row for row in rows if (row.name, row.task) == ("cka_in_out", "*"))
    assert rows[0].values == pytest.approx([1 - value for value in similarity.values])
    bands = Bands.from_dict(written["map"]["bands"]) if written["map"]["bands"] else None
    if bands is not None:
        bands = dataclasses.replace(bands, layers=tuple(bands.layers))
    shown = dataclasses.replace(rows[0], layers=tuple(rows[0].layers))
    order = select.above_shared_first(select.put_last(shown, ["block.0"]), bands)
    assert selections["selected"].layers == select.choose_top(order, 2)
    assert "block.0" not in selections["selected"].layers


def test_a_budget_in_weights_takes_as_many_whole_blocks_as_fit(study: Path, tmp_path: Path) -> None:
    bench, choice = chosen(study, tmp_path, "selection.budget_kind=weights", "selection.budget=0.7")
    assert len(choice.selections["selected"].layers) == len(choice.selections["random"].layers) == 2
    loaded = bench.load()
    one = sum(w.numel() for w in select.weight_matrices(loaded.model, loaded.family, layers=["block.0"]).values())
    _, choice = chosen(study, tmp_path / "again", f"selection.weights={3 * one}")
    assert len(choice.selections["selected"].layers) == 3
    with pytest.raises(UserError, match="hold not even one block"):
        chosen(study, tmp_path / "less", f"selection.weights={one - 1}")


def test_a_budget_in_cost_is_kept_by_all_arms(study: Path, tmp_path: Path) -> None:
    bench, choice = chosen(study, tmp_path, "selection.budget_kind=flops", "selection.budget=0.72")
    loaded = bench.load()
    weights = select.weight_matrices(loaded.model, loaded.family)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    whole = select.training_flops(sizes, weights, tokens=1)
    for selection in choice.selections.values():
        touched = [name for name in weights if name.rpartition(".")[0] in selection.layers]
        assert touched and select.training_flops(sizes, touched, tokens=1) <= 0.72 * whole
    assert choice.selections["top-third"].layers == ("block.2", "block.3")
    with pytest.raises(
        ConfigError, match=r"selection.budget 0.3 of the cost: tuning even the cheapest block takes 0.5"
    ):
        chosen(study, tmp_path / "less", "selection.budget_kind=flops", "selection.budget=0.3")


# Pieces.


@pytest.mark.parametrize(
    ("granularity", "per_matrix"),
    # Every matrix of the tiny model is one tile, so a part of each holds none.
    [(kind, per) for kind in PIECES for per in (False, True) if (kind, per) != ("tile", True)],
)
@pytest.mark.parametrize("score", WEIGHT_SCORES)
def test_pieces_of_matrices_keep_the_budget_and_their_masks_are_saved(
    score: str, granularity: str, per_matrix: bool, study: Path, tmp_path: Path
) -> None:
    asked = [f"selection.score={score}", f"selection.granularity={granularity}", "tuning.method=sparse"]
    share = {"tile": 0.6, "entry": 0.03}.get(granularity, 0.2)
    bench, choice = chosen(
        study, tmp_path, *asked, f"selection.budget={share}", f"selection.per_matrix={str(per_matrix).lower()}"
    )
    masks = {arm: mask(bench, choice, arm) for arm in ("selected", "random", "top-third")}
    total = masks["selected"].total
    assert len({found.sha256 for found in masks.values()}) == 3
    for arm, found in masks.items():
        assert choice.selections[arm].method == "sparse" and choice.selections[arm].granularity == granularity
        assert choice.selections[arm].counts == found.counts
        assert 0 < found.count <= share * total and found.total == total
    if granularity == "entry":
        assert masks["random"].count == masks["selected"].count
        if not per_matrix:
            assert masks["selected"].count == int(share * total) == masks["top-third"].count
    assert set(masks["top-third"].layers) <= set(BLOCKS[1:])


def test_the_top_third_holds_a_small_budget_in_the_upper_third_alone(study: Path, tmp_path: Path) -> None:
    asked = ["selection.score=snip", "selection.granularity=entry", "tuning.method=sparse"]
    bench, choice = chosen(study, tmp_path, *asked, "selection.budget=0.05")
    assert mask(bench, choice, "top-third").layers == ("block.3",)
    assert mask(bench, choice, "selected").count == mask(bench, choice, "top-third").count
    bench, choice = chosen(study, tmp_path / "more", *asked, "selection.budget=0.4")
    assert mask(bench, choice, "top-third").layers == ("block.2", "block.3")


def test_the_best_entries_are_those_with_the_highest_scores(study: Path, tmp_path: Path) -> None:
    asked = ["selection.score=magnitude", "selection.granularity=entry", "tuning.method=sparse"]
    bench, choice = chosen(study, tmp_path, *asked, "selection.weights=100", "tuning.target_modules=[q, down]")
    found = mask(bench, choice, "selected")
    loaded = bench.load()
    weights = select.weight_matrices(loaded.model, loaded.family, parts=["q", "down"])
    inside = torch.cat([weights[name][chosen].abs() for name, chosen in found.entries.items()])
    nothing = {name: torch.zeros(tuple(w.shape), dtype=torch.bool) for name, w in weights.items()}
    outside = torch.cat([weights[name][~(nothing | dict(found.entries))[name]].abs() for name in weights])
    assert len(inside) == 100 and inside.min() >= outside.max()


@pytest.mark.parametrize("method", ["lora", "weights"])
@pytest.mark.parametrize("score", [score for score in BLOCK_SCORES if score not in MAPS] + [*WEIGHT_SCORES])
def test_whole_matrices_are_chosen_within_the_budget(score: str, method: str, study: Path, tmp_path: Path) -> None:
    arms = "arms=[selected, random]" if score == "top_third" else CONTROLS
    asked = [f"selection.score={score}", "selection.granularity=module", f"tuning.method={method}", arms]
    bench, choice = chosen(study, tmp_path, *asked, "selection.budget=0.3")
    loaded = bench.load()
    sizes = {n: w.numel() for n, w in select.weight_matrices(loaded.model, loaded.family).items()}
    counts = {}
    for arm, selection in choice.selections.items():
        assert selection.method == method
        names = selection.matrices or [f"{b}.{part}" for b in selection.layers for part in selection.modules]
        counts[arm] = sum(sizes[name] for name in names)
        assert 0 < counts[arm] <= 0.3 * sum(sizes.values())
    assert counts["random"] <= counts["selected"]
    assert counts["selected"] - counts["random"] < max(sizes.values())


def test_matrices_named_by_hand_move_and_the_controls_have_as_many_weights(study: Path, tmp_path: Path) -> None:
    bench, choice = chosen(study, tmp_path, "selection.names=[block.3.q, block.0-1.v]")
    found = choice.selections["selected"]
    assert found.matrices == ("block.0.v", "block.1.v", "block.3.q")
    assert found.why == "chosen by hand: block.3.q, block.0-1.v" and choice.scores == []
    loaded = bench.load()
    sizes = {n: w.numel() for n, w in select.weight_matrices(loaded.model, loaded.family).items()}

    def count(selection: Selection) -> int:
        names = selection.matrices or [f"{b}.{part}" for b in selection.layers for part in selection.modules]
        return sum(sizes[name] for name in names)

    assert count(choice.selections["random"]) <= count(found)
    assert count(choice.selections["top-third"]) <= count(found)
    assert choice.selections["top-third"].layers == ("block.3",)


def test_the_same_seed_chooses_the_same_and_another_one_draws_another_control(study: Path, tmp_path: Path) -> None:
    asked = ["selection.score=fisher", "selection.granularity=entry", "tuning.method=sparse", "selection.budget=0.02"]
    found = [chosen(study, tmp_path / str(i), *asked, f"seed={seed}") for i, seed in enumerate((3, 3, 4))]
    hashes = [{arm: mask(bench, choice, arm).sha256 for arm in choice.selections} for bench, choice in found]
    assert hashes[0] == hashes[1]
    assert hashes[0]["random"] != hashes[2]["random"]


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["selection.granularity=entry"], "selection.granularity: score gradient_norm gives one number per block"),
        (
            ["selection.score=layer_map", "selection.granularity=row", "tuning.method=sparse"],
            "score layer_map gives one number per block, which tells no row in it from another",
        ),
        (
            ["selection.score=fisher", "selection.granularity=entry"],
            "granularity entry moves pieces of matrices and tuning.method lora whole ones; set tuning.method to sparse",
        ),
        (["tuning.method=sparse"], "tuning.method sparse moves pieces of matrices, and granularity is block"),
        (
            ["tuning.method=sparse", "selection.names=[block.1.q]"],
            "tuning.method sparse moves pieces of matrices, and granularity is block",
        ),
        (["selection.granularity=module", "selection.budget_kind=blocks"], "a share of the blocks needs granularity"),
        (
            ["selection.score=snip", "selection.granularity=column", "selection.budget_kind=flops", "tuning.method=sparse"],
            "cannot bound granularity column",
        ),
        (["selection.budget_kind=flops", "selection.weights=9"], "a number of weights and a share of the flops are two"),
        (["selection.per_matrix=true"], "granularity block takes matrices whole"),
        (["selection.per_matrix=true", "selection.granularity=module"], "granularity module takes matrices whole"),
        (["selection.blocks=[block.1]", "selection.granularity=module"], "what is named here moves whole"),
        (["selection.blocks=[block.1]", "selection.names=[block.1.q]"], "blocks and names both say what moves"),
        (["selection.score=causal"], "mode base has no tuned model, so selection.score causal has nothing to put back"),
        (["selection.score=causal", "map.mode=mossa", "map.causal_examples=0"], "causal_examples 0 leaves"),
        (["selection.score=top_third"], "score top_third makes selected the same as the arm top-third"),
        (["selection.budget=0"], "selection.budget: got 0, it should be greater than 0"),
        (["selection.budget=1.01"], "selection.budget: got 1.01, it should be less than or equal to 1"),
        (["selection.weights=0"], "selection.weights: got 0"),
        (["selection.score=random"], "selection.score: got 'random'"),
        (["selection.names=[]"], "selection.names: got 0 entries"),
        (["arms=[nothing, top-third]"], "top-third takes its budget from selected"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused_in_one_line(
    overrides: list[str], said: str, study: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(study, [CONTROLS, *overrides])
    (problem,) = caught.value.problems
    assert said in problem and "\n" not in problem and len(problem) < 400


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["selection.names=[block.9.q]"], "selection.names: pattern 'block.9.q' matches no matrix"),
        (
            ["selection.names=[block.1.up]", "tuning.target_modules=[q, v]"],
            "selection.names: pattern 'block.1.up' matches",
        ),
        (["selection.weights=99999999"], "selection.weights: got 99,999,999, and the parts in tuning.target_modules"),
        (["selection.score=low_rank_magnitude", "selection.rank=4000"], "selection.rank: got 4000, and the smallest"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_anything_is_written(
    overrides: list[str], said: str, study: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(study, tmp_path, *overrides)
    (problem,) = caught.value.problems
    assert said in problem
    assert not (tmp_path / "own").exists()
