"""The formulas of docs/scale.md: against what is counted on small random models, against recorded figures, and the tables made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tunescope import engine
from tunescope.data import Encoded, Example
from tunescope.models import FAMILIES
from tunescope.models.attention import register
from tunescope.runs.records import Selection

PARTS = ("q", "k", "v", "o", "gate", "up", "down")
DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Shape:
    """A Llama-like model: d, f, kv, h, n, V of the page."""

    d: int
    f: int
    kv: int
    h: int
    n: int
    vocab: int

    @property
    def block(self) -> int:
        return 2 * self.d**2 + 2 * self.d * self.kv + 3 * self.d * self.f

    @property
    def ends(self) -> int:
        return 2 * self.vocab * self.d

    def lora(self, rank: int, blocks: int) -> int:
        return blocks * rank * (9 * self.d + 2 * self.kv + 3 * self.f)

    def kept(self, rank: int, length: int, number_bytes: int) -> float:
        """Bytes that a block keeps per token for the backward pass."""
        attention = self.h * length
        if number_bytes == 4:
            return 4 * (6 * self.d + 4 * self.f + 2 * self.kv + 7 * rank + attention)
        return 2 * (8.3 * self.d + 4 * self.f + 2 * self.kv + 13 * rank + attention)

    def flops(self, rank: int, blocks: int, share: float, *, lower: bool = True) -> float:
        """Operations per token of a step; `share` of the tokens are answers."""
        run = self.n if lower else blocks
        last = 4 * (1 - share) * (2 * self.d**2 + 3 * self.d * self.f)
        lowest = 2 * (self.d**2 + 2 * self.d * self.kv)
        head = 4 * share * self.vocab * self.d
        return 2 * run * self.block + 2 * blocks * self.block + 6 * self.lora(rank, blocks) - last - lowest + head


SEVEN = Shape(3584, 18944, 512, 28, 28, 152064)
SEVENTY = Shape(8192, 28672, 1024, 64, 80, 128256)
SMALL = Shape(576, 1536, 192, 9, 30, 49152)


def tuner(
    shape: Shape, rank: int, blocks: range, dtype: torch.dtype, length: int, target: int, **recipe: bool
) -> engine.Tuner:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d,
        intermediate_size=shape.f,
        num_hidden_layers=shape.n,
        num_attention_heads=shape.h,
        num_key_value_heads=shape.kv * shape.h // shape.d,
        attn_implementation=register(),
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    selection = Selection("lora", tuple(f"block.{i}" for i in blocks), PARTS, "")
    moving = engine.prepare(model, FAMILIES[0], selection, lora_rank=rank)
    numbers = torch.randint(1, shape.vocab, (4, length), generator=torch.Generator().manual_seed(1)).tolist()
    example = Example("1", "t", "a", "", ("b",))
    rows = [Encoded(tuple(row[: length - target]), tuple(row[length - target :]), example) for row in numbers]
    return engine.Tuner(moving, rows, engine.Recipe(1e-3, batch_size=4, batch_tokens=1 << 20, **recipe))  # type: ignore[arg-type]


def bytes_kept(shape: Shape, rank: int, dtype: torch.dtype, length: int, **recipe: bool) -> float:
    """Counted bytes of everything that is kept for the backward pass and is no weight, per token."""
    found = tuner(shape, rank, range(shape.n), dtype, length, 4, **recipe)
    weights = {p.untyped_storage().data_ptr() for p in found.moving.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found._add_gradients(found._examples, 1 << 20)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (4 * length)


@pytest.mark.parametrize(("dtype", "number_bytes"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_what_a_block_keeps_for_the_backward_pass_is_the_formula(dtype: torch.dtype, number_bytes: int) -> None:
    one, three = (Shape(96, 320, 48, 6, n, 260) for n in (2, 4))
    counted = (bytes_kept(three, 3, dtype, 48) - bytes_kept(one, 3, dtype, 48)) / 2
    assert counted == pytest.approx(one.kept(3, 48, number_bytes), rel=0.03)
    again = (
        bytes_kept(three, 3, dtype, 48, checkpointing=True) - bytes_kept(one, 3, dtype, 48, checkpointing=True)
    ) / 2
    assert again == pytest.approx(number_bytes * one.d, rel=1e-6)


def test_weights_adapters_gradients_and_moments_are_counted_bytes() -> None:
    shape = Shape(64, 160, 32, 4, 3, 260)
    found = tuner(shape, 2, range(1, 3), torch.bfloat16, 16, 4)
    frozen = [p for p in found.moving.model.parameters() if not p.requires_grad]
    norms = (2 * shape.n + 1) * shape.d
    assert sum(p.nbytes for p in frozen) == 2 * (shape.n * shape.block + shape.ends + norms)
    for _ in zip(range(1), found.steps(), strict=False):
        pass
    moved = list(found.moving.parameters.values())
    state = sum(v.nbytes for p in moved for k, v in found._optimizer.state[p].items() if k != "step")
    assert sum(p.numel() for p in moved) == shape.lora(2, 2)
    assert sum(p.nbytes for p in moved) * 2 + state == 16 * shape.lora(2, 2)  # a gradient is as large as its weight


@pytest.mark.parametrize("blocks", [range(8), range(5, 8)])
def test_operations_per_token_are_counted_ones(blocks: range) -> None:
    shape = Shape(256, 768, 64, 16, 8, 260)
    found = tuner(shape, 4, blocks, torch.float32, 32, 8)
    with FlopCounterMode(display=False) as counter:
        found._add_gradients(found._examples, 1 << 20)
    counted = counter.get_total_flops() / (4 * 32)
    assert counted == pytest.approx(shape.flops(4, len(blocks), 8 / 32), rel=0.06)


def test_operations_recorded_for_the_small_model_are_the_formula_too() -> None:
    text = (DOCS / "engine.md").read_text(encoding="utf-8")
    recorded = {
        name: float(value)
        for name, value in re.findall(
            r"\| (all blocks: as here|top third: as here(?:, from kept states)?) \| (\d+) \|", text
        )
    }
    expected = {
        "all blocks: as here": SMALL.flops(8, 30, 0.2),
        "top third: as here": SMALL.flops(8, 10, 0.2),
        "top third: as here, from kept states": SMALL.flops(8, 10, 0.2, lower=False),
    }
    assert recorded.keys() == expected.keys()
    for name, value in expected.items():
        assert value / 1e6 == pytest.approx(recorded[name], rel=0.1), name


def worker_bytes(shape: Shape, workers: int, blocks: int) -> float:
    """What stands in one worker's memory with sharding fsdp2, in bfloat16 and without activations."""
    return 2 * shape.n * shape.block / workers + 2 * shape.ends + 4 * shape.block + 16 * shape.lora(8, blocks) / workers


def rows_of_the_page() -> dict[str, list[float]]:
    rows = {}
    for line in (DOCS / "scale.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and all(re.fullmatch(r"[\d.,]+", cell) for cell in cells[1:]):
            rows[cells[0]] = [float(cell.replace(",", "")) for cell in cells[1:]]
    return rows


def test_the_tables_of_the_page_are_the_formulas() -> None:
    rows, models = rows_of_the_page(), (SEVEN, SEVENTY)
    thirds, tokens, length = (9, 27), 4096, 512
    giga = 1e9
    expected: dict[str, list[float]] = {
        "weights of the model, 10⁹": [(m.n * m.block + m.ends) / giga for m in models],
        "weights, bfloat16": [2 * (m.n * m.block + m.ends) / giga for m in models],
        "LoRA on all blocks: adapters, gradients, AdamW": [16 * m.lora(8, m.n) / giga for m in models],
        "LoRA on the upper third: the same": [16 * m.lora(8, t) / giga for m, t in zip(models, thirds, strict=True)],
        "all weights: float32, gradients, AdamW": [16 * (m.n * m.block + m.ends) / giga for m in models],
        "activations, all blocks": [m.kept(8, length, 2) * tokens * m.n / giga for m in models],
        "activations, upper third": [
            m.kept(8, length, 2) * tokens * t / giga for m, t in zip(models, thirds, strict=True)
        ],
        "activations, all blocks, checkpointing": [
            (2 * m.d * m.n + m.kept(8, length, 2)) * tokens / giga for m in models
        ],
        "activations, upper third, checkpointing": [
            (2 * m.d * t + m.kept(8, length, 2)) * tokens / giga for m, t in zip(models, thirds, strict=True)
        ],
        "logits": [3 * (1 << 26) / giga] * 2,
        "kept states, per million tokens, on disk": [2 * m.d * 1e6 / giga for m in models],
        "one worker of 4": [worker_bytes(m, 4, m.n) / giga for m in models],
        "one worker of 8": [worker_bytes(m, 8, m.n) / giga for m in models],
        "one worker of 16": [worker_bytes(m, 16, m.n) / giga for m in models],
        "LoRA on all blocks, GFLOP": [m.flops(8, m.n, 0.2) / giga for m in models],
        "LoRA on the upper third, GFLOP": [m.flops(8, t, 0.2) / giga for m, t in zip(models, thirds, strict=True)],
        "the same from kept states, GFLOP": [
            m.flops(8, t, 0.2, lower=False) / giga for m, t in zip(models, thirds, strict=True)
        ],
    }
    assert expected.keys() <= rows.keys(), expected.keys() - rows.keys()
    for name, values in expected.items():
        assert rows[name] == pytest.approx(values, rel=0.01, abs=0.005), (name, values)
