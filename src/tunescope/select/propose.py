"""From a layer map to sets of blocks that could be tuned, each with its price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunescope.errors import UserError
from tunescope.models import block_index, block_names
from tunescope.runs.records import Bands, LayerScores, Record
from tunescope.select.choose import budget_layers, choose_top, put_last

_BYTES_PER_MOVING = 16  # float32: the weight, its gradient and the two moments of AdamW


@dataclass(frozen=True)
class BlockCosts:
    """What `propose` needs to price a set of blocks.

    Attributes:
        weights: weights in the matrices of each block, ``block.0`` first: the work of a forward pass per token.
        moving: weights that would move in each block if it were chosen.
        lora_all: weights that LoRA on all blocks moves, for comparison.
        model_bytes: the model as loaded.
        kept_bytes: what the backward pass needs of one block's forward pass, per block.
        adapters: whether what moves stands beside the weights (LoRA) or is the weights themselves.
    """

    weights: tuple[int, ...]
    moving: tuple[int, ...]
    lora_all: int
    model_bytes: int
    kept_bytes: int
    adapters: bool = True

    def work(self, layers: Sequence[str]) -> float:
        """Multiplications per token of tuning these blocks, in units of one multiply-add.

        Forward through all blocks, the gradient of the inputs from the last block down to the lowest chosen one, and the gradient of what
        moves; adapters are also passed through forward.
        """
        chosen = [block_index(name) for name in layers]
        moving = sum(self.moving[i] for i in chosen)
        through = sum(self.weights[min(chosen) :])
        return float(sum(self.weights) + through + moving * (3 if self.adapters else 1))

    def relative(self, layers: Sequence[str]) -> float:
        """The same against LoRA on all blocks: 1 is as much."""
        return self.work(layers) / (2.0 * sum(self.weights) + 3.0 * self.lora_all)

    def memory(self, layers: Sequence[str]) -> int:
        """Bytes while tuning, roughly: model, what the backward pass keeps of the blocks it runs through, and the optimiser."""
        depth = len(self.weights) - min(block_index(name) for name in layers)
        moving = sum(self.moving[block_index(name)] for name in layers)
        return self.model_bytes + depth * self.kept_bytes + _BYTES_PER_MOVING * moving


@dataclass(frozen=True)
class Proposal(Record):
    """A set of blocks that could be tuned.

    Attributes:
        name: which rule proposes it: ``upper_cut``, ``refinement``, ``top_gain``, ``top_change``, ``top_causal`` or ``top_third``.
        layers: canonical names, ascending.
        why: one line.
        trainable_parameters: weights that would move.
        relative_cost: work of tuning against LoRA on all blocks; 1 is the same.
        memory_bytes: while tuning, worked out and not measured.
    """

    name: str
    layers: tuple[str, ...]
    why: str
    trainable_parameters: int
    relative_cost: float
    memory_bytes: int


def propose(
    costs: BlockCosts,
    *,
    share: float,
    bands: Bands | None = None,
    gain: LayerScores | None = None,
    change: LayerScores | None = None,
    last: Sequence[str] = (),
    causal: LayerScores | None = None,
) -> tuple[Proposal, ...]:
    """Returns candidate sets of blocks: what a map suggests, and the rule of thumb it has to beat.

    That tuning the transition and refinement bands is enough is a hypothesis, not a result; a control drawn at random at the same budget
    tests it. Sets by a score have ``share`` of the blocks; sets by bands have the size the bands give them.

    Args:
        costs: to price a set.
        share: of the blocks, in (0, 1], for the sets that are chosen by a score.
        bands: for the cut at the start of the transition and for the refinement band; left out where none was found.
        gain: per block how much tuning raised the similarity to the specialists; the highest are proposed.
        change: per block how much something changes there (1 - CKA); the highest are proposed.
        last: blocks whose `change` is of another kind than that of the others, and which are therefore proposed only after them.
        causal: per block the rise of the loss when it is put back; the highest are proposed.

    Returns:
        The proposals, those from bands first. The third of the blocks next to the output is always among them.

    Raises:
        UserError: the share is out of range, scores of other blocks than the costs, or a score that is not finite.

    Source:
        Zhao, Ziser & Cohen (2024), arXiv 2410.20008, for the bands. Tuning some of them only is our hypothesis.

    Example:
        >>> costs = BlockCosts((100,) * 4, (10,) * 4, 40, model_bytes=1000, kept_bytes=50)
        >>> rise = LayerScores("causal", "nats", ("block.0", "block.1", "block.2", "block.3"), (0.1, 0.4, 0.2, 0.0), n=8, higher_means="")
        >>> [(p.name, p.layers, round(p.relative_cost, 2)) for p in propose(costs, share=0.5, causal=rise)]
        [('top_causal', ('block.1', 'block.2'), 0.83), ('top_third', ('block.3',), 0.58)]
    """
    n_layers = len(costs.weights)
    names = block_names(n_layers)
    count = budget_layers(n_layers, share)
    for scores in (gain, change, causal):
        if scores is not None and tuple(scores.layers) != names:
            raise UserError(f"scores {scores.name} are of {len(scores.layers)} blocks, the costs of {n_layers}")
    found: list[Proposal] = []

    def add(name: str, layers: Sequence[str], why: str) -> None:
        moving = sum(costs.moving[block_index(block)] for block in layers)
        cost = float(f"{costs.relative(layers):.4g}")
        found.append(Proposal(name, tuple(layers), why, moving, cost, costs.memory(layers)))

    if bands is not None and bands.found and bands.boundaries is not None:
        start, end = bands.boundaries
        add(
            "upper_cut",
            names[start:],
            f"everything above the shared band: transition from {names[start]} on, refinement",
        )
        add("refinement", names[end:], f"the refinement band alone, from {names[end]} on")
    if gain is not None:
        add(
            "top_gain",
            choose_top(gain, count),
            f"the {count} blocks in which tuning brought the model nearest to the specialists (g)",
        )
    if change is not None:
        why = f"the {count} blocks with the largest change ({change.unit})"
        if last:
            why += f"; {', '.join(last)} behind all others, as its number is of another kind"
        add("top_change", choose_top(put_last(change, last), count), why)
    if causal is not None:
        add(
            "top_causal", choose_top(causal, count), f"the {count} blocks whose return to the base raises the loss most"
        )
    third = budget_layers(n_layers, 1 / 3)
    add("top_third", names[n_layers - third :], f"the {third} blocks next to the output: the rule of thumb")
    return tuple(found)
