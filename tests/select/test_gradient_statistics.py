"""Sums over examples one at a time: what a plain loop gives, and the model is left as it was."""

import pytest
import torch
from weights_to_score import FAMILIES, N_LAYERS, rows

from tunescope.errors import ModelError, TunescopeError, UserError
from tunescope.layers import gradient_norms
from tunescope.models import PARTS, canonical_name, family_of, pad_right
from tunescope.select import collect, weight_matrices
from tunescope.testing import tiny_model


def model_of(family="llama", **settings):
    return tiny_model(family, n_layers=N_LAYERS, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sums_are_those_of_a_plain_loop_with_transformers_loss(family):
    examples = rows(3)
    found = collect(model_of(family), family_of(family), examples)
    plain = model_of(family).requires_grad_(True)
    total, squares = {}, {}
    for row in examples:
        input_ids, attention_mask, labels = pad_right([row])
        plain.zero_grad()
        plain(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss.backward()
        for name, parameter in plain.named_parameters():
            place = canonical_name(name, family_of(family)).removesuffix(".weight")
            total[place] = total.get(place, 0) + parameter.grad.double()
            squares[place] = squares.get(place, 0) + parameter.grad.double() ** 2
    assert list(found.total) == list(found.squares) == [f"block.{i}.{p}" for i in range(N_LAYERS) for p in PARTS]
    assert found.n == 3
    for name in found.total:
        torch.testing.assert_close(found.total[name].double(), total[name], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.squares[name].double(), squares[name], rtol=1e-3, atol=1e-8)


def test_one_example_has_the_gradient_norm_of_the_layer_map():
    (row,) = rows(1)
    found = collect(model_of(), family_of("llama"), [row])
    norms = gradient_norms(model_of(), [row])
    for block, norm in zip(norms.layers, norms.values, strict=True):
        mine = sum(float(s.double().sum()) for name, s in found.squares.items() if name.startswith(block + "."))
        assert mine**0.5 == pytest.approx(norm, rel=1e-4)


def test_examples_are_taken_one_at_a_time():
    examples = rows(4)
    together = collect(model_of(), family_of("llama"), examples)
    single = [collect(model_of(), family_of("llama"), [row]) for row in examples]
    for name in together.total:
        torch.testing.assert_close(together.total[name], sum(s.total[name] for s in single))
        torch.testing.assert_close(together.squares[name], sum(s.squares[name] for s in single))
        # The square of the sum is something else, and never more than n times the sum of the squares.
        assert (together.total[name] ** 2 <= 4 * together.squares[name] * (1 + 1e-4)).all()
        assert not torch.allclose(together.total[name] ** 2, together.squares[name], rtol=0.1)


def test_a_part_gives_the_same_numbers_as_the_whole():
    whole = collect(model_of(), family_of("llama"), rows(2))
    part = collect(model_of(), family_of("llama"), rows(2), parts=["down", "q"], layers=["block.1-2"])
    assert list(part.total) == ["block.1.q", "block.1.down", "block.2.q", "block.2.down"]
    for name in part.total:
        torch.testing.assert_close(part.total[name], whole.total[name])
        torch.testing.assert_close(part.squares[name], whole.squares[name])


def test_a_model_in_bfloat16_is_summed_in_float32():
    found = collect(model_of(dtype=torch.bfloat16), family_of("llama"), rows(4))
    exact = collect(model_of(), family_of("llama"), rows(4))
    for name in found.total:
        assert found.total[name].dtype == found.squares[name].dtype == torch.float32
        together = torch.stack([found.total[name].flatten(), exact.total[name].flatten()])
        assert torch.corrcoef(together)[0, 1] > 0.99


@pytest.mark.parametrize("fails", [False, True])
def test_the_gradient_flags_are_restored(fails):
    model = model_of()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 == 0)
    flags = [p.requires_grad for p in model.parameters()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def done(_):
        if fails:
            raise KeyboardInterrupt

    try:
        collect(model, family_of("llama"), rows(2), done=done)
    except KeyboardInterrupt:
        assert fails
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_progress_is_told_after_every_example():
    seen = []
    collect(model_of(), family_of("llama"), rows(3), parts=["q"], done=seen.append)
    assert seen == [1, 1, 1]


def test_the_backward_pass_ends_at_the_lowest_block():
    model = model_of()
    needs = []
    for block in model.model.layers:
        block.register_forward_pre_hook(
            lambda _m, args, kwargs: needs.append((args[0] if args else kwargs["hidden_states"]).requires_grad),
            with_kwargs=True,
        )
    collect(model, family_of("llama"), rows(1), layers=["block.1"])
    assert needs == [False, False, True]


# --- what is refused ---


def test_a_gradient_that_is_not_finite_is_refused():
    model = model_of()
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(
        TunescopeError, match=r"calibration example 1 of 2: the gradient of block\..* is not finite .loss nan"
    ):
        collect(model, family_of("llama"), rows(2))
    assert not any(p.requires_grad for p in model.parameters())


def test_no_examples_are_refused():
    with pytest.raises(UserError, match="at least one calibration example"):
        collect(model_of(), family_of("llama"), [])


@pytest.mark.parametrize("use", [weight_matrices, lambda m, f, **s: collect(m, f, rows(1), **s)])
def test_what_the_model_lacks_is_refused(use):
    with pytest.raises(ModelError, match=r"part 'gat' is not known .did you mean gate"):
        use(model_of(), family_of("llama"), parts=["gat"])
    with pytest.raises(ModelError, match="no part given"):
        use(model_of(), family_of("llama"), parts=[])
    with pytest.raises(ModelError, match=r"'block\.7' matches nothing.*block\.0 to block\.2"):
        use(model_of(), family_of("llama"), layers=["block.7"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrices_are_the_models_own(family):
    model = model_of(family)
    found = weight_matrices(model, family_of(family))
    inside = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    assert sum(w.numel() for w in found.values()) == sum(p.numel() for p in inside)
    assert {w.data_ptr() for w in found.values()} == {p.data_ptr() for p in inside}
    assert not any(w.requires_grad for w in found.values())
