"""Measure every arm the same way: answers, results with intervals, generalisation, risk, speed."""

from tunescope.evaluate.answers import Answering, Batch, answer, answer_batches, same_start
from tunescope.evaluate.choices import (
    FewShot,
    answer_text,
    chat_example,
    check_context,
    few_shot,
    letter_format,
    plain_ids,
    show,
    zero_shot,
)
from tunescope.evaluate.findings import Crossed, Finding, Measured, check, verdict_of
from tunescope.evaluate.matrix import matrix, reworded
from tunescope.evaluate.ranks import token_ranks
from tunescope.evaluate.results import BASE_ARM, Scored, mean_over_tasks, summarise
from tunescope.evaluate.risk import collapse_rate, risks, unrelated_rate
from tunescope.evaluate.served import served_batches
from tunescope.evaluate.speed import batch_noise, latencies
from tunescope.evaluate.stopping import cut, ends_at
from tunescope.evaluate.texts import by_text, zero_shot_by_text

__all__ = [
    "BASE_ARM",
    "Answering",
    "Batch",
    "Crossed",
    "FewShot",
    "Finding",
    "Measured",
    "Scored",
    "answer",
    "answer_batches",
    "answer_text",
    "batch_noise",
    "by_text",
    "chat_example",
    "check",
    "check_context",
    "collapse_rate",
    "cut",
    "ends_at",
    "few_shot",
    "latencies",
    "letter_format",
    "matrix",
    "mean_over_tasks",
    "plain_ids",
    "reworded",
    "risks",
    "same_start",
    "served_batches",
    "show",
    "summarise",
    "token_ranks",
    "unrelated_rate",
    "verdict_of",
    "zero_shot",
    "zero_shot_by_text",
]
