"""States are kept where that saves something, and a base is streamed where it does not fit; the reason says which and why."""

import pytest
import torch

from tunescope.engine.worthwhile import must_stream, worth_caching

GOOD = {"d_model": 4096, "dtype": torch.bfloat16, "lowest_block": 28, "budget_bytes": 10**10}


def worth(n_tokens=10**6, num_uses=3, **changed):
    return worth_caching(n_tokens, num_uses, **GOOD | changed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_uses": 1}, "every example is read once"),
        ({"lowest_block": 0}, "block.0 is the lowest that moves"),
        ({"lowest_block": -1}, "the embeddings move"),
        ({"n_tokens": 0}, "there are no examples"),
        ({"budget_bytes": 8_191_999_999}, "take 8.19 GB, and engine.cache_bytes allows 8.19 GB"),
        ({"free_bytes": 8_191_999_999}, "take 8.19 GB more, and the disk has 8.19 GB to spare"),
        ({"free_bytes": -5}, "the disk has 0 MB to spare"),
    ],
)
def test_what_saves_nothing_or_does_not_fit_is_not_kept(changed, reason):
    kept, why = worth(**changed)
    assert not kept
    assert reason in why


def test_exactly_the_budget_and_the_free_space_are_enough():
    bytes_needed = 10**6 * 4096 * 2
    assert worth(budget_bytes=bytes_needed, free_bytes=bytes_needed) == (
        True,
        "8.19 GB of states spare 2 of 3 passes through blocks 0 to 27",
    )


def test_float32_takes_twice_as_much():
    assert worth(dtype=torch.float32, budget_bytes=8_192_000_000)[0] is False
    assert worth(dtype=torch.float32, budget_bytes=16_384_000_000)[0] is True


def test_what_is_there_already_is_used_even_once_and_needs_no_space():
    assert worth(num_uses=1, cached_tokens=10**6, free_bytes=0) == (
        True,
        "the states of all examples are in the cache already, and spare every pass through blocks 0 to 27",
    )
    assert worth(num_uses=1, cached_tokens=750_000, free_bytes=2_048_000_000)[1].startswith(
        "8.19 GB of states spare 0.75 of 1 passes"
    )
    assert worth(cached_tokens=750_000, free_bytes=2_047_999_999)[0] is False


def test_block_1_spares_one_block():
    assert worth(lowest_block=1)[1].endswith("through block 0")


def test_a_base_is_streamed_only_above_the_limit():
    assert must_stream(100, None) == (False, "the base takes 0.0001 MB and is held in memory")
    assert must_stream(10**9, 10**9)[0] is False
    streamed, why = must_stream(10**9 + 1, 10**9)
    assert streamed
    assert why == "the base takes 1 GB, and memory_bytes allows 1 GB: it is read block by block"
