"""Settings: one YAML file, checked completely before anything runs."""

from tunescope.config.demonstrations import DemonstrationSettings
from tunescope.config.engine import EngineSettings
from tunescope.config.evaluation import EvaluationSettings
from tunescope.config.generation import FREE_ON_RESUME, GenerationSettings
from tunescope.config.knowledge import InterventionSettings, KnowledgeSettings, QuestionFileSettings
from tunescope.config.layer_map import MapSettings, SpecialistSettings
from tunescope.config.load import dump, load, validate
from tunescope.config.models import (
    BLOCK_SCORES,
    Arm,
    BusinessSettings,
    Config,
    DataSettings,
    GateSettings,
    Metric,
    SelectionSettings,
    TaskSettings,
)
from tunescope.config.ray import RaySettings
from tunescope.config.replay import INSTRUCTION_POLICIES, ORDERS, ReplaySettings, TagSettings
from tunescope.config.schema import json_schema, markdown
from tunescope.config.search import SearchSettings
from tunescope.config.tuning import RegularisationSettings, TuningSettings

__all__ = [
    "BLOCK_SCORES",
    "FREE_ON_RESUME",
    "INSTRUCTION_POLICIES",
    "ORDERS",
    "Arm",
    "BusinessSettings",
    "Config",
    "DataSettings",
    "DemonstrationSettings",
    "EngineSettings",
    "EvaluationSettings",
    "GateSettings",
    "GenerationSettings",
    "InterventionSettings",
    "KnowledgeSettings",
    "MapSettings",
    "Metric",
    "QuestionFileSettings",
    "RaySettings",
    "RegularisationSettings",
    "ReplaySettings",
    "SearchSettings",
    "SelectionSettings",
    "SpecialistSettings",
    "TagSettings",
    "TaskSettings",
    "TuningSettings",
    "dump",
    "json_schema",
    "load",
    "markdown",
    "validate",
]
