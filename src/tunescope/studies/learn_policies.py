"""Which policy keeps most of a stream? All policies on the same tasks, in several orders and with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope.config import Config, ReplaySettings
from tunescope.errors import ConfigError, IntegrityError, did_you_mean
from tunescope.replay import POLICIES
from tunescope.runs.folder import RunFolder
from tunescope.studies import learn
from tunescope.studies.learn_onto import STREAM
from tunescope.studies.learn_why import lost_at_stages, within_stages
from tunescope.studies.many_runs import Run, alone, do_runs
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.setup import finished

Floats = NDArray[np.float64]

RESULT = "policies.json"
ORDERS = ("as_given", "reverse", "random")
_RANDOM_ORDER = 0  # one random order, the same for all seeds: else order and seed could not be told apart
MEASURES = ("relative_gain", "average", "forgetting")


@dataclass(frozen=True)
class Finished:
    """One finished run of the comparison.

    Attributes:
        policy: name of the policy.
        order: as_given, reverse or random.
        seed: of the run.
        tasks: in the order learned.
        final: task -> score of each test example after the last stage, (n_examples,).
        learned: task -> the same right after its own stage.
        upper: task -> score of its expert; empty without experts.
        measures: from ``stream.json``.
        seconds: of tuning and measuring.
        distances: for every stage, earlier task -> distance to what is learned there; empty where the policy needs none.
        scores: for every stage, task -> score after it.
    """

    policy: str
    order: str
    seed: int
    tasks: tuple[str, ...]
    final: Mapping[str, Floats]
    learned: Mapping[str, Floats]
    upper: Mapping[str, float]
    measures: Mapping[str, Any]
    seconds: float
    distances: Sequence[Mapping[str, float]] = ()
    scores: Sequence[Mapping[str, float]] = ()


def run(
    config: Config,
    *,
    policies: Sequence[str] = ("inscl", "random", "none"),
    orders: Sequence[str] = ORDERS,
    seeds: Sequence[int] = (1, 2, 3),
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learns the stream with every policy, order and seed, each in a run folder of its own in ``config.output_dir``.

    Finished runs are read back and interrupted ones continued. What is compared is everything that is finished in the folder, so the study can
    be done in parts: more policies, or seeds, in a later call. Policy ``joint`` has no order and is run once per seed.

    Args:
        config: the settings; seed, policy, order and output_dir in it are replaced.
        policies: names of policies.
        orders: as_given, reverse, random (one order, the same for every seed).
        seeds: of data, adapters and draws.
        command: command line, for the record.
        progress: told what happens.

    Returns:
        What ``policies.json`` in ``config.output_dir`` holds; see `compare`.

    Raises:
        ConfigError: an unknown policy or order, or one given twice.
        TunescopeError: see `learn.run`; what was done up to then is kept.
    """
    progress = progress or Silent()
    for what, values, allowed in (("policies", policies, tuple(POLICIES)), ("orders", orders, ORDERS)):
        wrong = [value for value in values if value not in allowed]
        if wrong or not values or len(set(values)) < len(values):
            hint = did_you_mean(wrong[0], allowed) if wrong else ""
            raise ConfigError(
                f"{what}: got {', '.join(values) or 'none'}{hint}; give each once, of {', '.join(allowed)}"
            )
    runs = []
    for seed in seeds:  # all policies of a seed before the next one: an unfinished study then compares something
        for order in orders:
            for policy in policies:
                if policy == "joint" and order != orders[0]:
                    continue
                mine = _settings(alone(config), policy, order, seed)
                runs.append(Run(mine.output_dir.name, _learn, (mine, command)))
    do_runs(config, runs, progress)
    found = compare(
        read_finished(config), n_bootstrap=config.evaluation.n_bootstrap, confidence=config.evaluation.confidence
    )
    RunFolder(config.output_dir).write_json(RESULT, found)
    return found


def _learn(config: Config, command: str, progress: Progress) -> None:
    progress.note(config.output_dir.name)
    learn.run(config, command=command, resume=True, progress=progress)


def read_finished(config: Config) -> list[Finished]:
    """Returns all finished runs of the comparison in ``config.output_dir``, by policy, order and seed.

    Raises:
        IntegrityError: a run's files are damaged.
    """
    found = []
    for policy in POLICIES:
        for order in ORDERS:
            for path in sorted(config.output_dir.glob(f"{policy}-{order}-*")):
                seed = path.name.rpartition("-")[2]
                if seed.isdecimal() and finished(path) is not None and RunFolder(path).has(STREAM):
                    found.append(_read(RunFolder(path), policy, order, int(seed)))
    return found


def compare(
    runs: Sequence[Finished], *, n_bootstrap: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Sums up policies and compares every one with `random`, under the orders and seeds that both have.

    Args:
        runs: finished runs on the same test examples.
        n_bootstrap: resamples.
        confidence: level of the intervals.
        seed: of the resamples.

    Returns:
        ``policies``: policy -> number of runs, and per measure its mean, interval and the value of every run. ``against_random``: policy ->
        the same of the differences to random, paired by order and seed. ``by_order``: order -> policy -> mean relative gain (or average).
        A resample draws the settings (order and seed) and, within each, the test examples of every task, the same for both
        policies. Relative gain is in percent, the others are in [0, 1]; forgetting is here the score right after learning minus the last one.
        ``distance_and_loss``: what `within_stages` says of the distances of `inscl` and of what is lost without repetition; None without both.
    """
    dice = np.random.default_rng([seed, 0xC0])
    how = (n_bootstrap, (1 - confidence) / 2, dice)
    by_policy = {policy: [r for r in runs if r.policy == policy] for policy in dict.fromkeys(r.policy for r in runs)}
    found: dict[str, Any] = {"policies": {}, "against_random": {}, "by_order": {}, "seconds": {}}
    stages = [
        stage
        for far, plain in _pairs(by_policy.get("inscl", []), by_policy.get("none", []))
        for stage in lost_at_stages(far.distances, plain.scores)
    ]
    found["distance_and_loss"] = within_stages(stages, n_bootstrap=n_bootstrap, confidence=confidence, seed=seed)
    for policy, mine in by_policy.items():
        found["policies"][policy] = {"runs": len(mine)} | _summed([(r,) for r in mine], how)
        found["seconds"][policy] = sum(r.seconds for r in mine)
        if policy not in ("random", "joint"):
            pairs = _pairs(mine, by_policy.get("random", []))
            if pairs:
                found["against_random"][policy] = {"pairs": len(pairs)} | _summed(pairs, how)
    for order in dict.fromkeys(r.order for r in runs):
        found["by_order"][order] = {
            policy: {name: float(np.mean(values)) for name in MEASURES if (values := _values(mine, name, order))}
            for policy, mine in by_policy.items()
        }
    return found


def _settings(config: Config, policy: str, order: str, seed: int) -> Config:
    names = [task.name for task in config.tasks]
    drawn = np.random.default_rng(_RANDOM_ORDER).permutation(len(names))
    wanted = {"as_given": ["as_given"], "reverse": ["reverse"], "random": [names[i] for i in drawn]}[order]
    values = config.replay.model_dump(mode="json") | {"policy": policy, "order": wanted}
    output = config.output_dir / f"{policy}-{order}-{seed}"
    return config.model_copy(
        update={"seed": seed, "output_dir": output, "replay": ReplaySettings.model_validate(values)}
    )


def _read(run_folder: RunFolder, policy: str, order: str, seed: int) -> Finished:
    stream = run_folder.read_json(STREAM)
    last = stream["rows"][-1]["arm"]
    stages = {task["name"]: task["stage"] for task in stream["tasks"]}
    final: dict[str, list[float]] = {}
    learned: dict[str, list[float]] = {}
    try:
        for row in run_folder.read_jsonl("samples.jsonl"):
            if row["role"] == "in_domain":
                final.setdefault(row["task"], []).append(row["answers"][last]["score"])
                learned.setdefault(row["task"], []).append(row["answers"][stages[row["task"]]]["score"])
    except (KeyError, TypeError):
        raise IntegrityError(
            f"{run_folder.path}: samples.jsonl does not fit stream.json; remove the run and run it again"
        ) from None
    return Finished(
        policy,
        order,
        seed,
        tuple(stream["order"]),
        {task: np.array(scores) for task, scores in final.items()},
        {task: np.array(scores) for task, scores in learned.items()},
        stream["experts"],
        stream["measures"],
        run_folder.read_json("costs.json")["total_seconds"],
        [{task: told["value"] for task, told in stage["distances"].items()} for stage in stream["stages"]],
        [row["scores"] for row in stream["rows"]],
    )


def _pairs(mine: Sequence[Finished], others: Sequence[Finished]) -> list[tuple[Finished, Finished]]:
    by_setting = {(r.order, r.seed): r for r in others}
    return [(r, by_setting[r.order, r.seed]) for r in mine if (r.order, r.seed) in by_setting]


def _summed(rows: Sequence[tuple[Finished, ...]], how: tuple[int, float, np.random.Generator]) -> dict[str, Any]:
    """Measure -> mean, interval and every run's own; of pairs, of the first minus the second."""
    n_bootstrap, tail, dice = how
    found: dict[str, Any] = {}
    for name in MEASURES:
        usable = [row for row in rows if all(_measure(r, name) is not None for r in row)]
        if not usable:
            continue
        own = [_difference([_measure(r, name) for r in row]) for row in usable]
        draws = [
            np.mean([_resampled(usable[i], name, dice) for i in dice.integers(len(usable), size=len(usable))])
            for _ in range(n_bootstrap)
        ]
        low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
        mean = float(np.mean(own))
        found[name] = {"value": mean, "low": min(low, mean), "high": max(high, mean), "runs": own}
    return found


def _difference(values: Sequence[Any]) -> float:
    return float(values[0] - sum(values[1:]))


def _resampled(row: tuple[Finished, ...], name: str, dice: np.random.Generator) -> float:
    """One resample of a run, or of a pair of them on the same examples."""
    drawn = {task: dice.integers(len(scores), size=len(scores)) for task, scores in row[0].final.items()}
    return _difference([_measure(r, name, drawn) for r in row])


def _measure(one: Finished, name: str, drawn: Mapping[str, NDArray[np.int64]] | None = None) -> float | None:
    """A measure of a run on its test examples, or on a resample of them."""

    def mean(scores: Mapping[str, Floats], task: str) -> float:
        return float(scores[task].mean() if drawn is None else scores[task][drawn[task]].mean())

    if name == "average":
        return float(np.mean([mean(one.final, task) for task in one.tasks]))
    earlier = one.tasks[:-1]
    if not earlier or (name == "forgetting" and one.policy == "joint"):
        return None
    if name == "forgetting":
        return float(np.mean([mean(one.learned, task) - mean(one.final, task) for task in earlier]))
    shared = [task for task in earlier if one.upper.get(task, 0) > 0]
    return 100 * float(np.mean([mean(one.final, task) / one.upper[task] for task in shared])) if shared else None


def _values(runs: Sequence[Finished], name: str, order: str) -> list[float]:
    return [value for r in runs if r.order == order and (value := _measure(r, name)) is not None]
