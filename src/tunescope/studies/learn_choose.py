"""What is repeated of earlier tasks at a stage, chosen by the policy from what is kept of them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunescope import replay
from tunescope.config import INSTRUCTION_POLICIES, TagSettings
from tunescope.data import Example
from tunescope.models.endpoint import ChatEndpoint
from tunescope.replay import Chosen, PoolTask, ReplayPool
from tunescope.runs.memory import Kept
from tunescope.studies.bench import Bench
from tunescope.studies.learn_embed import POOLING, Embedder
from tunescope.studies.learn_stream import Stage
from tunescope.studies.progress import Progress

TAGS = "tags.jsonl"
_NEEDS_DISTANCES = ("inscl", "inscl_without_information")
NEEDS_TAGS = ("inscl", "inscl_without_distance")
_NEEDS_EMBEDDINGS = ("prototype_instruction", "diverse_instruction")


@dataclass(frozen=True)
class Replay:
    """What is repeated at a stage, and what that rests on.

    Attributes:
        chosen: the examples, by task and id.
        pool: task -> examples that were there to choose from.
        distances: task -> value, standard_error and exact; empty for policies without distances.
        budget: examples wanted.
        tagger: name of the tagger; empty for policies without tags.
    """

    chosen: tuple[Chosen, ...]
    pool: Mapping[str, int]
    distances: Mapping[str, Mapping[str, Any]]
    budget: int
    tagger: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Task -> examples repeated, zeros included."""
        counted = Counter(one.task for one in self.chosen)
        return {name: counted[name] for name in self.pool}

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return dataclasses.asdict(self) | {"chosen": [c.to_dict() for c in self.chosen]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Replay:
        """Builds it from `to_dict`'s output."""
        chosen = tuple(Chosen.from_dict(row) for row in values["chosen"])
        return cls(chosen, values["pool"], values["distances"], values["budget"], values["tagger"])


class Chooser:
    """Chooses stage by stage; holds what the policies need of the base model and of the tagger.

    Args:
        bench: settings, base model and tokenizer.
        progress: told what happens.
    """

    def __init__(self, bench: Bench, progress: Progress) -> None:
        self._bench, self._progress = bench, progress
        self._settings = bench.config.replay
        self._embedder = Embedder(bench, progress)

    def choose(self, stage: Stage, current: Sequence[Example], kept: Sequence[Kept]) -> Replay:
        """Returns what is repeated at a stage.

        Args:
            stage: the stage.
            current: what it learns.
            kept: what there is of earlier tasks.

        Raises:
            DataError: a tag file lacks instructions, or a server gave no tags.
            UserError: see the policies.
        """
        settings = self._settings
        by_task: dict[str, list[Kept]] = {}
        for one in sorted(kept, key=lambda one: (one.task, one.id)):
            by_task.setdefault(one.task, []).append(one)
        budget = settings.budget_per_task * len(by_task)
        if not by_task or settings.policy in ("none", "joint"):
            return Replay((), {name: len(rows) for name, rows in by_task.items()}, {}, 0)
        tagger = ""
        here = self.pool_task(stage.learns[0], current)
        earlier = [self.pool_task(name, [example_of(k) for k in rows]) for name, rows in by_task.items()]
        distances = self._distances(stage, here, earlier) if settings.policy in _NEEDS_DISTANCES else {}
        if settings.policy in NEEDS_TAGS:
            tagger, (here, *earlier) = self._tagged([here, *earlier])
        plain = {name: found["value"] for name, found in distances.items()} if distances else None
        policy: Any = replay.POLICIES[settings.policy]
        if settings.policy in _NEEDS_DISTANCES:
            policy = functools.partial(policy, allocation=settings.allocation)
        chosen = policy(ReplayPool(here, tuple(earlier), plain), budget, stage_seed(self._bench.config.seed, stage))
        return Replay(tuple(chosen), {task.name: len(task) for task in earlier}, distances, budget, tagger)

    def pool_task(self, name: str, rows: Sequence[Example]) -> PoolTask:
        """Returns a task as the policy of the settings looks at it."""
        policy = self._settings.policy
        # Policies that do not look at instructions also take examples without one.
        texts = [
            e.instruction if policy in INSTRUCTION_POLICIES else e.instruction.strip() or e.prompt_text for e in rows
        ]
        own = examples = None
        if policy in _NEEDS_DISTANCES or policy in _NEEDS_EMBEDDINGS:
            own = self._embedder(replay.group_instructions(texts).texts)
        if policy == "prototype_data":
            examples = self._embedder([e.prompt_text for e in rows])
        return PoolTask.build(name, [e.id for e in rows], texts, embeddings=own, example_embeddings=examples)

    def information(self, tasks: Sequence[PoolTask]) -> dict[str, list[float]]:
        """Returns how much every distinct instruction of every task says, in the order of `PoolTask.grouped`."""
        _, tagged = self._tagged(tasks)
        information = replay.instruction_information([tags for task in tagged for tags in task.tags or ()])
        found, start = {}, 0
        for task in tagged:
            end = start + len(task.grouped.texts)
            found[task.name], start = information[start:end], end
        return found

    def release(self) -> None:
        """Gives the memory of the base model back; it is loaded again when it is needed."""
        self._embedder.release()

    @property
    def rests_on(self) -> dict[str, str]:
        """How embeddings are made, where the policy needs them."""
        policy = self._settings.policy
        needed = policy == "prototype_data" or policy in INSTRUCTION_POLICIES
        return {"embedding": POOLING} if needed else {}

    def _distances(self, stage: Stage, here: PoolTask, earlier: Sequence[PoolTask]) -> dict[str, dict[str, Any]]:
        self._progress.stage(f"{stage.arm}: distances", len(earlier))
        found = replay.task_distances(
            self._instructions(here),
            [self._instructions(task) for task in earlier],
            seed=self._bench.config.seed,
            store=self._scratch("distances.jsonl"),
            progress=lambda _done, _total: self._progress.advance(),
        )
        return {d.task: {"value": d.value, "standard_error": d.standard_error, "exact": d.exact} for d in found}

    def _instructions(self, task: PoolTask) -> replay.InstructionSet:
        counts = task.grouped.counts
        if self._settings.weights == "uniform":
            counts = np.ones_like(counts)
        assert task.embeddings is not None
        return replay.InstructionSet(task.name, task.embeddings, counts)

    def _tagged(self, tasks: Sequence[PoolTask]) -> tuple[str, list[PoolTask]]:
        """The tasks with their tags, and the name of the tagger: all distinct instructions of all tasks together."""
        tagger = make_tagger(self._settings.tags, self._bench.run.path / TAGS)
        texts = [text for task in tasks for text in task.grouped.texts]
        self._progress.stage("tag the instructions")
        # Tags are clustered by spelling: mean states of a language model are so alike for short texts that all would be one cluster.
        tags = iter(replay.merge_tags(tagger(texts)))
        return tagger.name, [dataclasses.replace(t, tags=tuple(next(tags) for _ in t.grouped.texts)) for t in tasks]

    def _scratch(self, name: str) -> Path:
        path = self._bench.run.path / "arms" / "replay" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def make_tagger(settings: TagSettings, answers: Path) -> replay.Tagger:
    """Returns the tagger of the settings; what a server answers is noted in a file as it comes, so that nothing is asked twice."""
    if settings.tagger == "file":
        assert settings.file is not None
        return replay.FileTagger(settings.file)
    if settings.tagger == "endpoint":
        assert settings.url is not None and settings.model is not None
        return replay.EndpointTagger(
            ChatEndpoint(settings.url, settings.model, resume_file=answers).complete, name=settings.model
        )
    return replay.LocalTagger()


def stage_seed(seed: int, stage: Stage) -> int:
    """Returns the seed of the draws at a stage: with one seed for all, every stage would repeat the same examples.

    Example:
        >>> first, second = Stage("stage-01", ("a",)), Stage("stage-02", ("b",))
        >>> stage_seed(1, first) == stage_seed(1, first), stage_seed(1, first) == stage_seed(1, second)
        (True, False)
    """
    return int(np.random.default_rng([seed, *stage.arm.encode()]).integers(2**31))


def example_of(kept: Kept) -> Example:
    """Returns what is kept as an example."""
    values = dict(kept.example)
    return Example(
        id=kept.id,
        task=kept.task,
        instruction=values["instruction"],
        input=values["input"],
        targets=tuple(values["targets"]),
        system=values.get("system"),
        history=tuple((role, text) for role, text in values.get("history") or ()),
        attributes=dict(values.get("attributes") or {}),
        file=values.get("file", ""),
        line=values.get("line"),
    )


def plain_example(example: Example) -> dict[str, Any]:
    """Returns an example as plain values, as a memory keeps it; `example_of` reads it back.

    Example:
        >>> example = Example("1", "desk", "Which desk?", "The door is stuck.", ("facility",))
        >>> example_of(Kept("desk", "1", plain_example(example), "random", "stage-01", {"code": "random"})) == example
        True
    """
    return {
        "instruction": example.instruction,
        "input": example.input,
        "targets": list(example.targets),
        "system": example.system,
        "history": [list(turn) for turn in example.history],
        "attributes": dict(example.attributes),
        "file": example.file,
        "line": example.line,
    }
