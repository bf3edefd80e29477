"""The order of the examples: complete, repeatable, random, and of similar length."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data import epoch_batches

LENGTHS = np.random.default_rng(0).lognormal(4, 1, 500).astype(int).tolist()


@given(
    lengths=st.lists(st.integers(1, 1000), max_size=200),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_every_example_comes_exactly_once_in_as_few_batches_as_possible(lengths, batch_size, seed, epoch):
    batches = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == math.ceil(len(lengths) / batch_size)
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_the_order_depends_on_seed_and_epoch_alone():
    first = epoch_batches(LENGTHS, batch_size=8, seed=1, epoch=0)
    np.random.default_rng(5).random(10)
    assert epoch_batches(list(LENGTHS), batch_size=8, seed=1, epoch=0) == first
    assert epoch_batches(LENGTHS, batch_size=8, seed=2, epoch=0) != first
    assert epoch_batches(LENGTHS, batch_size=8, seed=1, epoch=1) != first


def test_most_padding_is_saved():
    def padded(batches):
        return sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)

    order = np.random.default_rng(1).permutation(len(LENGTHS)).tolist()
    unsorted = [order[i : i + 8] for i in range(0, len(order), 8)]
    saved = padded(unsorted) - padded(epoch_batches(LENGTHS, batch_size=8, seed=1, epoch=0))
    assert saved > 0.75 * (padded(unsorted) - sum(LENGTHS))


def test_short_and_long_batches_are_mixed_over_the_epoch():
    batches = epoch_batches(LENGTHS, batch_size=8, seed=1, epoch=0)
    means = [np.mean([LENGTHS[i] for i in batch]) for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize("batch_size", [1, 3, 500, 10_000])
def test_batches_of_one_and_batches_larger_than_the_data_work(batch_size):
    batches = epoch_batches(LENGTHS, batch_size=batch_size, seed=0, epoch=0)
    assert max(map(len, batches)) == min(batch_size, len(LENGTHS))
