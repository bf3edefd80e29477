"""A base that is read block by block gives the numbers of the whole one, and never needs more memory than it may."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import limited_memory
import numpy as np
import pytest
import torch
from kept_states import files_in
from tiny_runs import DTYPES, RECIPE, SELECTIONS, assert_same, facts_of, make_rows, weights_of

from tunescope.engine import L2SP, Checks, Fit, KLToBase, Tuner, attach, prepare, save, stream, to_inference
from tunescope.engine.activations import open_cache
from tunescope.engine.stream import StreamedBase, StreamedStates
from tunescope.errors import ConfigError, DataError, ModelError, RunError
from tunescope.models import continuation_logprobs, load_located, locate, mean_losses
from tunescope.models.packed import pack, passes
from tunescope.models.streamed import load_tail
from tunescope.models.tail import run_blocks
from tunescope.runs.records import Selection
from tunescope.testing import save_tiny

N_LAYERS = 4
ROWS = make_rows(14)
UPPER = {
    "lora": Selection("lora", ("block.2", "block.3"), ("q", "v", "down"), "test"),
    "matrices": Selection("lora", ("block.3",), ("q", "v"), "test", matrices=("block.3.q", "block.3.v")),
    "weights": Selection("weights", ("block.2", "block.3"), (), "test"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        name: save_tiny(root / name, family=name, n_layers=N_LAYERS)
        for name in ("llama", "qwen2", "qwen3", "gemma3_text")
    }


@pytest.fixture
def located(folders, family):
    return locate(str(folders[family]))


@pytest.fixture
def llama(folders):
    return locate(str(folders["llama"]))


def open_for(located, root, dtype="float32", **changed):
    settings = {"dtype": DTYPES[dtype], "d_model": 32, "budget_bytes": 10**8, "keep_free_bytes": 0}
    return open_cache(root, base_sha256=located.sha256, **settings | changed)


# The same numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", range(N_LAYERS + 1))
def test_streamed_states_are_those_of_the_whole_model_bit_by_bit(located, dtype, k):
    base, whole = StreamedBase(located, dtype=dtype), load_located(located, dtype=dtype).model
    seen = []
    for members, states in stream.pass_states(base, ROWS, k, batch_tokens=60, state_bytes=5000):
        packed = pack([ROWS[i] for i in members])
        assert states.dtype == DTYPES[dtype]
        assert torch.equal(states, run_blocks(whole, packed, stop=k)[packed.places])
        seen += members
    assert sorted(seen) == list(range(len(ROWS)))
    assert len(passes(ROWS, 60)) > 2


def test_states_do_not_depend_on_how_many_rows_are_under_way(llama):
    base = StreamedBase(llama)
    everything = stream.states_of(base, ROWS, 3, batch_tokens=60)
    assert torch.equal(stream.states_of(base, ROWS, 3, batch_tokens=60, state_bytes=1), everything)
    assert everything.shape == (sum(map(len, ROWS)), 32)


def test_states_agree_with_a_padded_pass_of_the_whole_model(located):
    """The reference is transformers' own forward pass, one row at a time."""
    whole = load_located(located, dtype="float32").model
    states = stream.states_of(StreamedBase(located, dtype="float32"), ROWS, 2).split([len(row) for row in ROWS])
    for row, found in zip(ROWS, states, strict=True):
        hidden = whole(torch.tensor([row.prompt_ids + row.target_ids]), output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(found, hidden[0], rtol=1e-5, atol=1e-5)


def test_no_rows_are_no_states(llama, tmp_path):
    base = StreamedBase(llama, dtype="float32")
    assert stream.states_of(base, [], 2).shape == (0, 32)
    with open_for(llama, tmp_path) as cache:
        filled = stream.fill(base, [], 2, cache)
    assert (filled.n_rows, filled.n_tokens, filled.rounds, filled.bytes_read) == (0, 0, 0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", range(1, N_LAYERS + 1))
def test_losses_through_the_tail_are_those_of_the_whole_model(located, dtype, k, tmp_path):
    base, tail = StreamedBase(located, dtype=dtype), load_tail(located, k, dtype=dtype)
    with open_for(located, tmp_path, dtype) as cache:
        stream.fill(base, ROWS, k, cache, batch_tokens=60)
        kept = StreamedStates(base, cache)
        found = mean_losses(tail.model, ROWS, batch_tokens=60, cut=k, kept=kept)
        assert kept.refilled_tokens == 0
    reference = mean_losses(load_located(located, dtype=dtype).model, ROWS, batch_tokens=60)
    if k < N_LAYERS:
        assert np.array_equal(found, reference)
    else:  # the whole model leaves out tokens that predict nothing in its last block, which here ran for all of them
        np.testing.assert_allclose(found, reference, rtol=1e-6 if dtype == "float32" else 2e-2)


CHOICES = [(*word.encode(), 256) for word in ("it", "facility", "hr", "h")]


def test_choices_through_the_tail_are_scored_as_by_the_whole_model(located, tmp_path):
    prompts = [row.prompt_ids for row in ROWS]
    base, tail = StreamedBase(located, dtype="float32"), load_tail(located, 3, dtype="float32")
    with open_for(located, tmp_path) as cache:
        stream.fill(base, stream.choice_rows(prompts, CHOICES), 3, cache)
        kept = StreamedStates(base, cache)
        found = stream.choice_logprobs(tail.model, prompts, CHOICES, cut=3, kept=kept)
        assert kept.refilled_tokens == 0
        assert stream.choice_logprobs(tail.model, [], CHOICES, cut=3, kept=kept).shape == (0, 4)
        assert stream.choice_logprobs(tail.model, prompts, [], cut=3, kept=kept).shape == (14, 0)
        for bad in ([[1], []], [[]]):
            with pytest.raises(DataError, match="without a token has no probability"):
                stream.choice_logprobs(tail.model, prompts, bad, cut=3, kept=kept)
            with pytest.raises(DataError, match="without a token has no probability"):
                stream.choice_logprobs(tail.model, bad, CHOICES, cut=3, kept=kept)
    reference = continuation_logprobs(load_located(located, dtype="float32").model, prompts, CHOICES)
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)


# Tuning


def tuned(loaded, selection, states, family, *, terms=False):
    moving = prepare(loaded.model, loaded.family, selection, lora_rank=4, seed=1)
    extra = make_rows(4, seed=5)
    added = [L2SP(moving, 0.1), KLToBase(moving, extra, 0.5, states=states)] if terms else []
    tuner = Tuner(moving, ROWS, RECIPE, arm="test", terms=added, states=states)
    fit = Fit(tuner, Checks(make_rows(4, seed=9), every=2))
    return moving, facts_of(fit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UPPER)
def test_a_tail_tunes_to_the_same_bits_as_the_whole_model(located, family, dtype, name, tmp_path):
    base = StreamedBase(located, dtype=dtype)
    lowest = 3 if name == "matrices" else 2
    with open_for(located, tmp_path, dtype) as cache:
        rows = [*ROWS, *make_rows(4, seed=5), *make_rows(4, seed=9)]
        stream.fill(base, rows, lowest, cache)
        streamed = StreamedStates(base, cache)
        tail = load_tail(located, lowest, dtype=dtype)
        stream.check_tail(tail.model, UPPER[name])
        found, records = tuned(tail, UPPER[name], streamed, family, terms=True)
        assert streamed.refilled_tokens == 0
        reference, expected = tuned(load_located(located, dtype=dtype), UPPER[name], cache, family, terms=True)
    assert records == expected
    assert found.selection == reference.selection
    assert_same(weights_of(found), weights_of(reference))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_tuned_on_a_tail_loads_on_the_whole_base_with_plain_peft(located, family, dtype, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with open_for(located, tmp_path / "cache", dtype) as cache:
        base = StreamedBase(located, dtype=dtype)
        kept = StreamedStates(base, cache)
        tail = load_tail(located, 2, dtype=dtype)
        moving, _ = tuned(tail, UPPER["lora"], kept, family)
        to_inference(moving)
        save(moving, tail.tokenizer, tmp_path / "adapter", card="", base=located.path)
        losses = mean_losses(moving.model, ROWS, cut=2, kept=kept)
        again = load_tail(located, 2, dtype=dtype)
        assert np.array_equal(mean_losses(attach(again, tmp_path / "adapter"), ROWS, cut=2, kept=kept), losses)
    plain = AutoModelForCausalLM.from_pretrained(
        located.path, dtype=DTYPES[dtype], attn_implementation="tunescope_grouped"
    )
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert np.array_equal(mean_losses(model, ROWS), losses)
    assert not np.allclose(mean_losses(load_located(located, dtype=dtype).model, ROWS), losses, rtol=0.01)
    with model.disable_adapter():
        assert np.array_equal(mean_losses(model, ROWS), mean_losses(load_located(located, dtype=dtype).model, ROWS))


def test_what_a_tail_saves_is_what_the_whole_model_saves(llama, tmp_path):
    with open_for(llama, tmp_path / "cache") as cache:
        kept = StreamedStates(StreamedBase(llama, dtype="float32"), cache)
        for name, loaded in (
            ("tail", load_tail(llama, 2, dtype="float32")),
            ("whole", load_located(llama, dtype="float32")),
        ):
            for selection in ("lora", "weights"):
                moving, _ = tuned(loaded, UPPER[selection], kept, "llama")
                to_inference(moving)
                save(moving, loaded.tokenizer, tmp_path / name / selection, card="", base="tiny")
                loaded = (
                    load_tail(llama, 2, dtype="float32") if name == "tail" else load_located(llama, dtype="float32")
                )
    for file in sorted((tmp_path / "whole").rglob("*.*")):
        twin = tmp_path / "tail" / file.relative_to(tmp_path / "whole")
        if file.suffix == ".safetensors":
            assert twin.read_bytes() == file.read_bytes(), file
        elif file.suffix == ".json":
            left, right = json.loads(twin.read_text()), json.loads(file.read_text())
            assert left == right, file


@pytest.mark.parametrize("kind", ["lora on all blocks", "lora on some blocks", "full"])
def test_blocks_that_are_not_in_memory_cannot_be_chosen(llama, kind):
    tail = load_tail(llama, 3)
    what = "the whole model" if kind == "full" else r"block\.[01]"
    with pytest.raises(ModelError, match=f"{what} is to move, and this base is in memory from block.3 on"):
        stream.check_tail(tail.model, SELECTIONS[kind])


def test_a_whole_model_may_move_everywhere(llama):
    for selection in SELECTIONS.values():
        stream.check_tail(load_located(llama).model, selection)


# Filling


def test_filling_computes_each_row_once_and_only_what_is_missing(llama, tmp_path):
    base = StreamedBase(llama, dtype="float32")
    with open_for(llama, tmp_path) as cache:
        first = stream.fill(base, ROWS[:5], 2, cache)
        second = stream.fill(base, [*ROWS, *ROWS], 2, cache)
        third = stream.fill(base, ROWS, 2, cache)
    tokens = [len(row) for row in ROWS]
    assert (first.n_rows, first.n_tokens, first.rounds) == (5, sum(tokens[:5]), 1)
    assert (second.n_rows, second.n_tokens, second.rounds) == (9, sum(tokens[5:]), 1)
    assert (third.n_rows, third.rounds, third.bytes_read) == (0, 0, 0)
    assert first.bytes_read == base.sizes.embedding + 2 * base.sizes.blocks[0]


def test_what_is_under_way_is_bounded_and_then_the_base_is_read_again(llama, tmp_path):
    base = StreamedBase(llama, dtype="float32")
    token_bytes = 32 * 4
    largest = max(sum(len(ROWS[i]) for i in members) for members in passes(ROWS, 40))
    with open_for(llama, tmp_path) as cache:
        filled = stream.fill(base, ROWS, 2, cache, batch_tokens=40, state_bytes=largest * token_bytes)
    assert filled.rounds >= math.ceil(filled.n_tokens / largest) > 1
    assert filled.bytes_read == filled.rounds * (base.sizes.embedding + 2 * base.sizes.blocks[0])


def test_progress_goes_up_to_one(llama, tmp_path):
    seen = []
    with open_for(llama, tmp_path) as cache:
        stream.fill(
            StreamedBase(llama, dtype="float32"), ROWS, 2, cache, batch_tokens=60, state_bytes=5000, done=seen.append
        )
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == 1


def test_interrupted_it_goes_on_with_what_is_missing(llama, tmp_path):
    class StopError(Exception):
        pass

    def stop_at(fraction):
        if fraction > 0.6:
            raise StopError

    base = StreamedBase(llama, dtype="float32")
    with open_for(llama, tmp_path) as cache:
        with pytest.raises(StopError):
            stream.fill(base, ROWS, 2, cache, batch_tokens=60, state_bytes=1, done=stop_at)
        kept = len(ROWS) - len(cache.missing(ROWS, 2))
        assert 0 < kept < len(ROWS)
    with open_for(llama, tmp_path) as cache:
        filled = stream.fill(base, ROWS, 2, cache, batch_tokens=60, state_bytes=1)
        assert filled.n_rows == len(ROWS) - kept
        whole = load_located(llama, dtype="float32").model
        packed = pack(ROWS)
        torch.testing.assert_close(cache.read(ROWS, 2), run_blocks(whole, packed, stop=2)[packed.places])


def test_states_that_were_lost_are_streamed_again(llama, tmp_path):
    base = StreamedBase(llama, dtype="float32")
    with open_for(llama, tmp_path) as cache:
        stream.fill(base, ROWS, 2, cache)
        expected = cache.read(ROWS, 2)
    (file,) = files_in(tmp_path, ".states")
    os.truncate(file, file.stat().st_size // 2)
    notes = []
    with open_for(llama, tmp_path, note=notes.append) as cache:
        kept = StreamedStates(base, cache)
        torch.testing.assert_close(kept.read(ROWS, 2), expected, rtol=1e-6, atol=1e-6)
        assert 0 < kept.refilled_tokens < sum(map(len, ROWS))
        assert len(notes) == 1


def test_states_that_cannot_be_kept_are_an_error_before_anything_is_computed(llama, tmp_path):
    base = StreamedBase(llama, dtype="float32")
    with (
        open_for(llama, tmp_path, budget_bytes=1000) as cache,
        pytest.raises(ConfigError, match=r"engine\.cache_bytes allows"),
    ):
        stream.fill(base, ROWS, 2, cache)
    (tmp_path / "file").write_text("no folder")
    with (
        open_for(llama, tmp_path / "file" / "cache") as cache,
        pytest.raises(
            RunError, match=r"the states of the examples cannot be kept .*set engine.cache to another folder"
        ),
    ):
        stream.fill(base, ROWS, 2, cache)
    assert base.bytes_read == base.sizes.rest


def test_a_folder_removed_while_filling_is_an_error(llama, tmp_path):
    def remove(fraction):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    with open_for(llama, tmp_path / "cache") as cache, pytest.raises(RunError, match="removed"):
        stream.fill(StreamedBase(llama, dtype="float32"), ROWS, 2, cache, state_bytes=1, batch_tokens=60, done=remove)


def test_a_block_that_does_not_exist_is_named(llama):
    with pytest.raises(ModelError, match=r"this model has block.0 to block.3"):
        stream.states_of(StreamedBase(llama), ROWS, 5)


# Under a limit on memory that the whole model exceeds


@pytest.mark.slow
def test_a_model_larger_than_the_memory_allowed_is_tuned_to_the_same_bits(tmp_path):
    """The limit is the kernel's (RLIMIT_DATA): what exceeds it cannot be allocated."""
    script = Path(__file__).with_name("limited_memory.py")
    # Else the C library keeps what was freed, and oneDNN some code for every new length: as much as this small model.
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path]),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
    }

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False, env=env
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    model, cache = tmp_path / "model", tmp_path / "cache"
    whole_bytes = limited_memory.make(model)
    assert whole_bytes > 100_000_000
    limit = whole_bytes // 2
    streamed = run("stream", model, cache, tmp_path / "streamed", limit)
    whole = run("whole", model, cache, tmp_path / "whole", 0)
    refused = run("load", model, cache, tmp_path / "none", limit)
    assert "memory" in refused["error"].lower(), "the limit does not bind, so the test shows nothing"
    assert streamed["losses"] == whole["losses"]
    assert streamed["records"] == whole["records"]
    left, right = (tmp_path / name / "adapter_model.safetensors" for name in ("streamed", "whole"))
    assert left.read_bytes() == right.read_bytes()


def test_a_base_whose_blocks_nobody_would_read_is_refused(llama):
    base = StreamedBase(llama, dtype="float32")
    base.keep_ends()
    with pytest.raises(ConfigError, match=r"base: blocks are read one by one with sharding fsdp2 alone"):
        prepare(base.model, base.family, UPPER["lora"], base=base)
