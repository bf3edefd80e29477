"""Starts processes that tune together on this machine, and what they do in the tests of it."""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from dataclasses import replace
from datetime import timedelta
from functools import partial

import torch
from kept_states import BASE
from tiny_runs import DTYPES, N_LAYERS, RECIPE, SELECTIONS, facts_of, make_rows

from tunescope.engine import (
    ALONE,
    L2SP,
    Checks,
    Fit,
    KLToBase,
    StreamedStates,
    Tuner,
    fill,
    join_workers,
    open_cache,
    prepare,
    race,
    save,
    to_inference,
)
from tunescope.engine.fsdp import local, whole
from tunescope.errors import DataError
from tunescope.models import StreamedBase, family_of, load_located, load_tail, locate
from tunescope.testing import byte_tokenizer, tiny_model

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["several_processes", "transformers.models.llama.modeling_llama", "peft.tuners.lora"])
MESSAGE_SECONDS = 60  # that a process waits for another before it gives up
HARD_SECONDS = 300  # after which a test fails; on an idle core none takes ten


def start(job, n_workers, folder, *, message_seconds=MESSAGE_SECONDS, **settings):
    """Starts processes that each run ``job(rank, **settings)`` with a process group; returns them and the queue of their answers."""
    answers = CONTEXT.Queue()
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store{time.monotonic_ns()}"
    processes = [
        CONTEXT.Process(
            target=_child,
            args=(rank, n_workers, store, message_seconds, answers, partial(job, **settings)),
            daemon=True,
        )
        for rank in range(n_workers)
    ]
    for process in processes:
        process.start()
    return processes, answers


def collect(processes, answers, *, seconds=HARD_SECONDS):
    """Returns the answers by rank; fails where one is missing after some seconds, and leaves no process behind."""
    found = {}
    end = time.monotonic() + seconds
    try:
        while len(found) < len(processes) and time.monotonic() < end:
            while not answers.empty():
                rank, answer = answers.get()
                found[rank] = answer
            gone = [r for r, p in enumerate(processes) if r not in found and p.exitcode is not None and answers.empty()]
            if gone:
                time.sleep(0.2)
                if answers.empty():
                    found |= dict.fromkeys(gone, f"ended with {processes[gone[0]].exitcode}")
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert len(found) == len(processes), f"after {seconds} s only workers {sorted(found)} have answered"
    return [found[rank] for rank in range(len(processes))]


def together(job, n_workers, folder, *, seconds=HARD_SECONDS, **settings):
    """Runs ``job(rank, **settings)`` on every process and returns the answers by rank."""
    return collect(*start(job, n_workers, folder, **settings), seconds=seconds)


def _child(rank, n_workers, store, message_seconds, answers, job):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)  # as for all tests
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=n_workers,
            timeout=timedelta(seconds=message_seconds),
        )
        answers.put((rank, job(rank)))
    except BaseException as error:
        answers.put((rank, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    finally:
        answers.close()
        answers.join_thread()
        os._exit(0)  # not the end of the group in good order: an error of one must reach the others without it


# --- what they do ---


def tune(
    rank,
    *,
    sharding=None,
    kind="lora on some blocks",
    family="llama",
    dtype="float32",
    recipe=RECIPE,
    terms=False,
    cache=None,
):
    """Tunes a tiny model; the records without times, the terms, the weights that moved, and what a cache did."""
    moving = moving_of(sharding, kind, family, dtype)
    with contextlib.ExitStack() as stack:
        kept = None if cache is None else stack.enter_context(cache_at(cache, moving))
        tuner = make_tuner(moving, recipe=recipe, terms=terms, states=kept)
        records, values = [], []
        for record in tuner.steps():
            records.append(record)
            values.append(tuner.term_values)
        counts = None if kept is None else vars(kept.counts)
    return {"records": facts_of(records), "terms": values, "weights": arrays_of(moving), "cache": counts}


def tune_all(rank, *, cases):
    """`tune` for several cases, one after the other."""
    return {name: tune(rank, **case) for name, case in cases.items()}


def fit(rank, *, sharding, kind, run, stop_at=None, target=None):
    """Fits until a step, at which the last worker alone wants to stop, or to the end and saves; the records and the weights."""
    moving = moving_of(sharding, kind, "llama", "float32")
    fitting = Fit(
        make_tuner(moving, recipe=replace(RECIPE, num_epochs=3)),
        Checks(make_rows(5, seed=9), every=2, patience=0),
        folder=run,
        should_stop=lambda: moving.workers.rank == moving.workers.world_size - 1 and fitting.tuner.step == stop_at,
    )
    records = []
    with contextlib.suppress(KeyboardInterrupt):
        records += fitting
    size = None
    if target is not None:
        to_inference(moving)
        size = save(moving, byte_tokenizer(), target, card="", base="tiny")
    return {"records": facts_of(records), "weights": arrays_of(moving), "outcome": fitting.outcome, "size": size}


def tune_tail(rank, *, sharding, folder_of_model, cache):
    """Tunes the last two blocks with nothing else in memory, from states that rank 0 has filled in; the losses."""
    located = locate(str(folder_of_model))
    workers = ALONE if sharding is None else join_workers(sharding)
    with open_cache(
        cache, base_sha256=located.sha256, dtype=torch.float32, d_model=32, budget_bytes=10**8, keep_free_bytes=0
    ) as kept:
        base = StreamedBase(located, dtype="float32")
        workers.agreed(lambda: fill(base, make_rows(10), 2, kept) if workers.main else None)
        loaded = load_tail(located, 2, dtype="float32")
        moving = prepare(loaded.model, loaded.family, SELECTIONS["weights of blocks"], workers=workers)
        return [record.loss for record in make_tuner(moving, states=StreamedStates(base, kept)).steps()]


def tune_from_files(rank, *, sharding, folders, kinds):
    """Tunes with blocks that are read and cut one by one, and with the whole model read first; both by kind, and the most weights held."""
    found = {}
    for kind, folder in zip(kinds, folders, strict=True):
        located = locate(str(folder))
        base, most = StreamedBase(located, dtype="float32"), 0
        base.keep_ends()
        bringing = base._bring

        def bring(name, base=base, bringing=bringing):
            nonlocal most
            bringing(name)
            most = max(most, sum(local(p).nbytes for p in base.model.parameters() if not p.is_meta))

        base._bring = bring
        sources = {"cut": (base.loaded(0), base), "read first": (load_located(located, dtype="float32"), None)}
        for name, (loaded, source) in sources.items():
            how = {"lora_rank": 4, "lora_alpha": 8, "workers": join_workers(sharding), "base": source}
            moving = prepare(loaded.model, loaded.family, SELECTIONS[kind], **how)
            records = facts_of(make_tuner(moving).steps())
            found[kind, name] = {"records": records, "weights": arrays_of(moving), "info": loaded.info}
        found[kind, "held"] = most, base.sizes
    return found


def prepare_from_files(rank, *, folders):
    """Prepares from files that are not the same for all."""
    base = StreamedBase(locate(str(folders[rank])), dtype="float32")
    base.keep_ends()
    prepare(base.model, base.family, SELECTIONS["lora on one block"], workers=join_workers("fsdp2"), base=base)


def race_rates(rank, *, sharding):
    """Which learning rate wins, and the weights it leaves."""
    moving = moving_of(sharding)
    recipe = replace(RECIPE, num_epochs=1)
    found = race(
        lambda rate: make_tuner(moving, recipe=replace(recipe, learning_rate=rate)),
        Checks(make_rows(5, seed=9), every=2),
        (1e-3, 1e-2, 1e30),
    )
    return found.learning_rate, list(found.losses.values()), arrays_of(moving)


def save_rounded(rank, *, sharding, kind, target):
    """Saves a bfloat16 model of which everything that moves was changed; the size that was told."""
    moving = moving_of(sharding, kind, "llama", "bfloat16")
    with torch.no_grad():
        for parameter in moving.parameters.values():
            parameter.mul_(1.01)
    to_inference(moving)
    return save(moving, byte_tokenizer(), target, card="", base="tiny")


def fail(rank, *, how, sharding="none"):
    """Goes wrong on worker 1 alone; what each worker raises, and after how long."""
    started = time.monotonic()
    try:
        if how == "another base":
            moving_of(sharding, seed=rank)
        moving = moving_of(sharding)
        tuner = make_tuner(moving, rows=partial(_rows, how, rank))
        if rank == 1:
            adding = tuner._add_gradients
            tuner._add_gradients = lambda rows, batch_tokens: _add(how, tuner, adding, rows, batch_tokens)
        for record in tuner.steps():
            if how == "another weight" and record.step == 2 and rank == 1:
                next(iter(moving.parameters.values())).data[0] += 1e-3
        return "done", tuner.batch_tokens, time.monotonic() - started
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - started


def _rows(how, rank, epoch):
    if how == "rows" and rank == 1 and epoch == 1:
        raise DataError("example 7 is not there")
    return make_rows(10)


def _add(how, tuner, adding, rows, batch_tokens):
    if tuner.step == 2:
        if how == "error":
            raise ValueError("no such luck")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(HARD_SECONDS)
    if how == "memory" and batch_tokens > 100:
        raise MemoryError("out of memory")
    return adding(rows, batch_tokens)


def moving_of(sharding, kind="lora on some blocks", family="llama", dtype="float32", *, seed=0):
    """A prepared tiny model of the workers, or of one process alone where sharding is None."""
    return prepare(
        tiny_model(family, n_layers=N_LAYERS, dtype=DTYPES[dtype], seed=seed),
        family_of(family),
        SELECTIONS[kind],
        lora_rank=4,
        lora_alpha=8,
        workers=ALONE if sharding is None else join_workers(sharding),
    )


def make_tuner(moving, *, rows=None, recipe=RECIPE, terms=False, states=None):
    """A tuner over ten rows in batches of four, so that the last of an epoch has two."""
    added = [L2SP(moving, 0.5), KLToBase(moving, make_rows(5, seed=4), 1.0, max_rows=2)] if terms else []
    return Tuner(moving, make_rows(10) if rows is None else rows, recipe, arm="test", terms=added, states=states)


def cache_at(root, moving):
    """A cache of states of the tiny model."""
    width = moving.model.config.hidden_size
    return open_cache(root, base_sha256=BASE, dtype=torch.float32, d_model=width, budget_bytes=10**8, keep_free_bytes=0)


def arrays_of(moving):
    """What moves, with all its parts."""
    return {name: whole(p.detach()).numpy().copy() for name, p in moving.parameters.items()}
