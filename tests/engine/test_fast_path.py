"""Common beginnings, kept states, checkpointing, chunks and short memory change what a step costs, never what it does."""

from dataclasses import replace

import pytest
import torch
from test_sparse import make_sparse
from test_tuner import finish, plain_loop
from tiny_runs import DTYPES, RECIPE, SELECTIONS, assert_same, facts_of, make_moving, make_rows, make_tuner, weights_of

from tunescope.data import Encoded
from tunescope.engine import Checks, Fit, KLToBase, Tuner, race, read_tensors, validation_loss, write_tensors
from tunescope.engine import tuner as tuner_module
from tunescope.engine.divide import own_passes
from tunescope.errors import RunError, TunescopeError
from tunescope.models import bare, blocks, mean_losses, pack

ABOVE_A_CUT = [name for name in SELECTIONS if name not in ("full", "lora on all blocks")]
HELD_OUT = make_rows(5, seed=9)


class Shelf:
    """What a cache does, in memory, row by row."""

    def __init__(self):
        self.kept, self.found, self.missing = {}, 0, 0

    def read(self, rows, k):
        states = [self.kept.get((k, row.prompt_ids, row.target_ids)) for row in rows]
        if any(s is None for s in states):
            self.missing += len(rows)
            return None
        self.found += len(rows)
        return torch.cat(states)

    def write(self, rows, k, states):
        for row, own in zip(rows, states.split([len(row) for row in rows]), strict=True):
            self.kept[k, row.prompt_ids, row.target_ids] = own.clone()


def make(kind, dtype="float32", *, family="llama", recipe=RECIPE, rows=None, **settings):
    moving = (
        make_sparse(family, dtype, layers=["block.2-3"])[0] if kind == "sparse" else make_moving(kind, family, dtype)
    )
    return Tuner(moving, make_rows() if rows is None else rows, recipe, arm="test", **settings)


def shown(count=8, *, length=40):
    """Rows with the same demonstrations before each of two tasks."""
    starts = [tuple(byte % 251 for byte in range(k, k + length)) for k in (3, 90)]
    return [
        Encoded(starts[i % 2] + row.prompt_ids, row.target_ids, row.example) for i, row in enumerate(make_rows(count))
    ]


# --- common beginnings ---


def test_steps_over_common_beginnings_equal_the_plain_loop(family, kind):
    rows = shown()
    recipe = replace(RECIPE, max_grad_norm=100.0)
    tuner = make(kind, family=family, rows=rows, recipe=recipe)
    records = finish(tuner)
    assert pack(rows).layout.n_tokens < 0.5 * sum(len(row) for row in rows)
    other = make_moving(kind, family)
    bare(other.model).set_attn_implementation("eager")
    losses, norms = plain_loop(other.model, list(other.parameters.values()), rows, recipe, len(records))
    assert [r.loss for r in records] == pytest.approx(losses, abs=2e-5)
    assert [r.grad_norm for r in records] == pytest.approx(norms, rel=1e-4)
    for name, parameter in tuner.moving.parameters.items():
        torch.testing.assert_close(parameter, other.parameters[name], rtol=0, atol=0.3 * recipe.learning_rate, msg=name)


def test_a_record_counts_the_tokens_of_the_examples_and_not_those_that_were_computed():
    rows = shown(4)
    record = next(make("lora on one block", rows=rows).steps())
    assert record.tokens == sum(len(row) for row in rows) > pack(rows).layout.n_tokens


# --- kept states ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*ABOVE_A_CUT, "sparse"])
def test_tuning_from_kept_states_gives_the_same_bits(kind, dtype):
    plain, cached = make(kind, dtype), make(kind, dtype, states=Shelf())
    assert facts_of(finish(plain)) == facts_of(finish(cached))
    assert_same(weights_of(plain.moving), weights_of(cached.moving))
    shelf = cached.states
    assert (shelf.missing, shelf.found) == (12, 12)  # the first epoch fills, the second is served


def test_with_kept_states_every_family_and_common_beginnings_give_the_same_bits(family):
    for rows in (make_rows(), shown()):
        plain = make("lora on some blocks", family=family, rows=rows)
        cached = make("lora on some blocks", family=family, rows=rows, states=Shelf())
        assert facts_of(finish(plain)) == facts_of(finish(cached))
        assert_same(weights_of(plain.moving), weights_of(cached.moving))


def test_arms_rates_and_checks_share_what_is_kept():
    """A race of three rates and the run after it, with held-out checks: no row is computed below the cut twice."""
    shelf = Shelf()
    moving = make_moving("lora on one block")
    ran = []
    blocks(moving.model)[0].register_forward_hook(lambda *_: ran.append(1))

    def make_tuner_at(rate):
        return Tuner(moving, make_rows(), replace(RECIPE, learning_rate=rate), states=shelf)

    checks = Checks(HELD_OUT, every=2)
    won = race(make_tuner_at, checks, (1e-4, 1e-3, 1e-2))
    filled = len(ran)
    assert shelf.missing == 12 + 5 == len(shelf.kept)
    fit = Fit(make_tuner_at(won.learning_rate), checks)
    assert list(fit) and fit.outcome.best_loss is not None
    assert len(ran) == filled == 3 + 1  # three steps of four examples, one check


@pytest.mark.parametrize("dtype", DTYPES)
def test_held_out_losses_from_kept_states_are_the_same_bits(dtype):
    moving, shelf = make_moving("weights of blocks", dtype=dtype), Shelf()
    checks = Checks(HELD_OUT, every=1, batch_tokens=40)
    plain = validation_loss(moving, checks)
    assert [validation_loss(moving, checks, states=shelf) for _ in range(2)] == [plain, plain]
    assert (shelf.missing, shelf.found) == (5, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_term_that_holds_to_the_base_uses_them_too(dtype):
    found = []
    for shelf in (None, Shelf()):
        moving = make_moving("lora on some blocks", dtype=dtype)
        terms = [KLToBase(moving, HELD_OUT, 0.5, max_rows=3, states=shelf)]
        tuner = Tuner(moving, make_rows(), RECIPE, arm="test", terms=terms, states=shelf)
        found.append((facts_of(finish(tuner)), weights_of(moving)))
    assert found[0][0] == found[1][0]
    assert_same(found[0][1], found[1][1])
    assert len(shelf.kept) == 12 + 5 == shelf.missing


@pytest.mark.parametrize("kind", ["full", "lora on all blocks"])
def test_where_everything_moves_nothing_is_kept(kind):
    shelf = Shelf()
    finish(make(kind, states=shelf))
    assert not shelf.kept and not shelf.missing


def test_resume_with_kept_states_or_without_ends_with_the_same_bits(tmp_path):
    whole = make("lora on one block")
    wanted = facts_of(finish(whole))
    stopped = make("lora on one block", states=Shelf())
    steps = stopped.steps()
    for _ in range(4):
        next(steps)
    write_tensors(tmp_path / "c.safetensors", *stopped.state())
    for shelf in (stopped.states, Shelf(), None):
        resumed = make("lora on one block", states=shelf)
        resumed.restore(*read_tensors(tmp_path / "c.safetensors"))
        assert facts_of(finish(resumed)) == wanted[4:]
        assert_same(weights_of(resumed.moving), weights_of(whole.moving))


# --- the backward pass stops ---


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ABOVE_A_CUT)
def test_no_gradient_is_computed_below_the_lowest_moving_block(kind, checkpointing, states, monkeypatch):
    tuner = make(kind, recipe=replace(RECIPE, checkpointing=checkpointing), states=Shelf() if states else None)
    lowest = tuner.moving.selection.lowest_layer
    reached = set()

    def watch(i):
        def hook(_module, _args, _kwargs, output):
            if output.requires_grad:
                output.register_hook(lambda _gradient: reached.add(i))

        return hook

    for i, block in enumerate(blocks(tuner.moving.model)):
        block.register_forward_hook(watch(i), with_kwargs=True)
    next(tuner.steps())
    assert min(reached) >= lowest
    assert max(reached) == 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_that_would_run_below_is_an_error(checkpointing):
    tuner = make("lora on one block", recipe=replace(RECIPE, checkpointing=checkpointing))
    blocks(tuner.moving.model)[0].mlp.down_proj.weight.requires_grad_(True)
    with pytest.raises(TunescopeError, match=r"the input of block\.2 requires a gradient"):
        next(tuner.steps())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*SELECTIONS, "sparse"])
def test_checkpointing_changes_no_bit(kind, dtype):
    plain, spared = make(kind, dtype), make(kind, dtype, recipe=replace(RECIPE, checkpointing=True))
    assert facts_of(finish(plain)) == facts_of(finish(spared))
    assert_same(weights_of(plain.moving), weights_of(spared.moving))


def test_only_blocks_above_the_cut_are_computed_again():
    tuner = make("lora on one block", recipe=replace(RECIPE, checkpointing=True, batch_size=12))
    times = [0] * 4
    for i, block in enumerate(blocks(tuner.moving.model)):
        block.register_forward_pre_hook(lambda *_, i=i: times.__setitem__(i, times[i] + 1))
    next(tuner.steps())
    assert times == [1, 1, 2, 2]


# --- the head in chunks ---


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["lora on some blocks", "full"])
def test_a_step_with_the_head_in_chunks_equals_the_step_at_once(kind, smoothing, monkeypatch):
    recipe = replace(RECIPE, label_smoothing=smoothing)
    found = {}
    for targets in (1000, 3):
        monkeypatch.setattr("tunescope.models.head._LOGIT_BYTES", targets * 260 * 4)
        moving = make_moving(kind)
        terms = [KLToBase(moving, HELD_OUT, 0.5)] if kind != "full" else []
        found[targets] = finish(Tuner(moving, make_rows(), recipe, terms=terms))
    for one, other in zip(found[3], found[1000], strict=True):
        assert one.loss == pytest.approx(other.loss, abs=2e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=2e-4)


# --- memory is short ---


def short_of_memory(monkeypatch, limit):
    """Makes every pass of more than `limit` tokens run out of memory, half way through its backward pass."""
    tries = []
    real = tuner_module.backward_from_head

    def failing(model, states, value, **settings):
        found = real(model, states, value, **settings)
        tries.append(current[0])
        if current[0] > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return found

    current = [0]
    predict = tuner_module.predicting_states

    def watched(model, rows, **settings):
        current[0] = pack(rows).layout.n_tokens
        return predict(model, rows, **settings)

    monkeypatch.setattr(tuner_module, "backward_from_head", failing)
    monkeypatch.setattr(tuner_module, "predicting_states", watched)
    return tries


@pytest.mark.parametrize("kind", ["lora on some blocks", "full"])
def test_short_memory_halves_the_passes_says_so_once_and_changes_rounding_alone(kind, monkeypatch):
    plain = make(kind)
    records = finish(plain)
    said = []
    tries = short_of_memory(monkeypatch, 35)
    tuner = make(kind, note=said.append)
    found = finish(tuner)
    assert max(tries) > 35 and tries[-1] <= 35
    assert said == [
        f"arm test, step 1: memory is short: from here on {tuner.batch_tokens} tokens a pass, not 1,024; "
        "the numbers change by rounding alone"
    ]
    assert tuner.batch_tokens == 32
    assert [r.loss for r in found] == pytest.approx([r.loss for r in records], rel=1e-4)
    assert [r.grad_norm for r in found] == pytest.approx([r.grad_norm for r in records], rel=1e-3)
    assert [(r.tokens, r.target_tokens) for r in found] == [(r.tokens, r.target_tokens) for r in records]


def test_a_run_that_was_short_of_memory_resumes_with_the_same_bits(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 35)
    whole = make("lora on some blocks")
    records = facts_of(finish(whole))
    stopped = make("lora on some blocks")
    next(stopped.steps())
    write_tensors(tmp_path / "c.safetensors", *stopped.state())
    resumed = make("lora on some blocks")
    resumed.restore(*read_tensors(tmp_path / "c.safetensors"))
    assert resumed.batch_tokens == 32
    assert facts_of(finish(resumed)) == records[1:]
    assert_same(weights_of(resumed.moving), weights_of(whole.moving))


def test_memory_too_short_for_one_example_stops_the_run_and_leaves_no_gradients(monkeypatch):
    short_of_memory(monkeypatch, 3)
    tuner = make("lora on some blocks")
    before = weights_of(tuner.moving)
    with pytest.raises(RunError, match=r"memory is short even for one example of \d+ tokens"):
        finish(tuner)
    assert tuner.step == 0
    assert all(p.grad is None for p in tuner.moving.parameters.values())
    assert_same(weights_of(tuner.moving), before)


def test_a_check_that_is_short_of_memory_is_made_in_smaller_passes(monkeypatch):
    moving, said, tries = make_moving(), [], []
    checks = Checks(HELD_OUT, every=1, batch_tokens=200)
    wanted = validation_loss(moving, checks)

    def cut(rows, batch_tokens, workers):
        tries.append(batch_tokens)
        return own_passes(rows, batch_tokens, workers)

    def failing(model, rows, *, batches, **settings):
        if tries[-1] > 60:
            raise MemoryError
        return mean_losses(model, rows, batches=batches, **settings)

    monkeypatch.setattr("tunescope.engine.fit.own_passes", cut)
    monkeypatch.setattr("tunescope.engine.fit.mean_losses", failing)
    assert validation_loss(moving, checks, note=said.append) == pytest.approx(wanted, abs=1e-6)
    assert tries == [200, 100, 50]
    assert said[0].startswith("held-out check: memory is short: from here on 50 tokens a pass, not 200")


def test_the_defaults_are_those_of_a_run_without_any_of_it():
    tuner = make_tuner()
    assert tuner.states is None and not tuner.recipe.checkpointing
    assert tuner.batch_tokens == tuner.recipe.batch_tokens
