"""Which number format this machine computes fastest in, measured on the model's own widths instead of guessed from its name."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from tunescope.errors import ConfigError
from tunescope.models import Group, Layout
from tunescope.models.packed_attention import packed_attention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_WIDEST = 1024  # wider blocks have the same ratio and would need seconds to make
_TOKENS = 256
_WORTH = 1.1  # a rounded format must be at least this much faster


@dataclass(frozen=True)
class Widths:
    """The sizes of a transformer block.

    Attributes:
        d_model: width of the residual stream.
        d_inner: width of the MLP.
        n_heads: query heads.
        n_key_heads: key and value heads.
        d_head: width of a head.
    """

    d_model: int
    d_inner: int
    n_heads: int
    n_key_heads: int
    d_head: int


@dataclass(frozen=True)
class NumberFormat:
    """The choice, and the figures behind it, for ``environment.json``.

    Attributes:
        dtype: ``float32`` or ``bfloat16``.
        seconds: number format -> median time of the work, interleaved.
        matmul_gflops: number format -> rate of the matrix products alone, in 10^9 operations a second.
        repeats: how often each was timed.
        device: torch device.
        threads: of the CPU.
        why: one line.
    """

    dtype: str
    seconds: dict[str, float]
    matmul_gflops: dict[str, float]
    repeats: int
    device: str
    threads: int
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return asdict(self)


def widths_of(config: Any) -> Widths:
    """Returns the sizes of a model's blocks, made narrower in proportion where they are very wide.

    Args:
        config: a Hugging Face config.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> widths_of(tiny_model().config)
        Widths(d_model=32, d_inner=64, n_heads=4, n_key_heads=2, d_head=8)
    """
    heads: int = config.num_attention_heads
    key_heads: int = getattr(config, "num_key_value_heads", None) or heads
    d_head: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    factor = max(1.0, config.hidden_size / _WIDEST)
    groups = heads // key_heads
    fewer = max(1, round(key_heads / factor))
    return Widths(
        d_model=round(config.hidden_size / factor),
        d_inner=round(config.intermediate_size / factor),
        n_heads=fewer * groups,
        n_key_heads=fewer,
        d_head=d_head,
    )


def calibrate_dtype(widths: Widths, *, device: str = "cpu", seconds: float = 1.0) -> NumberFormat:
    """Times the forward and backward pass of a frozen block in float32 and in bfloat16, by turns, and chooses.

    bfloat16 halves the memory of the frozen weights and rounds every product; it is chosen where it is at least 1.1 times as fast.
    What moves is kept in float32 either way.

    Args:
        widths: from `widths_of`.
        device: a torch device.
        seconds: that timing may take, beside a warm-up pass of each.

    Returns:
        The choice with its figures. It is a measurement: a machine that is busy may choose otherwise, so a run keeps its first one.

    Raises:
        ConfigError: the time is not positive and finite.

    Example:
        >>> found = calibrate_dtype(Widths(32, 64, 4, 2, 8), seconds=0.01)
        >>> found.dtype in found.seconds, sorted(found.matmul_gflops)
        (True, ['bfloat16', 'float32'])
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"seconds of the calibration: got {seconds:g}, allowed: above 0; try 1")
    work = {name: _block(widths, dtype, device) for name, dtype in DTYPES.items()}
    products = {name: _products(widths, dtype, device) for name, dtype in DTYPES.items()}
    for run in (*work.values(), *products.values()):
        _timed(run, device)
    times: dict[str, list[float]] = {name: [] for name in DTYPES}
    rates: dict[str, list[float]] = {name: [] for name in DTYPES}
    end = time.perf_counter() + seconds
    while not times["float32"] or time.perf_counter() < end:
        for name in DTYPES:
            times[name].append(_timed(work[name], device))
            rates[name].append(_timed(products[name], device))
    return choose_format(
        {name: statistics.median(found) for name, found in times.items()},
        {name: _operations(widths) / statistics.median(found) / 1e9 for name, found in rates.items()},
        repeats=len(times["float32"]),
        device=device,
    )


def choose_format(
    seconds: Mapping[str, float], matmul_gflops: Mapping[str, float], *, repeats: int = 1, device: str = "cpu"
) -> NumberFormat:
    """Chooses from figures that were measured; see `calibrate_dtype`.

    Example:
        >>> choose_format({"float32": 0.4, "bfloat16": 0.1}, {"float32": 50.0, "bfloat16": 200.0}).why
        'bfloat16 is 4.0 times as fast as float32 here (100.0 against 400.0 ms)'
        >>> choose_format({"float32": 0.1, "bfloat16": 0.095}, {"float32": 50.0, "bfloat16": 50.0}).dtype
        'float32'
    """
    ratio = seconds["float32"] / seconds["bfloat16"]
    shown = f"({seconds['bfloat16'] * 1e3:.1f} against {seconds['float32'] * 1e3:.1f} ms)"
    if ratio >= _WORTH:
        dtype, why = "bfloat16", f"bfloat16 is {ratio:.1f} times as fast as float32 here {shown}"
    else:
        dtype, why = "float32", f"bfloat16 is only {ratio:.2f} times as fast as float32 here {shown}, and rounds more"
    return NumberFormat(dtype, dict(seconds), dict(matmul_gflops), repeats, device, torch.get_num_threads(), why)


def _timed(run: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def _shapes(widths: Widths) -> list[tuple[int, int]]:
    """(d_out, d_in) of the matrices of a block: q, k, v, o, gate, up, down."""
    queries, keys = widths.n_heads * widths.d_head, widths.n_key_heads * widths.d_head
    d, inner = widths.d_model, widths.d_inner
    return [(queries, d), (keys, d), (keys, d), (d, queries), (inner, d), (inner, d), (d, inner)]


def _operations(widths: Widths) -> int:
    return sum(2 * _TOKENS * height * width for height, width in _shapes(widths))


def _matrices(widths: Widths, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator) * shape[1] ** -0.5).to(device, dtype) for shape in _shapes(widths)]


def _inputs(width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.randn(_TOKENS, width, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def _products(widths: Widths, dtype: torch.dtype, device: str) -> Callable[[], object]:
    """The matrix products of a block alone."""
    matrices = _matrices(widths, dtype, device)
    inputs = {width: _inputs(width, dtype, device) for _, width in _shapes(widths)}
    return lambda: [functional.linear(inputs[matrix.shape[1]], matrix) for matrix in matrices]


def _block(widths: Widths, dtype: torch.dtype, device: str) -> Callable[[], object]:
    """Forward and backward pass of a frozen block: norms, attention, MLP and everything between the products."""
    q, k, v, o, gate, up, down = _matrices(widths, dtype, device)
    scale = torch.ones(widths.d_model, device=device, dtype=dtype)
    layout = Layout((Group(0, (_TOKENS // 4,) * 4),))
    start = _inputs(widths.d_model, dtype, device).requires_grad_()

    def normed(hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        return scale * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(dtype)

    def split(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.view(1, _TOKENS, -1, widths.d_head).transpose(1, 2)

    def run() -> None:
        hidden = normed(start)
        queries, keys, values = (split(functional.linear(hidden, matrix)) for matrix in (q, k, v))
        mixed, _ = packed_attention(None, queries, keys, values, None, layout=layout)
        hidden = start + functional.linear(mixed.reshape(_TOKENS, -1), o)
        inner = normed(hidden)
        inner = functional.silu(functional.linear(inner, gate)) * functional.linear(inner, up)
        hidden = hidden + functional.linear(inner, down)
        torch.autograd.grad(hidden.float().sum(), start)

    return run
