"""Measure every arm the same way: answers, results with intervals, risk, speed."""

from tunescope.evaluate.answers import Answering, answer
from tunescope.evaluate.choices import (
    FewShot,
    answer_text,
    by_text,
    chat_example,
    check_context,
    few_shot,
    letter_format,
    plain_ids,
    show,
    zero_shot,
)
from tunescope.evaluate.ranks import token_ranks
from tunescope.evaluate.results import BASE_ARM, Scored, risks, summarise
from tunescope.evaluate.speed import batch_noise, latencies

__all__ = [
    "BASE_ARM",
    "Answering",
    "FewShot",
    "Scored",
    "answer",
    "answer_text",
    "batch_noise",
    "by_text",
    "chat_example",
    "check_context",
    "few_shot",
    "latencies",
    "letter_format",
    "plain_ids",
    "risks",
    "show",
    "summarise",
    "token_ranks",
    "zero_shot",
]
