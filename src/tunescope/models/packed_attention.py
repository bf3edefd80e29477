"""Attention over a packed row: each segment sees itself and its prefix; nothing of the size (tokens x tokens) is ever formed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from tunescope.errors import ModelError
from tunescope.models.family import bare
from tunescope.models.packed import Layout, Part

NAME = "tunescope_packed"
_CHUNK = 128  # queries at a time: about half of the pairs of a long segment lie in the future and are never computed
_WIDEST_FLASH = 256  # d_head; wider heads have no flash attention in PyTorch
_KEPT = 1 << 24  # attention weights of one block that are kept for the backward pass; more are computed again


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal softmax attention inside every segment of a packed row, in the form that transformers calls.

    Args:
        module: the attention module.
        query: (1, n_heads, n_tokens, d_head).
        key: (1, n_key_heads, n_tokens, d_head); n_heads is a multiple of n_key_heads.
        value: the same shape as `key`.
        attention_mask: None; who sees whom follows from the layout.
        scaling: of the scores; default d_head ** -0.5.
        dropout: must be 0.
        softcap: scores are bent to stay within ± this value (Gemma 2), or None.
        sliding_window: a token sees this many tokens, itself included, or all before it.
        layout: where the segments are.

    Returns:
        (1, n_tokens, n_heads, d_head), and None in the place of the weights.

    Raises:
        ModelError: dropout, or attention that is not causal, both of which the packed form lacks; or no layout.
    """
    if layout is None or attention_mask is not None:
        raise ModelError("packed attention needs a layout and no mask; call it through tunescope.models.run_blocks")
    if dropout or getattr(module, "is_causal", True) is False:
        raise ModelError(
            "packed attention knows neither dropout nor attention to later tokens; call model.eval(), and leave such models to the plain form"
        )
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (t.to(dtype) for t in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))
    # On a CPU the fused one is 1.7 to 4 times slower in bfloat16 and about level in float32 (64 to 2,048 tokens a segment, one thread).
    if query.device.type == "cpu" or softcap is not None:
        mixed = _Attention.apply(query, key, value, layout, scale, sliding_window, softcap)
    else:
        mixed = _fused(query, key, value, layout, scale, sliding_window)
    return mixed[None], None


@contextlib.contextmanager
def packed_only(model: Any) -> Iterator[None]:
    """Makes a model use `packed_attention` inside, whatever it used before."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)  # and no mask function: transformers then makes no mask
    config = bare(model).config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


class _Attention(torch.autograd.Function):
    """Written out by hand: autograd would keep the scores, their scaled, masked and rounded copies, and the weights of every block."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        gathered = [_gathered(t, layout) for t in (query, key, value)]
        mixed = torch.empty_like(gathered[0])
        kept: list[torch.Tensor] = []
        how = (scale, window, softcap)
        keeps = softcap is None and any(ctx.needs_input_grad) and _n_weights(layout, window, query.shape[1]) <= _KEPT
        with torch.autocast(query.device.type, enabled=False):
            for part, where in _places(layout):
                piece = _Piece(part, [t[where] for t in gathered], [t[slice(*part.prefix)] for t in (key, value)], how)
                piece.mix_(mixed[where], kept if keeps else None)
        ctx.save_for_backward(*gathered, key, value, *kept)
        ctx.layout, ctx.how = layout, how
        return _scattered(mixed, layout)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, whole_key, whole_value, *kept = ctx.saved_tensors
        above = _gathered(gradients[0], ctx.layout, zero=True)
        found = [torch.empty_like(t) for t in (query, key, value)]
        weights = iter(kept)
        of_prefixes: list[tuple[slice, list[torch.Tensor]]] = []
        for part, where in _places(ctx.layout):
            prefix = slice(*part.prefix)
            own = [t[where] for t in (query, key, value)]
            piece = _Piece(part, own, [whole_key[prefix], whole_value[prefix]], ctx.how)
            of_prefix = piece.gradients_(above[where], [t[where] for t in found], weights)
            of_prefixes.append((prefix, of_prefix))
        d_query, d_key, d_value = (_scattered(t, ctx.layout) for t in found)
        for prefix, of_prefix in of_prefixes:
            for gradient, more in zip((d_key, d_value), of_prefix, strict=False):
                gradient[prefix] += more
        return d_query, d_key, d_value, None, None, None, None


class _Piece:
    """Queries, keys and values of one part; heads come before positions."""

    def __init__(
        self,
        part: Part,
        own: Sequence[torch.Tensor],
        prefixes: Sequence[torch.Tensor],
        how: tuple[float, int | None, float | None],
    ) -> None:
        self.part = part
        self.scale, self.window, self.softcap = how
        self.offset = len(prefixes[0])
        self.query = self._split(own[0])
        self.key_heads = own[1].shape[1]
        self.key, self.value = (self._with_prefix(o, p) for o, p in zip(own[1:], prefixes, strict=True))

    def _split(self, tensor: torch.Tensor) -> torch.Tensor:
        """(segments * pos, heads, d_head) -> (segments, heads, pos, d_head), a view."""
        return tensor.view(self.part.n_segments, self.part.length, *tensor.shape[1:]).transpose(1, 2)

    def _with_prefix(self, own: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """(segments * key_heads, prefix + pos, d_head)."""
        split = self._split(own)
        if self.offset:
            split = torch.cat([prefix.transpose(0, 1).expand(len(split), -1, -1, -1), split], dim=2)
        return split.flatten(0, 1)

    def _stacked(self, tensor: torch.Tensor, first: int) -> torch.Tensor:
        """A chunk of (segments, heads, pos, d_head), query heads of one key head stacked: (segments * key_heads, group * pos, d_head)."""
        chunk = tensor[:, :, first : first + _CHUNK]
        return chunk.reshape(len(chunk) * self.key_heads, -1, chunk.shape[-1])

    def _columns(self, first: int) -> slice:
        """The keys that any of the queries of a chunk may see."""
        stop = self.offset + min(first + _CHUNK, self.part.length)
        return slice(0 if self.window is None else max(0, self.offset + first - self.window + 1), stop)

    def _weights(self, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention weights of a chunk, (segments * key_heads, group * pos, keys), and the bent scores where there is a cap."""
        columns = self._columns(first)
        scores = _product(self._stacked(self.query, first), self.key[:, columns].transpose(1, 2), self.scale)
        bent = None
        if self.softcap is not None:
            bent = scores.div_(self.softcap).tanh_()
            scores = bent * self.softcap
        if self.window is None:  # of the keys before the chunk's own every one is seen
            columns = slice(self.offset + first, columns.stop)
        queries = slice(first, min(first + _CHUNK, self.part.length))
        hidden = _hidden(self.offset, queries, columns, self.window, scores.device)
        per_head = scores.view(len(scores), -1, *hidden.shape[:1], scores.shape[-1])
        per_head[..., -hidden.shape[1] :].masked_fill_(hidden, float("-inf"))
        return torch.softmax(scores, dim=-1), bent

    def mix_(self, mixed: torch.Tensor, kept: list[torch.Tensor] | None) -> None:
        """Writes the weighted values into (segments * pos, heads, d_head), and adds the weights of every chunk to `kept`."""
        target = self._split(mixed)
        for first in range(0, self.part.length, _CHUNK):
            weights, _ = self._weights(first)
            chunk = target[:, :, first : first + _CHUNK]
            chunk.copy_(torch.bmm(weights, self.value[:, self._columns(first)]).view(chunk.shape))
            if kept is not None:
                kept.append(weights)

    def gradients_(
        self, above: torch.Tensor, found: Sequence[torch.Tensor], kept: Iterator[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Writes the gradients of the own queries, keys and values, each (segments * pos, heads, d_head).

        Returns:
            The gradients of the prefix's keys and values, (prefix, key_heads, d_head), or nothing where there is no prefix.
        """
        d_query, d_key, d_value = (self._split(t) for t in found)
        above = self._split(above)
        d_keys, d_values = torch.zeros_like(self.key), torch.zeros_like(self.value)
        for first in range(0, self.part.length, _CHUNK):
            columns = self._columns(first)
            weights = next(kept, None)
            bent = None
            if weights is None:
                weights, bent = self._weights(first)
            upper = self._stacked(above, first)
            d_values[:, columns] += torch.bmm(weights.transpose(1, 2), upper)
            d_weights = torch.bmm(upper, self.value[:, columns].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if bent is not None:
                d_scores *= 1 - bent.square()
            chunk = d_query[:, :, first : first + _CHUNK]
            chunk.copy_(_product(d_scores, self.key[:, columns], self.scale).view(chunk.shape))
            d_keys[:, columns] += _product(d_scores.transpose(1, 2), self._stacked(self.query, first), self.scale)
        of_prefix = []
        for target, gradient in ((d_key, d_keys), (d_value, d_values)):
            split = gradient.view(len(target), self.key_heads, -1, gradient.shape[-1])
            target.copy_(split[:, :, self.offset :])
            if self.offset:
                of_prefix.append(split[:, :, : self.offset].sum(0).transpose(0, 1))
        return of_prefix


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float, window: int | None
) -> torch.Tensor:
    """The same by PyTorch's fused attention, which keeps nothing of the size of the scores: (n_tokens, heads, d_head)."""
    gathered = [_gathered(t, layout) for t in (query, key, value)]
    stacked = query.shape[1] // key.shape[1]  # query heads of one key head
    mixed = []
    for part, where in _places(layout):
        queries, keys, values = (
            t[where].view(part.n_segments, part.length, *t.shape[1:]).transpose(1, 2) for t in gathered
        )
        offset = part.prefix[1] - part.prefix[0]
        if offset:
            before = [t[slice(*part.prefix)].transpose(0, 1).expand(part.n_segments, -1, -1, -1) for t in (key, value)]
            keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True))
        plain = not offset and (window is None or window >= part.length)
        if plain and (stacked == 1 or _has_flash(query)):
            found = functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scale, enable_gqa=stacked > 1
            )
        else:
            # On a GPU only the kernel without a mask takes fewer key heads than query heads: with a mask PyTorch would form all scores.
            # So the query heads of one key head stand one after the other, as more queries of that head.
            queries = queries.unflatten(1, (-1, stacked)).flatten(2, 3)
            mask = _seen(layout, offset, part.length, window, stacked, query.device)
            found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
            found = found.unflatten(2, (stacked, -1)).flatten(1, 2)
        mixed.append(found.transpose(1, 2).flatten(0, 1))
    return _scattered(torch.cat(mixed), layout)


def _has_flash(query: torch.Tensor) -> bool:
    """Whether PyTorch's flash attention takes such queries, and with them fewer key heads than query heads."""
    return query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= _WIDEST_FLASH


def _seen(
    layout: Layout, offset: int, length: int, window: int | None, stacked: int, device: torch.device
) -> torch.Tensor:
    """(stacked * length, offset + length) True where a query may look; the same for all segments of a width and for all blocks."""

    def make() -> torch.Tensor:
        hidden = _hidden(offset, slice(0, length), slice(0, offset + length), window, device)
        return (~hidden).repeat(stacked, 1)

    return layout.once(("seen", offset, length, window, stacked, device), make)


def _places(layout: Layout) -> Iterator[tuple[Part, slice]]:
    """Each part with the places that are its own."""
    start = 0
    for part in layout.parts:
        stop = start + part.n_segments * part.length
        yield part, slice(start, stop)
        start = stop


def _gathered(tensor: torch.Tensor, layout: Layout, *, zero: bool = False) -> torch.Tensor:
    """(n_tokens, heads, d_head) -> (places, heads, d_head); what is filled up holds some token's numbers, or zeros."""
    if layout.is_identity:
        return tensor.contiguous()
    index, filled, _ = layout.indices(tensor.device)
    found = tensor.index_select(0, index)
    return found.masked_fill_(filled[:, None, None], 0) if zero else found


def _scattered(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(places, heads, d_head) -> (n_tokens, heads, d_head)."""
    return tensor if layout.is_identity else tensor.index_select(0, layout.indices(tensor.device)[2])


def _hidden(offset: int, queries: slice, keys: slice, window: int | None, device: torch.device) -> torch.Tensor:
    """(queries, keys) True where a query may not look; queries are counted behind a prefix of length `offset`."""
    places = torch.arange(queries.start, queries.stop, device=device)[:, None] + offset
    distance = places - torch.arange(keys.start, keys.stop, device=device)
    return distance < 0 if window is None else (distance < 0) | (distance >= window)


def _product(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """The product of two batches of matrices times `scale`, (batch, rows, columns), rounded once."""
    empty = left.new_empty((left.shape[0], left.shape[1], right.shape[2]))
    return torch.baddbmm(empty, left, right, beta=0, alpha=scale)


def _n_weights(layout: Layout, window: int | None, n_heads: int) -> int:
    """About how many attention weights one block has."""
    total = 0
    for part in layout.parts:
        keys = part.prefix[1] - part.prefix[0] + (part.length + _CHUNK) / 2
        total += round(part.n_segments * part.length * (keys if window is None else min(keys, window + _CHUNK)))
    return total * n_heads
