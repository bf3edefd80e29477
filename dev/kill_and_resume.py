"""Kill a proof of concept at random moments with SIGKILL, resume it, and compare the result with an uninterrupted run, bit by bit.

    python dev/kill_and_resume.py [--runs 20] [--model smollm2-135m-instruct] [--seed 0]

Without --model a two-layer random model is used, and a run takes some seconds. Prints one line per run and exits with 1 at any difference.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

COMPARED = ("results.json", "samples.jsonl", "risk.json", "layers.json")


def settings(folder: Path, model: str) -> Path:
    """Writes a small study on three tasks of the sample data."""
    subprocess.run([sys.executable, "-m", "tunescope", "init", str(folder)], check=True, capture_output=True)
    config = yaml.safe_load((folder / "tunescope.yaml").read_text())
    config["model"] = model
    config["tasks"] = [t for t in config["tasks"] if t["name"] in ("routing", "sentiment", "summary")]
    config["data"] = {"max_train_examples": 20, "max_test_examples": 8, "max_length": 4096}
    config["tuning"] = {"num_epochs": 2, "batch_size": 4}
    config["evaluation"] = {"max_new_tokens": 12, "latency_requests": 1, "demonstrations": 1, "n_bootstrap": 500}
    config["selection"] = {"budget": 0.5, "calibration_examples": 4}
    path = folder / "kill.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path, run: Path) -> subprocess.Popen[bytes]:
    """Starts the study, or continues it."""
    command = [sys.executable, "-m", "tunescope", "poc", str(config), f"output_dir={run}", "--resume", "--json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for a study that must end well."""
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the run ended with {process.returncode}: {errors.decode(errors='replace')[-2000:]}")


def digest(run: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on an interruption: results, samples, risk, layers and all weights."""
    files = [run / name for name in COMPARED] + sorted((run / "weights").rglob("*.safetensors"))
    found = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    steps = [
        {k: v for k, v in yaml.safe_load(line).items() if k != "seconds"}
        for line in (run / "steps.jsonl").read_text().splitlines()
    ]
    found["steps.jsonl without seconds"] = hashlib.sha256(repr(steps).encode()).hexdigest()
    return found


def main() -> int:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="tunescope-kill-") as scratch:
        folder = Path(scratch)
        model = options.model
        if model is None:
            from tunescope.testing import save_tiny

            model = str(save_tiny(folder / "model", n_layers=4))
        config = settings(folder / "study", model)
        began = time.monotonic()
        finish(start(config, folder / "whole"))
        length = time.monotonic() - began
        expected = digest(folder / "whole")
        print(f"uninterrupted: {length:.1f} s, {len(expected)} hashes", flush=True)
        failures = 0
        for number in range(1, options.runs + 1):
            run = folder / "killed"
            shutil.rmtree(run, ignore_errors=True)
            moments = sorted(rng.uniform(0.1, 0.95) * length for _ in range(rng.choice((1, 1, 2, 3))))
            stages = []
            for moment in moments:
                process = start(config, run)
                time.sleep(moment)
                process.kill()
                process.communicate()
                status = run / "status.json"
                stages.append(
                    yaml.safe_load(status.read_text())["stage"] if status.is_file() else "before the run folder"
                )
            finish(start(config, run))
            different = [name for name, value in digest(run).items() if expected.get(name) != value]
            failures += bool(different)
            shown = ", ".join(f"{m:.1f} s ({s})" for m, s in zip(moments, stages, strict=True))
            print(
                f"{number:2d}: killed at {shown}: {'DIFFERENT ' + ', '.join(different) if different else 'identical'}",
                flush=True,
            )
    print(f"{options.runs - failures} of {options.runs} runs identical")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
