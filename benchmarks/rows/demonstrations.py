"""Tuning with demonstrations before every prompt: ours computes them once per pass.

Beside the peer stands ours with the demonstrations in every row: the same engine with nothing shared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from benchmarks import peers, work
from tunescope import engine
from tunescope.data import ChatFormat, Encoded
from tunescope.engine import divide
from tunescope.models import pack, passes, tail

TITLE = "tuning with about 300 tokens of demonstrations, LoRA on all blocks"
TARGET = 3.0
_N_TRAIN, _N_HELD_OUT, _SHOWN_TOKENS = 48, 24, 300


def _rows(chat: ChatFormat) -> tuple[list[Encoded], list[Encoded]]:
    """Training and held-out rows of one task behind the first training examples of it, as few as make 300 tokens."""
    train, test = work.sample_tasks()["entailment"]
    alone, count = len(chat.encode(train[-1]).prompt_ids), 1
    while len(chat.encode(train[-1], demonstrations=train[:count]).prompt_ids) - alone < _SHOWN_TOKENS:
        count += 1
    rest = train[count : count + _N_TRAIN]
    return work.encoded(chat, rest, train[:count]), work.encoded(chat, test[:_N_HELD_OUT], train[:count])


def _ours(share: bool = True) -> Callable[[], work.Round]:
    if not share:
        tail.pack = functools.partial(pack, share=False)
        divide.passes = functools.partial(passes, share=False)
    loaded, chat = work.load()
    rows, held_out = _rows(chat)
    moving = work.everything_moves(loaded)
    start = work.start_of(moving)

    def one_round() -> work.Round:
        engine.load_weights(moving, start)
        started = work.now()
        losses = [record.loss for record in engine.Tuner(moving, rows, work.recipe(1)).steps()]
        return work.Round(
            work.now() - started,
            work.done(rows) | {"computed tokens": _computed(rows, share)},
            {"first loss": losses[0], "held-out loss": work.held_out_loss(moving.model, held_out)},
        )

    return one_round


def _trl(name: str) -> work.Side:
    def make() -> Callable[[], work.Round]:
        _, chat = work.load()
        rows, held_out = _rows(chat)
        peer = peers.Sft(peers.TRL[name], rows)
        return lambda: work.Round(
            peer.train(1), work.done(rows), {"held-out loss": work.held_out_loss(peer.model, held_out)}
        )

    return make


def _computed(rows: Sequence[Encoded], share: bool) -> int:
    """Tokens that the passes compute, a common beginning once where it is shared; steps of the batch size, in order."""
    total = 0
    for first in range(0, len(rows), work.BATCH_SIZE):
        step = rows[first : first + work.BATCH_SIZE]
        for chosen in passes(step, work.recipe(1).batch_tokens, share=share):
            total += pack([step[i] for i in chosen], share=share).layout.n_tokens
    return total


OURS, UNSHARED = "tunescope", "tunescope, demonstrations in every row"
PEERS = tuple(peers.TRL)
SIDES = {OURS: _ours, UNSHARED: functools.partial(_ours, share=False)} | {name: _trl(name) for name in PEERS}
BESIDE = {UNSHARED: 3.0}
