"""One table of families and number formats for all contracts, and the rows they are tried on."""

import random

import torch

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_prompts(*, rows, shared, shortest=1, longest=40, seed=0):
    """Random rows of bytes; the first `shared` tokens are the same in all."""
    numbers = random.Random(seed)

    def some(count):
        return [numbers.randrange(256) for _ in range(count)]

    start = some(shared)
    return [start + some(numbers.randint(shortest, longest)) for _ in range(rows)]
