"""How long one request takes, and whether scores depend on the batch they are computed in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tunescope.data import ChatFormat, Example
from tunescope.evaluate.answers import Answering, answer
from tunescope.models import continuation_logprobs, device_of


def latencies(
    model: Any, chat: ChatFormat, requests: Sequence[tuple[Example, Answering]]
) -> tuple[float, float] | None:
    """Times requests one at a time, as a server without batching would answer them.

    Args:
        model: the model.
        chat: its chat format.
        requests: examples and how each is answered; the first is answered once more, untimed, to warm up.

    Returns:
        Median and 95th percentile in seconds, or None without requests.
    """
    if not requests:
        return None
    on_gpu = device_of(model).type == "cuda"
    seconds = []
    for example, how in [requests[0], *requests]:
        started = time.perf_counter()
        answer(model, chat, [example], how)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    p50, p95 = np.percentile(seconds[1:], [50, 95])
    return float(p50), float(p95)


def batch_noise(model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> float:
    """Measures how much a score changes with the batch that it is computed in.

    Args:
        model: the model.
        prompts: token ids of a few examples of different lengths.
        continuations: token ids of the choices.

    Returns:
        The largest difference of a log-probability between one row at a time and all together, in nats. 0 means bit-identical.
    """
    together = continuation_logprobs(model, prompts, continuations, batch_tokens=1 << 20)
    alone = torch.cat([continuation_logprobs(model, [prompt], continuations) for prompt in prompts])
    return float((together - alone).abs().max())
