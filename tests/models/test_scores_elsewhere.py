"""On a device that is not the processor scores and answers come out as on it, and the processor waits once a batch."""

import numpy as np
import pytest

from simulated_device import simulated, waits
from tunescope.data import Encoded, Example
from tunescope.models import answer_logprobs, continuation_logprobs, greedy, mean_losses, passes
from tunescope.testing import tiny_model

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
START = tuple(range(60, 100))
PROMPTS = [(*START, *range(100, 100 + n)) for n in (1, 9, 4, 30)]
CHOICES = [(5, 6, 256), (5, 7), (9,)]
ROWS = [Encoded(prompt, CHOICES[i % 3], Example(str(i), "t", "", "", ("x",))) for i, prompt in enumerate(PROMPTS)]


def on_both(device, family, compute):
    """What comes out there, and here."""
    return [compute(tiny_model(family, n_layers=3).to(where)) for where in (device, "cpu")]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_log_probabilities_are_alike(family, device):
    for compute in (
        lambda model: mean_losses(model, ROWS, batch_tokens=60),
        lambda model: answer_logprobs(model, ROWS, batch_tokens=60)[0],
        lambda model: continuation_logprobs(model, PROMPTS, CHOICES, batch_tokens=60).numpy(),
        lambda model: continuation_logprobs(model, PROMPTS, CHOICES, float32_head=True).numpy(),
    ):
        there, here = on_both(device, family, compute)
        np.testing.assert_allclose(there, here, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same(family, device):
    def answers(model):
        found = greedy(model, PROMPTS, stop_ids=[256], max_new_tokens=12, max_batch=3)
        return sorted((index, answer.ids) for batch in found for index, answer in batch)

    there, here = on_both(device, family, answers)
    assert there == here
    assert len(here) == len(PROMPTS)


@pytest.mark.parametrize("n_layers", [2, 6])
def test_the_processor_waits_for_what_it_reads_and_for_nothing_else(n_layers):
    with simulated() as device:
        model = tiny_model(n_layers=n_layers).to(device)
        for compute, wanted in (
            (lambda: mean_losses(model, ROWS, batch_tokens=60), len(passes(ROWS, 60))),
            (lambda: list(greedy(model, PROMPTS, stop_ids=[], max_new_tokens=5)), 5),
            (lambda: continuation_logprobs(model, PROMPTS, CHOICES), 1),
        ):
            waits.clear()
            compute()
            assert waits.total() == wanted, waits
