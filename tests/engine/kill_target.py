"""What the processes do that test_kill.py kills: a small run with a checkpoint after every step."""

import json
import sys
from pathlib import Path

import torch
from tiny_runs import Recipe, make_rows, make_tuner

from tunescope.engine import Checks, Fit, save, to_inference
from tunescope.testing import byte_tokenizer

RECIPE = Recipe(1e-2, num_epochs=10, batch_size=4, seed=3)  # 30 steps


def run(folder: Path) -> None:
    """Runs, or goes on; writes a line per record, and at the end the weights."""
    torch.set_num_threads(1)
    fit = Fit(make_tuner(recipe=RECIPE), Checks(make_rows(6, seed=9), every=1, patience=0), folder=folder)
    with (folder / "steps.jsonl").open("a") as file:
        for record in fit:
            file.write(json.dumps(record.to_dict() | {"seconds": 0.0}) + "\n")
            file.flush()
    to_inference(fit.tuner.moving)
    save(fit.tuner.moving, byte_tokenizer(), folder / "weights", card="", base="tiny")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
