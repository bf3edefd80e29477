"""What each tuned arm moves: `selected` by a score or by hand, and its controls at the same budget, granularity and method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tunescope import models, select
from tunescope.config import Arm, Config
from tunescope.errors import ConfigError
from tunescope.models import Loaded
from tunescope.runs.records import LayerScores, Selection
from tunescope.select import Budget, Mask
from tunescope.studies.bench import Bench
from tunescope.studies.mask_files import mask_path
from tunescope.studies.progress import Progress
from tunescope.studies.scored import Scored, scored

Picked = tuple[str, ...] | Mask  # whole blocks, or pieces


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        scores: of the blocks; the one that chose comes first.
        selections: arm -> what it moves; the counts are filled in when the arm is prepared.
        map: facts of the layer map for ``layers.json``, or None where none was made.
    """

    scores: list[LayerScores]
    selections: dict[str, Selection]
    map: Mapping[str, Any] | None = None


def choose(bench: Bench, loaded: Loaded, progress: Progress) -> Choice:
    """Decides what each tuned arm of the config moves; the masks of sparse arms are written to the run folder.

    Raises:
        ConfigError: the budget cannot be met, or a control would be the same as what it controls.
        UserError: a score cannot be computed.
    """
    config = bench.config
    offer = _Offer.of(config, loaded)
    picks: dict[str, tuple[Picked, str]] = {}
    found: Scored | None = None
    if Arm.SELECTED in config.arms:
        if config.selection.blocks:
            chosen: Picked = select.match_layers(config.selection.blocks, offer.blocks)
            why = f"chosen by hand: {', '.join(config.selection.blocks)}"
        elif config.selection.names:
            chosen = select.hand_mask(offer.weights, config.selection.names)
            why = f"chosen by hand: {', '.join(config.selection.names)}"
        else:
            found = scored(bench, loaded, offer.weights, progress)
            chosen = offer.best(found)
            why = f"the {offer.amount(chosen)} {found.words}"
        picks[Arm.SELECTED.value] = chosen, why
        if Arm.RANDOM in config.arms:
            picks[Arm.RANDOM.value] = offer.random(chosen, config.seed)
        if Arm.TOP_THIRD in config.arms:
            picks[Arm.TOP_THIRD.value] = offer.top_third(chosen, found)
    selections = {arm: offer.selection(*pick) for arm, pick in picks.items()}
    for arm, (picked, _) in picks.items():
        if isinstance(picked, Mask) and offer.method == "sparse":
            picked.save(mask_path(bench.run, arm))
    parts = tuple(config.tuning.target_modules)
    if Arm.LORA_ALL in config.arms:
        why = f"LoRA on all {len(offer.blocks)} blocks"
        selections[Arm.LORA_ALL.value] = Selection("lora", offer.blocks, parts, why)
    if Arm.FULL in config.arms:
        selections[Arm.FULL.value] = Selection(
            "weights", offer.blocks, (), "all weights of the model", whole_model=True
        )
    if found is None:
        return Choice([], selections)
    return Choice([found.shown, *found.others], selections, found.facts)


@dataclass(frozen=True)
class _Offer:
    """What may be chosen from, and how much of it."""

    config: Config
    blocks: tuple[str, ...]
    weights: Mapping[str, torch.Tensor]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, config: Config, loaded: Loaded) -> _Offer:
        every = select.weight_matrices(loaded.model, loaded.family)
        weights = {n: w for n, w in every.items() if n.rpartition(".")[2] in config.tuning.target_modules}
        sizes = {name: weight.numel() for name, weight in every.items()}
        return cls(config, models.block_names(loaded.info.n_layers), weights, sizes)

    @property
    def method(self) -> str:
        return self.config.tuning.method

    @property
    def kind(self) -> str:
        """What the budget is a share of."""
        settings = self.config.selection
        if settings.weights is not None or settings.names:
            return "weights"
        return settings.budget_kind or ("blocks" if settings.granularity == "block" else "weights")

    @property
    def budget(self) -> Budget:
        settings = self.config.selection
        if settings.weights is not None:
            return Budget(weights=settings.weights, per_matrix=settings.per_matrix)
        if self.kind == "flops":
            return self._flops_budget()
        return Budget(share=settings.budget, per_matrix=settings.per_matrix)

    def _flops_budget(self) -> Budget:
        settings = self.config.selection
        whole = select.training_flops(self.sizes, self.weights, tokens=1)
        groups: dict[str, list[str]] = {}
        for name in self.weights:
            groups.setdefault(name.rpartition(".")[0] if settings.granularity == "block" else name, []).append(name)
        least = min(select.training_flops(self.sizes, names, tokens=1) for names in groups.values())
        if settings.budget * whole < least:
            raise ConfigError(
                f"selection.budget {settings.budget:g} of the cost: tuning even the cheapest {settings.granularity} takes {least / whole:.2f} of "
                "what tuning everything on offer does, since the forward pass always runs; raise it"
            )
        return Budget(flops=settings.budget * whole, tokens=1)

    def best(self, found: Scored) -> Picked:
        """The pieces with the highest scores."""
        settings = self.config.selection
        if self.kind == "blocks":
            return select.choose_top(found.order, select.budget_layers(len(self.blocks), settings.budget))
        scores = found.weights
        if scores is None or settings.granularity == "block":
            scores = select.score("layer_map", self.weights, context=select.Context(layer_map=found.order))
        return self._whole(select.masks(scores, granularity=settings.granularity, budget=self.budget, sizes=self.sizes))

    def random(self, chosen: Picked, seed: int) -> tuple[Picked, str]:
        """The control that is drawn."""
        if isinstance(chosen, Mask) or self.kind == "flops":
            like = chosen if isinstance(chosen, Mask) else self._mask(chosen)
            budget = Budget(weights=like.count) if self.config.selection.names else self.budget
            drawn = select.random_control(like, self.weights, budget=budget, seed=seed, sizes=self.sizes)
            picked = self._whole(drawn)
        else:
            picked = select.choose_random(self.blocks, len(chosen), seed=seed, avoid=chosen)
        return picked, f"{self.amount(picked)} drawn at random (seed {seed}): the control at the same budget"

    def top_third(self, chosen: Picked, found: Scored | None) -> tuple[Picked, str]:
        """The rule of thumb at the same budget."""
        n_layers = len(self.blocks)
        if isinstance(chosen, Mask) or self.kind == "flops":
            like = chosen if isinstance(chosen, Mask) else self._mask(chosen)
            by_hand = self.config.selection.names is not None
            scores: Mapping[str, torch.Tensor] | None = found.weights if found is not None else None
            if scores is None:
                scores = {name: torch.zeros(tuple(weight.shape)) for name, weight in self.weights.items()}
            budget = Budget(weights=like.count) if by_hand else self.budget
            found_there = select.top_third_control(like, scores, budget=budget, n_layers=n_layers, sizes=self.sizes)
            picked = self._whole(found_there)
        else:
            picked = self.blocks[-len(chosen) :]
        return picked, f"the {self.amount(picked)} next to the output: the rule of thumb, at the same budget"

    def amount(self, picked: Picked) -> str:
        """How much it is, in words."""
        if not isinstance(picked, Mask):
            return f"{len(picked)} of {len(self.blocks)} blocks"
        if picked.granularity == "module":
            return f"{len(picked.entries)} of {len(self.weights)} matrices"
        share = f"{100 * picked.count / picked.total:.3g} %"
        unit = {"entry": "entries"}.get(picked.granularity, f"weights, by {picked.granularity},")
        return f"{picked.count:,} of {picked.total:,} {unit} ({share})"

    def selection(self, picked: Picked, why: str) -> Selection:
        method, parts = self.config.tuning.method, tuple(self.config.tuning.target_modules)
        if isinstance(picked, Mask):
            return select.selection_of(picked, method=method, why=why)
        # With `weights` and all parts named, a block moves as a whole, its norms included.
        whole = method == "weights" and set(parts) == set(models.PARTS)
        return Selection(method, picked, () if whole else parts, why)

    def _whole(self, mask: Mask) -> Picked:
        return mask.layers if mask.granularity == "block" else mask

    def _mask(self, blocks: tuple[str, ...]) -> Mask:
        entries = {
            name: torch.full(tuple(weight.shape), name.rpartition(".")[0] in blocks)
            for name, weight in self.weights.items()
        }
        return Mask(entries, total=sum(w.numel() for w in self.weights.values()), granularity="block")
