"""The number format is chosen by what was measured, on the widths of the model."""

import json
import math

import pytest
import torch
from transformers import AutoConfig

from tunescope.engine.calibrate import DTYPES, Widths, calibrate_dtype, choose_format, widths_of
from tunescope.errors import ConfigError
from tunescope.testing import tiny_model

TINY = Widths(32, 64, 4, 2, 8)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "wanted"),
    [
        (1.0, 0.2, "bfloat16"),
        (1.0, 0.9, "bfloat16"),
        (1.0, 0.95, "float32"),
        (1.0, 1.0, "float32"),
        (1.0, 3.0, "float32"),
    ],
)
def test_bfloat16_is_taken_where_it_is_clearly_faster(float32, bfloat16, wanted):
    found = choose_format({"float32": float32, "bfloat16": bfloat16}, {"float32": 1.0, "bfloat16": 1.0})
    assert found.dtype == wanted
    assert found.why.startswith("bfloat16 is") and f"{float32 * 1e3:.1f} ms" in found.why


def test_what_was_measured_goes_into_json():
    found = calibrate_dtype(TINY, seconds=0.02)
    values = json.loads(json.dumps(found.to_dict()))
    assert values["dtype"] in DTYPES and values["threads"] == torch.get_num_threads()
    assert set(values["seconds"]) == set(values["matmul_gflops"]) == set(DTYPES)
    assert all(number > 0 for key in ("seconds", "matmul_gflops") for number in values[key].values())
    assert values["repeats"] >= 1
    assert choose_format(found.seconds, found.matmul_gflops, repeats=found.repeats) == found


def test_the_faster_of_two_machines_is_told_apart(monkeypatch):
    """Time passes as these machines would let it pass; the work itself is really done."""
    for slow, wanted in (("float32", "bfloat16"), ("bfloat16", "float32")):
        monkeypatch.setattr("tunescope.engine.calibrate._block", lambda _w, dtype, _d: lambda: str(dtype))
        monkeypatch.setattr(
            "tunescope.engine.calibrate._timed", lambda run, _d, slow=slow: 2.0 if slow in str(run()) else 1.0
        )
        assert calibrate_dtype(TINY, seconds=0.001).dtype == wanted


def test_both_are_timed_by_turns_and_equally_often(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tunescope.engine.calibrate._block", lambda _w, dtype, _d: lambda: seen.append(str(dtype).split(".")[1])
    )
    found = calibrate_dtype(TINY, seconds=0.02)
    assert seen == ["float32", "bfloat16"] * (found.repeats + 1)  # the first round warms up


def test_the_widths_are_those_of_the_model_and_its_families(family):
    config = tiny_model(family, d_model=64).config
    assert widths_of(config) == Widths(64, 128, 4, 2, 16)


def test_a_wide_model_is_timed_in_small_with_its_proportions():
    config = AutoConfig.for_model(
        "llama", hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8
    )
    assert widths_of(config) == Widths(1024, 3584, 8, 1, 128)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(ConfigError, match="seconds of the calibration: got"):
        calibrate_dtype(TINY, seconds=seconds)


def test_no_random_state_is_touched():
    before = torch.get_rng_state()
    calibrate_dtype(TINY, seconds=0.001)
    assert torch.equal(torch.get_rng_state(), before)
