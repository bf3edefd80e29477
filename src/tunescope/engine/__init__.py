"""The tuning engine: what moves, the loop, checkpoints, saved weights, and what it all costs."""

from tunescope.engine.checkpoint import read_tensors, write_tensors
from tunescope.engine.fit import CANDIDATES, Checks, Fit, Outcome, Race, race, race_steps, validation_loss
from tunescope.engine.meter import Meter
from tunescope.engine.moving import (
    Moving,
    Watch,
    asserts_backward_stops,
    check_selection,
    describe,
    prepare,
    to_inference,
)
from tunescope.engine.tuner import Recipe, Tuner, load_weights, pieces, scheduled
from tunescope.engine.weights import attach, check_fits, save, weight_bytes

__all__ = [
    "CANDIDATES",
    "Checks",
    "Fit",
    "Meter",
    "Moving",
    "Outcome",
    "Race",
    "Recipe",
    "Tuner",
    "Watch",
    "asserts_backward_stops",
    "attach",
    "check_fits",
    "check_selection",
    "describe",
    "load_weights",
    "pieces",
    "prepare",
    "race",
    "race_steps",
    "read_tensors",
    "save",
    "scheduled",
    "to_inference",
    "validation_loss",
    "weight_bytes",
    "write_tensors",
]
