"""The plan as a record and as a text: what its hash covers, and that a person can read it."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunescope.runs.plan import Alternative, Plan, PlannedArm, Price, plan_text, ranges

PARTS = ("q", "k", "v", "o", "gate", "up", "down")
PLAN = Plan(
    arms=(
        PlannedArm(
            "selected",
            "the 3 of 12 blocks with the largest score",
            "lora",
            ("block.4", "block.5", "block.9"),
            PARTS,
            trainable_parameters=1234,
            scores={"block.4": 0.5, "block.5": 2.0, "block.9": 1.25e-05},
            forecast=Price(84.3, 12.0, 1_240_000_000, 0.0134),
        ),
        PlannedArm("full", "all weights", "weights", tuple(f"block.{i}" for i in range(12)), (), whole_model=True),
    ),
    alternatives=(Alternative("half", ("block.0", "block.1"), forecast=Price(10, 1, 5_000_000, 0.1, "estimated")),),
    rests_on={"model": "12" * 32, "data": "1e" * 32, "settings": "ab" * 32},
)


def text(plan: Plan) -> str:
    return plan_text(plan, run="runs/a", n_layers=12, resume="tunescope poc runs/a/config.yaml --resume")


def changed(**how: object) -> Plan:
    """The plan with its first arm changed."""
    return dataclasses.replace(PLAN, arms=(dataclasses.replace(PLAN.arms[0], **how), *PLAN.arms[1:]))  # type: ignore[arg-type]


def test_to_dict_and_from_dict_are_inverse() -> None:
    again = Plan.from_dict(PLAN.to_dict())
    assert again == PLAN and again.sha256 == PLAN.sha256


@pytest.mark.parametrize(
    "how",
    [
        {"layers": ("block.4", "block.5")},
        {"modules": ("q",)},
        {"why": "because"},
        {"trainable_parameters": 1235},
        {"forecast": Price(84.4, 12.0, 1_240_000_000, 0.0134)},
        {"scores": {}},
        {"mask_sha256": "ab"},
    ],
)
def test_the_hash_covers_everything_that_the_plan_says(how: dict[str, object]) -> None:
    assert changed(**how).sha256 != PLAN.sha256
    assert dataclasses.replace(PLAN, arms=PLAN.arms[:1]).sha256 != PLAN.sha256
    assert dataclasses.replace(PLAN, rests_on={}).sha256 != PLAN.sha256
    assert dataclasses.replace(PLAN, alternatives=()).sha256 != PLAN.sha256


def test_the_hash_leaves_the_approval_out() -> None:
    approved = dataclasses.replace(
        PLAN, state="approved", approved_by="Ana", approved_at="2026-01-01", approved_sha256=PLAN.sha256
    )
    assert approved.sha256 == PLAN.sha256


def test_the_hash_is_the_recorded_one() -> None:
    """So that a plan that was approved with an older version is still recognised."""
    assert PLAN.sha256 == "25f5e7c05403153357b6819246972b5339fa21b900c1b01d3f274122b4b4b9fc"


def test_the_text_is_plain_yaml_with_the_values_of_the_plan() -> None:
    values = yaml.safe_load(text(PLAN))
    assert values["state"] == "proposed" and values["rests_on"] == PLAN.rests_on
    arm = values["arms"]["selected"]
    assert arm["layers"] == ["block.4-5", "block.9"] and arm["modules"] == list(PARTS)
    assert arm["scores"] == dict(PLAN.arms[0].scores) and list(arm["scores"]) == ["block.5", "block.4", "block.9"]
    assert arm["forecast"] == PLAN.arms[0].forecast.to_dict()
    assert values["arms"]["full"]["layers"] == "all weights" and "modules" not in values["arms"]["full"]


def test_a_person_finds_human_units_short_lines_and_what_to_do() -> None:
    said = text(PLAN)
    assert (
        "# 1 min 24 s" in said and "# 1.2 GB" in said and "# 3 of 12 blocks; the backward pass runs through 8" in said
    )
    assert 'tunescope approve runs/a --by "YOUR NAME"' in said and "tunescope poc runs/a/config.yaml --resume" in said
    assert max(map(len, said.splitlines())) <= 125
    approved = text(dataclasses.replace(PLAN, state="approved", approved_by="Ana", approved_sha256="ab"))
    assert "tunescope approve runs/a" not in approved and 'approved_by: "Ana"' in approved


def test_many_blocks_and_long_reasons_stay_short_lines() -> None:
    layers = tuple(f"block.{i}" for i in range(0, 80, 2))
    why = "chosen by hand: " + ", ".join(layers)
    arm = dataclasses.replace(PLAN.arms[0], layers=layers, why=why, scores={})
    said = plan_text(dataclasses.replace(PLAN, arms=(arm,)), run="r", n_layers=80, resume="x")
    assert max(map(len, said.splitlines())) <= 125
    read = yaml.safe_load(said)["arms"]["selected"]
    assert read["why"] == why and read["layers"] == list(layers)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_reason_and_name_read_back_to_the_same(words: str) -> None:
    plan = dataclasses.replace(changed(why=words), approved_by=words, state="approved")
    values = yaml.safe_load(text(plan))
    assert values["arms"]["selected"]["why"] == words and values["approved_by"] == words


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_name_exactly_the_blocks(numbers: set[int]) -> None:
    found = set()
    for entry in ranges([f"block.{n}" for n in numbers]):
        first, _, last = entry.removeprefix("block.").partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers
