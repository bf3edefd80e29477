"""Several real processes share one cache folder, and any of them may be killed at any moment."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kept_states import BUDGET, D_MODEL, files_in, fill_and_count, fill_slowly, make_row, open_at, states_for

from tunescope.engine.shelves import stored, verify

# Processes that have torch imported already: a start takes milliseconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunescope.engine.activations", "transformers.models.llama.modeling_llama"])


N_KILLS = 6


def start(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def join(processes):
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def sizes_in(root):
    """Bytes of every file; one that goes while they are read has none."""
    found = {}
    for ending in (".states", ".index"):
        for file in files_in(root, ending):
            with contextlib.suppress(FileNotFoundError):  # evicted since
                found[file] = file.stat().st_size
    return found


def size_of(root):
    """Bytes of all files at one moment: what is read while files grow and go is no sum that ever was, so it is read until two readings agree."""
    before = sizes_in(root)
    while (now := sizes_in(root)) != before:
        before = now
    return sum(now.values())


def test_processes_that_fill_the_same_rows_at_once_get_the_right_numbers(tmp_path):
    queue = CONTEXT.SimpleQueue()
    orders = [random.Random(seed).sample(range(300), 300) for seed in range(4)]
    join([start(fill_and_count, tmp_path, order, queue) for order in orders])
    results = [queue.get() for _ in orders]
    assert [(wrong, counts["damaged"], stopped) for wrong, counts, stopped in results] == [(0, 0, None)] * 4
    tokens = sum(len(r.prompt_ids + r.target_ids) for r in map(make_row, range(300)))
    written = [counts["tokens_written"] for _, counts, _ in results]
    assert tokens <= sum(written) < 4 * tokens, "each computed everything itself"
    with open_at(tmp_path) as cache:
        rows = [make_row(i) for i in range(300)]
        assert torch.equal(cache.read(rows, 3), states_for(rows))
    assert verify(tmp_path).problems == ()


def test_a_process_finds_what_another_one_has_just_finished(tmp_path):
    rows = [make_row(i) for i in range(20)]
    with open_at(tmp_path) as cache:
        assert cache.missing(rows, 3) == list(range(20))
        join([start(fill_slowly, tmp_path, 0, 20, 5)])
        assert torch.equal(cache.read(rows, 3), states_for(rows))
        assert cache.counts.tokens_written == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_while_filling_it_serves_right_numbers_and_goes_on(tmp_path, seed):
    numbers = random.Random(seed)
    n_rows, killed = 6_000, 0
    for _ in range(N_KILLS):
        before = size_of(tmp_path)
        process = start(fill_slowly, tmp_path, 0, n_rows, 3)
        deadline = time.monotonic() + 60
        while size_of(tmp_path) <= before and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(numbers.uniform(0, 0.03))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        notes = []
        with open_at(tmp_path, note=notes.append) as cache:
            rows = [make_row(i) for i in range(n_rows)]
            absent = set(cache.missing(rows, 3))
            found = [row for i, row in enumerate(rows) if i not in absent]
            assert len(found) % 3 in (0, n_rows % 3), "a write counts as a whole or not at all"
            assert torch.equal(cache.read(found, 3), states_for(found))
        assert notes == []
    assert killed == N_KILLS
    assert 0 < len(found) < n_rows
    assert verify(tmp_path).problems == ()
    rows = rows[: len(found) + 30]
    with open_at(tmp_path) as cache:
        assert torch.equal(cache.states(rows, 3, states_for), states_for(rows))


def test_two_processes_together_stay_in_the_budget(tmp_path):
    """Each claims its bytes before it writes them, so neither counts on the same room."""
    one = 9 * D_MODEL * 4 + 96
    budget = 50 * one
    processes = [start(fill_slowly, tmp_path, first, first + 300, 1, budget) for first in (0, 300)]
    largest = 0
    while any(process.is_alive() for process in processes):
        largest = max(largest, size_of(tmp_path))
        time.sleep(0.0005)
    join(processes)
    assert 0 < largest <= budget


def test_what_a_running_process_uses_is_not_evicted_by_another(tmp_path):
    rows = [make_row(i, length=10) for i in range(8)]
    budget = 8 * (10 * D_MODEL * 4 + 96)
    with open_at(tmp_path, budget_bytes=budget) as cache:
        cache.write(rows, 3, states_for(rows))
        join([start(fill_slowly, tmp_path, 100, 140, 2, budget)])
        cache.release()
    with open_at(tmp_path, budget_bytes=budget) as cache:
        assert torch.equal(cache.read(rows, 3), states_for(rows))
    join([start(fill_slowly, tmp_path, 100, 140, 2, budget)])
    with open_at(tmp_path, budget_bytes=budget) as cache:
        assert cache.missing(rows, 3) == list(range(8)), "once it is over they may go"


def test_a_fork_does_not_write_into_the_shard_of_its_parent(tmp_path):
    """As when a data loader forks workers."""
    with open_at(tmp_path) as cache:
        cache.write([make_row(1)], 3, states_for([make_row(1)]))
        child = os.fork()
        if child == 0:
            try:
                cache.write([make_row(2)], 3, states_for([make_row(2)]))
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        cache.write([make_row(3)], 3, states_for([make_row(3)]))
        rows = [make_row(i) for i in (1, 2, 3)]
        assert torch.equal(cache.read(rows, 3), states_for(rows))
    assert len(files_in(tmp_path, ".states")) == 2
    assert verify(tmp_path).problems == ()


FULL_DISK = """
import sys
from pathlib import Path
import torch
from kept_states import make_row, open_at, states_for
root, notes = Path(sys.argv[1]) / "cache", []
rows = [make_row(i, length=50) for i in range(400)]  # 640 KB on 256
with open_at(root, note=notes.append, keep_free_bytes=-(10**9)) as cache:  # the check for little space is off
    for _ in range(2):
        for start in range(0, 400, 7):
            part = rows[start : start + 7]
            assert torch.equal(cache.states(part, 3, states_for), states_for(part))
    kept = 400 - len(cache.missing(rows, 3))
assert 0 < kept < 400, kept
assert len(notes) == 1 and "No space left on device" in notes[0], notes
with open_at(root) as cache:
    there = [row for i, row in enumerate(rows) if i not in set(cache.missing(rows, 3))]
    assert len(there) == kept
    assert torch.equal(cache.read(there, 3), states_for(there))
print("kept", kept)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small file system")
def test_on_a_full_disk_what_fits_is_kept_and_the_rest_computed(tmp_path):
    mount = f'mount -t tmpfs -o size=256k tmpfs {tmp_path} && exec {sys.executable} -c "$CODE" {tmp_path}'
    env = os.environ | {"CODE": FULL_DISK, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("this machine lets nobody mount")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept ")


def test_the_folder_says_what_it_holds(tmp_path):
    with open_at(tmp_path, budget_bytes=BUDGET) as cache:
        for k in (3, 5):
            cache.write([make_row(k), make_row(k + 1)], k, states_for([make_row(k), make_row(k + 1)]))
    assert sorted((one.shelf.block, one.n_entries, one.n_shards) for one in stored(tmp_path)) == [(3, 2, 1), (5, 2, 1)]
    assert sum(one.size_bytes for one in stored(tmp_path)) == size_of(tmp_path)
