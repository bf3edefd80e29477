"""The end of a stream: score matrix, measures, failures, what was kept and lost, and the advice that follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunescope import evaluate, models
from tunescope.evaluate import Scored
from tunescope.runs.records import Forecast, Sample
from tunescope.studies.bench import Bench, test_groups
from tunescope.studies.learn_choose import Replay
from tunescope.studies.learn_experts import Expert
from tunescope.studies.learn_matrix import Row, ScoreMatrix, failures, kept_and_lost, score_of
from tunescope.studies.learn_onto import STREAM, Earlier
from tunescope.studies.learn_stage import measuring_bench
from tunescope.studies.learn_stream import START, Stage, Stream
from tunescope.studies.measure import read_scored
from tunescope.studies.serving import ANSWERED, answered_by
from tunescope.studies.setup import record

EXPERT = "expert"
_FEW_EXAMPLES = 30  # below this an interval of a task's score is wider than most differences


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a stage did.

    Attributes:
        stage: the stage.
        replay: what it repeated.
        n_train: examples it learned anew.
        kept: task -> examples in memory after it.
        cost: of tuning and measuring it.
        bias: the bias table of what it repeated; empty where nothing was.
    """

    stage: Stage
    replay: Replay
    n_train: int
    kept: Mapping[str, int]
    cost: Forecast
    bias: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as ``stream.json`` holds it."""
        return {
            "arm": self.stage.arm,
            "learns": list(self.stage.learns),
            "n_train": self.n_train,
            "budget": self.replay.budget,
            "replayed": self.replay.counts,
            "pool": dict(self.replay.pool),
            "distances": dict(self.replay.distances),
            "tagger": self.replay.tagger,
            "kept": dict(self.kept),
            "learning_rate": self.cost.learning_rate,
            "steps": self.cost.steps,
            "tuning_seconds": self.cost.tuning_seconds,
            "measuring_seconds": self.cost.evaluation_seconds,
            "bias": [dict(row) for row in self.bias],
        }


def write_stream(
    bench: Bench,
    stream: Stream,
    measured: Sequence[tuple[str, tuple[str, ...]]],
    learned: Sequence[Learned],
    *,
    earlier: Earlier | None = None,
    experts: Sequence[Expert] = (),
    memory: Mapping[str, Any],
    rests_on: Mapping[str, str],
) -> None:
    """Writes ``results.json``, ``samples.jsonl`` and ``stream.json``, and notes the measures in the ledger.

    Args:
        bench: the whole study.
        stream: the stream.
        measured: arm and tasks of every row of the score matrix, in order.
        learned: what every stage did.
        earlier: the run on which more was learned.
        experts: one per task, or none.
        memory: what is kept at the end, in numbers.
        rests_on: how embeddings are made, where the policy needs them.
    """
    settings = bench.config.evaluation
    how: dict[str, Any] = {
        "n_bootstrap": settings.n_bootstrap,
        "confidence": settings.confidence,
        "seed": bench.config.seed,
    }
    read = {arm: read_scored(measuring_bench(bench, tasks), [arm]) for arm, tasks in measured}
    together = _together(read, experts)
    results = [
        row
        for item in together
        for row in evaluate.summarise(
            [item], tuned=[arm for arm in item.answers if arm not in ("nothing", START)], **how
        )
    ]
    who = answered_by(bench.config, together)
    bench.run.write_json("results.json", {"results": [row.to_dict() for row in results], "answered_by": who})
    if who:
        record(bench.run, ANSWERED, {"answers": who})
    bench.run.write_jsonl("samples.jsonl", [s.to_dict() for s in _samples(bench, together)])
    rows = [
        Row(arm, tasks, {item.task: item for item in read[arm] if item.role == "in_domain"}) for arm, tasks in measured
    ]
    matrix = ScoreMatrix(stream, rows, **how)
    by_task = {item.task: item for item in together if item.role == "in_domain"}
    upper = {e.task: score_of(by_task[e.task], EXPERT) for e in experts} | _known_experts(bench, earlier)
    values: dict[str, Any] = {
        "policy": bench.config.replay.policy,
        "order": list(stream.tasks),
        "earlier": list(stream.earlier),
        "onto": None if earlier is None else str(earlier.run.path),
        "base_model": bench.located.sha256,
        **rests_on,
        "tasks": _tasks(bench, stream, earlier),
        "stages": [one.to_dict() for one in learned],
        "rows": [_row(matrix, row, read[row.arm]) for row in rows],
        "experts": upper,
        "measures": matrix.measures(upper),
        "changes": kept_and_lost(matrix, **how),
        "memory": dict(memory),
    }
    values["advice"] = advice(values)
    bench.run.write_json(STREAM, values)
    measures = values["measures"]
    shown = {name: measures[name]["value"] for name in ("average", "forgetting", "backward_transfer") if measures[name]}
    if measures["relative_gain"]:
        shown["relative_gain"] = measures["relative_gain"][-1]["value"]
    record(bench.run, "stream measured", {name: round(value, 6) for name, value in shown.items()})


def advice(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what the numbers of a stream say a person should do next: codes with their numbers, most important first.

    Args:
        values: ``stream.json`` without its advice.
    """
    found: list[dict[str, Any]] = []
    changes = [row for row in values["changes"] if row["task"] != "*"]
    overall = next((row for row in values["changes"] if row["task"] == "*"), changes[0] if changes else None)
    if values["policy"] == "joint":
        found.append({"code": "joint"})
    elif overall is None:
        found.append({"code": "first_task"})
    else:
        lost = [row["task"] for row in changes if row["decides"] and row["difference"] < 0]
        code = "lost" if lost or (overall["decides"] and overall["difference"] < 0) else "nothing_lost"
        found.append(
            {"code": code, "tasks": lost, "n_tasks": len(changes)}
            | {key: overall[key] for key in ("difference", "low", "high")}
        )
        found += _about_memory(values, lost=code == "lost")
        found.append({"code": "compare", "policy": values["policy"]})
    few = [task["name"] for task in values["tasks"] if task["n_test"] < _FEW_EXAMPLES]
    if few:
        found.append({"code": "few_examples", "tasks": few, "needed": _FEW_EXAMPLES})
    unrelated = sum(cell["unrelated"] for cell in values["rows"][-1]["failures"].values())
    answers = sum(cell[k] for cell in values["rows"][-1]["failures"].values() for k in ("right", "wrong", "unrelated"))
    if unrelated > 0.1 * answers:
        found.append({"code": "unrelated", "share": unrelated / answers})
    if any(row["flagged"] for stage in values["stages"] for row in stage["bias"] if row["attribute"] != "task"):
        found.append({"code": "shifted"})
    return found


def _about_memory(values: Mapping[str, Any], *, lost: bool) -> list[dict[str, Any]]:
    """Whether more could be repeated, or kept, and whether the memory holds what it should."""
    last = values["stages"][-1]
    pool, replayed = sum(last["pool"].values()), sum(last["replayed"].values())
    learned = sum(task["n_train"] for task in values["tasks"])
    kept = values["memory"]["examples"]
    facts = {"replayed": replayed, "pool": pool, "kept": kept, "learned": learned}
    if lost and replayed < pool:
        return [{"code": "replay_more"} | facts]
    if lost and values["policy"] != "none" and kept < learned:
        return [{"code": "keep_more"} | facts]
    if lost and values["policy"] == "none":
        return [{"code": "replay_something"} | facts]
    return []


def _tasks(bench: Bench, stream: Stream, earlier: Earlier | None) -> list[dict[str, Any]]:
    """What a later run needs to know of the tasks, and what a reader does."""
    settings = {task.name: task for task in bench.config.tasks}
    tasks = {task.name: task for task in bench.inputs.tasks}
    hashes = dict(earlier.hashes) if earlier is not None else {}
    found = []
    for name in stream.tasks:
        task, given = tasks[name], settings[name]
        if name not in hashes:
            assert given.train is not None
            hashes[name] = models.sha256_of(given.train)
        found.append(
            {
                "name": name,
                "family": task.family,
                "metric": task.metric,
                "stage": next((stage.arm for stage in stream.stages if name in stage.learns), START),
                "n_train": earlier.counts[name] if earlier is not None and name in earlier.counts else len(task.train),
                "n_test": len(task.test),
                "version": task.version,
                "train_sha256": hashes[name],
                "settings": given.model_dump(mode="json"),
            }
        )
    return found


def _row(matrix: ScoreMatrix, row: Row, scored: Sequence[Scored]) -> dict[str, Any]:
    guard = next((float(np.mean(item.scores(row.arm))) for item in scored if item.role == "guard"), None)
    return {
        "arm": row.arm,
        "scores": {task: matrix.value(row.arm, task) for task in row.tasks},
        "guard_loss": guard,
        "failures": {task: failures(row.scored[task], row.arm) for task in row.tasks},
    }


def _known_experts(bench: Bench, earlier: Earlier | None) -> dict[str, float]:
    """Experts of earlier tasks, whose training data may be gone: the earlier run's, where the test examples are the same."""
    if earlier is None or not bench.config.replay.experts:
        return {}
    versions = {task.name: task.version for task in bench.inputs.tasks}
    return {task: score for task, (version, score) in earlier.experts.items() if versions.get(task) == version}


def _together(read: Mapping[str, Sequence[Scored]], experts: Sequence[Expert]) -> list[Scored]:
    """All answers to a test file in one place; later rows measure files that earlier ones did not."""
    merged: dict[tuple[str, str, str], Scored] = {}
    for scored in read.values():
        for item in scored:
            key = (item.task, item.role, item.dataset)
            before = merged.get(key, item)
            merged[key] = dataclasses.replace(item, answers={**before.answers, **item.answers})
    by_expert = {expert.task: expert.answers for expert in experts}
    return [
        dataclasses.replace(item, answers={**item.answers, EXPERT: by_expert[item.task]})
        if item.role == "in_domain" and item.task in by_expert
        else item
        for item in merged.values()
    ]


def _samples(bench: Bench, scored: Sequence[Scored]) -> list[Sample]:
    by_key = {(item.task, item.role, item.dataset): item for item in scored}
    found = []
    for group in test_groups(bench.inputs):
        item = by_key.get((group.task, group.role, group.dataset))
        for i, example in enumerate(group.examples if item else ()):
            assert item is not None
            found.append(
                Sample(
                    id=example.id,
                    task=group.task,
                    role=group.role,
                    dataset=group.dataset,
                    prompt=example.prompt_text,
                    references=example.targets,
                    answers={arm: item.answers[arm][i].to_dict() for arm in item.answers},
                )
            )
    return found
