"""Packed, shared, cut in two, checkpointed or from kept states: always the losses and gradients of transformers."""

import contextlib

import pytest
import torch
from contract import DTYPES, make_prompts
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from tunescope.data import Encoded, Example
from tunescope.errors import ModelError
from tunescope.models import bare, blocks, head_logits, pack, pad_right, predicting_states, run_blocks
from tunescope.testing import tiny_model

N_LAYERS = 4


def make_rows():
    """Two tasks with beginnings of their own, rows alone, one without a prompt, and two that are equal."""
    nobody = Example("", "", "", "", ("",))
    prompts = [*make_prompts(rows=4, shared=24, seed=1), *make_prompts(rows=3, shared=40, seed=2)]
    prompts += make_prompts(rows=3, shared=0, longest=60, seed=3)
    targets = make_prompts(rows=len(prompts), shared=0, longest=6, seed=4)
    rows = [Encoded(tuple(p), (*t, 256), nobody) for p, t in zip(prompts, targets, strict=True)]
    return [*rows, Encoded((), (3, 4, 5), nobody), rows[0]]


ROWS = make_rows()
N_TOKENS = sum(len(row) for row in ROWS)


def tiny(family, *, plain=False, dtype=torch.float32):
    model = tiny_model(family, n_layers=N_LAYERS, dtype=dtype)
    if plain:
        model.set_attn_implementation("eager")
    return model.requires_grad_(True)


def losses_and_gradients(model, states, targets):
    losses = functional.cross_entropy(head_logits(model, states), targets, reduction="none")
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def reference(family, rows=ROWS):
    """transformers alone, padded, with its own attention and loss."""
    model = tiny(family, plain=True)
    input_ids, attention_mask, labels = pad_right(rows)
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
    wanted = labels[:, 1:]
    losses = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
    losses = losses[wanted != -100]
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters()}


def through(model, rows=ROWS, *, share=True, cut=0, **settings):
    """Losses and gradients of the packed form."""
    packed = pack(rows, share=share)
    states = run_blocks(model, packed, stop=cut, checkpointing=settings.get("checkpointing")) if cut else None
    hidden = run_blocks(model, packed, first=cut, states=states, **settings)
    return losses_and_gradients(model, hidden[packed.predictors], packed.targets)


def assert_equal(found, wanted, *, rtol=1e-4, atol=2e-6):
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in found[1].items():
        assert wanted[1][name].abs().max() > 0, name
        torch.testing.assert_close(gradient, wanted[1][name], rtol=rtol, atol=atol, msg=name)


FORMS = {
    "packed": {"share": False},
    "with a common beginning": {},
    "last block only where read": {"only_targets": True},
    "checkpointed": {"checkpointing": contextlib.nullcontext},
    "checkpointed, last block only where read": {"checkpointing": contextlib.nullcontext, "only_targets": True},
    "cut after the first block": {"cut": 1},
    "cut before the last block": {"cut": N_LAYERS - 1, "only_targets": True},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_losses_and_gradients_are_those_of_transformers(family, form):
    """For gemma with a window of 16, shorter than the rows and than what they share."""
    assert max(len(row) for row in ROWS) > 60
    assert pack(ROWS).layout.n_tokens < 0.7 * N_TOKENS
    assert_equal(through(tiny(family), **form), reference(family))


def test_rows_together_give_the_losses_of_each_row_alone(family):
    model = tiny(family)
    together, _ = through(model)
    one_by_one = torch.cat([reference(family, [row])[0] for row in ROWS])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["checkpointed", "checkpointed, last block only where read"])
def test_checkpointing_gives_the_same_bits(family, form):
    with_it = through(tiny(family), **FORMS[form])
    without = through(tiny(family), **(FORMS[form] | {"checkpointing": None}))
    assert torch.equal(with_it[0], without[0])
    assert all(torch.equal(gradient, without[1][name]) for name, gradient in with_it[1].items())


def test_checkpointing_keeps_less(family):
    kept = {}
    for checkpointing in (None, contextlib.nullcontext):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            run_blocks(tiny(family), pack(ROWS), checkpointing=checkpointing)
        kept[checkpointing] = sum(sizes)
    assert kept[contextlib.nullcontext] < 0.4 * kept[None]


# --- no row reaches another ---


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_another_row_or_another_neighbour_changes_no_bit_of_a_row(family, dtype):
    """Tokens of one row changed, a row longer, and rows taken away: the others keep their losses bit by bit."""
    model = tiny_model(family, n_layers=N_LAYERS, d_model=96, dtype=dtype)
    nobody = ROWS[0].example

    @torch.no_grad()
    def losses(rows):
        states, targets, owners = predicting_states(model, rows)
        found = functional.cross_entropy(head_logits(model, states), targets, reduction="none")
        return [found[owners == i] for i in range(len(rows))]

    before = losses(ROWS)
    for i in (0, 5, 8):
        changed = Encoded((*ROWS[i].prompt_ids[:-1], 99), ROWS[i].target_ids, nobody)
        longer = Encoded((*ROWS[i].prompt_ids, 1, 2, 3), ROWS[i].target_ids, nobody)
        for other in (changed, longer):
            after = losses([*ROWS[:i], other, *ROWS[i + 1 :]])
            assert not torch.equal(after[i], before[i])
            assert all(torch.equal(a, b) for j, (a, b) in enumerate(zip(after, before, strict=True)) if j != i)
    fewer = losses(ROWS[3:9])
    assert all(torch.equal(a, b) for a, b in zip(fewer, before[3:9], strict=True))


# --- blocks that do not run ---


@contextlib.contextmanager
def ran(model):
    """Collects the numbers of the blocks that run, and whether the embeddings do."""
    seen = []
    handles = [b.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, b in enumerate(blocks(model))]
    handles.append(bare(model).get_input_embeddings().register_forward_hook(lambda *_: seen.append("embeddings")))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_only_the_blocks_asked_for_run(family):
    model = tiny(family)
    packed = pack(ROWS)
    with ran(model) as seen:
        states = run_blocks(model, packed, stop=2)
    assert seen == ["embeddings", 0, 1]
    with ran(model) as seen:
        run_blocks(model, packed, first=2, states=states)
    assert seen == [2, 3]
    with ran(model) as seen:
        assert torch.equal(run_blocks(model, packed, first=2, stop=2, states=states), states)
    assert seen == []


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_going_on_from_any_block_gives_the_same_bits(family, dtype):
    model = tiny_model(family, n_layers=N_LAYERS, dtype=dtype)
    packed = pack(ROWS)
    whole = run_blocks(model, packed)
    for cut in range(N_LAYERS + 1):
        states = run_blocks(model, packed, stop=cut)
        assert states.dtype == dtype
        assert torch.equal(run_blocks(model, packed, first=cut, states=states), whole), cut


def test_states_at_a_cut_are_the_hidden_states_of_transformers(family):
    model = tiny(family, plain=True)
    row = ROWS[8]
    ids = torch.tensor([[*row.prompt_ids, *row.target_ids]])
    wanted = model(input_ids=ids, output_hidden_states=True).hidden_states
    for cut in range(1, N_LAYERS):
        found = run_blocks(tiny(family), pack([row]), stop=cut)
        torch.testing.assert_close(found, wanted[cut][0], rtol=1e-4, atol=1e-4)


def test_a_model_is_left_as_it_was_even_after_an_error(family):
    model = get_peft_model(tiny(family), LoraConfig(target_modules=["q_proj", "gate_proj"]))

    def everything():
        return [(name, id(m), "forward" in vars(m), len(m._forward_pre_hooks)) for name, m in model.named_modules()]

    before = everything(), bare(model).config._attn_implementation
    run_blocks(model, pack(ROWS), only_targets=True, checkpointing=contextlib.nullcontext)
    run_blocks(model, pack(ROWS), stop=1)
    assert (everything(), bare(model).config._attn_implementation) == before
    handle = blocks(model)[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_blocks(model, pack(ROWS), only_targets=True)
    handle.remove()
    assert (everything(), bare(model).config._attn_implementation) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": 2}, "cannot start without states"),
        ({"first": 3, "stop": 2, "states": torch.zeros(1, 32)}, "wanted 0 <= first <= stop <= 4"),
        ({"stop": 5}, "wanted 0 <= first <= stop <= 4"),
        ({"first": 1, "states": torch.zeros(3, 32)}, r"states of shape \(3, 32\), wanted: one row for each of"),
    ],
)
def test_what_cannot_run_is_refused(settings, said):
    with pytest.raises(ModelError, match=said):
        run_blocks(tiny("llama"), pack(ROWS), **settings)


# --- kept states ---


class Shelf:
    """What a cache does, in memory, row by row."""

    def __init__(self):
        self.kept, self.asked = {}, []

    def read(self, rows, k):
        found = [self.kept.get((k, row.prompt_ids, row.target_ids)) for row in rows]
        self.asked.append(not any(f is None for f in found))
        return torch.cat(found) if self.asked[-1] else None

    def write(self, rows, k, states):
        assert len(states) == sum(len(row) for row in rows)
        start = 0
        for row in rows:
            self.kept[k, row.prompt_ids, row.target_ids] = states[start : start + len(row)].clone()
            start += len(row)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_from_kept_states_come_the_same_bits_and_only_the_upper_blocks_run(family, dtype):
    model = tiny_model(family, n_layers=N_LAYERS, dtype=dtype)
    plain, targets, owners = predicting_states(model, ROWS)
    shelf = Shelf()
    for lookup in range(3):
        with ran(model) as seen:
            found = predicting_states(model, ROWS, cut=2, kept=shelf)
        assert seen == ([2, 3] if lookup else ["embeddings", 0, 1, 2, 3])
        assert torch.equal(found[0], plain)
        assert torch.equal(found[1], targets) and torch.equal(found[2], owners)
    assert shelf.asked == [False, True, True]
    assert {t.dtype for t in shelf.kept.values()} == {dtype}


def test_rows_kept_in_one_company_serve_in_another_bit_by_bit(family):
    """What is kept of a row does not depend on which rows were computed with it."""
    model = tiny_model(family, n_layers=N_LAYERS)
    together, apart = Shelf(), Shelf()
    predicting_states(model, ROWS, cut=2, kept=together)
    for rows in (ROWS[::2], ROWS[1::2]):
        predicting_states(model, rows, cut=2, kept=apart)
    assert together.kept.keys() == apart.kept.keys()
    assert all(torch.equal(t, apart.kept[key]) for key, t in together.kept.items())


def test_a_cut_at_the_first_block_keeps_nothing():
    shelf = Shelf()
    for cut in (0, -1):
        predicting_states(tiny("llama"), ROWS, cut=cut, kept=shelf)
    assert not shelf.asked and not shelf.kept


def test_blocks_that_are_not_in_memory_are_asked_for_in_one_line():
    model = tiny_model("llama", n_layers=N_LAYERS)
    shelf = Shelf()
    wanted = predicting_states(model, ROWS, cut=2, kept=shelf)[0]
    for block in blocks(model)[:2]:
        block.to("meta")
    assert torch.equal(predicting_states(model, ROWS, cut=2, kept=shelf)[0], wanted)
    with pytest.raises(ModelError, match=r"blocks below block\.2 are not in memory, and 1 rows are not in the cache"):
        predicting_states(model, [Encoded((1, 2), (3,), ROWS[0].example)], cut=2, kept=shelf)
