"""Packed attention is plain softmax attention under the mask that the layout means, forward and backward."""

from types import SimpleNamespace

import pytest
import torch

from tunescope.errors import ModelError
from tunescope.models import Group, Layout
from tunescope.models.packed_attention import packed_attention, packed_only
from tunescope.testing import tiny_model

LAYOUTS = {
    "one row": Layout((Group(0, (13,)),)),
    "one token": Layout((Group(0, (1,)),)),
    "rows of several lengths": Layout((Group(0, (16, 9, 9, 1, 30)),)),
    "equal rows without gaps": Layout((Group(0, (16, 16)),)),
    "a prefix": Layout((Group(20, (5, 1, 17)),)),
    "two prefixes and rows alone": Layout((Group(0, (3, 4)), Group(18, (2, 2)), Group(33, (40, 7)))),
    "longer than a chunk": Layout((Group(140, (150, 3)), Group(0, (290, 200)))),
}


def allowed(layout, window):
    """(n_tokens, n_tokens) who sees whom, token by token."""
    seen = torch.zeros(layout.n_tokens, layout.n_tokens, dtype=torch.bool)
    start = 0
    for group in layout.groups:
        prefix = list(range(start, start + group.prefix_length))
        start += group.prefix_length
        segments = [prefix]
        for length in group.lengths:
            segments.append([*prefix, *range(start, start + length)])
            start += length
        for row in segments:
            for i, query in enumerate(row):
                for j in range(i + 1):
                    if window is None or i - j < window:
                        seen[query, row[j]] = True
    return seen


def naive(query, key, value, layout, scale, window, softcap):
    """Head by head with a dense mask."""
    mixed = []
    for head in range(query.shape[1]):
        mine = head // (query.shape[1] // key.shape[1])
        scores = query[0, head] @ key[0, mine].T * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~allowed(layout, window), float("-inf"))
        mixed.append(torch.softmax(scores, -1) @ value[0, mine])
    return torch.stack(mixed, 1)[None]


def inputs(layout, heads, key_heads, dtype=torch.float64, width=8):
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, h, layout.n_tokens, width) for h in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def results(function, tensors, direction):
    found = function(*tensors)
    return [found.detach(), *torch.autograd.grad(found, tensors, direction.to(found.dtype))]


def both(layout, heads, key_heads, window, softcap, dtype=torch.float64):
    tensors = inputs(layout, heads, key_heads, dtype)
    direction = torch.randn(1, layout.n_tokens, heads, 8, generator=torch.Generator().manual_seed(2))
    module = SimpleNamespace(is_causal=True)
    ours = results(
        lambda q, k, v: packed_attention(
            module, q, k, v, None, scaling=0.4, softcap=softcap, sliding_window=window, layout=layout
        )[0],
        tensors,
        direction,
    )
    theirs = results(lambda q, k, v: naive(q, k, v, layout, 0.4, window, softcap), tensors, direction)
    return ours, theirs


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 1, 6, 25, 1000])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_values_and_gradients_equal_dense_attention(layout, heads, key_heads, window, softcap):
    ours, theirs = both(layout, heads, key_heads, window, softcap)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_in_bfloat16_it_equals_dense_attention_to_rounding(layout):
    ours, _ = both(layout, 6, 2, None, None, torch.bfloat16)
    _, wanted = both(layout, 6, 2, None, None)
    for mine, other in zip(ours, wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        assert float((mine - other).norm()) <= 0.02 * float(other.norm())


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 25])
def test_weights_that_are_computed_again_are_those_that_would_have_been_kept(window, softcap, monkeypatch):
    layout = LAYOUTS["longer than a chunk"]
    kept, _ = both(layout, 6, 2, window, softcap)
    monkeypatch.setattr("tunescope.models.packed_attention._KEPT", 0)
    again, _ = both(layout, 6, 2, window, softcap)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_kept_for_the_backward_pass_is_bounded(keeps, monkeypatch):
    if not keeps:
        monkeypatch.setattr("tunescope.models.packed_attention._KEPT", 0)
    layout = LAYOUTS["longer than a chunk"]
    tensors, sizes = inputs(layout, 6, 2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        packed_attention(None, *tensors, None, layout=layout)
    assert (max(sizes) > 6 * 120 * 120) == keeps  # weights of pairs of tokens
    assert not any(size >= 6 * layout.n_tokens**2 / 2 for size in sizes)


def fused(layout, heads, key_heads, window, dtype=torch.float64):
    from tunescope.models.packed_attention import _fused

    direction = torch.randn(1, layout.n_tokens, heads, 8, generator=torch.Generator().manual_seed(2))
    return results(
        lambda *t: _fused(*(x[0].transpose(0, 1) for x in t), layout, 0.4, window)[None],
        inputs(layout, heads, key_heads, dtype),
        direction,
    )


@pytest.mark.parametrize("window", [None, 6, 1000])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_fused_form_for_graphics_cards_gives_the_same(layout, heads, key_heads, window):
    _, wanted = both(layout, heads, key_heads, window, None)
    for mine, other in zip(fused(layout, heads, key_heads, window), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_fused_form_gives_the_same_in_bfloat16(layout):
    _, wanted = both(layout, 6, 2, None, None)
    for mine, other in zip(fused(layout, 6, 2, None, torch.bfloat16), wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        assert float((mine - other).norm()) <= 0.02 * float(other.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_fused_form_never_asks_for_what_only_a_kernel_that_forms_all_scores_can_do(
    layout, window, dtype, monkeypatch
):
    """On a GPU that is: fewer key heads than query heads together with a mask, or in float32."""
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []

    def spy(query, key, value, attn_mask=None, enable_gqa=False, **how):
        calls.append((query.shape[1] != key.shape[1], enable_gqa, attn_mask is not None, query.dtype))
        return attend(query, key, value, attn_mask=attn_mask, enable_gqa=enable_gqa, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    fused(layout, 6, 2, window, dtype)
    assert calls
    for differ, enabled, masked, given in calls:
        assert differ == enabled
        assert not (enabled and (masked or given == torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_segment_does_not_feel_its_neighbours_in_a_single_bit(dtype):
    """Nor where it stands, how many there are, or how long they are."""
    alone = Layout((Group(20, (37,)),))
    among = Layout((Group(0, (5, 64)), Group(20, (3, 37, 37, 128))))
    q, k, v = (t.detach() for t in inputs(among, 6, 2, dtype))
    where = torch.cat([torch.arange(69, 89), torch.arange(92, 129)])
    together = packed_attention(None, q, k, v, None, layout=among)[0][:, where]
    single = packed_attention(None, *(t[:, :, where] for t in (q, k, v)), None, layout=alone)[0]
    assert torch.equal(together, single)


def test_what_is_computed_together_depends_on_autocast_as_the_products_around_it():
    layout = LAYOUTS["a prefix"]
    q, k, v = inputs(layout, 6, 2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = packed_attention(None, q, k, v.bfloat16(), None, layout=layout)[0]
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert q.grad.dtype == torch.float32 and q.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": None},
        {"attention_mask": torch.zeros(1, 1, 13, 13)},
        {"dropout": 0.1},
        {"module": SimpleNamespace(is_causal=False)},
    ],
    ids=["no layout", "a mask", "dropout", "not causal"],
)
def test_what_it_cannot_compute_is_refused(wrong):
    layout = LAYOUTS["one row"]
    settings = {"module": None, "attention_mask": None, "layout": layout} | wrong
    with pytest.raises(ModelError, match=r"packed attention"):
        packed_attention(settings.pop("module"), *inputs(layout, 2, 2), **settings)


def test_a_model_gets_its_own_attention_back_even_after_an_error():
    model = tiny_model()
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), packed_only(model):
        assert model.config._attn_implementation != before
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == before
