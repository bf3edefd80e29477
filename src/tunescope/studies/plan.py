"""``plan.yaml``: what is going to be tuned, in words, with its price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from tunescope.config import Config
from tunescope.runs.records import SCHEMA_VERSION, Forecast, Selection


def plan_text(config: Config, selections: Mapping[str, Selection], forecasts: Sequence[Forecast]) -> str:
    """Returns the plan as YAML."""
    by_arm = {f.arm: f for f in forecasts}
    business = config.business
    arms = {}
    for arm, selection in selections.items():
        cost = by_arm[arm]
        arms[arm] = {
            "why": selection.why,
            "method": selection.method,
            "layers": list(selection.layers) if not selection.whole_model else "all weights",
            "modules": list(selection.modules) or "whole blocks",
            "trainable_parameters": cost.trainable_parameters,
            "forecast": {
                "tuning_seconds": round(cost.tuning_seconds, 1),
                "evaluation_seconds": round(cost.evaluation_seconds, 1),
                "peak_memory_bytes": cost.peak_memory_bytes,
                "machine_cost": round(
                    (cost.tuning_seconds + cost.evaluation_seconds) / 3600 * business.machine_cost_per_hour, 4
                ),
                "currency": business.currency,
            },
        }
    values = {"schema_version": SCHEMA_VERSION, "state": "not required", "arms": arms}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
