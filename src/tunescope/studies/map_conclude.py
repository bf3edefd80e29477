"""From the scores of all tasks to the map: bands, clusters, agreement with the causal check, and proposals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunescope import layers, select
from tunescope.config import Config
from tunescope.data import Encoded, Task
from tunescope.errors import UserError
from tunescope.models import Loaded, bare
from tunescope.runs.records import Bands, LayerScores
from tunescope.studies.map_rows import bands_of, not_comparable, profile_of, score_rows
from tunescope.studies.map_scores import TaskScores
from tunescope.studies.prices import count_parameters, parameter_table


@dataclass(frozen=True)
class MapResult:
    """A layer map.

    Attributes:
        scores: per task, and over all tasks (task ``*``).
        bands: whether a transition band was found, and why.
        proposals: sets of blocks that could be tuned, with their prices.
        facts: what stands under ``map`` in ``layers.json``.
        tuned: specialists that were tuned for it; the others came from the cache.
    """

    scores: list[LayerScores]
    bands: Bands | None
    proposals: tuple[select.Proposal, ...]
    facts: dict[str, Any]
    tuned: int = 0


@dataclass(frozen=True)
class Prompts:
    """What is read of one task.

    Attributes:
        task: the task.
        rows: encoded examples whose prompts are read, in a fixed order.
    """

    task: Task
    rows: tuple[Encoded, ...]


def conclude(
    config: Config,
    prompts: Sequence[Prompts],
    readings: Sequence[TaskScores],
    causal: Sequence[LayerScores],
    costs: select.BlockCosts,
    *,
    first_changed: int = 0,
) -> MapResult:
    """Puts the map together.

    Below its lowest changed block a tuned model is its base, and every number there is the same by construction. Bands would then end where
    tuning began, so they are not looked for; the causal check, whose windows reach below, is compared with the map and proposes from that block on.

    Args:
        config: the settings.
        prompts: what was read.
        readings: the scores of every task.
        causal: records of the causal check, or none.
        costs: to price the proposals.
        first_changed: lowest block in which the tuned model differs from its base; 0 without a tuned model.

    Returns:
        The map; `d_model` and `seconds` of its facts are for the caller to fill in.
    """
    settings, confidence, seed = config.map, config.evaluation.confidence, config.seed
    scores = [*score_rows(readings, confidence=confidence, seed=seed), *causal]
    over_all = {row.name: row for row in scores if row.task == "*"}
    profile = profile_of(readings, settings.mode)
    names = over_all[profile].layers
    if first_changed:
        why = f"no transition band found: the tuned model is the base below block.{first_changed}"
        bands = Bands(False, why, names, n_tasks=len(readings))
    else:
        bands = bands_of(readings, settings.mode, confidence=confidence, n_bootstrap=settings.n_bootstrap, seed=seed)
    clusters = layers.cluster_tasks(
        np.stack([one.values[profile] for one in readings]), [one.task for one in readings], seed=seed
    )
    gain, put_back = over_all.get("gain"), over_all.get("causal")
    change = _change(over_all[profile]) if gain is None else None
    proposals = select.propose(
        costs,
        share=config.selection.budget,
        bands=bands,
        gain=gain,
        change=change,
        last=not_comparable(settings.mode, settings.states),
        causal=put_back if put_back is None else select.put_last(put_back, names[:first_changed]),
    )
    compared = gain or change
    facts = {
        "mode": settings.mode,
        "estimator": settings.estimator,
        "states": settings.states,
        "tasks": [{"name": p.task.name, "family": p.task.family, "n_prompts": len(p.rows)} for p in prompts],
        "d_model": 0,
        "bands": bands.to_dict(),
        "clusters": clusters.to_dict(),
        "agreement": _agreement(compared, put_back, seed, first_changed),
        "proposals": [proposal.to_dict() for proposal in proposals],
        "seconds": {},
    }
    return MapResult(scores, bands, proposals, facts)


def _change(similarity: LayerScores) -> LayerScores:
    """How much is different per block: 1 - similarity."""
    values = tuple(1 - value for value in similarity.values)
    return dataclasses.replace(
        similarity, name="change", unit=f"1 - {similarity.name}", values=values, low=None, high=None, null=None
    )


def _agreement(
    map_scores: LayerScores | None, causal: LayerScores | None, seed: int, first: int
) -> dict[str, Any] | None:
    """How far the map and the causal check put the blocks from `first` on in the same order; None where that cannot be said."""
    if map_scores is None or causal is None:
        return None
    try:
        return dataclasses.asdict(layers.rank_agreement(map_scores.values[first:], causal.values[first:], seed=seed))
    except UserError:  # fewer than three blocks, or the same number everywhere: no order
        return None


def block_costs(config: Config, loaded: Loaded) -> select.BlockCosts:
    """Returns what tuning sets of blocks costs with the config's method and parts."""
    tuning = config.tuning
    table = parameter_table(loaded, tuning.lora_rank)
    parts = tuple(tuning.target_modules)
    method = "weights" if tuning.method == "weights" else "lora"
    own = bare(loaded.model).config
    element = next(loaded.model.parameters()).element_size()
    # Kept for the backward pass per token: about ten vectors of the model's width and four of the MLP's.
    kept = tuning.batch_tokens * element * (10 * own.hidden_size + 4 * own.intermediate_size)
    every = [part for part in next(iter(table.values())) if part != "*"]
    return select.BlockCosts(
        weights=tuple(count_parameters(table, "weights", [name], every) for name in table),
        moving=tuple(count_parameters(table, method, [name], parts) for name in table),
        lora_all=count_parameters(table, "lora", list(table), parts),
        model_bytes=loaded.info.weight_bytes,
        kept_bytes=kept,
        adapters=method == "lora",
    )
