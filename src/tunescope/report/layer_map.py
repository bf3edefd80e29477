"""The layer map as the report reads it from ``layers.json``: checked, and with its scores found by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunescope.errors import RunError
from tunescope.report.checked import mapping, record, records
from tunescope.runs.records import Bands, LayerScores, Record

ALL = "*"  # the task of what is measured over all tasks
# What each mode shows per task: the number behind the heat map, the clusters and the median. The first that is there counts.
PROFILE = {
    "base": ("cka_in_out",),
    "pair": ("cka_base_tuned",),
    "mossa": ("cka_tuned_specialist", "cka_base_specialist"),  # the second where there is no tuned model
}


@dataclass(frozen=True)
class MapTask(Record):
    """One task of a map.

    Attributes:
        name: of the task.
        family: as in the config; may be empty.
        n_prompts: prompts that were read.
    """

    name: str
    family: str = ""
    n_prompts: int = 0


@dataclass(frozen=True)
class MapClusters(Record):
    """Which tasks have alike profiles (`layers.Clusters` without its package, which needs torch).

    Attributes:
        names: the tasks, in the order of the rows.
        linkage: a row per merge: the two parts, their distance, the number of tasks in it.
        order: rows from left to right of the dendrogram.
        labels: cluster of each row.
        why: one line.
    """

    names: tuple[str, ...]
    linkage: tuple[tuple[float, ...], ...]
    order: tuple[int, ...]
    labels: tuple[int, ...]
    why: str = ""


@dataclass(frozen=True)
class Proposal(Record):
    """A set of blocks that the map proposes to tune.

    Attributes:
        name: which rule proposes it.
        layers: canonical names of its blocks.
        why: one line.
        trainable_parameters: that would move.
        relative_cost: of training, against LoRA on all blocks; 1 is the same.
        memory_bytes: of training.
    """

    name: str
    layers: tuple[str, ...]
    why: str = ""
    trainable_parameters: int | None = None
    relative_cost: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class LayerMap:
    """A layer map.

    Attributes:
        mode: base, pair or mossa.
        estimator: of CKA.
        states: last or mean.
        d_model: width of the states.
        tasks: what was read.
        blocks: canonical names, ``block.0`` first.
        scores: (name, task) -> numbers per block.
        profile: name of the score that is shown per task.
        bands: or None.
        clusters: or None.
        agreement: of map and causal check, or None.
        proposals: most wanted first.
        seconds: part of the work -> its time.
        raw: the whole object as it stands in the file.
    """

    mode: str
    estimator: str
    states: str
    d_model: int | None
    tasks: tuple[MapTask, ...]
    blocks: tuple[str, ...]
    scores: Mapping[tuple[str, str], LayerScores]
    profile: str
    bands: Bands | None
    clusters: MapClusters | None
    agreement: Mapping[str, Any] | None
    proposals: tuple[Proposal, ...]
    seconds: Mapping[str, float]
    raw: Mapping[str, Any] = field(default_factory=dict)

    def overall(self, name: str) -> LayerScores | None:
        """Returns a score over all tasks, or None."""
        return self.scores.get((name, ALL))

    def of_tasks(self, name: str) -> dict[str, LayerScores]:
        """Returns a score of each task that has it, in the order of the tasks."""
        return {task.name: self.scores[name, task.name] for task in self.tasks if (name, task.name) in self.scores}

    @property
    def shown(self) -> tuple[str, ...]:
        """Tasks of the heat map from top to bottom: as the dendrogram orders them, where there is one."""
        known = self.of_tasks(self.profile)
        if self.tree is not None:
            return tuple(self.tree.names[row] for row in self.tree.order)
        return tuple(known)

    @property
    def tree(self) -> MapClusters | None:
        """The clusters, if every task in them has a profile: a leaf without a row could not be drawn."""
        known = self.of_tasks(self.profile)
        return self.clusters if self.clusters is not None and set(self.clusters.names) == set(known) else None

    @property
    def with_signs(self) -> bool:
        """Whether the published signs of a transition could be looked for: that needs specialists and a tuned model."""
        return self.profile == "cka_tuned_specialist"

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tasks without a profile."""
        return tuple(task.name for task in self.tasks if (self.profile, task.name) not in self.scores)


def read_map(layers: Mapping[str, Any], path: Path) -> LayerMap | None:
    """Returns the layer map in the content of a ``layers.json``, or None where it holds none.

    Args:
        layers: the object in the file.
        path: of the file, for messages.

    Raises:
        RunError: a part is lacking or does not fit the others.
    """
    values = mapping(layers.get("map"), path)
    if not values:
        return None
    mode = str(values.get("mode", ""))
    if mode not in PROFILE:
        raise RunError(f"{path}: map.mode is {mode!r}, allowed: {', '.join(PROFILE)}; run the study again")
    kept = [row for row in records(LayerScores, layers.get("scores"), path) if row.layers]
    names = {row.name for row in kept if row.task != ALL}
    profile = next((name for name in PROFILE[mode] if name in names), PROFILE[mode][0])
    blocks = next((row.layers for row in kept if row.name == profile), kept[0].layers if kept else ())
    tasks = records(MapTask, values.get("tasks"), path)
    if not tasks or not any(row.name == profile and row.task != ALL for row in kept):
        raise RunError(f"{path}: the map holds no {profile} of any task; run the study again")
    _unique([task.name for task in tasks], "map.tasks", path)
    scores = {}
    for row in kept:
        if tuple(row.layers) == tuple(blocks):  # other pieces (matrices, say) are no part of a map of blocks
            _same_length(row, path)
            scores[row.name, row.task] = row
    bands = _bands(values.get("bands"), len(blocks), path)
    return LayerMap(
        mode=mode,
        estimator=str(values.get("estimator", "")),
        states=str(values.get("states", "")),
        d_model=values.get("d_model") if isinstance(values.get("d_model"), int) else None,
        tasks=tasks,
        blocks=tuple(blocks),
        scores=scores,
        profile=profile,
        bands=bands,
        clusters=_clusters(values.get("clusters"), path),
        agreement=mapping(values.get("agreement"), path) or None,
        proposals=records(Proposal, values.get("proposals"), path),
        seconds={key: value for key, value in mapping(values.get("seconds"), path).items() if value is not None},
        raw=values,
    )


def _unique(names: list[str], where: str, path: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RunError(f"{path}: {where} holds {twice!r} twice; every task must have its own name")


def _same_length(row: LayerScores, path: Path) -> None:
    for name in ("values", "low", "high", "null"):
        numbers = getattr(row, name)
        if numbers is not None and len(numbers) != len(row.layers):
            raise RunError(
                f"{path}: {row.name} of task {row.task!r} has {len(numbers)} {name} for {len(row.layers)} blocks; run the study again"
            )


def _bands(values: Any, n_blocks: int, path: Path) -> Bands | None:
    if values is None:
        return None
    bands = record(Bands, values, path, "1")
    ends = [pair for pair in (bands.boundaries, bands.low, bands.high) if pair is not None]
    if any(not 0 <= pair[0] <= pair[1] <= n_blocks for pair in ends if pair is bands.boundaries) or any(
        max(pair) > n_blocks for pair in ends
    ):
        raise RunError(
            f"{path}: boundaries of the bands {[list(pair) for pair in ends]} lie outside 0 to {n_blocks}; run the study again"
        )
    if bands.found and bands.boundaries is None:
        raise RunError(f"{path}: bands are said to be found but have no boundaries; run the study again")
    return dataclasses.replace(
        bands,
        layers=tuple(bands.layers),
        boundaries=_pair(bands.boundaries),
        low=_pair(bands.low),
        high=_pair(bands.high),
    )


def _pair(ends: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if ends is None else (ends[0], ends[1])


def _clusters(values: Any, path: Path) -> MapClusters | None:
    if values is None:
        return None
    found = record(MapClusters, values, path, "1")
    n = len(found.names)
    _unique(list(found.names), "map.clusters", path)
    whole = (
        sorted(found.order) == list(range(n))
        and len(found.labels) == n
        and len(found.linkage) == max(0, n - 1)
        and all(len(row) == 4 and max(row[:2]) < n + place for place, row in enumerate(found.linkage))
    )
    if not whole:
        raise RunError(f"{path}: the clusters do not fit their {n} tasks; run the study again")
    return found
