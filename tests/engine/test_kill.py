"""A run that is killed with SIGKILL at any moment goes on as if nothing had happened."""

import json
import multiprocessing
import random
import signal
import time

import kill_target
import pytest

# Processes that have torch imported already: a start takes milliseconds and a kill is as final as any.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunescope.engine", "transformers.models.llama.modeling_llama", "peft.tuners.lora"])
N_KILLS = 3
N_STEPS = 30


def start(folder):
    process = CONTEXT.Process(target=kill_target.run, args=(folder,))
    process.start()
    return process


def finish(folder):
    process = start(folder)
    process.join()
    assert process.exitcode == 0


def lines_of(folder):
    """The complete lines of the records."""
    file = folder / "steps.jsonl"
    return file.read_text().split("\n")[:-1] if file.is_file() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, by a process of the same kind."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    assert len(lines_of(folder)) == N_STEPS
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_resumed_it_gives_the_same_bits(whole, tmp_path, seed):
    numbers = random.Random(seed)
    deadline = time.monotonic() + 120
    for number in range(N_KILLS):
        # A moment within a step: after a number of new records and a few milliseconds more.
        wanted = len(lines_of(tmp_path)) + numbers.randint(1, 6)
        process = start(tmp_path)
        while len(lines_of(tmp_path)) < wanted and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(numbers.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"kill {number} came too late"
        assert (tmp_path / "checkpoint.safetensors").is_file()
        assert not (tmp_path / "weights").exists()
    finish(tmp_path)
    records = [json.loads(line) for line in lines_of(whole)]
    found = [json.loads(line) for line in lines_of(tmp_path)]
    assert {r["step"] for r in found} == set(range(1, N_STEPS + 1))
    for record in found:  # a step that was taken again came out the same
        assert record == records[record["step"] - 1]
    for name in ("checkpoint.safetensors", "best.safetensors", "weights/adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
