"""Single entries move as if all other gradients were masked; all other entries keep every bit; plain PEFT loads the result."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_runs import ALL, DTYPES, N_LAYERS, RECIPE, assert_same, everything, facts_of, make_rows, weights_of
from transformers import AutoModelForCausalLM

from tunescope import models
from tunescope.data import epoch_batches
from tunescope.engine import (
    Checks,
    Fit,
    Tuner,
    Watch,
    asserts_backward_stops,
    attach,
    check_fits,
    describe,
    prepare,
    read_tensors,
    save,
    scheduled,
    to_inference,
    write_tensors,
)
from tunescope.engine.sparse import storage
from tunescope.errors import IntegrityError, ModelError, TunescopeError
from tunescope.models import PARTS, blocks, canonical_name, family_of, pad_right, token_losses
from tunescope.runs.records import Selection
from tunescope.select import (
    GRANULARITIES,
    Budget,
    Context,
    Mask,
    hand_mask,
    masks,
    score,
    selection_of,
    weight_matrices,
)
from tunescope.testing import byte_tokenizer, save_tiny, tiny_model

IDS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(0))
FAST = replace(RECIPE, learning_rate=1e-2, weight_decay=0.1)
# Losses of 8 % random entries of the tiny llama, rate 1e-2, recorded on 2026-11-22 (torch 2.13, CPU, float32).
RECORDED = (5.90546, 5.95761, 5.90674, 5.17272, 5.51944, 5.34806)

plain_peft = pytest.mark.filterwarnings(
    "ignore:Sparse invariant checks"
)  # torch to plain PEFT; ours says what it wants


def make_mask(model, family="llama", *, share=0.08, granularity="entry", seed=0, layers=None, parts=PARTS):
    weights = weight_matrices(model, family_of(family), parts=parts, layers=layers)
    scores = score("random", weights, context=Context(seed=seed))
    return masks(scores, granularity=granularity, budget=Budget(share=share))


def make_sparse(family="llama", dtype="float32", *, model=None, mask=None, **settings):
    model = tiny_model(family, n_layers=N_LAYERS, dtype=DTYPES[dtype]) if model is None else model
    mask = make_mask(model, family, **settings) if mask is None else mask
    return prepare(model, family_of(family), selection_of(mask, method="sparse", why="test"), mask=mask), mask


def tuned(family="llama", dtype="float32", *, recipe=FAST, **settings):
    moving, mask = make_sparse(family, dtype, **settings)
    list(Tuner(moving, make_rows(), recipe).steps())
    return moving, mask


def named(model, family):
    """Canonical name -> weight, whatever wraps it; the numbers of an adapter left out."""
    found = {}
    for name, parameter in model.named_parameters():
        if "shira_" not in name and "lora_" not in name:
            found[canonical_name(name.replace(".base_layer", ""), family_of(family))] = parameter.detach()
    return found


def bits(tensor):
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


# --- what moves, and what does not ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_outside_the_mask_keep_every_bit(family, dtype):
    """With weight decay, and with decay of the sparse values themselves."""
    model = tiny_model(family, n_layers=N_LAYERS, dtype=DTYPES[dtype])
    with torch.no_grad():
        for block in blocks(model):  # a negative zero is a zero that an addition can change
            block.mlp.gate_proj.weight[:, ::3] = -0.0
    base = {name: p.clone() for name, p in named(model, family).items()}
    moving, mask = tuned(family, dtype, model=model)
    optimizer = torch.optim.AdamW(moving.parameters.values(), lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        with moving.compute():
            loss = token_losses(moving.model, *pad_right(make_rows(4)))[0].mean()
        loss.backward()
        optimizer.step()
    merged = named(to_inference(moving), family)
    assert set(merged) == set(base)
    moved = 0
    for name, weight in merged.items():
        chosen = mask.entries.get(name.removesuffix(".weight"), torch.zeros(weight.shape, dtype=torch.bool))
        assert weight.dtype == base[name].dtype
        assert torch.equal(bits(weight)[~chosen], bits(base[name])[~chosen]), name
        moved += int((weight[chosen] != base[name][chosen]).sum())
    assert moved > 0.95 * mask.count


def test_every_chosen_entry_has_a_gradient_and_moves_at_the_first_step(family):
    moving, mask = make_sparse(family)
    assert sum(p.numel() for p in moving.parameters.values()) == mask.count == moving.selection.trainable_parameters
    assert all(not p.any() for p in moving.parameters.values())
    next(Tuner(moving, make_rows(), FAST).steps())
    assert all(p.all() for p in moving.parameters.values())


def test_the_start_is_no_change(family):
    plain = logits(tiny_model(family, n_layers=N_LAYERS))
    moving, _ = make_sparse(family)
    with moving.compute():
        assert torch.equal(logits(moving.model), plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_moves_is_float32_and_named_by_matrix_and_mask(family, dtype):
    moving, mask = make_sparse(family, dtype)
    assert list(moving.parameters) == [f"{name}.shira_weight.{mask.sha256[:12]}" for name in mask.entries]
    assert {p.dtype for p in moving.parameters.values()} == {torch.float32}
    assert {p.dtype for p in moving.model.parameters() if not p.requires_grad} == {DTYPES[dtype]}
    assert not any(module.training for module in moving.model.modules())
    selection = moving.selection
    base = tiny_model(family, n_layers=N_LAYERS)
    assert selection.total_parameters == sum(p.numel() for p in base.parameters())
    assert (selection.lowest_layer, selection.mask_sha256) == (mask.lowest_block, mask.sha256)
    assert sum(selection.counts.values()) == selection.trainable_parameters
    assert Selection.from_dict(selection.to_dict()).to_dict() == selection.to_dict()


# --- the same as dense tuning with masked gradients ---


def dense_loop(family, mask, recipe, n_steps, *, weight_decay=0.0):
    """Dense changes of whole matrices, gradients masked by hand, plain torch; losses and merged weights after every step."""
    model = tiny_model(family, n_layers=N_LAYERS)
    paths = {canonical_name(n, family_of(family)).removesuffix(".weight"): n for n, _ in model.named_parameters()}
    base = {name: model.get_parameter(paths[name]).detach().clone() for name in mask.entries}
    change = {name: torch.zeros_like(w, requires_grad=True) for name, w in base.items()}
    optimizer = torch.optim.AdamW(change.values(), lr=1.0, weight_decay=weight_decay)
    rows = make_rows()
    per_epoch = -(-len(rows) // recipe.batch_size)
    losses = []
    for step in range(n_steps):
        epoch, place = divmod(step, per_epoch)
        batch = epoch_batches([len(r) for r in rows], batch_size=recipe.batch_size, seed=recipe.seed, epoch=epoch)[
            place
        ]
        input_ids, attention_mask, labels = pad_right([rows[i] for i in batch])
        for group in optimizer.param_groups:
            group["lr"] = scheduled(recipe, step, per_epoch * recipe.num_epochs)
        weights = {paths[name]: base[name] + change[name] for name in base}
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        loss = torch.func.functional_call(model, weights, kwargs=inputs).loss
        optimizer.zero_grad()
        loss.backward()
        for name, chosen in mask.entries.items():
            change[name].grad *= chosen
        torch.nn.utils.clip_grad_norm_(change.values(), recipe.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: base[name] + change[name].detach() for name in base}


def test_the_path_is_that_of_dense_tuning_with_masked_gradients(family):
    recipe = replace(FAST, weight_decay=0.0)
    moving, mask = make_sparse(family)
    mine = [record.loss for record in Tuner(moving, make_rows(), recipe).steps()]
    losses, merged = dense_loop(family, mask, recipe, len(mine))
    assert len(mine) == 6
    assert mine == pytest.approx(losses, abs=2e-4)
    assert abs(mine[-1] - mine[0]) > 0.1
    weights = named(to_inference(moving), family)
    for name, chosen in mask.entries.items():
        gap = (weights[f"{name}.weight"] - merged[name]).abs()
        assert not gap[~chosen].any()
        assert gap.max() < 2e-4, name  # of a way of up to 6 steps of 1e-2


def test_decay_of_the_changes_is_the_same_as_decay_of_masked_dense_changes():
    """Decay pulls towards the base weights, not towards zero."""
    recipe = replace(FAST, max_grad_norm=1e9)
    moving, mask = make_sparse()
    optimizer = torch.optim.AdamW(moving.parameters.values(), lr=1.0, weight_decay=0.3)
    rows = make_rows()
    for step in range(6):
        epoch, place = divmod(step, 3)
        batch = epoch_batches([len(r) for r in rows], batch_size=4, seed=recipe.seed, epoch=epoch)[place]
        for group in optimizer.param_groups:
            group["lr"] = scheduled(recipe, step, 6)
        with moving.compute():
            loss = token_losses(moving.model, *pad_right([rows[i] for i in batch]))[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, merged = dense_loop("llama", mask, recipe, 6, weight_decay=0.3)
    weights = named(to_inference(moving), "llama")
    for name in mask.entries:
        torch.testing.assert_close(weights[f"{name}.weight"], merged[name], rtol=0, atol=2e-4)


def test_the_losses_are_the_recorded_ones():
    moving, _ = make_sparse()
    records = list(Tuner(moving, make_rows(), replace(FAST, weight_decay=0.0)).steps())
    assert [record.loss for record in records] == pytest.approx(RECORDED, abs=2e-3)


def test_all_entries_tune_as_whole_matrices_do():
    """The other limit: with everything in the mask the losses are those of method weights on the same matrices."""
    recipe = replace(FAST, weight_decay=0.0)
    model = tiny_model(n_layers=N_LAYERS)
    weights = weight_matrices(model, family_of("llama"), layers=["2-3"])
    whole = hand_mask(weights, ["*"])
    nearly = {name: chosen.clone() for name, chosen in whole.entries.items()}
    for chosen in nearly.values():
        chosen[0, 0] = False
    sparse, _ = make_sparse(model=model, mask=Mask(nearly, whole.total, "entry"))
    dense = prepare(
        tiny_model(n_layers=N_LAYERS), family_of("llama"), selection_of(whole, method="weights", why="test")
    )
    losses = [[r.loss for r in Tuner(m, make_rows(), recipe).steps()] for m in (sparse, dense)]
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)


# --- bfloat16 ---


def test_small_updates_add_up_beside_bfloat16_weights():
    """Eight updates of an eighth of a step between two bfloat16 numbers move the weight by one; each alone would be lost."""
    moving, mask = make_sparse(dtype="bfloat16")
    name, chosen = next(iter(mask.entries.items()))
    base = named(moving.model, "llama")[f"{name}.weight"].clone()
    parameter = moving.parameters[f"{name}.shira_weight.{mask.sha256[:12]}"]
    start = base[chosen]
    step = torch.nextafter(start, torch.full_like(start, torch.inf)).float() - start.float()
    with torch.no_grad():
        for _ in range(8):
            parameter.add_(step / 8)
            assert torch.equal((start.float() + step / 8).bfloat16(), start)
    after = named(to_inference(moving), "llama")[f"{name}.weight"]
    assert torch.equal(after[chosen], (start.float() + step).bfloat16())
    assert not torch.equal(after[chosen], start)


def test_tuning_beside_bfloat16_weights_follows_float32(family):
    recipe = replace(FAST, weight_decay=0.0)
    losses = {}
    for dtype in DTYPES:
        moving, _ = make_sparse(family, dtype, mask=make_mask(tiny_model(family, n_layers=N_LAYERS), family))
        losses[dtype] = [r.loss for r in Tuner(moving, make_rows(), recipe).steps()]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.1)


def test_updates_too_small_for_bfloat16_are_kept_in_tuning_and_rounded_away_at_inference():
    moving, mask = tuned(dtype="bfloat16", recipe=replace(FAST, learning_rate=1e-6))
    assert all(p.all() for p in moving.parameters.values())
    base = named(tiny_model(n_layers=N_LAYERS, dtype=torch.bfloat16), "llama")
    merged = named(to_inference(moving), "llama")
    moved = sum(int((merged[f"{n}.weight"] != base[f"{n}.weight"]).sum()) for n in mask.entries)
    assert moved < 0.05 * mask.count


# --- checkpoints ---


@pytest.mark.parametrize("stop", [1, 4])
def test_a_continued_run_is_the_uninterrupted_one(family, stop, tmp_path):
    mask = make_mask(tiny_model(family, n_layers=N_LAYERS), family)
    whole, _ = make_sparse(family, mask=mask)
    wanted = facts_of(Tuner(whole, make_rows(), FAST).steps())
    first = Tuner(make_sparse(family, mask=mask)[0], make_rows(), FAST)
    steps = first.steps()
    records = [next(steps) for _ in range(stop)]
    write_tensors(tmp_path / "checkpoint.safetensors", *first.state())
    second = Tuner(make_sparse(family, mask=mask)[0], make_rows(), FAST)
    second.restore(*read_tensors(tmp_path / "checkpoint.safetensors"))
    assert facts_of(records) + facts_of(second.steps()) == wanted
    assert_same(weights_of(second.moving), weights_of(whole))


def test_a_checkpoint_of_another_mask_is_refused():
    """Also where it has the same number of entries in every matrix."""
    weights = weight_matrices(tiny_model(n_layers=N_LAYERS), family_of("llama"))
    budget = Budget(share=0.1, per_matrix=True)
    first, second = (masks(score("random", weights, context=Context(seed=s)), budget=budget) for s in (0, 1))
    assert first.counts == second.counts and first.sha256 != second.sha256
    state = Tuner(make_sparse(mask=first)[0], make_rows(), FAST).state()
    with pytest.raises(IntegrityError, match="the checkpoint belongs to other settings"):
        Tuner(make_sparse(mask=second)[0], make_rows(), FAST).restore(*state)


def test_the_best_check_is_put_back(tmp_path):
    moving, _ = make_sparse()
    fit = Fit(Tuner(moving, make_rows(), FAST), Checks(make_rows(4, seed=5), every=2, patience=0), folder=tmp_path)
    records = list(fit)
    checked = {r.step: r.validation_loss for r in records if r.validation_loss is not None}
    assert len(checked) == 3
    assert fit.outcome is not None
    assert fit.outcome.best_step == min(checked, key=checked.get)


# --- the watch, and where the backward pass ends ---


def test_the_watch_sees_a_frozen_weight_that_is_touched():
    moving, _ = make_sparse()
    watch = Watch(moving)
    with torch.no_grad():
        for parameter in moving.parameters.values():
            parameter.add_(1e-3)
    watch.check()
    layer = blocks(moving.model)[0].self_attn.q_proj
    with torch.no_grad():
        layer.base_layer.weight.mul_(1.0)
    with pytest.raises(TunescopeError, match=r"1 frozen weights were touched.*q_proj"):
        watch.check()


def test_the_watch_sees_a_matrix_whose_entries_stay():
    tuner = Tuner(make_sparse()[0], make_rows(), replace(FAST, weight_decay=0.0))  # decay alone would move it
    tuner._optimizer.param_groups[0]["params"].pop()
    steps = tuner.steps()
    next(steps)
    with pytest.raises(TunescopeError, match="1 planned weights did not move"):
        next(steps)


def test_the_backward_pass_ends_at_the_lowest_block_of_the_mask(family):
    moving, mask = make_sparse(family, layers=["block.2-3"])
    needs = []
    for block in blocks(moving.model):
        block.register_forward_pre_hook(
            lambda _m, args, kwargs: needs.append((args[0] if args else kwargs["hidden_states"]).requires_grad),
            with_kwargs=True,
        )
    with asserts_backward_stops(moving), moving.compute():
        token_losses(moving.model, *pad_right(make_rows(2)))
    assert mask.lowest_block == 2
    assert needs == [i > 2 for i in range(N_LAYERS)]


def test_what_moves_is_told_per_block_and_module():
    moving, mask = make_sparse(granularity="row", parts=["q", "down"], layers=["block.1", "block.3"])
    lines = describe(moving).splitlines()
    assert lines[0].endswith("weights may move (sparse, chosen by row)")
    assert lines[0].startswith(f"{mask.count:,} of {moving.selection.total_parameters:,} ")
    sizes = {"q": "1,024", "down": "2,048"}
    for block, line in zip(mask.layers, lines[1:], strict=True):
        parts = [
            f"{p} {mask.counts[f'{block}.{p}']:,} of {sizes[p]}" for p in ("q", "down") if f"{block}.{p}" in mask.counts
        ]
        assert line == f"  {block}: {', '.join(parts)}"


# --- saved and loaded again ---


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folders = {}

    def base(family="llama", dtype="float32", **settings):
        key = json.dumps([family, dtype, settings])
        if key not in folders:
            settings = {"n_layers": N_LAYERS} | settings
            folders[key] = save_tiny(tmp_path_factory.mktemp("base"), family=family, dtype=DTYPES[dtype], **settings)
        return folders[key]

    return base


def write(moving, folder):
    return save(moving, byte_tokenizer(), folder, card="# Card\n", base="the-base")


def adapter_of(moving, mask, tmp_path):
    with moving.compute():
        wanted = logits(moving.model) if moving.dtype == torch.float32 else None
    model = to_inference(moving)
    assert wanted is None or torch.equal(logits(model), wanted)
    write(moving, tmp_path / "arm")
    return logits(model)


@plain_peft
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_peft_loads_it_and_gives_the_same_bits(bases, family, dtype, tmp_path):
    base = bases(family, dtype)
    moving, mask = tuned(family, dtype, model=models.load(str(base), dtype=dtype).model)
    wanted = adapter_of(moving, mask, tmp_path)
    attention = moving.model.config._attn_implementation
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype], attn_implementation=attention)
    untuned = logits(plain)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "arm")
    assert torch.equal(logits(loaded), wanted)
    assert not torch.allclose(untuned, wanted, atol=1e-2)
    # Merged by PEFT, the entries outside the mask still have every bit, fillers included.
    for name, weight in named(loaded.merge_and_unload(), family).items():
        assert torch.equal(bits(weight), bits(named(to_inference(moving), family)[name])), name
    config = json.loads((tmp_path / "arm" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("SHIRA", "the-base")
    assert config["inference_mode"] is True
    tensors = load_file(tmp_path / "arm" / "adapter_model.safetensors")
    extra = sum(bool(torch.signbit(v[v == 0]).sum()) for n, v in tensors.items() if n.endswith("shira_weight"))
    assert extra > 0, "the case of a filled-up file does not occur"


@pytest.mark.parametrize("dtype", DTYPES)
def test_attached_it_gives_the_same_bits_without_peft_in_between(bases, family, dtype, tmp_path):
    base = bases(family, dtype)
    moving, mask = tuned(family, dtype, model=models.load(str(base), dtype=dtype).model)
    wanted = adapter_of(moving, mask, tmp_path)
    loaded = models.load(str(base), dtype=dtype)
    check_fits(loaded, tmp_path / "arm")
    model = attach(loaded, tmp_path / "arm")
    assert torch.equal(logits(model), wanted)
    assert not isinstance(model, PeftModel)
    assert not any(p.requires_grad for p in model.parameters())
    # A merged export is a plain model.
    model.save_pretrained(tmp_path / "merged")
    byte_tokenizer().save_pretrained(tmp_path / "merged")
    again = models.load(str(tmp_path / "merged"), dtype=dtype).model
    assert torch.equal(logits(again), wanted)


@plain_peft
@pytest.mark.parametrize("granularity", [g for g in GRANULARITIES if g != "block"])
def test_every_granularity_can_be_tuned_and_loaded(granularity, tmp_path):
    """512 wide: tiles of 256 x 256 are then parts of a matrix."""
    base = save_tiny(tmp_path / "base", n_layers=1, d_model=512)
    model = models.load(str(base), dtype="float32").model
    mask = make_mask(model, granularity=granularity, share=0.3)
    if granularity == "tile":
        assert any(not chosen.all() for chosen in mask.entries.values())
    method = "weights" if granularity == "module" else "sparse"
    selection = selection_of(mask, method=method, why="test")
    moving = prepare(model, family_of("llama"), selection, mask=mask if method == "sparse" else None)
    list(Tuner(moving, make_rows(4), replace(FAST, num_epochs=2, learning_rate=1e-3)).steps())
    wanted = adapter_of(moving, mask, tmp_path)
    assert torch.equal(logits(attach(models.load(str(base), dtype="float32"), tmp_path / "arm")), wanted)
    if method == "sparse":
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        close = logits(PeftModel.from_pretrained(plain, tmp_path / "arm"))
        torch.testing.assert_close(close, wanted, rtol=0, atol=1e-3)


@plain_peft
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with a bias beside the matrix
def test_a_dense_matrix_is_stored_whole_beside_sparse_ones(bases, family, tmp_path):
    base = bases(family)
    model = models.load(str(base), dtype="float32").model
    mask = make_mask(model, family, share=0.02)
    entries = dict(mask.entries) | {"block.1.v": torch.ones(16, 32, dtype=torch.bool)}
    mask = Mask(entries, mask.total, "entry")
    moving, _ = tuned(family, model=model, mask=mask)
    wanted = adapter_of(moving, mask, tmp_path)
    config = json.loads((tmp_path / "arm" / "adapter_config.json").read_text())
    assert "model.layers.1.self_attn.v_proj" in config["modules_to_save"]
    assert "model.layers.1.self_attn.v_proj" not in config["target_modules"]
    loaded = models.load(str(base), dtype="float32")
    check_fits(loaded, tmp_path / "arm")
    assert torch.equal(logits(attach(loaded, tmp_path / "arm")), wanted)
    plain = models.load(str(base), dtype="float32").model
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path / "arm")), wanted)


def test_the_file_holds_what_moved_and_fillers_that_change_nothing(bases, tmp_path):
    moving, mask = tuned(model=models.load(str(bases()), dtype="float32").model, share=0.01)
    wanted = {name: p.detach().clone() for name, p in moving.parameters.items()}
    to_inference(moving)
    write(moving, tmp_path / "arm")
    tensors = load_file(tmp_path / "arm" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "arm" / "adapter_config.json").read_text())
    assert "modules_to_save" not in config or not config["modules_to_save"]
    for name, chosen in mask.entries.items():
        path = next(n for n in tensors if canonical_name(n, family_of("llama")) == f"{name}.shira_weight")
        values, indices = tensors[path], tensors[path.replace("_weight", "_indices")]
        assert len(values) == config["r"] * sum(chosen.shape) == indices.shape[1]
        count = mask.counts[name]
        assert torch.equal(values[:count], wanted[f"{name}.shira_weight.{mask.sha256[:12]}"])
        assert torch.equal(bits(values[count:]), bits(torch.full((len(values) - count,), -0.0)))
        assert torch.equal(indices[:, :count].long(), chosen.nonzero().T)
        assert len(set(map(tuple, indices.T.tolist()))) == len(values), "an entry twice"
    assert json.loads((tmp_path / "arm" / "selection.json").read_text()) == moving.selection.to_dict()
    first = {path.name: path.read_bytes() for path in (tmp_path / "arm").iterdir()}
    write(moving, tmp_path / "arm")
    assert {path.name: path.read_bytes() for path in (tmp_path / "arm").iterdir()} == first


def test_the_rank_makes_the_file_smallest():
    shapes = dict.fromkeys("abcd", (64, 64))
    for counts in ([30, 130, 700, 4096], [1, 1, 1, 1], [128, 128, 128, 129], [4096, 4096, 4096, 5]):
        named_counts = dict(zip("abcd", counts, strict=True))

        def size(rank, named_counts=named_counts):
            return sum(12 * rank * 128 if n <= rank * 128 else 4 * 4096 for n in named_counts.values())

        rank, whole = storage(named_counts, shapes)
        possible = [r for r in range(1, 33) if any(n <= r * 128 for n in counts)]
        assert size(rank) == min(size(r) for r in possible)
        assert set(whole) == {name for name, n in named_counts.items() if n > rank * 128}


# --- whole matrices that differ from block to block ---


@pytest.mark.parametrize("method", ["lora", "weights"])
def test_exactly_the_named_matrices_move(bases, family, method, tmp_path):
    base = bases(family)
    loaded = models.load(str(base), dtype="float32")
    weights = weight_matrices(loaded.model, loaded.family)
    selection = selection_of(hand_mask(weights, ["block.1.q", "block.1.down", "3-3.v"]), method=method, why="test")
    assert selection.matrices == ("block.1.q", "block.1.down", "block.3.v")
    moving = prepare(loaded.model, loaded.family, selection, lora_rank=2)
    assert {".".join(name.split(".")[:3]) for name in moving.parameters} == set(selection.matrices)
    assert moving.selection.lowest_layer == 1
    before = everything(moving.model)
    list(Tuner(moving, make_rows(), RECIPE).steps())
    after = everything(moving.model)
    changed = {canonical_name(n, family_of(family)) for n in before if not torch.equal(before[n], after[n])}
    assert changed == set(moving.parameters)
    wanted = logits(to_inference(moving))
    write(moving, tmp_path / "arm")
    assert torch.equal(logits(attach(models.load(str(base), dtype="float32"), tmp_path / "arm")), wanted)


# --- what is refused ---


def sparse(mask, **changes):
    return replace(selection_of(mask, method="sparse", why="test"), **changes)


def test_a_mask_that_is_not_the_one_of_the_plan_is_refused():
    model = tiny_model(n_layers=N_LAYERS)
    mask, other = make_mask(model), make_mask(model, seed=1)
    family = family_of("llama")
    with pytest.raises(IntegrityError, match="is not the one of the selection"):
        prepare(model, family, sparse(mask), mask=other)
    with pytest.raises(ModelError, match="method sparse needs a mask"):
        prepare(model, family, sparse(mask))
    with pytest.raises(ModelError, match="method lora takes no mask"):
        prepare(model, family, Selection("lora", ALL, PARTS, ""), mask=mask)
    with pytest.raises(ModelError, match="change the mask, not the names"):
        prepare(model, family, sparse(mask, layers=ALL[:2]), mask=mask)
    with pytest.raises(ModelError, match="takes its matrices from the mask"):
        prepare(model, family, sparse(mask, matrices=("block.0.q",)), mask=mask)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any("shira" in name for name, _ in model.named_modules())


def test_a_mask_of_another_model_is_refused():
    mask = make_mask(tiny_model(n_layers=N_LAYERS, d_model=48))
    with pytest.raises(ModelError, match=r"mask of block\.0\.q: \(48, 48\), this model has \(32, 32\)"):
        make_sparse(mask=mask)
    with pytest.raises(ModelError, match=r"'block\.3' is not in this model"):
        make_sparse(model=tiny_model(n_layers=3), mask=make_mask(tiny_model(n_layers=N_LAYERS)))


def test_a_mask_with_nothing_sparse_about_it_is_refused():
    model = tiny_model(n_layers=N_LAYERS)
    mask = hand_mask(weight_matrices(model, family_of("llama")), ["*.v"])
    with pytest.raises(ModelError, match="all 4 chosen matrices move as good as whole"):
        make_sparse(model=model, mask=mask)
    assert not any("shira" in name for name, _ in model.named_modules())


@pytest.mark.parametrize(
    ("matrices", "said"),
    [
        (("block.1.q", "block.2.q"), "matrix 'block.2.q' is not in the blocks and parts of the selection"),
        (("block.1.q", "block.1.k"), "matrix 'block.1.k' is not in the blocks and parts"),
        (("block.1.q", "q"), "matrix '.q' is not in"),
        (("block.3.q",), "block 'block.1' is selected, and none of its matrices"),
    ],
)
def test_matrices_that_contradict_blocks_and_parts_are_refused(matrices, said):
    selection = Selection("lora", ("block.1", "block.3"), ("q", "v"), "", matrices=matrices)
    with pytest.raises(ModelError, match=said):
        prepare(tiny_model(n_layers=N_LAYERS), family_of("llama"), selection)


@pytest.mark.parametrize("other", [{"n_layers": 2}, {"d_model": 48}, {"d_model": 16}])
def test_an_adapter_for_another_base_is_refused(bases, other, tmp_path):
    moving, mask = tuned(model=models.load(str(bases()), dtype="float32").model)
    adapter_of(moving, mask, tmp_path)
    stranger = models.load(str(bases(**other)), dtype="float32")
    before = logits(stranger.model)
    with pytest.raises(ModelError, match="another base model"):
        attach(stranger, tmp_path / "arm")
    with pytest.raises(ModelError, match="another base model"):
        check_fits(stranger, tmp_path / "arm")
    assert torch.equal(logits(stranger.model), before)


@pytest.mark.parametrize("place", [(0, 32), (1, 99), (0, -1)])
def test_entries_outside_the_matrix_are_refused(bases, place, tmp_path):
    """PyTorch would write past the end of the weights."""
    moving, mask = tuned(model=models.load(str(bases()), dtype="float32").model, share=0.01)
    adapter_of(moving, mask, tmp_path)
    file = tmp_path / "arm" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("q_proj.shira_indices"))
    tensors[name][place[0], 0] = place[1]
    save_file(tensors, file, metadata={"format": "pt"})
    for use in (check_fits, attach):
        with pytest.raises(ModelError, match=r"it moves entries of block\.\d\.q outside its \(32, 32\)"):
            use(models.load(str(bases()), dtype="float32"), tmp_path / "arm")


def test_a_damaged_adapter_is_refused(bases, tmp_path):
    moving, mask = tuned(model=models.load(str(bases()), dtype="float32").model)
    adapter_of(moving, mask, tmp_path)
    file = tmp_path / "arm" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors: damaged"):
        attach(models.load(str(bases()), dtype="float32"), tmp_path / "arm")
