"""Where the time of a tuning step goes, and how close it comes to the rate at which this machine multiplies matrices.

LoRA on all blocks of the default model, rows of the sample data. Steps and bare products of the same shapes take turns, so that a noisy machine
slows down both; the parts of a step come from torch's profiler.

    python -m benchmarks.profile_step [--steps 6] [--dtype bfloat16] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import work
from tunescope import engine
from tunescope.models import bare
from tunescope.runs.environment import describe_environment

_PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "aten::bmm", "aten::baddbmm"),
    "fused attention": (  # on a GPU
        *("aten::_flash_attention_forward", "aten::_flash_attention_backward"),
        *("aten::_efficient_attention_forward", "aten::_efficient_attention_backward"),
        *("aten::_cudnn_attention_forward", "aten::_cudnn_attention_backward"),
    ),
    "element by element": (
        *("aten::mul", "aten::mul_", "aten::add", "aten::add_", "aten::silu", "aten::silu_backward", "aten::div"),
        *("aten::pow", "aten::neg", "aten::rsqrt", "aten::sub", "aten::exp", "aten::sigmoid", "aten::masked_fill_"),
    ),
    "softmax and sums": (
        *("aten::_softmax", "aten::_softmax_backward_data", "aten::_log_softmax", "aten::_log_softmax_backward_data"),
        *("aten::sum", "aten::mean"),
    ),
    "copies and formats": (
        *("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous", "aten::cat"),
        *("aten::index_select", "aten::index_add_", "aten::fill_", "aten::zero_", "aten::gather", "aten::scatter_"),
    ),
}
"""Kinds of work; all else is `other`: Python, autograd, the optimiser, allocation."""
_UNWATCHED = 4  # rounds of products between two looks at the clock


def product_rate(model: Any, n_tokens: int, seconds: float = 0.5) -> float:
    """Operations a second of the matrix products of a block, forward, in the model's own format."""
    block = bare(model).model.layers[0]
    weights = [
        m.weight.detach() for m in block.modules() if isinstance(m, torch.nn.Linear) and min(m.weight.shape) > 64
    ]
    inputs = {w.shape[1]: torch.randn(n_tokens, w.shape[1]).to(w) for w in weights}
    operations, done, started = sum(2 * n_tokens * w.numel() for w in weights), 0, work.now()
    with torch.no_grad():
        while time.perf_counter() - started < seconds:
            for _ in range(_UNWATCHED):
                for weight in weights:
                    functional.linear(inputs[weight.shape[1]], weight)
            done += _UNWATCHED * operations
            work.now()  # what was started is done: otherwise a GPU would still be at it
    return done / (work.now() - started)


def parts_of(events: Any) -> dict[str, float]:
    """Share of the time per kind of work: of the processor, or of the GPU where that computes."""
    on_gpu = work.DEVICE.startswith("cuda")
    own = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in events
        if event.device_type == DeviceType.CPU  # kernels are listed again beside the operations that started them
    }
    total = sum(own.values())
    found = {name: sum(own.get(key, 0.0) for key in keys) / total for name, keys in _PARTS.items()}
    return found | {"other": 1 - sum(found.values())}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Measures, prints and writes ``benchmarks/results/profile_step.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded, chat = work.load(given.dtype)
    rows = work.encoded(chat, work.mixed((given.steps + 4) * work.BATCH_SIZE))
    moving = work.everything_moves(loaded)
    steps = engine.Tuner(moving, rows, work.recipe(1)).steps()
    next(steps)
    with FlopCounterMode(display=False) as counter:
        counted = next(steps)
    per_token = counter.get_total_flops() / counted.tokens
    rates, limits, shares, speeds = [], [], [], []
    for _ in range(given.steps):
        limit = product_rate(loaded.model, 1024)
        started = work.now()
        record = next(steps)
        seconds = work.now() - started
        rate = per_token * record.tokens / seconds
        limit = (limit + product_rate(loaded.model, 1024)) / 2
        rates.append(rate)
        limits.append(limit)
        shares.append(rate / limit)
        speeds.append(record.tokens / seconds)
        print(f"step: {rate / 1e9:.0f} of {limit / 1e9:.0f} GFLOP/s, {100 * rate / limit:.0f} %", flush=True)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (work.DEVICE != "cpu")]) as profiled:
        next(steps)
        work.now()
    found = {
        "schema_version": 1,
        "dtype": given.dtype,
        "threads": given.threads,
        "flops_per_token": per_token,
        "tokens_per_second": spread(speeds),
        "step_flops_per_second": spread(rates),
        "product_flops_per_second": spread(limits),
        "share_of_product_rate": spread(shares),
        "parts": parts_of(profiled.key_averages()),
        "environment": describe_environment() | {"device": work.DEVICE, "processor": work.processor()},
    }
    path = Path(__file__).parent / "results" / "profile_step.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in found.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
