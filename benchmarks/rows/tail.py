"""Tuning the top third of the blocks over cached activations, against LoRA on all blocks, to the same held-out quality."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import peers, work
from tunescope import engine
from tunescope.runs.records import Selection

TITLE = "tuning the top third of the blocks, three epochs, cache filled within, against LoRA on all blocks"
TARGET = 8.0
TRIED_IN = "tuning"  # the peer's work there is one epoch of what it does here
_N_TRAIN, _N_HELD_OUT, _N_EPOCHS = 64, 32, 3


def _ours() -> Callable[[], work.Round]:
    loaded, chat = work.load()
    rows, held_out = (work.encoded(chat, work.mixed(n, test=t)) for n, t in ((_N_TRAIN, False), (_N_HELD_OUT, True)))
    n_layers = loaded.info.n_layers
    names = tuple(f"block.{i}" for i in range(n_layers - n_layers // 3, n_layers))
    top = Selection("lora", names, work.MODULES, why="the top third")
    moving = engine.prepare(loaded.model, loaded.family, top, lora_rank=work.LORA_RANK, lora_alpha=work.LORA_ALPHA)
    start = work.start_of(moving)

    def one_round() -> work.Round:
        engine.load_weights(moving, start)
        with tempfile.TemporaryDirectory() as folder:  # empty: filling it is part of the time
            cache = engine.open_cache(
                Path(folder),
                base_sha256=loaded.info.sha256,
                dtype=torch.bfloat16,
                d_model=loaded.model.config.hidden_size,
                budget_bytes=1 << 30,
            )
            tuner = engine.Tuner(moving, rows, work.recipe(_N_EPOCHS), states=cache)
            curve = work.curve(tuner, moving.model, held_out)
        return work.Round(curve[-1]["seconds"], work.done(rows, _N_EPOCHS), work.end_of(curve))

    return one_round


def _trl(name: str) -> work.Side:
    def make() -> Callable[[], work.Round]:
        _, chat = work.load()
        rows, held_out = (
            work.encoded(chat, work.mixed(n, test=t)) for n, t in ((_N_TRAIN, False), (_N_HELD_OUT, True))
        )
        peer = peers.Sft(peers.TRL[name], rows)

        def one_round() -> work.Round:
            curve = peer.curve(_N_EPOCHS, held_out)
            return work.Round(curve[-1]["seconds"], work.done(rows, _N_EPOCHS), work.end_of(curve))

        return one_round

    return make


OURS = "tunescope"
PEERS = tuple(peers.TRL)
SIDES = {OURS: _ours} | {name: _trl(name) for name in PEERS}
