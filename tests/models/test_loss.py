"""The loss on target tokens equals transformers' loss and does not feel padding or batches."""

import numpy as np
import pytest
import torch
from contract import make_prompts

from tunescope.data import Encoded, Example
from tunescope.models import IGNORED, mean_losses, pad_right, token_losses
from tunescope.testing import tiny_model


def make_rows(count=6):
    prompts = make_prompts(rows=count, shared=5, seed=1)
    targets = make_prompts(rows=count, shared=0, longest=9, seed=2)
    nobody = Example("", "", "", "", ("",))
    return [Encoded(tuple(p), (*t, 256), nobody) for p, t in zip(prompts, targets, strict=True)]


ROWS = make_rows()


def plain_loss(model, rows):
    """What transformers computes itself: the mean over all target tokens."""
    input_ids, attention_mask, labels = pad_right(rows)
    return model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss


def test_the_mean_loss_equals_the_loss_of_transformers(model, reference):
    losses, owner = token_losses(model, *pad_right(ROWS))
    assert len(losses) == len(owner) == sum(len(row.target_ids) for row in ROWS)
    torch.testing.assert_close(losses.mean(), plain_loss(reference, ROWS), rtol=0, atol=1e-5)


def test_its_gradients_equal_those_of_transformers(model, reference):
    for each in (model, reference):
        each.requires_grad_(True)
    token_losses(model, *pad_right(ROWS))[0].mean().backward()
    plain_loss(reference, ROWS).backward()
    for (name, mine), (_, other) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert other.grad.abs().max() > 0, name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_every_loss_belongs_to_its_row(model, reference):
    losses, owner = token_losses(model, *pad_right(ROWS))
    for i, row in enumerate(ROWS):
        mine = losses[owner == i]
        assert len(mine) == len(row.target_ids)
        torch.testing.assert_close(mine.mean(), plain_loss(reference, [row]), rtol=0, atol=1e-5)


def test_padding_and_what_stands_in_it_change_nothing(model):
    input_ids, attention_mask, labels = pad_right(ROWS)
    whole, _ = token_losses(model, input_ids, attention_mask, labels)
    dirty = input_ids.masked_fill(attention_mask == 0, 77)
    assert not torch.equal(dirty, input_ids)
    assert torch.equal(token_losses(model, dirty, attention_mask, labels)[0], whole)
    wider = [
        torch.nn.functional.pad(t, (0, 9), value=v) for t, v in ((input_ids, 0), (attention_mask, 0), (labels, IGNORED))
    ]
    torch.testing.assert_close(token_losses(model, *wider)[0], whole, rtol=0, atol=1e-5)


def test_the_prompt_has_no_loss(model):
    """Another label on a prompt token would be seen; another prompt token behind the last target would not exist."""
    input_ids, attention_mask, labels = pad_right(ROWS)
    for i, row in enumerate(ROWS):
        n_prompt, n_row = len(row.prompt_ids), len(row)
        assert labels[i, :n_prompt].eq(IGNORED).all()
        assert labels[i, n_prompt:n_row].tolist() == list(row.target_ids)
        assert labels[i, n_row:].eq(IGNORED).all()
        assert input_ids[i, :n_row].tolist() == [*row.prompt_ids, *row.target_ids]
        assert attention_mask[i].tolist() == [1] * n_row + [0] * (labels.shape[1] - n_row)


def test_an_end_token_that_is_also_the_pad_token_has_a_loss(model):
    assert model.config.pad_token_id == ROWS[0].target_ids[-1] == 256
    _, _, labels = pad_right(ROWS)
    assert (labels == 256).sum() == len(ROWS)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_mean_losses_do_not_depend_on_batch_or_order(model, reference, batch_tokens):
    wanted = [plain_loss(reference, [row]).item() for row in ROWS]
    found = mean_losses(model, ROWS, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        mean_losses(model, ROWS[::-1], batch_tokens=batch_tokens)[::-1], wanted, rtol=0, atol=1e-5
    )


def test_mean_losses_in_bfloat16_are_the_same_bits_for_every_batch(family):
    model = tiny_model(family, d_model=96, dtype=torch.bfloat16)
    whole = mean_losses(model, ROWS, batch_tokens=10_000)
    for batch_tokens in (1, 60, 120):
        assert (mean_losses(model, ROWS, batch_tokens=batch_tokens) == whole).all()


def test_no_rows_have_no_losses(model):
    assert mean_losses(model, []).shape == (0,)
