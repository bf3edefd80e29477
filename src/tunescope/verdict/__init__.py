"""From measured scores to a verdict that a manager can act on: is tuning worth it, and which arm.

`decide` gives the verdict, `money` what every arm is worth; the rules stand in ``verdict.decision``.
"""

from __future__ import annotations

from tunescope.verdict.decision import add_risk_steps, decide
from tunescope.verdict.evidence import CONTROL, UNTUNED, Evidence, collect
from tunescope.verdict.money import Assumptions, best_untuned, money
from tunescope.verdict.rules import Gates

__all__ = [
    "CONTROL",
    "UNTUNED",
    "Assumptions",
    "Evidence",
    "Gates",
    "add_risk_steps",
    "best_untuned",
    "collect",
    "decide",
    "money",
]
