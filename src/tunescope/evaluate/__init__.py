"""Measure every arm the same way: answers, results with intervals, generalisation, risk, speed."""

from tunescope.evaluate.answers import Answering, answer, same_start
from tunescope.evaluate.findings import Crossed, Finding, Measured, check, verdict_of
from tunescope.evaluate.matrix import matrix, reworded
from tunescope.evaluate.results import BASE_ARM, Scored, mean_over_tasks, summarise
from tunescope.evaluate.risk import collapse_rate, risks, unrelated_rate
from tunescope.evaluate.speed import batch_noise, latencies

__all__ = [
    "BASE_ARM",
    "Answering",
    "Crossed",
    "Finding",
    "Measured",
    "Scored",
    "answer",
    "batch_noise",
    "check",
    "collapse_rate",
    "latencies",
    "matrix",
    "mean_over_tasks",
    "reworded",
    "risks",
    "same_start",
    "summarise",
    "unrelated_rate",
    "verdict_of",
]
