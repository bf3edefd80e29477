"""Settings: one YAML file, checked completely before anything runs."""

from tunescope.config.engine import EngineSettings
from tunescope.config.load import dump, load, validate
from tunescope.config.models import (
    BLOCK_SCORES,
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
)
from tunescope.config.schema import json_schema, markdown
from tunescope.config.tuning import RegularisationSettings, TuningSettings

__all__ = [
    "BLOCK_SCORES",
    "Arm",
    "BusinessSettings",
    "Config",
    "DataSettings",
    "EngineSettings",
    "EvaluationSettings",
    "GateSettings",
    "MapSettings",
    "Metric",
    "RegularisationSettings",
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
