"""What the processes do that test_stream.py starts under a limit on memory: one JSON line says how it went.

Used as ``limited_memory.py stream|whole|load MODEL CACHE TARGET LIMIT``; the limit, in bytes, counts from the moment at which all
libraries are loaded.
"""

import json
import resource
import sys
from pathlib import Path

import torch
from tiny_runs import Recipe, facts_of, make_rows

from tunescope.engine import Tuner, prepare, save, stream, to_inference
from tunescope.engine.activations import open_cache
from tunescope.models import load_located, locate, mean_losses
from tunescope.runs.records import Selection
from tunescope.testing import save_tiny

N_LAYERS, D_MODEL, LOWEST = 18, 640, 16
ROWS = make_rows(8)
SELECTION = Selection("lora", ("block.16", "block.17"), ("q", "v", "down"), "test")


def make(folder: Path) -> int:
    """Writes a random model of about 130 MB; returns its size in bytes."""
    save_tiny(folder, n_layers=N_LAYERS, d_model=D_MODEL, dtype=torch.bfloat16)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def tune(loaded, kept, target: Path) -> dict:
    """A few steps; the adapter goes to a folder."""
    moving = prepare(loaded.model, loaded.family, SELECTION, lora_rank=2, seed=1)
    records = facts_of(Tuner(moving, ROWS, Recipe(1e-3, num_epochs=2, batch_size=4), states=kept).steps())
    to_inference(moving)
    save(moving, loaded.tokenizer, target, card="", base="base")
    return {"records": records, "losses": mean_losses(moving.model, ROWS, cut=LOWEST, kept=kept).tolist()}


def allow(count: int) -> None:
    """From now on the process may allocate so many bytes more; 0 = as many as it likes."""
    if count:
        held = next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line
        )
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * held + count, 1024 * held + count))


def run(verb: str, folder: Path, root: Path, target: Path) -> dict:
    """Loads or streams a model and tunes its last blocks."""
    located = locate(str(folder))
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    with open_cache(
        root, base_sha256=located.sha256, dtype=torch.bfloat16, d_model=width, budget_bytes=10**8, keep_free_bytes=0
    ) as cache:
        if verb == "whole":
            return tune(load_located(located), cache, target)
        base = stream.StreamedBase(located)
        stream.fill(base, ROWS, LOWEST, cache)
        return tune(stream.load_tail(located, LOWEST), stream.StreamedStates(base, cache), target)


def main(verb: str, folder: Path, *arguments: str) -> dict:
    """Does what the first word says."""
    torch.set_num_threads(1)
    root, target, limit = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    # Everything once with a small model: what libraries load and set up when they are first used is not what is measured.
    small = save_tiny(target.with_name(f"{target.name}-small"), n_layers=N_LAYERS, dtype=torch.bfloat16)
    for kind in ("whole", "stream"):
        run(kind, small, small / "cache", small / "adapter")
    allow(limit)
    if verb == "load":
        try:
            load_located(locate(str(folder)))
        except Exception as error:
            return {"error": str(error)}
        return {"error": ""}
    return run(verb, folder, root, target)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])))
