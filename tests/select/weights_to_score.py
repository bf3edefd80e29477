"""A tiny model's matrices with everything that the selectors may ask for."""

import random

from tunescope.data import Encoded, Example
from tunescope.models import block_names, family_of
from tunescope.runs.records import Bands, LayerScores
from tunescope.select import Context, collect, weight_matrices
from tunescope.testing import tiny_model

N_LAYERS = 3
LAYERS = block_names(N_LAYERS)
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")


def rows(count=4, *, seed=0):
    numbers = random.Random(seed)
    return [
        Encoded(
            tuple(numbers.randrange(256) for _ in range(numbers.randint(3, 9))),
            (*(numbers.randrange(256) for _ in range(numbers.randint(1, 5))), 256),
            Example(str(i), "t", "", "", ("x",)),
        )
        for i in range(count)
    ]


def layer_scores(values=(0.5, -1.0, 2.0), name="scores"):
    return LayerScores(name, "1", LAYERS[: len(values)], tuple(values), n=4, higher_means="choose")


CONTEXT = Context(
    seed=3,
    rank=4,
    layer_map=Bands(True, "test", LAYERS, boundaries=(1, 2)),
    causal=layer_scores(),
)


def offered(family="llama", **settings):
    """Weights and statistics of a tiny model."""
    model = tiny_model(family, n_layers=N_LAYERS, **settings)
    return (
        weight_matrices(model, family_of(family)),
        collect(model, family_of(family), rows()),
    )
