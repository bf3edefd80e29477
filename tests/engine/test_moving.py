"""Exactly what was planned moves; everything else keeps every bit."""

import pytest
import torch
from tiny_runs import ALL, N_LAYERS, SELECTIONS, everything, make_moving, make_rows, make_tuner, weights_of
from torch.nn import functional

from tunescope.engine import Watch, asserts_backward_stops, check_selection, describe, prepare, to_inference
from tunescope.errors import ModelError, TunescopeError
from tunescope.models import PARTS, bare, blocks, canonical_name, family_of, pad_right, token_losses
from tunescope.runs.records import Selection
from tunescope.testing import tiny_model

IDS = torch.arange(40).view(2, 20)


def planned_names(kind, family):
    """What the table says may move, worked out from the names of the base model."""
    selection = SELECTIONS[kind]
    names = [
        canonical_name(name, family_of(family)) for name, _ in tiny_model(family, n_layers=N_LAYERS).named_parameters()
    ]
    if selection.whole_model:
        return set(names)
    if selection.method == "lora":
        return {f"{b}.{p}.lora_{m}.default.weight" for b in selection.layers for p in selection.modules for m in "AB"}
    starts = [f"{b}.{p}." for b in selection.layers for p in selection.modules] or [f"{b}." for b in selection.layers]
    return {name for name in names if name.startswith(tuple(starts))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exactly_the_planned_weights_move(kind, family, dtype):
    tuner = make_tuner(kind, family, dtype)
    moving = tuner.moving
    assert set(moving.parameters) == planned_names(kind, family)
    before = everything(moving.model)
    steps = tuner.steps()
    for _ in range(3):
        next(steps)
    after = everything(moving.model)
    assert list(after) == list(before)
    changed = {canonical_name(name, family_of(family)) for name in before if not torch.equal(before[name], after[name])}
    # The head is the embedding under a second name.
    assert changed - {"lm_head.weight"} == set(moving.parameters)
    assert ("lm_head.weight" in changed) is (kind == "full")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_moves_is_float32_and_the_rest_stays_as_it_was(kind, family, dtype):
    moving = make_moving(kind, family, dtype)
    assert {p.dtype for p in moving.parameters.values()} == {torch.float32}
    rest = {p.dtype for p in moving.model.parameters() if not p.requires_grad}
    assert rest <= {moving.dtype}
    assert str(moving.dtype) == f"torch.{dtype}"
    assert not any(module.training for module in moving.model.modules())


def test_the_counts_are_those_of_the_weights(kind, family):
    moving = make_moving(kind, family)
    selection = moving.selection
    base = tiny_model(family, n_layers=N_LAYERS)
    assert selection.trainable_parameters == sum(p.numel() for p in moving.model.parameters() if p.requires_grad)
    assert selection.total_parameters == sum(p.numel() for p in base.parameters())
    lowest = min(int(name.split(".")[1]) for name in SELECTIONS[kind].layers)
    assert selection.lowest_layer == (-1 if kind == "full" else lowest)
    text = describe(moving)
    assert text.startswith(f"{selection.trainable_parameters:,} of {selection.total_parameters:,} weights may move")
    for name in ALL:
        assert (f"  {name}:" in text) is (name in SELECTIONS[kind].layers)


def test_an_adapter_starts_as_no_change(family):
    plain = tiny_model(family, n_layers=N_LAYERS)(IDS).logits
    assert torch.equal(make_moving("lora on all blocks", family).model(IDS).logits, plain)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another():
    first, again, other = (weights_of(make_moving(seed=seed)) for seed in (0, 0, 1))
    for name, values in first.items():
        assert torch.equal(values, again[name])
        assert torch.equal(values, other[name]) is (".lora_B." in name)


def test_the_adapter_depends_on_the_seed_alone():
    first = weights_of(make_moving(seed=7))
    torch.manual_seed(99)
    torch.rand(17)
    again = weights_of(make_moving(seed=7))
    assert all(torch.equal(first[name], again[name]) for name in first)


# --- the backward pass ends at the lowest block ---


def test_nothing_below_the_selection_takes_part_in_the_backward_pass(kind, family):
    moving = make_moving(kind, family)
    needs = []
    for block in blocks(moving.model):
        block.register_forward_pre_hook(
            lambda _m, args, kwargs: needs.append((args[0] if args else kwargs["hidden_states"]).requires_grad),
            with_kwargs=True,
        )
    with asserts_backward_stops(moving):
        token_losses(moving.model, *pad_right(make_rows(2)))
    lowest = moving.selection.lowest_layer
    assert needs == [i > lowest for i in range(N_LAYERS)]


@pytest.mark.parametrize("kind", [kind for kind in SELECTIONS if kind != "full"])
def test_a_backward_pass_that_would_run_further_is_refused(kind, family):
    """As transformers' gradient checkpointing does it: it makes the embeddings' output require a gradient."""
    tuner = make_tuner(kind, family)
    bare(tuner.moving.model).enable_input_require_grads()
    lowest = tuner.moving.selection.lowest_layer
    with pytest.raises(TunescopeError, match=rf"the input of block\.{lowest} requires a gradient"):
        next(tuner.steps())


def test_the_assertion_leaves_no_hook_behind():
    moving = make_moving()
    for _ in range(2):
        with asserts_backward_stops(moving):
            pass
    with pytest.raises(RuntimeError, match="inside"), asserts_backward_stops(moving):
        raise RuntimeError("inside")
    assert [len(block._forward_pre_hooks) for block in blocks(moving.model)] == [0] * N_LAYERS


# --- the watch ---


def step_all(moving):
    with torch.no_grad():
        for parameter in moving.parameters.values():
            parameter.add_(1e-3)


def test_the_watch_is_content_when_only_the_plan_moved(kind, family):
    moving = make_moving(kind, family)
    watch = Watch(moving)
    step_all(moving)
    watch.check()


@pytest.mark.parametrize("kind", [kind for kind in SELECTIONS if kind != "full"])
def test_the_watch_sees_every_frozen_weight_that_is_touched(kind):
    moving = make_moving(kind)
    frozen = [(name, p) for name, p in moving.model.named_parameters() if not p.requires_grad]
    assert any("embed" in name for name, _ in frozen)
    for name, parameter in frozen:
        watch = Watch(moving)
        step_all(moving)
        with torch.no_grad():
            parameter.mul_(1.0)
        with pytest.raises(TunescopeError, match="1 frozen weights were touched") as caught:
            watch.check()
        assert name in str(caught.value)


def test_the_watch_sees_a_gradient_on_a_frozen_weight():
    moving = make_moving()
    watch = Watch(moving)
    step_all(moving)
    embedding = bare(moving.model).get_input_embeddings().weight
    embedding.grad = torch.zeros_like(embedding)
    with pytest.raises(TunescopeError, match=r"frozen weights were touched.*embed_tokens"):
        watch.check()


def test_the_watch_sees_every_planned_weight_that_stays(kind):
    moving = make_moving(kind)
    for name, parameter in list(moving.parameters.items())[:6]:
        watch = Watch(moving)
        kept = parameter.detach().clone()
        step_all(moving)
        with torch.no_grad():
            parameter.copy_(kept)
        with pytest.raises(TunescopeError, match="1 planned weights did not move") as caught:
            watch.check()
        assert name in str(caught.value)


@pytest.mark.parametrize("where", ["optimiser", "frozen"])
def test_a_tuner_notices_after_two_steps_that_the_plan_is_not_what_is_tuned(where):
    tuner = make_tuner()
    if where == "optimiser":  # a weight that the optimiser was not told of
        tuner._optimizer.param_groups[0]["params"].pop()
    steps = tuner.steps()
    next(steps)
    if where == "frozen":
        with torch.no_grad():
            bare(tuner.moving.model).model.norm.weight.add_(1e-3)
    with pytest.raises(TunescopeError, match="the plan is not what is tuned"):
        next(steps)


# --- what is refused ---


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection("lora", ("block.4",), ("q",), ""), "block 'block.4' is not in this model .*block.0 to block.3"),
        (Selection("lora", ("blok.1",), ("q",), ""), "did you mean block.1"),
        (Selection("lora", ("layers.1",), ("q",), ""), "'layers.1' is not in this model"),
        (Selection("weights", ("block.-1",), (), ""), "is not in this model"),
        (
            Selection("lora", ("block.1",), ("gat",), ""),
            "part 'gat' is not known .did you mean gate.*q, k, v, o, gate, up, down",
        ),
        (Selection("weights", ("block.1",), ("norm",), ""), "part 'norm' is not known"),
        (Selection("lora", (), ("q",), ""), "selection is empty"),
        (Selection("weights", (), (), ""), "selection is empty"),
        (Selection("lora", ("block.1",), (), ""), "at least one part"),
    ],
)
def test_a_selection_that_names_what_is_not_there_is_refused(selection, said):
    model = tiny_model(n_layers=N_LAYERS)
    with pytest.raises(ModelError, match=said):
        prepare(model, family_of("llama"), selection)
    assert not any(p.requires_grad for p in model.parameters())


def test_all_problems_are_told_at_once():
    with pytest.raises(ModelError) as caught:
        check_selection(Selection("lora", ("block.9", "block.1", "x"), ("q", "z"), ""), n_layers=N_LAYERS)
    assert len(caught.value.problems) == 3


def test_the_table_itself_is_accepted():
    for selection in SELECTIONS.values():
        check_selection(selection, n_layers=N_LAYERS)
    assert PARTS == ("q", "k", "v", "o", "gate", "up", "down")


# --- back to inference ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inference_rounds_what_moved_and_nothing_else(kind, family, dtype):
    moving = make_moving(kind, family, dtype)
    step_all(moving)
    moved, before = weights_of(moving), everything(moving.model)
    model = to_inference(moving)
    assert not any(p.requires_grad for p in model.parameters())
    target = torch.float32 if moving.selection.method == "lora" else moving.dtype
    for name, parameter in moving.parameters.items():
        assert parameter.dtype == target
        assert torch.equal(parameter, moved[name].to(target))
    for name, values in everything(model).items():
        if canonical_name(name, family_of(family)) not in moving.parameters and name != "lm_head.weight":
            assert values.dtype == before[name].dtype, name  # rotary frequencies are float32 in a bfloat16 model
            assert torch.equal(values, before[name]), name
    assert model(IDS).logits.isfinite().all()


def test_computing_in_bfloat16_is_close_to_float32(kind, family):
    batch = pad_right(make_rows(4))
    losses = {}
    for dtype in ("float32", "bfloat16"):
        moving = make_moving(kind, family, dtype)
        with moving.compute():
            losses[dtype] = token_losses(moving.model, *batch)[0].detach()
    assert functional.l1_loss(losses["bfloat16"], losses["float32"]) < 0.15
