"""Tiny models, rows and everything that may move: one table for all contracts of the engine."""

import random

import torch

from tunescope.data import Encoded, Example
from tunescope.engine import Moving, Recipe, Tuner, prepare
from tunescope.models import PARTS, block_names, family_of
from tunescope.runs.records import Selection
from tunescope.testing import tiny_model

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
N_LAYERS = 4
ALL = block_names(N_LAYERS)
SELECTIONS = {
    "lora on all blocks": Selection("lora", ALL, PARTS, "test"),
    "lora on some blocks": Selection("lora", ("block.1", "block.3"), ("q", "v", "down"), "test"),
    "lora on one block": Selection("lora", ("block.2",), ("gate",), "test"),
    "weights of blocks": Selection("weights", ("block.2", "block.3"), (), "test"),
    "weights of parts": Selection("weights", ("block.1", "block.3"), ("q", "o", "up"), "test"),
    "full": Selection("weights", ALL, (), "test", whole_model=True),
}
RECIPE = Recipe(3e-3, num_epochs=2, batch_size=4, warmup_fraction=0.2, seed=3)


def make_rows(count=12, *, seed=0) -> list[Encoded]:
    """Prompts of random bytes; the answer is one of three words, told by the prompt's first byte."""
    numbers = random.Random(seed)
    rows = []
    for i in range(count):
        prompt = (97 + i % 3, *(numbers.randrange(256) for _ in range(numbers.randint(2, 14))))
        answer = ("it", "facility", "hr")[i % 3]
        rows.append(Encoded(prompt, (*answer.encode(), 256), Example(str(i), "t", "", "", (answer,))))
    return rows


def make_moving(kind="lora on some blocks", family="llama", dtype="float32", *, seed=0, model=None, rank=4) -> Moving:
    """A prepared tiny model."""
    model = tiny_model(family, n_layers=N_LAYERS, dtype=DTYPES[dtype]) if model is None else model
    return prepare(model, family_of(family), SELECTIONS[kind], lora_rank=rank, lora_alpha=2 * rank, seed=seed)


def make_tuner(
    kind="lora on some blocks", family="llama", dtype="float32", *, seed=0, rows=None, recipe=RECIPE, **more
) -> Tuner:
    """A tuner at step 0."""
    moving = make_moving(kind, family, dtype, seed=seed)
    return Tuner(moving, make_rows() if rows is None else rows, recipe, arm="test", **more)


def weights_of(moving: Moving) -> dict[str, torch.Tensor]:
    """A copy of what moves."""
    return {name: p.detach().clone() for name, p in moving.parameters.items()}


def everything(model) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {name: t.detach().clone() for name, t in tensors.items()}


def assert_same(left, right) -> None:
    """Asserts that two dictionaries of tensors are equal bit by bit."""
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def facts_of(records) -> list[dict]:
    """Records without the time they took."""
    return [record.to_dict() | {"seconds": 0.0} for record in records]
