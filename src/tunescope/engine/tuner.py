"""The tuning loop: the engine yields a record per optimiser step, and whoever reads them owns the loop."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.data import Encoded, epoch_batches
from tunescope.engine.divide import n_targets, own_passes
from tunescope.engine.fsdp import agreed_states, clip_, cut_like, gathered, is_cut, put_
from tunescope.engine.memory import halving
from tunescope.engine.moving import Moving, Watch, asserts_backward_stops
from tunescope.engine.regularise import base_entries, decay_entries_, smoothed_losses
from tunescope.engine.staging import staged
from tunescope.engine.terms import Term
from tunescope.errors import ConfigError, DataError, IntegrityError, TunescopeError
from tunescope.models import KeptStates, backward_from_head, predicting_states
from tunescope.runs.records import StepRecord

_WATCHED_STEPS = 2
_COMPARED_STEPS = 50  # after so many, and whenever they are saved, weights are compared between processes


@dataclass(frozen=True)
class Recipe:
    """How weights move.

    Attributes:
        learning_rate: at the peak.
        num_epochs: passes over the examples.
        batch_size: examples per optimiser step.
        batch_tokens: computed tokens per forward and backward pass; a larger step is taken in several. There is no padding, and a beginning
            that several examples share counts once.
        warmup_fraction: share of the steps with rising learning rate; then a half cosine down to 0.
        weight_decay: decoupled (AdamW), of the matrices that move; of sparse entries, only those.
        max_grad_norm: gradients, those of the terms included, are scaled down to this norm.
        seed: of the order of the examples.
        label_smoothing: share of each target that is spread evenly over all tokens (`smoothed_losses`).
        checkpointing: moving blocks, and those above the lowest of them, keep their input alone and are computed again for the backward
            pass: about a third more work, much less memory, the same bits.
    """

    learning_rate: float
    num_epochs: int = 3
    batch_size: int = 8
    batch_tokens: int = 1024
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    label_smoothing: float = 0.0
    checkpointing: bool = False


def scheduled(recipe: Recipe, step: int, total_steps: int) -> float:
    """Returns the learning rate of a step: linear warm-up, then a half cosine to 0.

    Args:
        recipe: peak and share of warm-up.
        step: from 0.
        total_steps: of the whole run.

    Example:
        >>> recipe = Recipe(1.0, warmup_fraction=0.2)
        >>> [round(scheduled(recipe, s, 10), 2) for s in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    warmup = max(1, round(recipe.warmup_fraction * total_steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def pieces(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cuts the examples of one step into passes that fit in memory, where they have no beginning in common.

    Args:
        lengths: tokens per example.
        batch_tokens: tokens per pass; a longer example gets a pass of its own.

    Returns:
        Lists of indices into `lengths`, in order; every index once.

    Example:
        >>> pieces([3, 4, 4, 9], batch_tokens=8)
        [[0, 1], [2], [3]]
    """
    cut: list[list[int]] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if not cut or tokens + length > batch_tokens:
            cut.append([])
            tokens = 0
        cut[-1].append(index)
        tokens += length
    return cut


class Tuner:
    """Moves the prepared weights over the examples; can be saved and continued at every step, bit by bit.

    With several processes (`Moving.workers`) each of them makes a tuner of the same arguments and takes the same steps. The rows of a
    step are divided over them and the gradients summed, so that a step is that of one process, but for rounding.

    Args:
        moving: the prepared model.
        examples: encoded training examples; or a function of the epoch (from 0) that gives as many each time, the same whenever it is
            asked, with other prompts if it likes but with the same targets.
        recipe: how.
        arm: name written into the records.
        terms: what is added to the loss, such as `L2SP` and `KLToBase`; anything with their methods.
        states: states at the input of the lowest moving block, such as a cache on disk. Rows that are there start at that block; the
            others run from the embeddings and are then kept. Not used where what moves begins with block 0 or the embeddings.
        note: called with a line for the user, such as that memory was short.

    Attributes:
        step: optimiser steps done.
        batch_tokens: computed tokens per pass: that of the recipe, or less since memory was short.
        workers: the processes that take the steps together, from `Moving.workers`.
        term_values: name of the term -> what it added to the loss of the last step, in nats. The loss in the records is without it.

    Raises:
        DataError: no examples.
        ConfigError: two terms of the same name, or a label smoothing outside [0, 1).
    """

    def __init__(
        self,
        moving: Moving,
        examples: Sequence[Encoded] | Callable[[int], Sequence[Encoded]],
        recipe: Recipe,
        *,
        arm: str = "",
        terms: Sequence[Term] = (),
        states: KeptStates | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._rows_of = examples if callable(examples) else None
        self._examples: Sequence[Encoded] = examples(0) if callable(examples) else examples
        if not self._examples:
            raise DataError("there is not a single training example; give the tasks a `train` file")
        if len({term.name for term in terms}) < len(terms):
            raise ConfigError(f"terms {', '.join(t.name for t in terms)}: each name may occur once; leave one out")
        if not 0 <= recipe.label_smoothing < 1:
            raise ConfigError(f"label_smoothing: got {recipe.label_smoothing:g}, allowed: from 0 to below 1; try 0.1")
        self.moving = moving
        self.recipe = recipe
        self.arm = arm
        self.terms = tuple(terms)
        self.workers = moving.workers
        self.note = note if moving.workers.main else lambda text: None
        self.batch_tokens = recipe.batch_tokens
        self.term_values: dict[str, float] = {}
        self.step = 0
        self._epoch = 0
        self._targets = [e.target_ids for e in self._examples]
        self._digest = hashlib.sha256(repr([(e.prompt_ids, e.target_ids) for e in self._examples]).encode()).hexdigest()
        self._parameters = list(moving.parameters.values())
        self.states = agreed_states(staged(states, self._parameters[0].device), moving.workers)
        fused = _can_be_fused(self._parameters)
        self._optimizer = torch.optim.AdamW(
            _groups(self._parameters, recipe.weight_decay), lr=recipe.learning_rate, fused=fused or None
        )
        self._base_entries = base_entries(moving) if recipe.weight_decay else {}
        self._watch: Watch | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the examples."""
        return math.ceil(len(self._targets) / self.recipe.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.recipe.num_epochs

    def steps(self) -> Iterator[StepRecord]:
        """Takes the remaining optimiser steps, one per record.

        Yields:
            A record after every step; `self.step` has already advanced.

        Raises:
            TunescopeError: the loss or the gradient is not finite, or what moves is not what was planned; or another process failed.
            IntegrityError: the processes do not have the same settings, examples or weights.
            WorkerError: a process is gone.
        """
        self.workers.check_same("what is tuned, and from which step on", json.dumps(self._facts(), sort_keys=True))
        self._compare()
        while self.step < self.total_steps:
            epoch, place = divmod(self.step, self.steps_per_epoch)
            rows = self.workers.agreed(lambda epoch=epoch: self._rows(epoch))  # type: ignore[misc]
            batches = epoch_batches(
                [len(row) for row in rows], batch_size=self.recipe.batch_size, seed=self.recipe.seed, epoch=epoch
            )
            for batch in batches[place:]:
                yield self._one_step([rows[i] for i in batch])

    def _rows(self, epoch: int) -> Sequence[Encoded]:
        if self._rows_of is not None and epoch != self._epoch:
            rows = self._rows_of(epoch)
            if [row.target_ids for row in rows] != self._targets:
                raise DataError(
                    f"arm {self.arm}: epoch {epoch} has {len(rows)} examples with other targets than epoch 0 ({len(self._targets)} examples); "
                    "only prompts may differ between epochs"
                )
            self._examples, self._epoch = rows, epoch
        return self._examples

    def _one_step(self, rows: list[Encoded]) -> StepRecord:
        started = time.perf_counter()
        if self.step == 0:
            self._watch = Watch(self.moving)
        rate = scheduled(self.recipe, self.step, self.total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, self.batch_tokens = halving(
            lambda batch_tokens: self.workers.together(lambda: self._add_gradients(rows, batch_tokens)),
            self.batch_tokens,
            tokens=max(len(row) for row in rows),
            undo=lambda: self._optimizer.zero_grad(set_to_none=True),
            note=lambda text: self.note(f"arm {self.arm}, step {self.step + 1}: {text}"),
        )
        added = self._add_terms()
        if not self.workers.alone:
            loss, added = self._summed(loss, added)
        norm = clip_(self._parameters, self.recipe.max_grad_norm, self.workers)
        # Read together: the one place in a step where the processor waits for the device.
        loss_value, norm_value, *values = torch.stack(
            [v.detach().double() for v in (loss, norm, *added.values())]
        ).tolist()
        self.term_values = dict(zip(added, values, strict=True))
        if not all(math.isfinite(value) for value in (loss_value, norm_value, *values)):
            self._optimizer.zero_grad(set_to_none=True)  # another tuner may go on with these weights
            raise TunescopeError(
                f"arm {self.arm}: loss {loss_value:g}, {''.join(f'{n} {v:g}, ' for n, v in self.term_values.items())}"
                f"gradient norm {norm_value:g} at step {self.step + 1}; lower the learning rate "
                f"(now {rate:g}) or use dtype float32"
            )
        if self._base_entries:
            decay_entries_(self.moving, self._base_entries, rate * self.recipe.weight_decay)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step == _WATCHED_STEPS and self._watch is not None:
            self._watch.check()
            self._watch = None
        if self.step % _COMPARED_STEPS == 0 or self.step == self.total_steps:
            self._compare()
        return StepRecord(
            arm=self.arm,
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            loss=loss_value,
            learning_rate=rate,
            grad_norm=norm_value,
            tokens=sum(len(row) for row in rows),
            target_tokens=n_targets(rows),
            seconds=time.perf_counter() - started,
        )

    def _add_gradients(self, rows: Sequence[Encoded], batch_tokens: int) -> torch.Tensor:
        """Adds this process's part of the gradient of the mean loss over all targets of a step to ``grad``; returns its part of the loss, ()."""
        count = n_targets(rows)
        loss = torch.zeros((), device=self._parameters[0].device)
        for one in own_passes(rows, batch_tokens, self.workers):
            loss += self._add_gradient([rows[i] for i in one.rows], math.inf if one.idle else count)
        return loss

    def _add_gradient(self, rows: Sequence[Encoded], count: float) -> torch.Tensor:
        compute = self.moving.compute
        with compute(), asserts_backward_stops(self.moving):
            states, targets, _ = predicting_states(
                self.moving.model,
                rows,
                cut=self.moving.selection.lowest_layer,
                kept=self.states,
                checkpointing=compute if self.recipe.checkpointing else None,
            )
        shown = torch.zeros((), device=states.device)

        def share(logits: torch.Tensor, where: slice) -> torch.Tensor:
            plain, wanted = smoothed_losses(logits, targets[where], smoothing=self.recipe.label_smoothing)
            shown.add_(plain.detach().sum() / count)
            return wanted.sum() / count

        backward_from_head(self.moving.model, states, share, compute=compute)
        return shown

    def _add_terms(self) -> dict[str, torch.Tensor]:
        if not self.terms:
            return {}
        return self.workers.together(lambda: {term.name: term.add_gradient(self.step) for term in self.terms})

    def _summed(
        self, loss: torch.Tensor, added: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sums gradients, losses and terms over the processes; those of cut weights were summed in the backward pass."""
        plain = [p for p in self._parameters if not is_cut(p)]
        numbers = torch.stack([n.detach().double().to(self.workers.device) for n in (loss, *added.values())])
        flags = torch.tensor([float(p.grad is not None) for p in plain], dtype=torch.float64)
        sums = self.workers.sum_(torch.cat([numbers, flags.to(numbers.device)]))
        has_gradient = sums[len(numbers) :].tolist()
        self.workers.sum_gradients_([p for p, count in zip(plain, has_gradient, strict=True) if count])
        return sums[0], dict(zip(added, sums[1:], strict=False))

    def _compare(self) -> None:
        weights = {name: p for name, p in self.moving.parameters.items() if not is_cut(p)}
        self.workers.check_equal(f"arm {self.arm}, weights after step {self.step}", weights)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns everything needed to continue, for any number of processes: tensors and plain facts.

        All processes have to call it; the one that writes files gets the tensors, the others none.

        Raises:
            IntegrityError: the processes do not have the same weights.
        """
        self._compare()
        tensors: dict[str, torch.Tensor] = {f"weight.{name}": p for name, p in self.moving.parameters.items()}
        for name, parameter in self.moving.parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        return gathered(tensors, self.workers), self._facts()

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "batch_tokens": self.batch_tokens,
            "arm": self.arm,
            "recipe": vars(self.recipe),
            "examples": self._digest,
            "terms": {term.name: term.facts for term in self.terms},
        }

    def restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Continues from `state`.

        Raises:
            IntegrityError: the state belongs to another arm, recipe, selection, rank, or to other terms or examples.
        """
        batch_tokens = facts.get("batch_tokens", self.batch_tokens)  # may have become less on the way
        mine = self._facts() | {"step": facts["step"], "batch_tokens": batch_tokens}
        saved = {name.removeprefix("weight."): t.shape for name, t in tensors.items() if name.startswith("weight.")}
        shapes = {name: p.shape for name, p in self.moving.parameters.items()}
        if {key: facts.get(key) for key in mine} | {"batch_tokens": batch_tokens} != mine or saved != shapes:
            raise IntegrityError("the checkpoint belongs to other settings; remove it to start this arm again")
        load_weights(self.moving, tensors)
        for name, parameter in self.moving.parameters.items():
            state = {
                key: self._like(parameter, key, tensors[f"optimizer.{key}.{name}"])
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in tensors
            }
            if state:
                self._optimizer.state[parameter] = state
        self.step, self.batch_tokens = facts["step"], batch_tokens

    def _like(self, parameter: torch.Tensor, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """A part of the optimiser's state, where and as AdamW keeps it for a parameter."""
        if key == "step":
            return tensor.clone().to(parameter.device) if self._optimizer.defaults["fused"] else tensor.clone()
        return cut_like(parameter, tensor.clone().to(parameter.device))


def _groups(parameters: Sequence[torch.Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay and others do not; weights that are cut and whole ones do not mix in one update."""
    groups: dict[tuple[bool, bool], list[torch.Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.ndim < 2, is_cut(parameter)), []).append(parameter)
    return [{"params": groups[key], "weight_decay": 0.0 if key[0] else weight_decay} for key in sorted(groups)]


def _can_be_fused(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether AdamW may update all weights in one kernel: on a GPU, and where none is cut over processes."""
    return all(p.device.type == "cuda" and p.is_floating_point() and not is_cut(p) for p in parameters)


def load_weights(moving: Moving, tensors: dict[str, torch.Tensor]) -> None:
    """Copies ``weight.*`` tensors into the moving weights."""
    for name, parameter in moving.parameters.items():
        put_(parameter, tensors[f"weight.{name}"])
