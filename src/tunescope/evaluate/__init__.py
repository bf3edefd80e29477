"""Measure every arm the same way: answers, results with intervals, risk, speed."""

from tunescope.evaluate.answers import Answering, answer
from tunescope.evaluate.results import BASE_ARM, Scored, risks, summarise
from tunescope.evaluate.speed import batch_noise, latencies

__all__ = ["BASE_ARM", "Answering", "Scored", "answer", "batch_noise", "latencies", "risks", "summarise"]
