"""Latencies are of single requests; batch noise is zero where scores do not depend on the batch, and seen where they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunescope.data import ChatFormat, Example
from tunescope.evaluate import Answering, batch_noise, latencies
from tunescope.testing import byte_tokenizer, tiny_model

CHAT = ChatFormat(byte_tokenizer())
HOW = Answering("accuracy", ("it", "hr"))
REQUESTS = [(Example(str(i), "desk", "Desk?", "x" * i, ("it",)), HOW) for i in range(1, 6)]


def test_without_requests_there_is_no_latency() -> None:
    assert latencies(tiny_model(), CHAT, []) is None


def test_requests_are_answered_one_at_a_time_and_the_warm_up_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 100, 100, 101, 101, 103, 103, 106, 106, 110, 110, 115])  # the first request takes 100 seconds
    asked: list[list[str]] = []
    monkeypatch.setattr("tunescope.evaluate.speed.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(
        "tunescope.evaluate.speed.answer", lambda _model, _chat, examples, _how: asked.append([e.id for e in examples])
    )
    p50, p95 = latencies(tiny_model(), CHAT, REQUESTS) or (0, 0)
    assert asked == [["1"], ["1"], ["2"], ["3"], ["4"], ["5"]]
    assert p50 == 3 and p95 == pytest.approx(4.8)


def test_latencies_are_seconds_of_real_answers() -> None:
    p50, p95 = latencies(tiny_model(), CHAT, REQUESTS) or (0, 0)
    assert 0 < p50 <= p95 < 60


def test_scores_on_a_cpu_do_not_depend_on_the_batch() -> None:
    prompts = [CHAT.encode(example).prompt_ids for example, _ in REQUESTS]
    choices = [CHAT.target_ids(label) for label in ("it", "hr", "facility")]
    assert batch_noise(tiny_model(dtype=torch.bfloat16), prompts, choices) == 0
    assert batch_noise(tiny_model(), prompts, choices) < 1e-4


def test_batch_noise_is_the_largest_change_of_a_log_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(_model: Any, prompts: list[Any], continuations: list[Any], **_: Any) -> torch.Tensor:
        scores = torch.zeros((len(prompts), len(continuations)), dtype=torch.float64)
        scores[-1, -1] = -0.25 * len(prompts)
        return scores

    monkeypatch.setattr("tunescope.evaluate.speed.continuation_logprobs", drifting)
    assert batch_noise(None, [[1], [2], [3]], [[4], [5]]) == pytest.approx(0.5)
