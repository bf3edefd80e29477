"""Blocks cut over the processes (FSDP2 of PyTorch), and the few things that a cut weight needs of the rest of the engine.

Every block is a unit of its own: its weights are gathered when it runs, dropped behind it, and gathered again for the backward pass. What stands
outside the blocks (embeddings, final norm, head) is whole on every process: it is called apart from the model, and often one matrix under two names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, share_comm_ctx
from torch.distributed.tensor import DTensor, distribute_tensor

from tunescope.engine.workers import Workers
from tunescope.errors import ConfigError
from tunescope.models import KeptStates, StreamedBase, blocks

METHODS = ("lora", "weights")


def check_shardable(method: str, workers: Workers, *, from_files: bool = False) -> None:
    """Refuses what cannot move in blocks that are cut, and blocks that nobody would bring into memory.

    Raises:
        ConfigError: the method moves single entries, whose places in a matrix mean nothing in a part of it; or blocks are to be read
            one by one and the processes do not cut them.
    """
    if from_files and not workers.sharded:
        raise ConfigError(
            "base: blocks are read one by one with sharding fsdp2 alone, and here every process holds the whole model; load it with "
            "models.load, or its last blocks with models.load_tail, and leave base out"
        )
    if workers.sharded and method not in METHODS:
        raise ConfigError(
            f"sharding fsdp2 does not know method {method!r}; allowed: {', '.join(METHODS)}; use sharding none, where every worker holds the model"
        )


def shard_blocks_(model: Any, workers: Workers, base: StreamedBase | None = None) -> None:
    """Cuts the blocks of a prepared model over the processes; what requires a gradient still does.

    Args:
        model: the model, PEFT-wrapped or not.
        workers: who holds the parts.
        base: where blocks that are not in memory are read, one after the other; without it they stay as they are.

    Raises:
        ModelError: a weight cannot be read.
        IntegrityError: a block is not the same for all processes.
    """
    device = next(p for p in model.parameters() if not p.is_meta).device
    mesh = DeviceMesh.from_group(workers.group, device.type)
    units: list[FSDPModule] = []
    for i, block in enumerate(blocks(model)):
        if any(p.is_meta for p in block.parameters()):
            if base is None:
                continue
            workers.agreed(partial(base.keep_block, i))
            workers.check_equal(f"block.{i} of the base model", dict(block.named_parameters()))
        unit = fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # The loss is divided by all targets of the step already, so gradients are summed; gloo has no other sum with a factor.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        units.append(unit)
    share_comm_ctx(units)
    for unit in units:  # a unit can be fetched ahead only once it is set up, which is done when it is first gathered
        unit.unshard()
        unit.reshard()
    for unit, following in pairwise(units):
        unit.set_modules_to_forward_prefetch([following])


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether every process holds a part of a tensor alone."""
    return isinstance(tensor, DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the part of a tensor that this process holds, a view; all of one that is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor with all its parts; all processes have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, torch.Tensor], workers: Workers) -> dict[str, torch.Tensor]:
    """Returns whole tensors, one gathered after the other; on the process that writes files alone, elsewhere none.

    Args:
        tensors: name -> tensor, the same names in the same order on all processes.
        workers: who holds the parts.

    Returns:
        The tensors, those that were cut on the CPU.
    """
    if not workers.sharded:
        return dict(tensors) if workers.main else {}
    found = {}
    for name, tensor in tensors.items():
        full = workers.together(lambda tensor=tensor: whole(tensor.detach()))  # type: ignore[misc]
        if workers.main:
            found[name] = full.cpu()
    return found


@torch.no_grad()
def put_(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copies a tensor of the same shape into a parameter; a whole one into the part of it that this process holds."""
    parameter.copy_(cut_like(parameter, tensor))


def cut_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a whole tensor cut as a parameter is, on its device; no message is sent.

    Args:
        parameter: cut or not.
        tensor: of the same shape, whole or cut already.
    """
    if not isinstance(parameter, DTensor) or isinstance(tensor, DTensor):
        return tensor
    moved = tensor.to(parameter.device)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def clip_(parameters: Sequence[torch.Tensor], max_norm: float, workers: Workers) -> torch.Tensor:
    """Scales gradients down to a norm, as `torch.nn.utils.clip_grad_norm_` does, over whole gradients and parts of cut ones.

    Args:
        parameters: those with a gradient count.
        max_norm: norm over all gradients.
        workers: who holds the parts.

    Returns:
        The norm before scaling, (), the same on all processes.
    """
    if not workers.sharded:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    gradients = [p.grad for p in parameters if p.grad is not None]
    cut = [local(g) for g in gradients if isinstance(g, DTensor)]
    plain = [g for g in gradients if not isinstance(g, DTensor)]
    squares = workers.sum_(_squares(cut, workers.device)) + _squares(plain, workers.device)
    norm = squares.sqrt()
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for gradient in (*cut, *plain):
        gradient.mul_(factor.to(gradient.device, gradient.dtype))
    return norm


def agreed_states(states: KeptStates | None, workers: Workers) -> KeptStates | None:
    """Returns kept states that all processes find, or none does: a pass through cut blocks begins at the same block everywhere."""
    if states is None or not workers.sharded or isinstance(states, _AgreedStates):
        return states
    return _AgreedStates(states, workers)


class _AgreedStates:
    def __init__(self, states: KeptStates, workers: Workers) -> None:
        self._states = states
        self._workers = workers

    def read(self, rows: Sequence[Any], k: int) -> torch.Tensor | None:
        found = self._states.read(rows, k)
        return found if self._workers.all(found is not None) else None

    def write(self, rows: Sequence[Any], k: int, states: torch.Tensor) -> None:
        self._states.write(rows, k, states)


def _squares(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Sum of all squares, (), float64."""
    found = [t.square().sum(dtype=torch.float64) for t in tensors]
    return torch.stack(found).sum().to(device) if found else torch.zeros((), dtype=torch.float64, device=device)
