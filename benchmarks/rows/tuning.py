"""Tuning all layers with LoRA: the same data, rank, steps and learning rate, to the same held-out loss."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import peers, work
from tunescope import engine

TITLE = "tuning, LoRA on all blocks, one epoch"
TARGET = 2.5
_N_TRAIN, _N_HELD_OUT = 96, 48


def _ours() -> Callable[[], work.Round]:
    loaded, chat = work.load()
    rows, held_out = (work.encoded(chat, work.mixed(n, test=t)) for n, t in ((_N_TRAIN, False), (_N_HELD_OUT, True)))
    moving = work.everything_moves(loaded)
    start = work.start_of(moving)

    def one_round() -> work.Round:
        engine.load_weights(moving, start)
        started = work.now()
        for _ in engine.Tuner(moving, rows, work.recipe(1)).steps():
            pass
        seconds = work.now() - started
        return work.Round(seconds, work.done(rows), {"held-out loss": work.held_out_loss(moving.model, held_out)})

    return one_round


def _trl(name: str) -> work.Side:
    def make() -> Callable[[], work.Round]:
        _, chat = work.load()
        rows, held_out = (
            work.encoded(chat, work.mixed(n, test=t)) for n, t in ((_N_TRAIN, False), (_N_HELD_OUT, True))
        )
        peer = peers.Sft(peers.TRL[name], rows)
        return lambda: work.Round(
            peer.train(1), work.done(rows), {"held-out loss": work.held_out_loss(peer.model, held_out)}
        )

    return make


OURS = "tunescope"
PEERS = tuple(peers.TRL)
SIDES = {OURS: _ours} | {name: _trl(name) for name in PEERS}
