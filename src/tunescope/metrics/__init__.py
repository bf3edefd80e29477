"""Scores, intervals and risk as plain functions of texts and arrays; no model, no torch.

`SCORERS` holds the scores of generated answers by the name that a config uses; labels are scored by `accuracy` and
`macro_f1`. ``metrics.bootstrap`` says how examples become intervals.
"""

from __future__ import annotations

from collections.abc import Callable

from tunescope.metrics.bootstrap import (
    Difference,
    Interval,
    difference_of,
    difference_of_resamples,
    interval,
    interval_of,
    paired_difference,
    resampled_means,
)
from tunescope.metrics.calibration import (
    HumanShare,
    RiskCoverage,
    check_threshold,
    choose_human_share,
    choose_threshold,
    expected_calibration_error,
    halves,
    risk_coverage,
)
from tunescope.metrics.classification import (
    accuracy,
    correctness,
    macro_f1,
    macro_f1_contributions,
    macro_f1_statistic,
)
from tunescope.metrics.continual import backward_transfer, forgetting, forward_transfer, relative_gain
from tunescope.metrics.crossed import crossed_difference, resample_seeds_and_examples
from tunescope.metrics.fields import json_fields
from tunescope.metrics.margins import wilson
from tunescope.metrics.power_law import DataForecast, PowerLaw, fit_power_law, forecast_gain
from tunescope.metrics.text import (
    best_over_references,
    chrf,
    exact_match,
    fold,
    normalise,
    rouge_l,
    token_f1,
    tokenise,
)
from tunescope.metrics.unrelated import unrelated_flags

SCORERS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "json_fields": json_fields,
}

__all__ = [
    "SCORERS",
    "DataForecast",
    "Difference",
    "HumanShare",
    "Interval",
    "PowerLaw",
    "RiskCoverage",
    "accuracy",
    "backward_transfer",
    "best_over_references",
    "check_threshold",
    "choose_human_share",
    "choose_threshold",
    "chrf",
    "correctness",
    "crossed_difference",
    "difference_of",
    "difference_of_resamples",
    "exact_match",
    "expected_calibration_error",
    "fit_power_law",
    "fold",
    "forecast_gain",
    "forgetting",
    "forward_transfer",
    "halves",
    "interval",
    "interval_of",
    "json_fields",
    "macro_f1",
    "macro_f1_contributions",
    "macro_f1_statistic",
    "normalise",
    "paired_difference",
    "relative_gain",
    "resample_seeds_and_examples",
    "resampled_means",
    "risk_coverage",
    "rouge_l",
    "token_f1",
    "tokenise",
    "unrelated_flags",
    "wilson",
]
