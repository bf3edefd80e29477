"""The tuning engine: what moves, the loop, checkpoints, saved weights, and what it all costs."""

from tunescope.engine.activations import ActivationCache, CacheCounts, numerics_of, open_cache
from tunescope.engine.base import check_base
from tunescope.engine.calibrate import NumberFormat, Widths, calibrate_dtype, widths_of
from tunescope.engine.change import weight_change
from tunescope.engine.checkpoint import read_tensors, write_tensors
from tunescope.engine.fit import (
    CANDIDATES,
    Checks,
    Fit,
    Outcome,
    Race,
    race,
    race_steps,
    remove_checkpoints,
    validation_loss,
)
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
from tunescope.engine.regularise import base_entries, decay_entries_, smoothed_losses
from tunescope.engine.restart import load_saved, saved_selection
from tunescope.engine.shelves import default_root
from tunescope.engine.staging import DeviceReader
from tunescope.engine.stream import Filled, StreamedStates, check_tail, fill
from tunescope.engine.terms import L2SP, KLToBase, Term
from tunescope.engine.tuner import Recipe, Tuner, load_weights, pieces, scheduled
from tunescope.engine.weights import attach, check_fits, save, weight_bytes
from tunescope.engine.workers import ALONE, Workers, join_workers
from tunescope.engine.worthwhile import must_stream, worth_caching

__all__ = [
    "ALONE",
    "CANDIDATES",
    "L2SP",
    "ActivationCache",
    "CacheCounts",
    "Checks",
    "DeviceReader",
    "Filled",
    "Fit",
    "KLToBase",
    "Meter",
    "Moving",
    "NumberFormat",
    "Outcome",
    "Race",
    "Recipe",
    "StreamedStates",
    "Term",
    "Tuner",
    "Watch",
    "Widths",
    "Workers",
    "asserts_backward_stops",
    "attach",
    "base_entries",
    "calibrate_dtype",
    "check_base",
    "check_fits",
    "check_selection",
    "check_tail",
    "decay_entries_",
    "default_root",
    "describe",
    "fill",
    "join_workers",
    "load_saved",
    "load_weights",
    "must_stream",
    "numerics_of",
    "open_cache",
    "pieces",
    "prepare",
    "race",
    "race_steps",
    "read_tensors",
    "remove_checkpoints",
    "save",
    "saved_selection",
    "scheduled",
    "smoothed_losses",
    "to_inference",
    "validation_loss",
    "weight_bytes",
    "weight_change",
    "widths_of",
    "worth_caching",
    "write_tensors",
]
