"""Terms of the loss have the gradient of their formula and the minimum that algebra gives; a continued run does not notice them."""

import math
from dataclasses import replace

import pytest
import torch
from test_sparse import bits, make_mask, make_sparse, named
from tiny_runs import DTYPES, N_LAYERS, RECIPE, assert_same, facts_of, make_moving, make_rows, make_tuner, weights_of
from torch.nn import functional

from tunescope.engine import (
    L2SP,
    KLToBase,
    Moving,
    Tuner,
    base_entries,
    decay_entries_,
    read_tensors,
    smoothed_losses,
    to_inference,
    write_tensors,
)
from tunescope.engine.sparse import sparse_layers
from tunescope.errors import ConfigError, DataError, IntegrityError, TunescopeError
from tunescope.models import bare, family_of, pad_right, token_losses
from tunescope.runs.records import Selection
from tunescope.testing import tiny_model

KINDS = ("lora on some blocks", "weights of parts", "full", "sparse")
GUARD = make_rows(6, seed=11)


def make(kind, family="llama", dtype="float32"):
    """A prepared tiny model, of any method."""
    return make_sparse(family, dtype)[0] if kind == "sparse" else make_moving(kind, family, dtype)


@torch.no_grad()
def shake_(moving, *, size=0.02, seed=1):
    """Moves everything a little, as tuning would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in moving.parameters.values():
        parameter += size * torch.randn(parameter.shape, generator=generator)
    return moving


def taken_gradients(moving):
    """The gradients, which are then cleared."""
    found = {name: p.grad.clone() for name, p in moving.parameters.items()}
    for parameter in moving.parameters.values():
        parameter.grad = None
    return found


def naive_gradients(moving, value):
    gradients = torch.autograd.grad(value, list(moving.parameters.values()))
    return dict(zip(moving.parameters, gradients, strict=True))


def assert_close(left, right, **tolerance):
    assert list(left) == list(right)
    assert any(t.abs().max() > 1e-4 for t in right.values())
    for name in right:
        torch.testing.assert_close(left[name], right[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# --- decay towards the base weights ---


def dense_distance(moving):
    """The squared distance from the base, from matrices written out, with a graph."""
    if moving.selection.method == "lora":
        layers = [m for m in moving.model.modules() if hasattr(m, "lora_A")]
        changes = [m.lora_B["default"].weight @ m.lora_A["default"].weight * m.scaling["default"] for m in layers]
    elif moving.selection.method == "sparse":
        changes = []
        for layer in sparse_layers(moving.model, family_of("llama")).values():
            dense = torch.zeros(layer.out_features, layer.in_features)
            changes.append(dense.index_put(tuple(layer.shira_indices["default"]), layer.shira_weight["default"]))
    else:
        base = named(tiny_model(n_layers=N_LAYERS), "llama")
        changes = [p - base[name] for name, p in moving.parameters.items()]
    return sum((change**2).sum() for change in changes)


@pytest.mark.parametrize("kind", KINDS)
def test_l2_sp_is_the_squared_distance_of_the_written_out_matrices(kind):
    moving = make(kind)
    term = L2SP(moving, 0.7)
    assert float(term.add_gradient(0)) == 0
    assert all(not g.any() for g in taken_gradients(moving).values())
    shake_(moving, size=0.1)
    wanted = 0.7 / 2 * dense_distance(moving)
    value = term.add_gradient(1)
    assert float(value) == pytest.approx(float(wanted.detach()), rel=1e-5) and float(value) > 0.1
    assert not value.requires_grad
    assert_close(taken_gradients(moving), naive_gradients(moving, wanted), rtol=1e-4, atol=1e-6)


def test_l2_sp_adds_to_the_gradient_that_is_there():
    moving = shake_(make("weights of parts"))
    term = L2SP(moving, 1.0)
    shake_(moving, seed=2)
    term.add_gradient(0)
    once = taken_gradients(moving)
    term.add_gradient(0)
    term.add_gradient(1)
    twice = {name: g / 2 for name, g in taken_gradients(moving).items()}
    assert_same(once, twice)


@pytest.mark.parametrize("strength", [0.0, 0.5, 4.0])
def test_l2_sp_pulls_a_quadratic_to_the_closed_form(strength):
    """The minimum of h/2 (w - a)^2 + s/2 (w - w0)^2 is (h a + s w0) / (h + s)."""
    start, aim, curvature = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    curvature = curvature.abs() + 0.5
    weight = torch.nn.Parameter(start.clone())
    moving = Moving(None, Selection("weights", ("block.0",), (), "test"), {"w": weight}, torch.float32)
    term = L2SP(moving, strength)
    for step in range(400):
        weight.grad = curvature * (weight.detach() - aim)
        term.add_gradient(step)
        with torch.no_grad():
            weight -= 0.1 * weight.grad
    wanted = (curvature * aim + strength * start) / (curvature + strength)
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - start).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_with_l2_sp_the_weights_stay_nearer_and_more_so_the_stronger_it_is(kind):
    distances = []
    for strength in (0.0, 0.1, 10.0):
        moving = make(kind)
        tuner = Tuner(moving, make_rows(), replace(RECIPE, learning_rate=1e-2), terms=[L2SP(moving, strength)])
        list(tuner.steps())
        distances.append(float(dense_distance(moving).detach()))
        assert (tuner.term_values["l2_sp"] > 0) == (strength > 0)
    assert distances[0] > distances[1] > distances[2] > 0
    assert distances[2] < 0.7 * distances[0]


@pytest.mark.parametrize("kind", ["weights of parts", "full"])
def test_beside_bfloat16_the_distance_begins_at_exactly_nothing(kind):
    moving = make(kind, dtype="bfloat16")
    term = L2SP(moving, 1.0)
    assert float(term.add_gradient(0)) == 0
    with torch.no_grad():
        first = next(iter(moving.parameters.values()))
        first.view(-1)[0] += 2.0**-20  # far below a step of bfloat16
    assert float(term.add_gradient(1)) == pytest.approx(0.5 * 2.0**-40, rel=0.3)


# --- KL to the base model ---


def naive_divergence(moving, rows, family="llama"):
    """KL(base || tuned) per target token by the formula, from the logits of the whole models."""
    input_ids, attention_mask, labels = pad_right(rows)
    wanted = labels[:, 1:] != -100
    base = tiny_model(family, n_layers=N_LAYERS)
    with torch.no_grad():
        p = base(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1][wanted].softmax(-1)
    q = moving.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1][wanted].softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_divergence_is_that_of_the_formula(kind, family):
    moving = make(kind, family)
    term = KLToBase(moving, GUARD, 0.6, max_rows=len(GUARD))
    shake_(moving, size=0.05)
    value = term.add_gradient(0)
    gradients = taken_gradients(moving)
    with moving.compute():
        wanted = 0.6 * naive_divergence(moving, GUARD, family)
    assert float(value) == pytest.approx(float(wanted.detach()), rel=1e-4) and float(value) > 1e-3
    assert_close(gradients, naive_gradients(moving, wanted), rtol=1e-2, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_begins_at_nothing(kind, dtype):
    moving = make(kind, dtype=dtype)
    assert abs(float(KLToBase(moving, GUARD, 1.0).add_gradient(0))) < 1e-6


@pytest.mark.parametrize("kind", ["lora on some blocks", "sparse"])
def test_of_an_adapter_the_base_is_found_after_it_moved_too(kind):
    moving = make(kind)
    before = KLToBase(moving, GUARD, 1.0)
    shake_(moving, size=0.05)
    after = KLToBase(moving, GUARD, 1.0)
    assert all(p.requires_grad for p in moving.parameters.values())
    assert float(before.add_gradient(0)) == pytest.approx(float(after.add_gradient(0)), rel=1e-5)
    assert float(before.add_gradient(0)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_term_the_guard_answers_stay_nearer_while_the_task_is_learnt(kind):
    results = {}
    for strength in (0.0, 20.0):
        moving = make(kind)
        terms = [KLToBase(moving, GUARD, strength)] if strength else []
        recipe = replace(RECIPE, learning_rate=1e-2, num_epochs=6)
        losses = [record.loss for record in Tuner(moving, make_rows(), recipe, terms=terms).steps()]
        with torch.no_grad(), moving.compute():
            results[strength] = float(naive_divergence(moving, GUARD))
        assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    assert results[20.0] < 0.5 * results[0.0]


def test_all_batches_come_once_before_any_comes_again_in_an_order_of_the_seed_alone():
    def values(seed, steps):
        moving = make("lora on some blocks")
        term = KLToBase(moving, GUARD, 1.0, max_rows=1, seed=seed)
        shake_(moving, size=0.1)
        return [float(term.add_gradient(step)) for step in steps]

    first, second = values(0, range(6)), values(0, range(6, 12))
    assert len(set(first)) == 6 and sorted(first) == sorted(second) and first != second
    assert values(0, reversed(range(12))) == [*first, *second][::-1]
    other = values(1, range(6))
    assert sorted(other) == sorted(first) and other != first


def test_memory_is_what_is_kept_of_the_base():
    n_targets, d_model = sum(len(row.target_ids) for row in GUARD), 32
    assert KLToBase(make("lora on some blocks"), GUARD, 1.0).memory_bytes == n_targets * d_model * 4
    full = make("full", dtype="bfloat16")
    head = bare(full.model).get_output_embeddings().weight
    kept = KLToBase(full, GUARD, 1.0).memory_bytes
    assert head.dtype == torch.float32
    assert kept in (n_targets * d_model * size + head.numel() * 2 for size in (2, 4))


def test_a_pass_holds_no_more_tokens_than_it_may(monkeypatch):
    widths = []
    own = torch.nn.Embedding.forward
    monkeypatch.setattr(torch.nn.Embedding, "forward", lambda self, ids: widths.append(ids.numel()) or own(self, ids))
    term = KLToBase(make("lora on some blocks"), GUARD, 1.0, batch_tokens=40)
    for step in range(4):
        term.add_gradient(step)
    assert len(widths) > 4 and max(widths) <= 40


# --- smoothed targets ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothing_is_that_of_torch(smoothing):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.arange(20)
    plain, smoothed = smoothed_losses(logits, targets, smoothing=smoothing)
    wanted = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(smoothed, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain, functional.cross_entropy(logits, targets, reduction="none"), rtol=1e-5, atol=1e-5)
    assert torch.allclose(smoothed, plain) == (smoothing == 0)


def test_with_smoothing_the_step_is_that_of_the_smoothed_loss_and_the_record_shows_the_loss():
    tuner = make_tuner("full", recipe=replace(RECIPE, label_smoothing=0.2, batch_size=12))
    record = next(tuner.steps())
    other = make_moving("full")
    input_ids, attention_mask, labels = pad_right(make_rows())
    logits = other.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].flatten(0, 1)
    aims = labels[:, 1:].flatten()
    functional.cross_entropy(logits, aims, label_smoothing=0.2).backward()
    norm = torch.stack([p.grad.norm() for p in other.parameters.values()]).norm()
    assert record.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert record.loss == pytest.approx(float(functional.cross_entropy(logits, aims).detach()), rel=1e-5)


def test_with_smoothing_the_model_ends_less_sure():
    sure = {}
    for smoothing in (0.0, 0.5):
        tuner = make_tuner("full", recipe=replace(RECIPE, learning_rate=1e-2, num_epochs=15, label_smoothing=smoothing))
        list(tuner.steps())
        with torch.no_grad():
            sure[smoothing] = float(token_losses(tuner.moving.model, *pad_right(make_rows()))[0].neg().exp().mean())
    assert sure[0.0] > 0.8
    # The best answer to a target of 1 - e on one token and e / 260 on each is that distribution.
    assert 0.3 < sure[0.5] < 0.65


# --- decay of chosen entries ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_decayed_entries_shrink_by_the_fraction_and_the_others_keep_every_bit(dtype, family):
    model = tiny_model(family, n_layers=N_LAYERS, dtype=DTYPES[dtype])
    base = {name: weight.clone() for name, weight in named(model, family).items()}
    moving, mask = make_sparse(family, dtype, model=model)
    entries = base_entries(moving)
    assert sum(t.numel() for t in entries.values()) == mask.count and list(entries) == list(moving.parameters)
    for _ in range(3):
        decay_entries_(moving, entries, 0.1)
    merged = named(to_inference(moving), family)
    for name, chosen in mask.entries.items():
        before, after = base[f"{name}.weight"], merged[f"{name}.weight"]
        wanted = before[chosen].float() * 0.9**3
        tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == "float32" else {"rtol": 2**-7, "atol": 1e-4}
        torch.testing.assert_close(after[chosen].float(), wanted, **tolerance)
        assert torch.equal(bits(after)[~chosen], bits(before)[~chosen])
    assert_same(
        {n: bits(w) for n, w in merged.items() if n.removesuffix(".weight") not in mask.entries},
        {n: bits(w) for n, w in base.items() if n.removesuffix(".weight") not in mask.entries},
    )


def test_weight_decay_of_sparse_entries_is_that_of_the_weights_and_not_of_the_changes():
    """One step with and without; Adam's part of the step is the same in both."""
    recipe = replace(RECIPE, warmup_fraction=0.0)
    moved = {}
    for decay in (0.0, 0.5):
        moving, _ = make_sparse()
        entries = base_entries(moving)
        next(Tuner(moving, make_rows(), replace(recipe, weight_decay=decay)).steps())
        moved[decay] = weights_of(moving)
    for name, before in entries.items():
        pull = recipe.learning_rate * 0.5 * before
        torch.testing.assert_close(moved[0.0][name] - moved[0.5][name], pull, rtol=0, atol=1e-7)


def test_other_methods_have_no_entries_to_decay(kind):
    assert base_entries(make_moving(kind)) == {}


# --- together: resume, terms of one's own, and what is refused ---


def varying_rows(epoch):
    """As many rows every epoch, with the same targets."""
    plain = make_rows()
    return [replace(row, prompt_ids=(*row.prompt_ids, 65 + epoch)) for row in plain] if epoch else plain


def make_regularised(kind, *, mask=None, l2=0.3, kl=0.5, rows=GUARD, smoothing=0.1, examples=varying_rows):
    moving = make_sparse(mask=mask)[0] if kind == "sparse" else make(kind)
    terms = [L2SP(moving, l2), KLToBase(moving, rows, kl, max_rows=2)]
    recipe = replace(RECIPE, num_epochs=3, weight_decay=0.1, label_smoothing=smoothing)
    return Tuner(moving, examples, recipe, arm="test", terms=terms)


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_continued_run_with_everything_on_is_the_uninterrupted_one(kind, stop, tmp_path):
    mask = make_mask(tiny_model(n_layers=N_LAYERS))
    whole = make_regularised(kind, mask=mask)
    wanted, values = [], []
    for record in whole.steps():
        wanted.append(record)
        values.append(whole.term_values)
    first = make_regularised(kind, mask=mask)
    steps = first.steps()
    got = [next(steps) for _ in range(stop)]
    tensors, facts = first.state()
    write_tensors(tmp_path / "state", tensors, facts)
    second = make_regularised(kind, mask=mask)
    second.restore(*read_tensors(tmp_path / "state"))
    continued = []
    for record in second.steps():
        got.append(record)
        continued.append(second.term_values)
    assert len(got) == 9 and facts_of(got) == facts_of(wanted)
    assert continued == values[stop:] and all(v > 0 for v in continued[-1].values())
    assert_same(weights_of(second.moving), weights_of(whole.moving))


@pytest.mark.parametrize(
    "other",
    [{"l2": 0.4}, {"kl": 0.4}, {"rows": GUARD[1:]}, {"smoothing": 0.0}, {"examples": make_rows(seed=4)}],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_other_terms_is_refused(other, tmp_path):
    tuner = make_regularised("lora on some blocks")
    next(tuner.steps())
    write_tensors(tmp_path / "state", *tuner.state())
    state = read_tensors(tmp_path / "state")
    with pytest.raises(IntegrityError, match="belongs to other settings"):
        make_regularised("lora on some blocks", **other).restore(*state)
    make_regularised("lora on some blocks").restore(*state)


class Pull:
    """A term of one's own: a constant gradient on the first weight."""

    name = "pull"
    facts = {}  # noqa: RUF012

    def __init__(self, moving, value=1.0):
        self.weight, self.value = next(iter(moving.parameters.values())), value

    def add_gradient(self, step):
        self.weight.grad[0, 0] += 1e6
        return torch.tensor(self.value)


def test_anything_with_a_name_facts_and_a_gradient_is_a_term():
    moving = make("weights of parts")
    first = next(iter(moving.parameters.values()))
    before = float(first.detach()[0, 0])
    tuner = Tuner(moving, make_rows(), replace(RECIPE, warmup_fraction=0.0), terms=[Pull(moving)])
    record = next(tuner.steps())
    assert float(first.detach()[0, 0]) == pytest.approx(before - RECIPE.learning_rate, rel=1e-3)
    assert record.grad_norm == pytest.approx(1e6, rel=1e-3)
    assert tuner.term_values == {"pull": 1.0}


def test_a_term_that_is_not_finite_stops_the_run_and_is_named():
    moving = make("weights of parts")
    with pytest.raises(TunescopeError, match=r"loss [\d.]+, pull nan, gradient norm"):
        next(Tuner(moving, make_rows(), RECIPE, terms=[Pull(moving, math.nan)]).steps())


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_a_strength_that_is_no_strength_is_refused(strength):
    moving = make("lora on some blocks")
    with pytest.raises(ConfigError, match=r"l2_sp: got strength .*, allowed: a finite number from 0"):
        L2SP(moving, strength)
    with pytest.raises(ConfigError, match=r"kl_to_base: got strength"):
        KLToBase(moving, GUARD, strength)


def test_a_term_without_examples_is_refused():
    with pytest.raises(DataError, match="not a single example to stay near the base on"):
        KLToBase(make("lora on some blocks"), [], 1.0)


def test_two_terms_of_a_name_and_a_smoothing_of_one_are_refused():
    moving = make("lora on some blocks")
    with pytest.raises(ConfigError, match="each name may occur once"):
        Tuner(moving, make_rows(), RECIPE, terms=[L2SP(moving, 1.0), L2SP(moving, 2.0)])
    with pytest.raises(ConfigError, match="label_smoothing: got 1, allowed"):
        Tuner(moving, make_rows(), replace(RECIPE, label_smoothing=1.0))


def test_other_targets_in_a_later_epoch_are_refused():
    def rows(epoch):
        return make_rows() if epoch == 0 else make_rows()[::-1]

    with pytest.raises(DataError, match="only prompts may differ between epochs"):
        list(Tuner(make("lora on some blocks"), rows, RECIPE, arm="test").steps())
