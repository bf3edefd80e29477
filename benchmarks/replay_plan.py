"""Planning replay: against a loop of exact transports over all pairs, and for 1,000 tasks with 1,000 instructions each.

    python benchmarks/replay_plan.py            # all of it; about 6 minutes of processor time on one core, 5 GB of disk
    python benchmarks/replay_plan.py --tasks 100

Instructions are made up: each task has a centre, its instructions lie around it, d = 576 as in SmolLM2-135M. Times are processor seconds, so that
other programs on the machine disturb them less; ratios come from interleaved runs after a warm-up. The loop solves each pair as the released code
of InsCL does (`ot.dist` with the metric cosine, then `ot.emd2`), nothing else of that code is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import ot

from tunescope import replay
from tunescope.replay import EmbeddingStore, InstructionSet, LocalTagger, PoolTask, ReplayPool
from tunescope.runs.environment import describe_environment

N_COLUMNS = 576
VERBS = [
    "classify",
    "translate",
    "summarize",
    "rewrite",
    "extract",
    "rank",
    "compare",
    "explain",
    "correct",
    "continue",
]
THINGS = [
    "review",
    "contract",
    "email",
    "ticket",
    "article",
    "poem",
    "recipe",
    "invoice",
    "dialogue",
    "abstract",
    "headline",
    "manual",
]
FIELDS = [
    "law",
    "medicine",
    "sports",
    "travel",
    "banking",
    "weather",
    "chemistry",
    "music",
    "politics",
    "farming",
    "football",
    "cooking",
]


def vectors(task: int, n: int) -> np.ndarray:
    """Instructions around the centre of a task; the first numbers are common to all, as in a language model."""
    rng = np.random.default_rng([task, n])
    centre = np.random.default_rng(0).normal(size=N_COLUMNS) + 0.7 * rng.normal(size=N_COLUMNS)
    return (centre + 0.5 * rng.normal(size=(n, N_COLUMNS))).astype(np.float32)


def texts(task: int, n: int) -> list[str]:
    """Distinct instructions of a task, about 20 words each."""
    rng = np.random.default_rng([1, task, n])
    picks = rng.integers(0, [len(VERBS), len(THINGS), len(FIELDS), len(FIELDS)], size=(n, 4))
    return [
        f"{VERBS[v]} the {THINGS[t]} about {FIELDS[a]} and {FIELDS[b]}, variant {chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)} "
        f"of topic {chr(97 + task % 26)}{chr(97 + task // 26 % 26)}{chr(97 + task // 676)}, and answer with one short sentence for the reader."
        for i, (v, t, a, b) in enumerate(picks.tolist())
    ]


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def forget_peak() -> None:
    """Starts the peak anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most this process has held in memory since `forget_peak`, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def published_pair(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """One pair as the released code solves it."""
    return float(ot.emd2(a, b, ot.dist(x, y, metric="cosine"), numItermax=100_000))


def against_the_loop(n_distinct: int, n_examples: int, repeats: int) -> dict[str, object]:
    """A stream of 16 tasks: the loop on distinct instructions, the loop on all examples, and ours."""
    tasks = []
    for i in range(16):
        counts = (
            np.random.default_rng([2, i]).multinomial(n_examples - n_distinct, np.ones(n_distinct) / n_distinct) + 1
        )
        tasks.append(InstructionSet(f"t{i:02}", vectors(i, n_distinct), counts))
    pairs = [(j, i) for i in range(16) for j in range(i)]
    wide = [t.embeddings.astype(np.float64) for t in tasks]
    share = [t.counts / t.counts.sum() for t in tasks]
    repeated = [np.repeat(rows, t.counts, axis=0) for rows, t in zip(wide, tasks, strict=True)]
    even = np.full(n_examples, 1 / n_examples)

    def loop() -> list[float]:
        return [published_pair(wide[j], wide[i], share[j], share[i]) for j, i in pairs]

    def ours(store: Path | None = None) -> list[float]:
        return [d.value for i in range(16) for d in replay.task_distances(tasks[i], tasks[:i], seed=0, store=store)]

    assert np.allclose(loop(), ours(), atol=1e-9)
    one_pair = published_pair(repeated[0], repeated[1], even, even)
    assert np.isclose(one_pair, loop()[0], atol=1e-9)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "distances.jsonl"
        ours(store)
        rows = []
        for _ in range(repeats):
            rows.append(
                {
                    "loop": seconds(loop),
                    "ours": seconds(ours),
                    # One pair stands for all 120: their sizes are the same.
                    "loop_on_examples": 120 * seconds(lambda: published_pair(repeated[0], repeated[1], even, even)),
                    "one_task_more": seconds(lambda: list(replay.task_distances(tasks[15], tasks[:15], seed=0))),
                    "stored": seconds(lambda: ours(store)),
                }
            )

    def ratio(slow: str, fast: str) -> list[float]:
        found = sorted(row[slow] / row[fast] for row in rows)
        return [round(found[0], 2), round(statistics.median(found), 2), round(found[-1], 2)]

    return {
        "distinct_instructions_a_task": n_distinct,
        "examples_a_task": n_examples,
        "median_seconds": {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]},
        "ratio_low_median_high": {
            "same work: loop / ours": ratio("loop", "ours"),
            "without grouping: loop on examples / ours": ratio("loop_on_examples", "ours"),
            "one task more: loop over all pairs / ours": ratio("loop", "one_task_more"),
            "again with another policy or budget: loop / ours from the store": ratio("loop", "stored"),
        },
    }


class Stored(Sequence[InstructionSet]):
    """Opens the embeddings of a task when they are asked for."""

    def __init__(self, store: EmbeddingStore, n_tasks: int, n: int) -> None:
        self._store, self._n_tasks, self._n = store, n_tasks, n

    def __len__(self) -> int:
        return self._n_tasks

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if not 0 <= index < self._n_tasks:
            raise IndexError(index)
        rows = self._store.get([f"{index}/{i}" for i in range(self._n)], embedder="made up", embed=self._embed)
        return InstructionSet(f"t{index:04}", rows, np.ones(self._n))

    def _embed(self, names: Sequence[str]) -> np.ndarray:
        task, _, first = names[0].partition("/")
        return vectors(int(task), self._n)[int(first) : int(first) + len(names)]


def at_scale(folder: Path, n_tasks: int, n: int) -> dict[str, object]:
    """Plans the stage of the last task: distances, tags, information, allocation, sampling."""
    store = EmbeddingStore(folder / "embeddings")
    sets = Stored(store, n_tasks, n)
    for _ in sets:  # written once, not part of planning
        pass
    forget_peak()
    base = peak_bytes()
    seen = []
    current, earlier = sets[n_tasks - 1], Stored(store, n_tasks - 1, n)
    found = {}

    def distances() -> None:
        for d in replay.task_distances(
            current, earlier, seed=0, store=folder / f"{n_tasks}x{n}.jsonl", progress=lambda *now: seen.append(now)
        ):
            found[d.task] = d

    took = {"distances": seconds(distances)}
    after_distances = peak_bytes()
    instructions = [text for task in range(n_tasks) for text in texts(task, n)]
    raw: list[tuple[str, ...]] = []
    took["tags"] = seconds(lambda: raw.extend(LocalTagger()(instructions)))
    tags: list[tuple[str, ...]] = []
    took["merging tags"] = seconds(lambda: tags.extend(replay.merge_tags(raw)))
    raw.clear()
    tasks = []
    for task in range(n_tasks):
        own = instructions[task * n : (task + 1) * n]
        by_text = dict(zip(own, tags[task * n : (task + 1) * n], strict=True))
        distinct = replay.group_instructions(own).texts
        ids = [f"{i:06}" for i in range(n)]
        tasks.append(PoolTask.build(f"t{task:04}", ids, own, tags=[by_text[text] for text in distinct]))
    pool = ReplayPool(tasks[-1], tuple(tasks[:-1]), {name: d.value for name, d in found.items()})
    chosen = []
    budget = 20 * (n_tasks - 1)
    took["allocation and sampling"] = seconds(lambda: chosen.extend(replay.POLICIES["inscl"](pool, budget, 0)))
    assert len(chosen) == budget == len({(c.task, c.id) for c in chosen})
    assert seen[-1] == (n_tasks - 1, n_tasks - 1)
    again = seconds(
        lambda: list(replay.task_distances(current, earlier, seed=0, store=folder / f"{n_tasks}x{n}.jsonl"))
    )
    return {
        "tasks": n_tasks,
        "instructions_a_task": n,
        "seconds": {name: round(s, 2) for name, s in took.items()} | {"together": round(sum(took.values()), 2)},
        "microseconds_per_instruction": round(1e6 * sum(took.values()) / (n_tasks * n), 1),
        "seconds_of_distances_again_from_the_store": round(again, 2),
        "exact": all(d.exact for d in found.values()),
        "peak_bytes": {"before": base, "after distances": after_distances, "in the end": peak_bytes()},
        "bytes_of_embeddings": n_tasks * n * N_COLUMNS * 4,
    }


def sampling_error(n: int) -> dict[str, object]:
    """What sampling costs in accuracy: exact against sampled, one pair."""
    x, y = vectors(1, n), vectors(2, n)
    exact = replay.wasserstein(x, y)
    found = replay.sampled_wasserstein(x, y, seed=0)
    return {
        "instructions_a_side": n,
        "exact": round(exact, 5),
        "sampled": round(found.value, 5),
        "standard_error": round(found.standard_error, 5),
        "too_high_by_fraction": round(found.value / exact - 1, 4),
    }


def main() -> None:
    """Runs everything, prints it, and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--instructions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "replay_plan.json")
    given = parser.parse_args()
    results = {
        "environment": describe_environment(),
        "sixteen_tasks": [against_the_loop(k, 1000, given.repeats) for k in (50, 400)],
        "sampling": [sampling_error(n) for n in (4000,)],
        "at_scale": [],
    }
    print(json.dumps({k: v for k, v in results.items() if k != "environment"}, indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in (8, 1):
            row = at_scale(Path(folder), given.tasks // part, given.instructions)
            results["at_scale"].append(row)
            print(json.dumps(row, indent=1), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
