"""The processes that tune one model together, as a value: who we are, how many, and what they have to agree on.

Every process calls the same things in the same order. What may fail on one of them alone (reading, computing, writing) runs inside `Workers.agreed`,
so that an error of one becomes an error of all and nobody waits for a message that never comes. One process alone sends nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from tunescope import errors
from tunescope.engine.memory import is_out_of_memory
from tunescope.errors import ConfigError, IntegrityError, RunError, TunescopeError, WorkerError, did_you_mean

SHARDINGS = ("none", "fsdp2")
Result = TypeVar("Result")

_BUCKET_BYTES = 1 << 25  # of gradients per message: large enough for full bandwidth, small beside the model
_FIRST_ERROR = "tunescope/first_error"
_WAIT_SECONDS = 2.0  # for the words of a process whose connection broke
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "timeout")


@dataclass(frozen=True)
class Workers:
    """The processes that tune one model together; the default is one process alone.

    Attributes:
        rank: number of this process, from 0.
        world_size: how many there are.
        sharding: ``none``: every process holds the whole model; ``fsdp2``: blocks, and what moves in them, are cut over the processes.
        group: process group of torch.distributed; None alone.
    """

    rank: int = 0
    world_size: int = 1
    sharding: str = "none"
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether the blocks are cut over the processes."""
        return self.sharding == "fsdp2"

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.world_size == 1 and not self.sharded

    @property
    def device(self) -> torch.device:
        """Where messages have to lie."""
        if self.group is not None and distributed.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def agreed(self, compute: Callable[[], Result]) -> Result:
        """Does what needs no other process, and then lets all know whether it went well everywhere.

        Args:
            compute: work of this process alone; it sends and receives nothing.

        Returns:
            What `compute` returned.

        Raises:
            TunescopeError: `compute` failed on another process; of the class that it raised there where that is one of ours, and with its
                rank and its message. On the process where it failed its own error is raised.
            MemoryError: memory was short on another process, and nothing else went wrong.
            WorkerError: a process is gone.
        """
        if self.alone:
            return compute()
        error: Exception | None = None
        result: Result | None = None
        try:
            result = compute()
        except Exception as caught:
            error = caught
        if self.any(error is not None):
            said: list[Any] = [None] * self.world_size
            mine = None if error is None else _told(self.rank, error)
            self._send(lambda: distributed.all_gather_object(said, mine, group=self.group))
            failed = [json.loads(text) for text in said if text is not None]
            worst = min(failed, key=lambda told: (told["short"], told["rank"]))
            if error is not None and (worst["short"] or not is_out_of_memory(error)):
                raise error
            raise _heard(worst, self.world_size)
        return result  # type: ignore[return-value] # it is there: nobody failed

    def together(self, compute: Callable[[], Result]) -> Result:
        """Does what itself sends and receives, as passes through sharded blocks do; for other work this is `agreed`.

        A process that fails in the middle of it cannot tell the others in their own tongue: they wait inside a pass. So it leaves a word in
        the group's store, and the others find it when the connection breaks, or at the group's time limit.

        Args:
            compute: what all processes do.

        Returns:
            What `compute` returned.

        Raises:
            TunescopeError: as for `agreed`.
            RunError: memory was short, which passes through sharded blocks cannot be repeated after.
            WorkerError: a process is gone.
        """
        if not self.sharded:
            return self.agreed(compute)
        try:
            return compute()
        except WorkerError:
            raise
        except Exception as error:
            if _is_lost(error):
                raise self._lost(error) from error
            if is_out_of_memory(error):
                error = RunError(
                    f"memory is short ({(str(error).strip().splitlines() or ['out of memory'])[0][:160]}), and with sharding fsdp2 a pass cannot be "
                    "repeated with fewer tokens; set fewer tokens per pass (tuning.batch_tokens), checkpointing or more workers"
                )
            told = json.loads(self._leave_word(_told(self.rank, error)))
            raise error if told["rank"] == self.rank else _heard(told, self.world_size) from None

    def any(self, flag: bool) -> bool:
        """Whether it is true on any process."""
        return flag if self.alone else float(self.sum_(torch.tensor([float(flag)], device=self.device))) > 0

    def all(self, flag: bool) -> bool:
        """Whether it is true on all processes."""
        return not self.any(not flag)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replaces a tensor of any shape by its sum over the processes, in place, and returns it.

        Raises:
            WorkerError: a process is gone.
        """
        if not self.alone:
            self._send(lambda: distributed.all_reduce(tensor, group=self.group))
        return tensor

    def sum_gradients_(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replaces the ``grad`` of parameters by its sum over the processes, in float32 and in messages of about 32 MiB.

        Args:
            parameters: plain tensors, the same on all processes; a gradient that is None here counts as zeros.

        Raises:
            WorkerError: a process is gone.
        """
        if self.alone:
            return
        bucket: list[torch.Tensor] = []
        for parameter in parameters:
            if bucket and sum(p.numel() for p in (*bucket, parameter)) * 4 > _BUCKET_BYTES:
                self._sum_bucket_(bucket)
                bucket = []
            bucket.append(parameter)
        if bucket:
            self._sum_bucket_(bucket)

    def _sum_bucket_(self, parameters: Sequence[torch.Tensor]) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum_(torch.cat([g.reshape(-1).float() for g in gradients]))
        parts = flat.split([g.numel() for g in gradients])
        for parameter, gradient, part in zip(parameters, gradients, parts, strict=True):
            parameter.grad = gradient.copy_(part.view_as(gradient))

    def check_same(self, what: str, text: str) -> None:
        """Compares a text that has to be the same everywhere, such as the settings.

        Args:
            what: named in the error.
            text: of any length; its sha256 is sent.

        Raises:
            IntegrityError: it is not.
            WorkerError: a process is gone.
        """
        if self.alone:
            return
        digest = hashlib.sha256(text.encode()).digest()
        numbers = torch.tensor([int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4)])
        if self._differing(numbers):
            raise IntegrityError(
                f"{what}: not the same on all {self.world_size} workers; give all the same files and settings, on storage that all of them see"
            )

    def check_equal(self, what: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Compares tensors that have to be the same bits everywhere, by the sum of each one's bits read as integers.

        Args:
            what: named in the error.
            tensors: name -> tensor, the same names and shapes on all processes.

        Raises:
            IntegrityError: one is not.
            WorkerError: a process is gone.
        """
        if self.alone or not tensors:
            return
        sums = torch.stack([_sum_of_bits(tensor) for tensor in tensors.values()])
        if differing := self._differing(sums):
            raise IntegrityError(
                f"{what}: {len(differing)} tensors are not the same on all {self.world_size} workers, the first is {list(tensors)[differing[0]]}; "
                "continue from the last checkpoint, with the same base model, versions and kind of machine for every worker"
            )

    def _differing(self, numbers: torch.Tensor) -> list[int]:
        """Which of (n,) int64 numbers are not the same on all processes."""
        limits = torch.cat([numbers, -numbers]).to(self.device)
        self._send(lambda: distributed.all_reduce(limits, op=distributed.ReduceOp.MAX, group=self.group))
        highest, lowest = limits[: len(numbers)], -limits[len(numbers) :]
        found: list[int] = (highest != lowest).nonzero().flatten().tolist()
        return found

    def _send(self, message: Callable[[], object]) -> None:
        try:
            message()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _leave_word(self, told: str) -> str:
        """Leaves it in the store if nobody has before, and returns what is there."""
        try:
            word: bytes = self.group.get_group_store().compare_set(_FIRST_ERROR, "", told)
            return word.decode()
        except RuntimeError:  # the store went with the process that held it
            return told

    def _lost(self, error: Exception) -> Exception:
        """What is to be raised where a connection broke or a time limit passed."""
        end = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < end:
            try:
                store = self.group.get_group_store()
                if store.check([_FIRST_ERROR]):
                    return _heard(json.loads(store.get(_FIRST_ERROR).decode()), self.world_size)
            except RuntimeError:
                break
            time.sleep(0.05)
        return WorkerError(
            f"worker {self.rank} of {self.world_size} lost the others: one has ended, or has not answered within the time limit of the process group "
            f"({_first_line(error)}); run the same command with --resume to go on from the last checkpoint"
        )


ALONE = Workers()


def join_workers(sharding: str = "none") -> Workers:
    """Returns the workers of the process group that torch.distributed has initialised; one process alone where there is none.

    They are given to `prepare` once and stand in `Moving.workers`, where `Tuner`, `Fit`, the terms, `race` and `save` find them. Every process
    then calls the same functions in the same order.

    Args:
        sharding: ``none``: every process holds the whole model and computes its share of every batch; ``fsdp2``: the blocks are cut over the
            processes besides (FSDP2 of PyTorch).

    Raises:
        ConfigError: the sharding is not known, or is fsdp2 and there is no process group.

    Example:
        >>> join_workers()
        Workers(rank=0, world_size=1, sharding='none', group=None)
    """
    if sharding not in SHARDINGS:
        raise ConfigError(
            f"sharding {sharding!r} is not known{did_you_mean(sharding, SHARDINGS)}; allowed: {', '.join(SHARDINGS)}"
        )
    if not (distributed.is_available() and distributed.is_initialized()):
        if sharding != "none":
            raise ConfigError(
                f"sharding {sharding} needs several processes, and this one is alone; start them with torchrun or with engine: ray, or set none"
            )
        return ALONE
    return Workers(distributed.get_rank(), distributed.get_world_size(), sharding, distributed.group.WORLD)


def _told(rank: int, error: Exception) -> str:
    """An error as JSON, for other processes."""
    ours = isinstance(error, TunescopeError)
    return json.dumps(
        {
            "rank": rank,
            "short": is_out_of_memory(error),
            "kind": type(error).__name__ if ours else "",
            "message": str(error) if ours else f"{type(error).__name__}: {_first_line(error)}",
        }
    )


def _heard(told: dict[str, Any], world_size: int) -> Exception:
    """The error of another process, to be raised here."""
    text = f"worker {told['rank']} of {world_size}: {told['message']}"
    if told["short"]:
        return MemoryError(text)
    kind = getattr(errors, told["kind"], TunescopeError) if told["kind"] else TunescopeError
    found: Exception = kind(text)
    return found


def _is_lost(error: Exception) -> bool:
    """Whether an error says that another process could not be reached: backends have words for it, not always a class."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(-1).view(kind).sum(dtype=torch.int64).cpu()
