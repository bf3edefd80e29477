"""The loop does what a plain loop does, repeats itself bit by bit, and continues from any step as if nothing had happened."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import (
    ALL,
    DTYPES,
    N_LAYERS,
    RECIPE,
    SELECTIONS,
    assert_same,
    facts_of,
    make_moving,
    make_rows,
    make_tuner,
    weights_of,
)

from tunescope.data import epoch_batches
from tunescope.engine import Recipe, Tuner, pieces, read_tensors, scheduled, write_tensors
from tunescope.engine import tuner as tuner_module
from tunescope.errors import DataError, IntegrityError, TunescopeError
from tunescope.models import bare, pack, pad_right, predicting_states
from tunescope.runs.records import Selection
from tunescope.testing import tiny_model

# Losses of LoRA on all blocks of the tiny llama, rate 1e-2, recorded on 2026-11-22 (torch 2.13, CPU, float32).
RECORDED = (5.90546, 5.96752, 5.81403, 4.95391, 4.95957, 4.86139, 4.25372, 4.35070, 4.54457)


def finish(tuner):
    """All records that are left."""
    return list(tuner.steps())


def plain_loop(model, parameters, rows, recipe, n_steps):
    """The textbook loop with transformers' own loss, attention and schedule-free pieces of torch."""
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=1.0
    )
    per_epoch = math.ceil(len(rows) / recipe.batch_size)
    losses, norms = [], []
    for step in range(n_steps):
        epoch, place = divmod(step, per_epoch)
        batch = epoch_batches([len(r) for r in rows], batch_size=recipe.batch_size, seed=recipe.seed, epoch=epoch)[
            place
        ]
        input_ids, attention_mask, labels = pad_right([rows[i] for i in batch])
        for group in optimizer.param_groups:
            group["lr"] = scheduled(recipe, step, per_epoch * recipe.num_epochs)
        optimizer.zero_grad()
        loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms


# --- parity ---


def assert_equals_plain_loop(kind, family, recipe):
    tuner = make_tuner(kind, family, recipe=recipe)
    records = finish(tuner)
    other = make_moving(kind, family)
    bare(other.model).set_attn_implementation("eager")
    losses, norms = plain_loop(other.model, list(other.parameters.values()), make_rows(), recipe, len(records))
    assert [r.loss for r in records] == pytest.approx(losses, abs=1e-5)
    assert [r.grad_norm for r in records] == pytest.approx(norms, rel=3e-5)
    for name, parameter in tuner.moving.parameters.items():
        # Adam divides by the size of the gradient, so where that is almost 0 a rounding error becomes a part of a step.
        torch.testing.assert_close(parameter, other.parameters[name], rtol=0, atol=0.2 * recipe.learning_rate, msg=name)
    return norms


def test_the_loop_equals_the_plain_loop_of_torch_and_transformers(kind, family):
    recipe = replace(RECIPE, weight_decay=0.1, max_grad_norm=0.05)
    assert min(assert_equals_plain_loop(kind, family, recipe)) > recipe.max_grad_norm  # clipped in every step


def test_without_decay_and_clipping_it_equals_the_plain_loop_too(kind):
    recipe = replace(RECIPE, max_grad_norm=100.0)
    assert max(assert_equals_plain_loop(kind, "llama", recipe)) < recipe.max_grad_norm


def test_the_recorded_trajectory_is_kept():
    records = finish(make_tuner("lora on all blocks", recipe=replace(RECIPE, learning_rate=1e-2, num_epochs=3)))
    assert [r.loss for r in records] == pytest.approx(RECORDED, abs=1e-4)


def test_it_learns(kind):
    rate = 3e-2 if kind.startswith("lora") else 1e-2
    losses = [r.loss for r in finish(make_tuner(kind, recipe=Recipe(rate, num_epochs=8, batch_size=4)))]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.6


def test_weight_decay_pulls_matrices_alone():
    """One step with and without; Adam's part of the step is the same in both."""
    decay = 0.5
    recipe = replace(RECIPE, warmup_fraction=0.0)
    tuners = {value: make_tuner("full", recipe=replace(recipe, weight_decay=value)) for value in (0.0, decay)}
    start = weights_of(tuners[0.0].moving)
    for tuner in tuners.values():
        next(tuner.steps())
    without, with_decay = (weights_of(tuners[value].moving) for value in (0.0, decay))
    kinds = set()
    for name, before in start.items():
        kinds.add(before.ndim)
        pull = recipe.learning_rate * decay * before if before.ndim >= 2 else torch.zeros_like(before)
        torch.testing.assert_close(without[name] - with_decay[name], pull, rtol=0, atol=1e-6, msg=name)
    assert kinds == {1, 2}


def test_weight_decay_touches_nothing_that_is_not_selected():
    tuner = make_tuner("weights of parts", recipe=replace(RECIPE, weight_decay=0.5))
    frozen = {name: p.detach().clone() for name, p in tuner.moving.model.named_parameters() if not p.requires_grad}
    finish(tuner)
    assert frozen
    assert_same(frozen, {name: p for name, p in tuner.moving.model.named_parameters() if name in frozen})


# --- records ---


def test_a_record_states_what_happened_in_its_step():
    rows = make_rows(11)
    tuner = make_tuner(rows=rows)
    assert (tuner.steps_per_epoch, tuner.total_steps) == (3, 6)
    records = []
    for record in tuner.steps():
        assert record.step == tuner.step
        records.append(record)
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r.epoch for r in records] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert [r.learning_rate for r in records] == [scheduled(RECIPE, s, 6) for s in range(6)]
    for epoch in (records[:3], records[3:]):  # every example once an epoch
        assert sum(r.tokens for r in epoch) == sum(len(row) for row in rows)
        assert sum(r.target_tokens for r in epoch) == sum(len(row.target_ids) for row in rows)
    assert all(r.arm == "test" and r.seconds > 0 and r.grad_norm > 0 and r.validation_loss is None for r in records)


@pytest.mark.parametrize("batch_tokens", [1, 20, 37])
@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_step_in_pieces_equals_the_step_in_one(kind, batch_tokens):
    whole, cut = make_tuner(kind), make_tuner(kind, recipe=replace(RECIPE, batch_tokens=batch_tokens))
    for one, other in zip(whole.steps(), cut.steps(), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
        assert (other.tokens, other.target_tokens) == (one.tokens, one.target_tokens)


def test_no_pass_computes_more_tokens_than_allowed(monkeypatch):
    seen = []

    def watched(model, rows, **settings):
        seen.append(pack(rows).layout.n_tokens)
        return predicting_states(model, rows, **settings)

    monkeypatch.setattr(tuner_module, "predicting_states", watched)
    finish(make_tuner(recipe=replace(RECIPE, batch_tokens=40)))
    assert max(seen) <= 40
    assert len(seen) > 6  # steps


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_pieces_keep_order_fit_and_leave_nothing_out(lengths, batch_tokens):
    cut = pieces(lengths, batch_tokens)
    assert [i for piece in cut for i in piece] == list(range(len(lengths)))
    for piece in cut:
        assert len(piece) == 1 or sum(lengths[i] for i in piece) <= batch_tokens


def test_a_finished_tuner_takes_no_more_steps():
    tuner = make_tuner()
    assert len(finish(tuner)) == tuner.total_steps
    assert finish(tuner) == []


def test_reading_can_stop_and_go_on_in_another_loop():
    whole = make_tuner()
    records = finish(whole)
    parts = make_tuner()
    found = []
    while parts.step < parts.total_steps:
        found.append(next(parts.steps()))
    assert facts_of(found) == facts_of(records)
    assert_same(weights_of(parts.moving), weights_of(whole.moving))


# --- the same again ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_seed_gives_the_same_bits(kind, dtype):
    runs = [make_tuner(kind, dtype=dtype) for _ in range(2)]
    records = [facts_of(finish(tuner)) for tuner in runs]
    assert records[0] == records[1]
    assert_same(*(weights_of(tuner.moving) for tuner in runs))


def test_another_seed_gives_another_order_and_other_weights():
    losses = {}
    for seed in (3, 4):
        losses[seed] = [r.loss for r in finish(make_tuner(recipe=replace(RECIPE, seed=seed)))]
    assert losses[3] != losses[4]


# --- resume ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["lora on some blocks", "weights of parts", "full"])
def test_resume_after_every_step_equals_the_uninterrupted_run(kind, dtype, tmp_path):
    whole = make_tuner(kind, dtype=dtype)
    records = facts_of(finish(whole))
    wanted = weights_of(whole.moving)
    stopped = make_tuner(kind, dtype=dtype)
    steps = stopped.steps()
    file = tmp_path / "checkpoint.safetensors"
    for stop in range(stopped.total_steps):
        write_tensors(file, *stopped.state())
        resumed = make_tuner(kind, dtype=dtype, seed=5)  # another adapter: all of it must come from the checkpoint
        resumed.restore(*read_tensors(file))
        assert resumed.step == stop
        assert facts_of(finish(resumed)) == records[stop:]
        assert_same(weights_of(resumed.moving), wanted)
        next(steps)
    assert_same(weights_of(stopped.moving), wanted)


def test_the_state_is_not_changed_by_steps_after_it():
    """A checkpoint that is restored twice gives the same run twice."""
    tuner = make_tuner()
    next(tuner.steps())
    tensors, facts = tuner.state()
    tensors = {name: t.clone() for name, t in tensors.items()}
    runs = []
    for _ in range(2):
        resumed = make_tuner()
        resumed.restore(tensors, facts)
        runs.append((facts_of(finish(resumed)), weights_of(resumed.moving)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


@pytest.mark.parametrize(
    "other",
    [
        lambda: make_tuner(recipe=replace(RECIPE, learning_rate=1e-4)),
        lambda: make_tuner(recipe=replace(RECIPE, seed=9)),
        lambda: make_tuner(recipe=replace(RECIPE, num_epochs=5)),
        lambda: make_tuner(rows=make_rows(13)),
        lambda: make_tuner("lora on one block"),
        lambda: make_tuner("weights of parts"),
        lambda: Tuner(make_moving(), make_rows(), RECIPE, arm="another"),
    ],
    ids=["rate", "seed", "epochs", "examples", "blocks", "method", "arm"],
)
def test_a_checkpoint_of_other_settings_is_refused(other):
    tuner = make_tuner()
    next(tuner.steps())
    stranger = other()
    before = weights_of(stranger.moving)
    with pytest.raises(IntegrityError, match="belongs to other settings; remove it to start this arm again") as caught:
        stranger.restore(*tuner.state())
    assert caught.value.exit_code == 5
    assert stranger.step == 0
    assert_same(weights_of(stranger.moving), before)


def test_a_checkpoint_of_another_rank_is_refused():
    tuner = make_tuner()
    next(tuner.steps())
    stranger = Tuner(make_moving(rank=2), make_rows(), RECIPE, arm="test")
    with pytest.raises(IntegrityError, match="belongs to other settings"):
        stranger.restore(*tuner.state())


def test_a_checkpoint_of_other_examples_is_refused():
    tuner = make_tuner()
    next(tuner.steps())
    stranger = make_tuner(rows=make_rows(seed=1))
    assert len(make_rows(seed=1)) == len(make_rows())
    with pytest.raises(IntegrityError, match="belongs to other settings"):
        stranger.restore(*tuner.state())


# --- what is refused ---


def test_no_examples_are_refused():
    with pytest.raises(DataError, match="not a single training example"):
        make_tuner(rows=[])


@pytest.mark.parametrize("poison", ["weight", "rate"])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(poison):
    tuner = make_tuner("full", recipe=replace(RECIPE, learning_rate=1e30 if poison == "rate" else 1e-3))
    if poison == "weight":
        with torch.no_grad():
            next(iter(tuner.moving.parameters.values())).fill_(math.nan)
    said = (
        r"arm test: loss [\w.]+, gradient norm nan at step \d+; lower the learning rate \(now .*\) or use dtype float32"
    )
    with pytest.raises(TunescopeError, match=said):
        finish(tuner)
    assert tuner.step < tuner.total_steps


def test_a_run_that_failed_leaves_no_gradients_behind():
    tuner = make_tuner("full", recipe=replace(RECIPE, learning_rate=1e30))
    with pytest.raises(TunescopeError, match="lower the learning rate"):
        finish(tuner)
    assert all(p.grad is None for p in tuner.moving.parameters.values())


# --- bfloat16 ---


def test_tuning_beside_bfloat16_weights_follows_float32(kind):
    losses = {dtype: [r.loss for r in finish(make_tuner(kind, dtype=dtype))] for dtype in DTYPES}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] != losses["float32"]


def test_small_steps_are_not_lost_to_rounding():
    """A step of 1e-6 on weights around 0.2 vanishes in bfloat16; the moving weights are float32."""
    tuner = make_tuner("weights of parts", dtype="bfloat16", recipe=Recipe(1e-6, num_epochs=1, batch_size=4))
    before = weights_of(tuner.moving)
    finish(tuner)
    for name, parameter in tuner.moving.parameters.items():
        moved = (parameter.detach() - before[name]).abs()
        assert 0 < moved.max() < 1e-5


# --- the schedule ---


@given(rate=st.floats(1e-6, 1), warmup=st.floats(0, 1), total=st.integers(1, 200))
def test_the_rate_rises_to_its_peak_and_falls_towards_zero(rate, warmup, total):
    recipe = Recipe(rate, warmup_fraction=warmup)
    rates = [scheduled(recipe, step, total) for step in range(total)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(rate)
    assert all(0 < r <= rate * (1 + 1e-9) for r in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    n_warmup = max(1, round(warmup * total))
    assert rates[0] == pytest.approx(rate / n_warmup)
    if n_warmup + 4 < total:
        assert rates[-1] < 0.5 * rate


def test_the_schedule_equals_that_of_transformers_one_step_later():
    """transformers begins with a step at rate 0; ours begins with the first real one, so warm-up is never a lost step."""
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 4, 20)
    theirs = []
    for _ in range(20):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [scheduled(Recipe(1.0, warmup_fraction=0.2), step, 20) for step in range(20)]
    assert ours[:4] == pytest.approx(theirs[1:5])
    assert ours[4:] == pytest.approx(theirs[4:])


def test_the_arm_full_moves_the_tied_head_once():
    selection = Selection("weights", ALL, (), "", whole_model=True)
    tuner = make_tuner("full")
    assert tuner.moving.selection == replace(
        selection,
        why="test",
        trainable_parameters=sum(p.numel() for p in tiny_model(n_layers=N_LAYERS).parameters()),
        total_parameters=sum(p.numel() for p in tiny_model(n_layers=N_LAYERS).parameters()),
        lowest_layer=-1,
    )
    finish(tuner)
    model = tuner.moving.model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_one_kernel_for_all_weights_takes_the_same_steps_and_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    """On a GPU AdamW is fused; the fused kernel of the CPU stands in for it here."""
    plain = make_tuner()
    list(plain.steps())
    monkeypatch.setattr("tunescope.engine.tuner._can_be_fused", lambda parameters: True)
    whole, stopped = make_tuner(), make_tuner()
    list(whole.steps())
    for name, weight in weights_of(whole.moving).items():
        torch.testing.assert_close(weight, weights_of(plain.moving)[name], rtol=1e-4, atol=1e-6)
    for _ in zip(range(3), stopped.steps(), strict=False):
        pass
    write_tensors(tmp_path / "c.safetensors", *stopped.state())
    resumed = make_tuner(seed=5)
    resumed.restore(*read_tensors(tmp_path / "c.safetensors"))
    list(resumed.steps())
    assert_same(weights_of(resumed.moving), weights_of(whole.moving))
