"""Tuning with the activation cache ends with the same bits as without it, whatever happens to the cache."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from kept_states import files_in
from tiny_runs import DTYPES, RECIPE, Tuner, assert_same, facts_of, make_moving, make_rows, weights_of

from tunescope.engine import Checks, Fit, KLToBase
from tunescope.engine.activations import open_cache

RECIPE_4 = replace(RECIPE, num_epochs=4, batch_tokens=80)
ROWS = make_rows(14)
SHARED = [replace(row, prompt_ids=(*range(40), *row.prompt_ids)) for row in ROWS]  # as with demonstrations


def varied(epoch):
    """Other prompts in every second epoch, as with templates."""
    return [replace(row, prompt_ids=(epoch % 2, *row.prompt_ids)) for row in ROWS]


def open_for(root, dtype, **changed):
    settings = {
        "base_sha256": "tiny",
        "dtype": DTYPES[dtype],
        "d_model": 32,
        "budget_bytes": 10**8,
        "keep_free_bytes": 0,
    }
    return open_cache(root, **settings | changed)


def tuned(moving, rows, states, *, after=None, recipe=RECIPE_4):
    """Weights and records; `after` is called with the step."""
    terms = [KLToBase(moving, make_rows(5, seed=4), 0.5, states=states)]
    tuner = Tuner(moving, rows, recipe, arm="test", terms=terms, states=states)
    records = []
    for record in Fit(tuner, Checks(make_rows(4, seed=9), every=2)):
        records.append(record)
        if after is not None:
            after(record.step)
    return weights_of(moving), facts_of(records)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [ROWS, SHARED, varied], ids=["plain", "common beginning", "other prompts every epoch"])
def test_the_result_is_the_same_with_and_without_the_cache(tmp_path, family, dtype, rows):
    kind = "lora on some blocks" if dtype == "float32" else "weights of blocks"
    expected = tuned(make_moving(kind, family, dtype), rows, None)
    with open_for(tmp_path, dtype) as cache:
        found = tuned(make_moving(kind, family, dtype), rows, cache)
        counts = cache.counts
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]
    assert counts.tokens_read > counts.tokens_written > 0


def test_another_seed_and_another_arm_compute_nothing_below_the_cut(tmp_path):
    with open_for(tmp_path, "bfloat16") as cache:
        tuned(make_moving("weights of blocks", dtype="bfloat16"), ROWS, cache)
    for kind, seed in (("weights of blocks", 7), ("lora on one block", 0)):  # both have block.2 as their lowest
        recipe = replace(RECIPE_4, seed=seed)
        expected = tuned(make_moving(kind, dtype="bfloat16", seed=seed), ROWS, None, recipe=recipe)
        with open_for(tmp_path, "bfloat16") as cache:
            found = tuned(make_moving(kind, dtype="bfloat16", seed=seed), ROWS, cache, recipe=recipe)
            assert cache.counts.tokens_written == 0
        assert_same(found[0], expected[0])
        assert found[1] == expected[1]


def remove(root):
    shutil.rmtree(root)


def cut(root):
    for file in files_in(root, ".states"):
        os.truncate(file, file.stat().st_size // 2)


def flip(root):
    for file in files_in(root, ".states"):
        content = bytearray(file.read_bytes())
        content[:] = bytes(byte ^ 4 for byte in content)
        file.write_bytes(content)


@pytest.mark.parametrize("harm", [remove, cut, flip])
@pytest.mark.parametrize("moment", [1, 5])
def test_harm_to_the_cache_in_the_middle_of_a_run_changes_no_bit(tmp_path, harm, moment):
    """A bit flipped after an entry was checked is the one thing that nobody can notice, so that harm comes between two runs."""
    root, notes = tmp_path / "cache", []
    expected = tuned(make_moving("weights of blocks"), ROWS, None)
    if harm is flip:
        with open_for(root, "float32") as cache:
            tuned(make_moving("weights of blocks"), ROWS, cache)
        flip(root)
    with open_for(root, "float32", note=notes.append) as cache:
        found = tuned(
            make_moving("weights of blocks"),
            ROWS,
            cache,
            after=lambda step: harm(root) if step == moment and harm is not flip else None,
        )
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]
    # Once all is in the memory map, a folder that is removed makes no difference, so there is nothing to say.
    assert len(notes) == len(set(notes)) >= (harm is not remove or moment == 1)


def test_a_cache_without_room_changes_no_bit(tmp_path):
    notes = []
    expected = tuned(make_moving("weights of blocks"), ROWS, None)
    with open_for(tmp_path, "float32", budget_bytes=16_000, note=notes.append) as cache:
        found = tuned(make_moving("weights of blocks"), ROWS, cache)
        assert cache.counts.tokens_written > 0
    assert_same(found[0], expected[0])
    assert len(notes) == 1


def test_states_of_another_base_are_not_used(tmp_path):
    with open_for(tmp_path, "float32", base_sha256="another") as cache:
        tuned(make_moving("weights of blocks", "qwen2"), ROWS, cache)
    expected = tuned(make_moving("weights of blocks"), ROWS, None)
    with open_for(tmp_path, "float32") as cache:
        found = tuned(make_moving("weights of blocks"), ROWS, cache)
    assert_same(found[0], expected[0])
    assert not any(torch.isnan(weight).any() for weight in found[0].values())
