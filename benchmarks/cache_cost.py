"""What the activation cache costs and spares on this machine: writing, checking, reading, against computing the same states.

Uses random weights in the shape of SmolLM2-135M. Each figure is the median over the batches; reading comes from the page cache, as it does
for data that fits in memory.

    python benchmarks/cache_cost.py --tokens 20000 --out result.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.engine.activations import open_cache
from tunescope.models.packed import pack
from tunescope.models.tail import run_blocks

N_LAYERS, D_MODEL, LOWEST = 30, 576, 20
BATCH_ROWS, ROW_TOKENS = 8, 128


def make_model() -> Any:
    """The shape of SmolLM2-135M with a small vocabulary: the head is not run here."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=D_MODEL,
        intermediate_size=1536,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model.requires_grad_(False).eval()


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    started = time.perf_counter()
    found = action()
    return time.perf_counter() - started, found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, numbers = make_model(), random.Random(0)
    batches = []
    for _ in range(max(1, given.tokens // (BATCH_ROWS * ROW_TOKENS))):
        lengths = [ROW_TOKENS + numbers.randint(-40, 40) for _ in range(BATCH_ROWS)]
        rows = [tuple(numbers.randrange(1000) for _ in range(length)) for length in lengths]
        batches.append([SimpleNamespace(prompt_ids=ids[:-2], target_ids=ids[-2:]) for ids in rows])
    seconds: dict[str, list[float]] = {
        name: [] for name in ("compute", "write", "first_read", "later_read", "sha256", "copy")
    }
    with torch.no_grad():
        run_blocks(model, pack(batches[0]), stop=LOWEST)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"base_sha256": "benchmark", "dtype": torch.bfloat16, "d_model": D_MODEL, "budget_bytes": 10**10}
        n_bytes = 0
        with open_cache(Path(folder), **settings) as cache, torch.no_grad():
            for rows in batches:
                packed = pack(rows)
                spent, states = timed(lambda packed=packed: run_blocks(model, packed, stop=LOWEST)[packed.places])
                seconds["compute"].append(spent)
                seconds["write"].append(timed(lambda rows=rows, states=states: cache.write(rows, LOWEST, states))[0])
                n_bytes += states.nbytes
        with open_cache(Path(folder), **settings) as cache:
            cache.missing([row for rows in batches for row in rows], LOWEST)
            for name in ("first_read", "later_read"):
                for rows in batches:
                    spent, states = timed(lambda rows=rows: cache.read(rows, LOWEST))
                    seconds[name].append(spent)
                    data = states.view(torch.uint8).numpy().data
                    if name == "later_read":
                        seconds["sha256"].append(timed(lambda data=data: hashlib.sha256(data).digest())[0])
                        seconds["copy"].append(timed(states.clone)[0])
    per_batch = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "batches": len(batches),
        "bytes_per_batch": n_bytes // len(batches),
        "threads": given.threads,
        "milliseconds": {name: round(1000 * value, 3) for name, value in per_batch.items()},
        "gigabytes_per_second": {
            name: round(n_bytes / len(batches) / value / 1e9, 2)
            for name, value in per_batch.items()
            if name != "compute"
        },
        "share_of_computing": {
            name: round(per_batch[name] / per_batch["compute"], 4) for name in ("write", "first_read", "later_read")
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
