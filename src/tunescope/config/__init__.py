"""Settings: one YAML file, checked completely before anything runs."""

from tunescope.config.load import dump, load, validate
from tunescope.config.models import (
    Arm,
    BusinessSettings,
    Config,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    MapSettings,
    Metric,
    SelectionSettings,
    SpecialistSettings,
    TaskSettings,
    TuningSettings,
)
from tunescope.config.schema import json_schema, markdown

__all__ = [
    "Arm",
    "BusinessSettings",
    "Config",
    "DataSettings",
    "EvaluationSettings",
    "GateSettings",
    "MapSettings",
    "Metric",
    "SelectionSettings",
    "SpecialistSettings",
    "TaskSettings",
    "TuningSettings",
    "dump",
    "json_schema",
    "load",
    "markdown",
    "validate",
]
