"""Tune the top eighth of a model that does not fit in the memory allowed, and compare with the same model held whole.

Writes a random model of some gigabytes, then in processes of their own: loads it under the limit (which has to fail), tunes it
block by block under the limit, and tunes it held whole without one. The limit is the kernel's (RLIMIT_DATA), counted from the moment
at which all libraries are loaded. States at the cut, losses and the saved adapter have to be the same bit by bit.

    python benchmarks/stream_large.py --gigabytes 3 --limit-gigabytes 1.5 --folder /tmp/large --out result.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

D_MODEL, D_INNER, N_HEADS, N_KEY_HEADS, D_VOCAB = 2048, 5632, 16, 4, 32_000
N_ROWS, ROW_TOKENS, N_EPOCHS, BATCH_TOKENS = 48, 64, 3, 512
GIGABYTE = 10**9


def make_model(folder: Path, gigabytes: float) -> int:
    """Writes a random Llama of about this size in bfloat16, a file per block; returns its number of blocks."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from tunescope.testing import byte_tokenizer

    d_key = D_MODEL // N_HEADS * N_KEY_HEADS
    per_block = 2 * (2 * D_MODEL**2 + 2 * D_MODEL * d_key + 3 * D_MODEL * D_INNER)
    n_layers = max(8, round((gigabytes * GIGABYTE - 2 * D_VOCAB * D_MODEL) / per_block))
    config = LlamaConfig(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=D_INNER,
        num_hidden_layers=n_layers,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KEY_HEADS,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=256,
        bos_token_id=None,
        eos_token_id=256,
    )
    config.architectures = ["LlamaForCausalLM"]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16).mul_(0.02)

    parts = {"model.embed_tokens.weight": matrix(D_VOCAB, D_MODEL), "model.norm.weight": torch.ones(D_MODEL).bfloat16()}
    listed = {}
    for i in range(n_layers + 1):
        file = f"model-{i + 1:05d}-of-{n_layers + 1:05d}.safetensors"
        save_file(parts, folder / file, metadata={"format": "pt"})
        listed |= dict.fromkeys(parts, file)
        at = f"model.layers.{i}."
        parts = {
            f"{at}self_attn.q_proj.weight": matrix(D_MODEL, D_MODEL),
            f"{at}self_attn.k_proj.weight": matrix(d_key, D_MODEL),
            f"{at}self_attn.v_proj.weight": matrix(d_key, D_MODEL),
            f"{at}self_attn.o_proj.weight": matrix(D_MODEL, D_MODEL),
            f"{at}mlp.gate_proj.weight": matrix(D_INNER, D_MODEL),
            f"{at}mlp.up_proj.weight": matrix(D_INNER, D_MODEL),
            f"{at}mlp.down_proj.weight": matrix(D_MODEL, D_INNER),
            f"{at}input_layernorm.weight": torch.ones(D_MODEL).bfloat16(),
            f"{at}post_attention_layernorm.weight": torch.ones(D_MODEL).bfloat16(),
        }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return n_layers


def make_rows() -> list[Any]:
    """Random prompts of about the same length with a short answer."""
    import random

    from tunescope.data import Encoded, Example

    numbers = random.Random(0)
    rows = []
    for i in range(N_ROWS):
        prompt = tuple(numbers.randrange(256) for _ in range(ROW_TOKENS - 4 + i % 5))
        rows.append(Encoded(prompt, (65 + i % 3, 66, 67, 256), Example(str(i), "t", "", "", ("x",))))
    return rows


def work(kind: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """Fills the cache and tunes the top eighth; says how long it took and what came out."""
    import numpy as np
    import torch

    from tunescope.engine import Recipe, Tuner, prepare, save, stream, to_inference
    from tunescope.engine.activations import open_cache
    from tunescope.models import load_located, locate, mean_losses
    from tunescope.models.packed import pack, passes
    from tunescope.models.tail import run_blocks
    from tunescope.runs.records import Selection

    rows, seconds = make_rows(), {}
    started = time.perf_counter()
    located = locate(str(folder))
    facts = json.loads((folder / "config.json").read_text())
    n_layers, lowest = facts["num_hidden_layers"], facts["num_hidden_layers"] * 7 // 8
    seconds["hash_files"] = time.perf_counter() - started
    cache = open_cache(
        scratch / "cache",
        base_sha256=located.sha256,
        dtype=torch.bfloat16,
        d_model=facts["hidden_size"],
        budget_bytes=GIGABYTE,
        keep_free_bytes=0,
    )
    with cache:
        started = time.perf_counter()
        kept: Any = cache
        if kind == "whole":
            loaded = load_located(located)
            seconds["load"] = time.perf_counter() - started
            started = time.perf_counter()
            with torch.no_grad():
                for members in passes(rows, BATCH_TOKENS):
                    packed = pack([rows[i] for i in members])
                    states = run_blocks(loaded.model, packed, stop=lowest)
                    cache.write([rows[i] for i in members], lowest, states[packed.places])
            seconds["fill"] = time.perf_counter() - started
        else:
            base = stream.StreamedBase(located)
            stream.fill(base, rows, lowest, cache, batch_tokens=BATCH_TOKENS)
            seconds["fill"] = time.perf_counter() - started
            started = time.perf_counter()
            loaded = stream.load_tail(located, lowest)
            kept = stream.StreamedStates(base, cache)
            seconds["load"] = time.perf_counter() - started
        states = cache.read(rows, lowest)
        assert states is not None
        digest = hashlib.sha256(states.view(torch.uint8).numpy().tobytes()).hexdigest()
        started = time.perf_counter()
        blocks = tuple(f"block.{i}" for i in range(lowest, n_layers))
        moving = prepare(
            loaded.model, loaded.family, Selection("lora", blocks, ("q", "v", "down"), "a benchmark"), seed=1
        )
        recipe = Recipe(1e-3, num_epochs=N_EPOCHS, batch_size=8, batch_tokens=BATCH_TOKENS)
        losses = [record.loss for record in Tuner(moving, rows, recipe, states=kept).steps()]
        seconds["tune"] = time.perf_counter() - started
        started = time.perf_counter()
        to_inference(moving)
        scored = mean_losses(moving.model, rows, batch_tokens=BATCH_TOKENS, cut=lowest, kept=kept)
        seconds["score"] = time.perf_counter() - started
        save(moving, loaded.tokenizer, scratch / "adapter", card="", base="base")
    adapter = (scratch / "adapter" / "adapter_model.safetensors").read_bytes()
    return {
        "weight_bytes_in_memory": loaded.info.weight_bytes,
        "states_sha256": digest,
        "losses": losses,
        "scored": np.asarray(scored).tolist(),
        "adapter_sha256": hashlib.sha256(adapter).hexdigest(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def child(kind: str, folder: Path, scratch: Path, limit: int) -> dict[str, Any]:
    """One process of the comparison; everything is done once with a small model before the limit counts."""
    import torch

    from tunescope.models import load_located, locate
    from tunescope.testing import save_tiny

    torch.set_num_threads(1)
    small = save_tiny(scratch / "small", n_layers=8, dtype=torch.bfloat16)
    for one in ("whole", "streamed"):
        work(one, small, scratch / f"small-{one}")
    if limit:
        held = 1024 * status()["VmData"]
        resource.setrlimit(resource.RLIMIT_DATA, (held + limit, held + limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status()
    if kind == "refused":
        try:
            load_located(locate(str(folder)))
        except Exception as error:
            return {"error": str(error).splitlines()[0].replace(str(folder), "model")}
        return {"error": None}
    found = work(kind, folder, scratch)
    after = status()
    return found | {
        "peak_resident_bytes": 1024 * (after["VmHWM"] - before["VmRSS"]),
        "resident_before_bytes": 1024 * before["VmRSS"],
    }


def status() -> dict[str, int]:
    """Memory of this process in KB."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0].startswith("Vm")}


def main() -> None:
    """Runs the comparison and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the model")
    parser.add_argument("--limit-gigabytes", type=float, default=1.5, help="memory allowed beyond the libraries")
    parser.add_argument("--folder", type=Path, required=True, help="for the model and the cache; removed at the end")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stream_large.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    limit = round(given.limit_gigabytes * GIGABYTE)
    if given.child:
        alone = 0 if given.child == "whole" else limit
        print(json.dumps(child(given.child, given.folder / "model", given.folder / given.child, alone)))
        return
    shutil.rmtree(given.folder, ignore_errors=True)
    try:
        n_layers = make_model(given.folder / "model", given.gigabytes)
        size = sum(file.stat().st_size for file in (given.folder / "model").glob("*.safetensors"))
        runs: dict[str, Any] = {}
        for kind in ("refused", "streamed", "whole"):
            (given.folder / kind).mkdir()
            command = [sys.executable, __file__, "--child", kind, "--folder", given.folder, "--limit-gigabytes"]
            done = subprocess.run(
                [*map(str, command), str(given.limit_gigabytes)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
            )
            runs[kind] = json.loads(done.stdout.splitlines()[-1])
        same = {
            name: runs["streamed"][name] == runs["whole"][name]
            for name in ("states_sha256", "losses", "scored", "adapter_sha256")
        }
        result = {
            "model_bytes": size,
            "n_layers": n_layers,
            "limit_bytes": limit,
            "rows": N_ROWS,
            "tokens": sum(map(len, make_rows())),
            "epochs": N_EPOCHS,
            "refused": runs["refused"]["error"],
            "same_bits": same,
            **{
                kind: {k: v for k, v in runs[kind].items() if k not in ("losses", "scored")}
                for kind in ("streamed", "whole")
            },
            "first_and_last_loss": [runs["whole"]["losses"][0], runs["whole"]["losses"][-1]],
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
        if runs["refused"]["error"] is None or not all(same.values()):
            sys.exit("the limit does not bind, or the numbers differ")
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
