"""Terms of the loss that keep tuning near the base model when examples are few.

A term is anything with the three members of `Term`. It adds its own gradient to that of the examples, in a pass of its own, so that
the memory of both is never needed at once; clipping and AdamW then see the sum. What a term adds depends on the weights and the step
alone, never on what came before, so that a continued run is the uninterrupted one bit by bit.

With several processes (`Moving.workers`) what they add is summed, the gradients as well as the values. So each adds its part: that of some of the
rows, or that of some of the weights.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tunescope.data import Encoded
from tunescope.engine.divide import Pass, n_targets, own_passes
from tunescope.engine.fsdp import agreed_states, cut_like, is_cut, local, whole
from tunescope.engine.moving import Moving, asserts_backward_stops
from tunescope.engine.staging import staged
from tunescope.errors import ConfigError, DataError
from tunescope.models import (
    KeptStates,
    backward_from_head,
    bare,
    device_of,
    head_logits,
    length_batches,
    predicting_states,
)

_ADAPTER = "default"
Moved = TypeVar("Moved", bound=tuple[Any, ...])
_ORDER = 0x4B4C  # keeps the order of the rows apart from that of the training examples under the same seed


class Term(Protocol):
    """What `Tuner` asks of a term of the loss."""

    @property
    def name(self) -> str:
        """Name in messages and in `Tuner.term_values`; unique among the terms of a tuner."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Everything the term depends on beside the weights, as JSON values without tuples: a checkpoint with other facts is refused."""

    def add_gradient(self, step: int) -> torch.Tensor:
        """Adds the gradient of the term to the ``grad`` of the moving weights.

        Args:
            step: from 0.

        Returns:
            What the term adds to the loss, () and without a graph, in nats; with several processes the part of this one.
        """


class L2SP:
    """Decay towards the base weights: strength / 2 times the squared distance of all that moves from where it began.

    To be used where few examples would pull the weights far away. As a term of the loss it is weighed against the loss in nats, so a
    weight that the examples do not need stays, or comes back, to its base value; `Recipe.weight_decay` pulls towards 0.

    The distance is that of the weights of the base model, whatever moves: for LoRA it is the change scale * B @ A, which is never
    formed, since its squared norm is the product of two r x r matrices; for sparse entries it is the changes; for weights it is the
    difference from a copy, which takes as many bytes as what moves takes in the base model.

    Args:
        moving: the prepared model, before its first step.
        strength: at least 0; in nats per squared unit of weight.

    Raises:
        ConfigError: the strength is negative or not finite.

    Source:
        Li, Grandvalet & Davoine 2018, *Explicit Inductive Bias for Transfer Learning with Convolutional Networks* (arXiv 1802.01483),
        section 3, L2-SP. Ours differs: there are no new weights to be decayed towards 0, and for LoRA the product is what counts.

    Example:
        >>> from tunescope.engine import prepare
        >>> from tunescope.models import FAMILIES
        >>> from tunescope.runs.records import Selection
        >>> from tunescope.testing import tiny_model
        >>> moving = prepare(tiny_model(), FAMILIES[0], Selection("weights", ("block.1",), ("q",), "example"))
        >>> term = L2SP(moving, 2.0)
        >>> weight = moving.parameters["block.1.q.weight"]
        >>> _ = weight.data[0, :3].add_(0.5)
        >>> round(float(term.add_gradient(0)), 4), weight.grad.count_nonzero().item()
        (0.75, 3)
    """

    name = "l2_sp"

    def __init__(self, moving: Moving, strength: float) -> None:
        self._strength = _checked(self.name, strength)
        self._workers = moving.workers
        self._adapters = _adapters(moving.model) if moving.selection.method == "lora" else []
        self._pairs: list[tuple[nn.Parameter, torch.Tensor | None]] = []
        if moving.selection.method == "sparse":
            self._pairs = [(p, None) for p in moving.parameters.values()]
        elif moving.selection.method == "weights":
            self._pairs = [(p, _kept(p, moving.dtype)) for p in moving.parameters.values()]

    @property
    def facts(self) -> dict[str, Any]:
        """The strength."""
        return {"strength": self._strength}

    @torch.no_grad()
    def add_gradient(self, step: int) -> torch.Tensor:
        """Adds strength * distance to the gradients; see `Term.add_gradient`."""
        squares = []
        for a, b, scale in self._own(self._adapters):
            factor = self._strength * scale**2
            all_a, gram_b, copies = whole(a.detach()), local(b).T @ local(b), 1
            if is_cut(b):
                gram_b, copies = self._workers.sum_(gram_b), self._workers.world_size
            gram_a = all_a @ all_a.T
            squares.append(scale**2 * (gram_a * gram_b).sum() / copies)
            _add_(b, local(b) @ gram_a, factor)
            _add_(a, local(cut_like(a, gram_b @ all_a)), factor)
        for weight, base in self._own(self._pairs):
            distance = local(weight.detach()) if base is None else local(weight.detach()) - base
            squares.append(distance.square().sum())
            _add_(weight, distance, self._strength)
        return torch.stack(squares or [torch.zeros(())]).sum() * (self._strength / 2)

    def _own(self, found: Sequence[Moved]) -> Iterator[Moved]:
        """What this process adds for: its part of what is cut, and of the rest what no other adds for."""
        for i, entry in enumerate(found):
            if is_cut(entry[0]) or i % self._workers.world_size == self._workers.rank:
                yield entry


class KLToBase:
    """Keeps the answers on general or earlier examples: strength times the mean KL divergence from the base model's distribution.

    For every target token of the rows it compares the whole distribution over the vocabulary, so it holds what the base model would
    say, not what the file says. One pass over some of the rows is added to every step, about as dear as a pass over training examples.

    What the base model says is computed once, here, and kept as its last hidden states, from which the head gives the logits again:
    `memory_bytes` is (target tokens) x d_model numbers instead of (target tokens) x d_vocab. Where the head moves too (all weights of
    the model), a copy of it in the number format of the base model is kept besides.

    Args:
        moving: the prepared model. Weights and the whole model must not have moved yet; adapters are switched off meanwhile.
        rows: encoded examples; not those on which the result will be judged.
        strength: at least 0; 1 weighs a nat of divergence like a nat of loss.
        batch_tokens: tokens of the pass that is added to a step.
        max_rows: rows of it at most.
        seed: of the order of the rows.
        states: states at the lowest moving block, from which the pass goes on and which it fills, as for `Tuner`.

    Raises:
        ConfigError: the strength is negative or not finite.
        DataError: no rows.

    Source:
        Li & Hoiem 2017, *Learning without Forgetting* (arXiv 1606.09282), section 3, with Hinton et al. 2015 (arXiv 1503.02531). Ours
        differs: temperature 1, KL instead of cross-entropy (the same gradient, and 0 at the start), the rows are not training examples.

    Example:
        >>> from tunescope.data import Encoded, Example
        >>> from tunescope.engine import prepare
        >>> from tunescope.models import FAMILIES
        >>> from tunescope.runs.records import Selection
        >>> from tunescope.testing import tiny_model
        >>> moving = prepare(tiny_model(), FAMILIES[0], Selection("lora", ("block.1",), ("q",), "example"))
        >>> row = Encoded((104, 105), (33, 256), Example("1", "guard", "hi", "", ("!",)))
        >>> term = KLToBase(moving, [row], 1.0)
        >>> float(term.add_gradient(0)), term.memory_bytes
        (0.0, 256)
    """

    name = "kl_to_base"

    def __init__(
        self,
        moving: Moving,
        rows: Sequence[Encoded],
        strength: float,
        *,
        batch_tokens: int = 1024,
        max_rows: int = 8,
        seed: int = 0,
        states: KeptStates | None = None,
    ) -> None:
        self._strength = _checked(self.name, strength)
        if not rows:
            raise DataError(
                f"{self.name}: there is not a single example to stay near the base on; give it a file, or set it to 0"
            )
        self._moving = moving
        self._rows = rows
        self._kept = agreed_states(staged(states, device_of(moving.model)), moving.workers)
        self._batches = length_batches([len(row) for row in rows], batch_tokens=batch_tokens, max_rows=max_rows)
        self._seed = seed
        digest = hashlib.sha256(repr([(r.prompt_ids, r.target_ids) for r in rows]).encode()).hexdigest()
        self.facts: dict[str, Any] = {
            "strength": self._strength,
            "examples": digest,
            "batch_tokens": batch_tokens,
            "max_rows": max_rows,
            "seed": seed,
        }
        self._head: Any = None  # the model's own
        if moving.selection.whole_model:
            head = bare(moving.model).get_output_embeddings()
            self._head = copy.deepcopy(head).to(moving.dtype).requires_grad_(False)
        self._n_targets = [n_targets([rows[i] for i in batch]) for batch in self._batches]
        self._passes = [self._own_rows(batch) for batch in self._batches]
        adapted = moving.selection.method in ("lora", "sparse")
        with torch.no_grad(), moving.model.disable_adapter() if adapted else contextlib.nullcontext():
            self._states = moving.workers.together(lambda: [self._target_states(one).detach() for one in self._passes])

    @property
    def memory_bytes(self) -> int:
        """What is kept of the base model, in bytes."""
        kept = [*self._states, *(self._head.parameters() if self._head is not None else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def add_gradient(self, step: int) -> torch.Tensor:
        """Adds the gradient on one batch of the rows; all batches come once before any comes again. See `Term.add_gradient`."""
        turn, place = divmod(step, len(self._batches))
        chosen = int(np.random.default_rng([self._seed, _ORDER, turn]).permutation(len(self._batches))[place])
        model, one = self._moving.model, self._passes[chosen]
        if not one.rows:
            return torch.zeros(())
        with asserts_backward_stops(self._moving):
            states = self._target_states(one)
        kept = self._states[chosen]
        count = math.inf if one.idle else self._n_targets[chosen]

        def divergence(logits: torch.Tensor, where: slice) -> torch.Tensor:
            with torch.no_grad():
                base = functional.log_softmax(head_logits(model, kept[where], head=self._head), -1)
            tuned = functional.log_softmax(logits, -1)
            apart = functional.kl_div(tuned, base, reduction="sum", log_target=True)
            return self._strength * apart / count

        return backward_from_head(model, states, divergence, compute=self._moving.compute)

    def _own_rows(self, batch: Sequence[int]) -> Pass:
        """This process's share of a batch, in one pass; none where blocks are whole and there are too few rows."""
        rows = [self._rows[i] for i in batch]
        found = own_passes(rows, sum(len(row) for row in rows), self._moving.workers)
        return Pass([batch[i] for i in found[0].rows], found[0].idle) if found else Pass([])

    def _target_states(self, one: Pass) -> torch.Tensor:
        rows = [self._rows[i] for i in one.rows]
        if not rows:
            return torch.zeros(0)
        with self._moving.compute():
            cut = self._moving.selection.lowest_layer
            return predicting_states(self._moving.model, rows, cut=cut, kept=self._kept)[0]


def _checked(name: str, strength: float) -> float:
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigError(
            f"{name}: got strength {strength:g}, allowed: a finite number from 0; leave the term out to switch it off"
        )
    return float(strength)


def _adapters(model: Any) -> list[tuple[nn.Parameter, nn.Parameter, float]]:
    """A (rank, d_in), B (d_out, rank) and scale of every LoRA layer."""
    from peft.tuners.lora import LoraLayer

    return [
        (layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight, float(layer.scaling[_ADAPTER]))
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
    ]


def _kept(weight: nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
    """A copy in the number format of the base model, from which a weight that has not moved was made without loss; of a cut one the part here."""
    here = local(weight.detach())
    copied = here.to(dtype, copy=True)
    return copied if torch.equal(copied.float(), here) else here.clone()


def _add_(weight: nn.Parameter, gradient: torch.Tensor, factor: float) -> None:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    local(weight.grad).add_(gradient, alpha=factor)
