"""The score that chooses what the arm `selected` moves: of the blocks, of single weights, or from the layer map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunescope import layers, models, select
from tunescope.config import BLOCK_SCORES
from tunescope.data import Encoded
from tunescope.errors import ConfigError
from tunescope.models import Loaded
from tunescope.runs.records import Bands, LayerScores
from tunescope.studies.bench import Bench
from tunescope.studies.demonstrations import encode_training
from tunescope.studies.layer_map import layer_map
from tunescope.studies.map_rows import not_comparable
from tunescope.studies.progress import Progress, ticker

_NEED_GRADIENTS = ("gradient", "fisher", "snip")
_UNITS = {
    "magnitude": "weight",
    "low_rank_magnitude": "weight",
    "gradient": "nats per unit of weight",
    "fisher": "(nats per unit of weight)²",
    "snip": "nats",
}
# Score of the layer map -> what is chosen by: its name, whether a low score comes first, and in words.
_CHANGE = {
    "gain": ("gain", False, "the largest gain in similarity to the specialists by tuning"),
    "cka_base_specialist": (
        "cka_base_specialist",
        True,
        "the largest change by the specialists (1 - CKA with the base)",
    ),
    "cka_base_tuned": ("cka_base_tuned", True, "the largest change by tuning (1 - CKA of base and tuned)"),
    "cka_in_out": ("cka_in_out", True, "the strongest change of the state (1 - CKA of a block's input and output)"),
}
_BY_MODE = {"base": ("cka_in_out",), "pair": ("cka_base_tuned",), "mossa": ("gain", "cka_base_specialist")}


@dataclass(frozen=True)
class Scored:
    """A score of everything on offer.

    Attributes:
        shown: one number per block: the score, or its mean over the weights of a block.
        order: one number per block by which blocks are taken, the highest first.
        weights: canonical matrix name -> (d_out, d_in) scores of single weights; None where blocks were scored.
        words: completes "the 10 blocks ...".
        others: further scores for ``layers.json``.
        facts: for the key ``map`` of ``layers.json``; None without a layer map.
    """

    shown: LayerScores
    order: LayerScores
    words: str
    weights: Mapping[str, torch.Tensor] | None = None
    others: Sequence[LayerScores] = ()
    facts: Mapping[str, Any] | None = None


def scored(bench: Bench, loaded: Loaded, offered: Mapping[str, torch.Tensor], progress: Progress) -> Scored:
    """Scores what may be chosen, by ``selection.score``.

    Args:
        bench: what all arms share.
        loaded: the base model.
        offered: canonical matrix name -> weights that may be chosen.
        progress: told what happens.

    Raises:
        ConfigError: there is no training data, or the layer map lacks what the score needs.
        UserError: a score that cannot be computed; see `select.score`.
    """
    name = bench.config.selection.score
    if name not in BLOCK_SCORES:
        return _of_weights(bench, loaded, offered, progress)
    if name in ("layer_map", "causal"):
        return _from_map(bench, loaded, progress)
    if name == "top_third":
        names = models.block_names(loaded.info.n_layers)
        places = tuple(float(place) for place in range(1, len(names) + 1))
        found = LayerScores("top_third", "place", names, places, n=0, higher_means="is nearer to the output")
        return Scored(found, found, "next to the output")
    calibration = _calibration(bench)
    progress.stage("score the blocks", len(calibration))
    found = layers.gradient_norms(
        loaded.model, calibration, confidence=bench.config.evaluation.confidence, done=ticker(progress)
    )
    return Scored(found, found, f"with the largest mean gradient norm over {found.n} training examples")


def _of_weights(bench: Bench, loaded: Loaded, offered: Mapping[str, torch.Tensor], progress: Progress) -> Scored:
    settings = bench.config.selection
    statistics, n, words = None, 0, {"magnitude": "with the largest weights"}.get(settings.score, "")
    if settings.score in _NEED_GRADIENTS:
        calibration = _calibration(bench)
        progress.stage("score the weights", len(calibration))
        parts = tuple(bench.config.tuning.target_modules)
        statistics = select.collect(loaded.model, loaded.family, calibration, parts=parts, done=ticker(progress))
        n = statistics.n
        what = {"gradient": "mean gradient", "fisher": "Fisher information", "snip": "gradient times weight"}
        words = f"with the largest {what[settings.score]} over {n} training examples"
    elif settings.score == "low_rank_magnitude":
        progress.stage("score the weights")
        words = f"with the largest weights in the approximation of rank {settings.rank}"
    context = select.Context(seed=bench.config.seed, rank=settings.rank)
    found = select.score(settings.score, offered, statistics, context=context)
    names = models.block_names(loaded.info.n_layers)
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for name, matrix in found.items():
        block = name.rpartition(".")[0]
        sums[block] += float(matrix.double().sum())
        counts[block] += matrix.numel()
    means = tuple(sums[block] / counts[block] for block in names)
    shown = LayerScores(settings.score, _UNITS[settings.score], names, means, n=n, higher_means="is chosen earlier")
    return Scored(shown, shown, words, weights=found)


def _from_map(bench: Bench, loaded: Loaded, progress: Progress) -> Scored:
    settings = bench.config
    found = layer_map(bench, loaded, progress, scratch=bench.run.path / "arms" / "map")
    wanted = ("causal",) if settings.selection.score == "causal" else _BY_MODE[settings.map.mode]
    over_all = {row.name: row for row in found.scores if row.task == "*"}
    row = next((over_all[name] for name in wanted if name in over_all), None)
    if row is None:
        raise ConfigError(
            f"selection.score {settings.selection.score}: the layer map in mode {settings.map.mode} gives no {' or '.join(wanted)}; set "
            "map.tuned to a tuned model or map.mode to another mode, or use another score"
        )
    if row.name == "causal":
        words = "that raise the loss most when put back to the base"
        return Scored(row, row, words, others=[r for r in found.scores if r is not row], facts=found.facts)
    name, low_first, words = _CHANGE[row.name]
    shown = LayerScores(
        name="layer_map",
        unit=f"1 - {name}" if low_first else name,
        layers=tuple(row.layers),
        values=tuple(1 - value for value in row.values) if low_first else tuple(row.values),
        low=tuple(1 - v for v in row.high) if low_first and row.high else None if low_first else row.low,
        high=tuple(1 - v for v in row.low) if low_first and row.low else None if low_first else row.high,
        n=row.n,
        higher_means="is chosen earlier",
    )
    last = not_comparable(settings.map.mode, settings.map.states)
    if last:
        words += f", {last[0]} behind all others"
    order = select.above_shared_first(select.put_last(shown, last), found.bands)
    return Scored(shown, order, _map_words(words, found.bands), others=found.scores, facts=found.facts)


def _map_words(words: str, bands: Bands | None) -> str:
    if bands is not None and bands.found:
        return f"that the layer map puts first: those above the shared band (from {bands.transition[0]}), then the others, each by {words}"
    why = bands.why if bands is not None else "bands were not looked for"
    why = why.removeprefix("no transition band found: ").partition(" (best candidate")[0]  # all of it is in layers.json
    return f"with {words}; the layer map has no transition band to go by ({why})"


def _calibration(bench: Bench) -> list[Encoded]:
    train = bench.inputs.train
    if not train:
        raise ConfigError(
            "arms are to be tuned but no task has `train` data; add it, or keep only the arms nothing and prompt"
        )
    limit = bench.config.selection.calibration_examples
    order = np.random.default_rng([bench.config.seed, 0xCA11B]).permutation(len(train))[:limit]
    return encode_training(bench.config, bench.inputs.tasks, bench.chat, [train[i] for i in order])
