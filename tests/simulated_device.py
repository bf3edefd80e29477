"""A device that is not the processor, for machines without one: what it holds lies in main memory, but nobody may mix the two.

Tensors on it claim to be elsewhere. An operation on such a tensor and one on the CPU is refused as a GPU refuses it, and whatever makes
the processor wait for the device is counted with the line that asked for it. Autocast on it follows the lists that hold for CUDA, which
are longer than those for the CPU. Kernels are the CPU's, so numbers can be compared bit by bit where the same code runs.

It stands on PyTorch's place for other makers' devices; `simulated` has to be active wherever tensors on it are made.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
DEVICE = f"{NAME}:0"

# How CUDA's autocast treats operations: ATen/autocast_mode.h, those that occur in a decoder.
_LOWER = ("addmm", "baddbmm", "bmm", "einsum", "linear", "matmul", "mm", "mv", "scaled_dot_product_attention")
_FLOAT32 = (
    "exp", "expm1", "kl_div", "layer_norm", "log", "log1p", "logsumexp", "native_layer_norm", "nll_loss", "pow.Tensor_Scalar",
    "pow.Tensor_Tensor", "reciprocal", "rms_norm", "rsqrt", "softplus",
)  # fmt: skip
_FLOAT32_RESULT = ("cumsum", "linalg_vector_norm", "log_softmax.int", "prod", "softmax.int", "sum", "sum.dim_IntList")
_WIDEST = ("addcdiv", "addcmul", "dot", "index_put", "scatter_add")

_WAITS = ("aten::_local_scalar_dense", "aten::masked_select", "aten::nonzero", "aten::_unique2")
_MAY_INDEX_FROM_CPU = ("aten::index", "aten::index_put", "aten::index_put_")

waits: Counter[str] = Counter()
"""How often the processor had to wait for the device, by the line of tunescope that asked for it."""


class Elsewhere(torch.Tensor):
    """A tensor on the device; `held` is where it really is."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(DEVICE)
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: torch.Tensor = Elsewhere(self.held.detach().clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    # Libraries tell tensors that share memory by these; a copy to the CPU is what they then write.
    def storage(self) -> Any:
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()


def _put_data(tensor: Elsewhere, value: Elsewhere) -> None:
    torch.Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
    tensor.held = value.held


Elsewhere.data = property(lambda tensor: torch.Tensor.data.__get__(tensor), _put_data)  # type: ignore[attr-defined,assignment]


class Event:
    """Stands for `torch.Event`, which knows no waiting there."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == NAME
        self.recorded = False

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


class _Active(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def simulated() -> Iterator[str]:
    """Makes the device usable inside; gives its name. Where there is a GPU the test is skipped."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and PyTorch takes memory pinned for one accelerator")
    register()
    waits.clear()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that `to` keeps weights tied, as on a GPU
    try:
        with _Active(), patch.object(torch, "Event", Event):
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = {id(t.held): t for t in tensors if isinstance(t, Elsewhere)}
    here = {id(t): t for t in tensors if not isinstance(t, Elsewhere)}
    target = kwargs.get("device")
    stays = bool(there) if target is None else torch.device(target).type == NAME
    _refuse_mixing(name, args, bool(there), list(here.values()))
    _count_waits(name, args, kwargs, stays=stays)
    if target is not None and stays:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    plain = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
    found = func(*plain[0], **plain[1])
    known = {**there, **here}  # what was written in place stays what it was

    def back(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else Elsewhere(x) if stays else x

    return args[0] if name == "aten::copy_" else tree_map(back, found)


def _refuse_mixing(name: str, args: Sequence[Any], any_there: bool, here: Sequence[torch.Tensor]) -> None:
    if not any_there or name in ("aten::_to_copy", "aten::copy_", "aten::_copy_from"):
        return
    if name in _MAY_INDEX_FROM_CPU and isinstance(args[0], Elsewhere):
        return
    if any(t.dim() for t in here):  # numbers without a dimension may come from the CPU
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, got some on cpu and some on {DEVICE}"
        )


def _count_waits(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, stays: bool) -> None:
    from_there = bool(args) and isinstance(args[0], Elsewhere)
    by_mask = name == "aten::index" and any(isinstance(x, Elsewhere) and x.dtype == torch.bool for x in args[1])
    moves = name == "aten::_to_copy" and from_there != stays and not kwargs.get("non_blocking")
    moves |= name == "aten::copy_" and from_there != isinstance(args[1], Elsewhere)
    if (name in _WAITS and from_there) or by_mask or moves:
        _count_wait()


def _count_wait() -> None:
    ours = [frame for frame in traceback.extract_stack() if "/tunescope/" in frame.filename]
    waits[f"{ours[-1].filename.rpartition('/tunescope/')[2]}: {ours[-1].line}" if ours else ""] += 1


@cache
def register() -> None:
    """Tells PyTorch of the device, once in a process and before its first backward pass; there is no way back.

    Not where there is a GPU: pinned memory would then be asked of this device.
    """
    if torch.cuda.is_available():
        return
    _setup_privateuseone_for_python_backend(NAME)
    torch.get_device_module(NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16, torch.float32]
    kernels = torch.library.Library("aten", "IMPL")
    # Inside ``torch.tensor(..., device=...)`` no Python is asked, but these kernels are.
    kernels.impl("empty_strided", _empty, "PrivateUse1")
    kernels.impl("_copy_from", _copy, "PrivateUse1")
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    for names, to in ((_LOWER, _lower), (_FLOAT32, lambda _: torch.float32), (_WIDEST, _widest)):
        for name in names:
            kernels.impl(name, _cast_first(_operation(name), to), "AutocastPrivateUse1")
    for name in _FLOAT32_RESULT:
        kernels.impl(name, _in_float32(_operation(name)), "AutocastPrivateUse1")
    _kept_alive.extend([kernels, others])


_kept_alive: list[torch.library.Library] = []
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _empty(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if not non_blocking and isinstance(source, Elsewhere) != isinstance(target, Elsewhere):
        _count_wait()
    held = [t.held if isinstance(t, Elsewhere) else t for t in (source, target)]
    held[1].copy_(held[0])
    return target


def _operation(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _lower(_: Any) -> torch.dtype:
    return torch.get_autocast_dtype(NAME)


def _widest(args: Any) -> torch.dtype:
    dtypes = {x.dtype for x in tree_leaves(args) if isinstance(x, torch.Tensor) and x.is_floating_point()}
    return torch.float32 if torch.float32 in dtypes else min(dtypes, key=str)


def _cast_first(operation: Any, to: Callable[[Any], torch.dtype]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            dtype = to(args)
            return operation(*tree_map(lambda x: _cast(x, dtype), args), **kwargs)

    return kernel


def _cast(x: Any, dtype: torch.dtype) -> Any:
    fits = isinstance(x, Elsewhere) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if fits else x


def _in_float32(operation: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            if kwargs.get("dtype") is None and not any(isinstance(x, torch.dtype) for x in args):
                kwargs["dtype"] = torch.float32
            return operation(*args, **kwargs)

    return kernel
