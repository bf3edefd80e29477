"""Proposals: which blocks, in which order, and at what price."""

from __future__ import annotations

import dataclasses

import pytest

from tunescope.errors import UserError
from tunescope.models import block_names
from tunescope.runs.records import Bands, LayerScores
from tunescope.select import BlockCosts, propose, training_flops

N = 12
LORA = BlockCosts((100,) * N, (10,) * N, 10 * N, model_bytes=5000, kept_bytes=70)
WEIGHTS = dataclasses.replace(LORA, moving=(100,) * N, adapters=False)


def scores(name: str, *values: float) -> LayerScores:
    return LayerScores(name, "1", block_names(len(values)), values, n=5, higher_means="more")


def rising(name: str) -> LayerScores:
    return scores(name, *map(float, range(N)))


BANDS = Bands(True, "seen", block_names(N), boundaries=(3, 7), n_tasks=9)


def by_name(**given: object) -> dict[str, tuple[str, ...]]:
    return {p.name: p.layers for p in propose(LORA, share=0.25, **given)}


def test_bands_give_a_cut_at_the_start_of_the_transition_and_the_refinement_alone() -> None:
    found = by_name(bands=BANDS)
    assert found == {
        "upper_cut": block_names(N)[3:],
        "refinement": block_names(N)[7:],
        "top_third": block_names(N)[8:],
    }


def test_scores_give_as_many_blocks_as_the_share_allows() -> None:
    falling = scores("causal", *(float(N - i) for i in range(N)))
    found = by_name(gain=rising("gain"), change=rising("change"), causal=falling)
    assert found["top_gain"] == found["top_change"] == block_names(N)[9:]
    assert found["top_causal"] == block_names(N)[:3]
    assert list(found) == ["top_gain", "top_change", "top_causal", "top_third"]


def test_a_block_whose_change_is_of_another_kind_is_proposed_after_all_others() -> None:
    falling = scores("change", *(float(N - i) for i in range(N)))
    assert by_name(change=falling)["top_change"] == block_names(N)[:3]
    assert by_name(change=falling, last=["block.0"])["top_change"] == block_names(N)[1:4]
    (proposal, _) = propose(LORA, share=0.25, change=falling, last=["block.0"])
    assert "block.0 behind all others" in proposal.why
    assert by_name(gain=falling, last=["block.0"])["top_gain"] == block_names(N)[:3]  # of gains all are of one kind
    whole = propose(LORA, share=1, change=falling, last=["block.0"])[0]
    assert whole.layers == block_names(N)


def test_bands_that_were_not_found_propose_nothing() -> None:
    missing = Bands(False, "too few tasks", block_names(N))
    assert set(by_name(bands=missing)) == set(by_name()) == {"top_third"}


def test_lora_on_all_blocks_costs_one_and_a_set_is_priced_by_its_lowest_block() -> None:
    names = block_names(N)
    assert LORA.relative(names) == 1
    assert LORA.work([names[0]]) - LORA.work([names[5]]) == 5 * 100  # the backward pass runs through five blocks more
    assert LORA.work([names[2], names[11]]) > LORA.work([names[9], names[10], names[11]])
    prices = {p.name: p for p in propose(LORA, share=0.25, bands=BANDS)}
    assert prices["refinement"].relative_cost < prices["upper_cut"].relative_cost < 1
    assert prices["refinement"].memory_bytes < prices["upper_cut"].memory_bytes
    assert prices["upper_cut"].trainable_parameters == 9 * 10


def test_the_work_of_moving_weights_is_the_one_that_budgets_count() -> None:
    sizes = {f"block.{i}.q": 100 for i in range(N)}
    for chosen in (["block.0"], ["block.4", "block.9"], ["block.11"]):
        counted = training_flops(sizes, [f"{name}.q" for name in chosen], tokens=1)
        assert 2 * WEIGHTS.work(chosen) == counted


def test_memory_counts_the_model_what_the_backward_pass_keeps_and_the_optimiser() -> None:
    assert LORA.memory(["block.10"]) == 5000 + 2 * 70 + 16 * 10


def test_scores_of_other_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="scores gain are of 3 blocks, the costs of 12"):
        propose(LORA, share=0.5, gain=scores("gain", 1.0, 2.0, 3.0))
    with pytest.raises(UserError, match=r"not finite at block\.11"):
        propose(LORA, share=0.5, causal=scores("causal", *[1.0] * 11, float("nan")))
    with pytest.raises(UserError, match="budget 0"):
        propose(LORA, share=0)
