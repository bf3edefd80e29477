"""Keys and values in slots: the token at position p of a row always lies in slot p.

With left padding, or with new tokens appended behind right padding, the same sum is grouped differently in every batch, and in
bfloat16 a log-probability then moves by some tenths of a nat with the batch it was computed in (measured). With slots the padding is
always at the end, where it adds exact zeros.
"""

from __future__ import annotations

from typing import Any

import torch

from tunescope.models.family import bare, blocks, decoder


class SlotCache:
    """Keys and values of a batch; stands where transformers expects a cache.

    Args:
        rows: rows of the batch.
        slots: positions that fit.
        n_layers: transformer blocks.
    """

    def __init__(self, rows: int, slots: int, n_layers: int) -> None:
        self.rows = rows
        self.slots = slots
        self.keys: list[torch.Tensor | None] = [None] * n_layers
        self.values: list[torch.Tensor | None] = [None] * n_layers
        self.positions = torch.empty(0)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts new keys and values, (rows, heads, pos, d_head), into their slots; returns all slots, the unused ones too.

        A cut to the used ones would not be contiguous, and multiplying with it copies everything; the mask hides them instead.
        """
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None:
            shape = (self.rows, key.shape[1], self.slots, key.shape[3])
            keys = self.keys[layer] = key.new_zeros(shape)
            values = self.values[layer] = value.new_zeros(shape)
        where = self.positions[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        keys.scatter_(2, where, key)
        values.scatter_(2, where, value)
        return keys, values

    def get_seq_length(self, _layer: int = 0) -> int:
        """Returns the number of slots, as transformers asks for it."""
        return self.slots

    def spread(self, rows: int, slots: int) -> SlotCache:
        """Returns a cache for `rows` rows that all begin with this cache's only row."""
        fresh = SlotCache(rows, slots, len(self.keys))
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            if keys is None or values is None:
                continue
            shape = (rows, keys.shape[1], slots, keys.shape[3])
            for mine, target in ((keys, fresh.keys), (values, fresh.values)):
                wide = mine.new_zeros(shape)
                wide[:, :, : self.slots] = mine
                target[layer] = wide
        return fresh

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but these."""
        self.keys = [None if k is None else k.index_select(0, rows) for k in self.keys]
        self.values = [None if v is None else v.index_select(0, rows) for v in self.values]
        self.rows = len(rows)


def read(model: Any, ids: torch.Tensor, positions: torch.Tensor, cache: SlotCache) -> torch.Tensor:
    """Runs tokens through the model on top of what the cache holds.

    Args:
        model: the model, PEFT-wrapped or not.
        ids: (rows, pos) tokens; padding at the end of a row is allowed.
        positions: (rows, pos) position of each token in its row; padding continues the count, and its slots are overwritten before
            any real token may look at them.
        cache: keys and values of the tokens before.

    Returns:
        Last hidden states, (rows, pos, d_model).
    """
    if ids.numel() == 1:
        # A mean over a single row is summed in another order than over several; a second copy keeps the sums the same.
        return read(model, ids.expand(1, 2), positions.expand(1, 2), cache)[:, :1]
    cache.positions = positions
    states: torch.Tensor = decoder(model)(
        input_ids=ids,
        attention_mask=_masks(model, positions, cache.slots),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return states


def new_cache(model: Any, rows: int, slots: int) -> SlotCache:
    """Returns an empty cache for a model."""
    return SlotCache(rows, slots, len(blocks(model)))


def _masks(model: Any, positions: torch.Tensor, n_slots: int) -> Any:
    """Additive masks (rows, 1, pos, slots): a token sees the slots up to its own position, within the window where there is one."""
    config = bare(model).config
    dtype = next(bare(model).parameters()).dtype
    slots = torch.arange(n_slots, device=positions.device)
    distance = positions[:, None, :, None] - slots
    lowest = torch.finfo(dtype).min
    full = torch.zeros(distance.shape, dtype=dtype, device=positions.device).masked_fill_(distance < 0, lowest)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if window is None or kinds == {"full_attention"}:
        return full
    sliding = full.masked_fill(distance >= window, lowest)
    return {"full_attention": full, "sliding_attention": sliding} if kinds else sliding
