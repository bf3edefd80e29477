"""Where memory is short, less is computed at once and the numbers stay; it is said once."""

import pytest
import torch

from tunescope.engine.memory import halving, is_out_of_memory
from tunescope.errors import RunError

SHORT = (
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
)


@pytest.mark.parametrize("error", SHORT, ids=[type(e).__name__ for e in SHORT])
def test_words_and_classes_for_short_memory_are_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        halving(lambda n: (_ for _ in ()).throw(error), 8, tokens=1)


def allocating(limit, tries):
    def compute(batch_tokens):
        tries.append(batch_tokens)
        if batch_tokens > limit:
            raise SHORT[len(tries) % len(SHORT)]
        return batch_tokens * 10

    return compute


@pytest.mark.parametrize(
    ("limit", "wanted"), [(100, [100]), (50, [100, 50]), (12, [100, 50, 25, 12]), (49, [100, 50, 25])]
)
def test_it_halves_until_it_fits_forgets_what_was_half_done_and_says_it_once(limit, wanted):
    tries, said, undone = [], [], []
    found = halving(allocating(limit, tries), 100, tokens=5, undo=lambda: undone.append(1), note=said.append)
    assert found == (wanted[-1] * 10, wanted[-1])
    assert tries == wanted
    assert len(undone) == len(wanted) - 1
    assert len(said) == (len(wanted) > 1)
    if said:
        assert said[0] == (
            f"memory is short: from here on {wanted[-1]} tokens a pass, not 100; the numbers change by rounding alone"
        )


@pytest.mark.parametrize("tokens", [1, 30, 100, 500])
def test_where_even_one_example_does_not_fit_it_says_what_to_do(tokens):
    tries = []
    with pytest.raises(
        RunError, match=rf"memory is short even for one example of {tokens} tokens \(.*\); use checkpoint"
    ):
        halving(allocating(0, tries), 100, tokens=tokens)
    assert tries[-1] <= max(tokens, 1) and all(n > tokens for n in tries[:-1])


def test_the_tensors_of_the_try_that_failed_are_gone_before_the_next():
    import weakref

    kept = []

    def compute(batch_tokens):
        assert not kept or kept[-1]() is None
        tensor = torch.zeros(3)
        kept.append(weakref.ref(tensor))
        if batch_tokens > 2:
            raise MemoryError
        return batch_tokens

    assert halving(compute, 8, tokens=1) == (2, 2)
    assert len(kept) == 3
