"""The head in chunks is the head at once."""

import pytest
import torch
from torch.nn import functional

from tunescope.models import backward_from_head, head_chunks, head_logits, target_losses
from tunescope.testing import tiny_model

N_TARGETS = 23


def make_states(seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(N_TARGETS, 32, generator=generator)
    return states, torch.randint(260, (N_TARGETS,), generator=generator)


@pytest.fixture(params=[1, 7, 22, 23, 1000])
def chunk(request, monkeypatch):
    """Targets per chunk."""
    monkeypatch.setattr("tunescope.models.head._LOGIT_BYTES", request.param * 260 * 4)
    return request.param


def test_chunks_cover_all_targets_once_and_are_small_enough(chunk):
    model = tiny_model()
    for n in range(60):
        cut = head_chunks(model, n)
        assert [i for where in cut for i in range(n)[where]] == list(range(n))
        sizes = [where.stop - where.start for where in cut]
        assert all(0 < size <= chunk for size in sizes)
        assert not sizes or max(sizes) - min(sizes) <= 1


def test_losses_in_chunks_are_the_losses_at_once(chunk):
    model, (states, targets) = tiny_model(), make_states()
    wanted = functional.cross_entropy(head_logits(model, states), targets, reduction="none")
    torch.testing.assert_close(target_losses(model, states, targets), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("moves", [True, False])
def test_gradients_in_chunks_are_the_gradients_at_once(chunk, moves):
    """Of the states and what made them, and of the head where it moves."""
    found = {}
    for chunked in (True, False):
        model, (start, targets) = tiny_model().requires_grad_(moves), make_states()
        weight = torch.full((32,), 0.7, requires_grad=True)
        states = start * weight
        if chunked:
            total = backward_from_head(
                model,
                states,
                lambda logits, where: functional.cross_entropy(logits, targets[where], reduction="sum") / N_TARGETS,  # noqa: B023
            )
        else:
            total = functional.cross_entropy(head_logits(model, states), targets)
            total.backward()
        found[chunked] = [total.detach(), weight.grad, *([model.lm_head.weight.grad] if moves else [])]
        assert (model.lm_head.weight.grad is not None) == moves
    for mine, wanted in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)


def test_logits_never_exist_for_all_targets_at_once(monkeypatch):
    model, (states, targets) = tiny_model(), make_states()
    monkeypatch.setattr("tunescope.models.head._LOGIT_BYTES", 4 * 260 * 4)
    sizes = []
    model.lm_head.register_forward_hook(lambda _m, _i, logits: sizes.append(len(logits)))
    target_losses(model, states, targets)
    backward_from_head(model, states.requires_grad_(), lambda logits, _: logits.sum())
    assert max(sizes) <= 4 and sum(sizes) == 2 * N_TARGETS


def test_no_targets_are_no_losses():
    model = tiny_model()
    empty = torch.zeros(0, 32, requires_grad=True)
    assert target_losses(model, empty, torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert backward_from_head(model, empty, lambda logits, _: logits.sum()) == 0
