"""The matrix of arms and tasks, other wordings, and the six findings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tunescope.evaluate import Crossed, Measured, Scored, check, matrix, reworded, summarise, verdict_of
from tunescope.runs.records import Answer

COUNT: dict[str, Any] = {"seed": 0, "n_bootstrap": 300}
ARMS = ("nothing", "prompt", "nli", "both", "foreign")


def scored(
    task: str, role: Any = "in_domain", *, labels: Any = None, flags: dict[str, list[Any]] | None = None
) -> Scored:
    dice = np.random.default_rng(len(task) + len(role))
    answers = {
        arm: [
            Answer("x", float(dice.random() < 0.5), flags=tuple((flags or {}).get(arm, [()] * 20)[i]))
            for i in range(20)
        ]
        for arm in ARMS
    }
    return Scored(
        task, role, f"{task}.{role}", "accuracy" if labels else "rouge_l", labels, ("r",) * 20, answers, f"v-{task}"
    )


ITEMS = [
    scored("nli", labels=("yes", "no")),
    scored("nli", "out_of_domain", labels=("yes", "no")),
    scored("summary", flags={"nli": [("label_of_other_task",)] * 15 + [("empty",)] + [()] * 4}),
    scored("summary", "out_of_domain"),
]
GUARD = Scored("guard", "guard", "guard", "loss", None, ("r",) * 3, {arm: [Answer("", 2.0)] * 3 for arm in ARMS})
TUNED_ON = {"nli": ["nli"], "both": ["nli", "summary"], "foreign": None}


def cells(**more: Any) -> list[Any]:
    items = [*ITEMS, GUARD]
    return matrix(items, summarise(items, **COUNT), TUNED_ON, **(COUNT | more))


def test_a_cell_per_arm_and_file_stands_to_what_the_arm_was_tuned_on() -> None:
    found = {(c.arm, c.task, c.role): c for c in cells() if c.task != "*"}
    assert len(found) == 5 * 4 and not any(task == "guard" for _, task, _ in found)
    relations = {
        arm: (found[arm, "nli", "in_domain"].relation, found[arm, "summary", "out_of_domain"].relation) for arm in ARMS
    }
    assert relations == {
        "nothing": ("same", "same"),
        "prompt": ("same", "same"),
        "nli": ("same", "other"),
        "both": ("same", "same"),
        "foreign": ("unknown", "unknown"),
    }


def test_cells_carry_the_numbers_of_the_results() -> None:
    results = {(r.arm, r.task, r.dataset): r for r in summarise([*ITEMS, GUARD], **COUNT)}
    for cell in cells():
        if cell.task != "*":
            result = results[cell.arm, cell.task, cell.dataset]
            for name in (
                "value",
                "low",
                "high",
                "difference",
                "difference_low",
                "difference_high",
                "noise_floor",
                "n",
                "metric",
            ):
                assert getattr(cell, name) == getattr(result, name)


def test_the_means_are_over_the_files_of_one_relation_and_role() -> None:
    found = {(c.arm, c.relation, c.role): c for c in cells() if c.task == "*"}
    own, other = found["nli", "same", "in_domain"], found["nli", "other", "in_domain"]
    assert own.value == pytest.approx(ITEMS[0].scores("nli").mean()) and own.n == 20
    assert other.value == pytest.approx(ITEMS[2].scores("nli").mean())
    assert other.difference == pytest.approx((ITEMS[2].scores("nli") - ITEMS[2].scores("nothing")).mean())
    both = found["both", "same", "in_domain"]
    assert both.value == pytest.approx(np.mean([ITEMS[i].scores("both").mean() for i in (0, 2)]))
    assert ("both", "other", "in_domain") not in found


def test_collapse_and_unrelated_output_are_shares_of_generated_answers() -> None:
    found = {(c.arm, c.task, c.role): c for c in cells()}
    summary = found["nli", "summary", "in_domain"]
    assert (summary.collapse_rate, summary.unrelated_rate) == (0.75, 0.8)
    assert found["nli", "nli", "in_domain"].collapse_rate is None
    assert found["both", "summary", "in_domain"].collapse_rate == 0
    means = {(c.arm, c.relation): c for c in cells() if c.task == "*" and c.role == "in_domain"}
    assert means["nli", "other"].collapse_rate == 0.75 and means["nli", "same"].collapse_rate is None


def test_the_number_of_demonstrations_is_kept_and_none_are_shown_to_the_untouched_model() -> None:
    shown = {(arm, task): 2 for arm in ARMS for task in ("nli", "summary")}
    found = cells(demonstrations=shown)
    assert {c.demonstrations for c in found if c.arm != "nothing"} == {2}
    assert {c.demonstrations for c in found if c.arm == "nothing"} == {0}


def test_a_difference_is_beyond_noise_only_outside_interval_and_floor() -> None:
    cell = next(c for c in cells() if c.arm == "nli")
    inside = dataclasses.replace(cell, difference=0.1, difference_low=-0.01, difference_high=0.2, noise_floor=0.1)
    outside = dataclasses.replace(inside, difference=0.2, difference_low=0.05, noise_floor=0.1)
    assert not inside.beyond_noise and outside.beyond_noise
    assert not dataclasses.replace(outside, noise_floor=0.3).beyond_noise
    assert not dataclasses.replace(outside, difference=None).beyond_noise


# Other wordings.


def said(*texts: str) -> list[Answer]:
    return [Answer(text, float(text == "it")) for text in texts]


def test_a_label_stays_if_it_is_equal_and_a_text_if_it_says_the_same() -> None:
    own, others = said("it", "hr", "it"), [said("it", "hr", "hr"), said("it", "it", "it")]
    labels = reworded("full", ITEMS[0], own, others, **COUNT)
    assert labels.consistency == pytest.approx(1 / 3) and (labels.n, labels.n_wordings) == (3, 2)
    assert labels.value == pytest.approx(2 / 3) and labels.values == pytest.approx((1 / 3, 1.0))
    texts = reworded(
        "full", ITEMS[2], said("The pump.", "A"), [said(" the PUMP", "a."), said("“The pump”", "A!")], **COUNT
    )
    assert texts.consistency == 1 and texts.low < 1
    case = reworded("full", ITEMS[0], said("It"), [said("it")], **COUNT)
    assert case.consistency == 0


@pytest.mark.parametrize(("own", "others"), [([], [[]]), (said("a"), []), (said("a"), [said("a", "b")])])
def test_wordings_that_do_not_match_the_examples_are_refused(own: Any, others: Any) -> None:
    with pytest.raises(ValueError, match="the same number of each"):
        reworded("full", ITEMS[0], own, others, **COUNT)


# The findings.

N = 60


def level(share: float, seeds: int = 2) -> np.ndarray:
    """Scores of 0 and 1 with this mean, the same for every seed."""
    row = (np.arange(N) < share * N).astype(float)
    return np.tile(row, (seeds, 1))


def crossed(**changes: Any) -> Crossed:
    """A world in which all six findings hold."""
    families = {"nli": True, "mood": True, "qg": False, "summary": False}
    measured: dict[Any, Measured] = {}

    def put(source: str, mode: Any, shots: Any, test: str, role: Any, share: float, collapsed: float = 0.0) -> None:
        seeds = 1 if mode == "base" else 2
        free = not families[test]
        measured[source, mode, shots, test, role] = Measured(
            level(share, seeds), level(collapsed, seeds) if free else None, level(collapsed, seeds) if free else None
        )

    for test, labels in families.items():
        for role in ("in_domain", "out_of_domain"):
            put("", "base", "zero", test, role, 0.5 if labels else 0.3)
            put("", "base", "few", test, role, 0.5 if labels else 0.35)
            for source, source_labels in families.items():
                own = source == test
                gain = (
                    0.9
                    if own and role == "in_domain"
                    else 0.8
                    if own and labels
                    else 0.1
                    if own
                    else 0.5
                    if labels
                    else 0.0
                )
                put(source, "ft", "zero", test, role, gain, 0.9 if source_labels and not labels else 0.0)
                put(source, "ft", "few", test, role, gain)
                put(source, "fticl", "few", test, role, gain if labels else 0.6)
    for task in families:
        put(task, "half", "zero", task, "in_domain", 0.7)
    moved: Any = {(t, m): [1e-4 * f, 1.1e-4 * f] for t in families for m, f in (("ft", 1.0), ("fticl", 0.8))}
    made = Crossed(families, measured, moved, settings={"n_bootstrap": 300})
    for key, value in changes.items():
        if key == "without":
            kept = {k: v for k, v in made.measured.items() if value not in k}
            made = dataclasses.replace(made, measured=kept)
        else:
            made = dataclasses.replace(made, **{key: value})
    return made


def answers_of(world: Crossed) -> list[str]:
    return [finding.answer for finding in check(world)]


def test_where_all_findings_hold_all_appear() -> None:
    found = check(crossed())
    assert [f.number for f in found] == [1, 2, 3, 4, 5, 6]
    assert [f.answer for f in found] == ["appears"] * 6
    assert all(f.low is not None and f.low <= f.effect <= f.high for f in found)  # type: ignore[operator]
    assert found[0].effect == pytest.approx(0.4) and found[0].details["collapse rate"] == pytest.approx(0.9)
    assert found[1].effect == pytest.approx(0.2)
    assert found[3].effect == pytest.approx(np.log(1 / 0.8))
    assert found[5].effect == pytest.approx(0.1 - 0.3)


def replaced(world: Crossed, share: float, collapsed: float | None = None, **where: Any) -> Crossed:
    """The same world with other scores in some cells."""
    names = ("source", "mode", "shots", "test", "role")
    measured = dict(world.measured)
    for key, found in world.measured.items():
        if all(dict(zip(names, key, strict=True))[name] in value for name, value in where.items()):
            free = found.collapsed is not None
            measured[key] = Measured(level(share), level(collapsed or 0.0) if free else None, found.unrelated)
    return dataclasses.replace(world, measured=measured)


@pytest.mark.parametrize(
    ("number", "world"),
    [
        (1, replaced(crossed(), 0.3, 0.05, source=["nli", "mood"], mode=["ft"], test=["qg", "summary"])),
        (2, replaced(crossed(), 0.95, mode=["half"])),
        (3, replaced(crossed(), 0.0, source=["qg", "summary"], mode=["fticl"], test=["qg", "summary"])),
        (3, replaced(crossed(), 0.8, source=["qg", "summary"], mode=["ft"], test=["qg", "summary"])),
        (
            4,
            crossed(
                moved={(t, m): [1e-4, 1.1e-4] for t in ("nli", "qg") for m in ("ft",)}
                | {(t, "fticl"): [2e-4, 2.2e-4] for t in ("nli", "qg")}
            ),
        ),
        (
            5,
            replaced(
                replaced(crossed(), 0.5, source=["nli", "mood"], mode=["ft"], role=["in_domain"]), 0.9, mode=["fticl"]
            ),
        ),
        (
            6,
            replaced(crossed(), 0.1, source=["nli", "mood"], mode=["ft"], role=["out_of_domain"], test=["nli", "mood"]),
        ),
        (
            6,
            replaced(
                crossed(), 0.9, source=["qg", "summary"], mode=["ft"], role=["out_of_domain"], test=["qg", "summary"]
            ),
        ),
    ],
)
def test_where_a_finding_does_not_hold_it_does_not_appear(number: int, world: Crossed) -> None:
    assert answers_of(world)[number - 1] == "does not appear"


def test_differences_within_the_noise_cannot_be_told() -> None:
    world = crossed()
    shifted = {
        key: Measured(np.roll(level(0.87), 6, axis=1)) if key[1] == "half" else found
        for key, found in world.measured.items()
    }  # as good, but on other examples
    world = dataclasses.replace(world, measured=shifted)
    found = check(world)[1]
    assert found.answer == "cannot tell" and found.low < 0 < found.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("without", "lost"), [("half", {2}), ("fticl", {3, 5}), ("ft", {1, 2, 3, 5, 6}), ("out_of_domain", {6})]
)
def test_what_was_not_measured_cannot_be_told(without: str, lost: set[int]) -> None:
    found = check(crossed(without=without))
    assert {f.number for f in found if f.answer == "cannot tell"} == lost
    assert all(f.effect is None for f in found if f.number in lost)
    nothing = check(Crossed({}, {}, {}))
    assert [f.answer for f in nothing] == ["cannot tell"] * 6 and all(f.effect is None for f in nothing)


def test_one_model_alone_says_nothing_about_the_movement_of_weights() -> None:
    found = check(crossed(moved={("nli", "ft"): [1e-4], ("nli", "fticl"): [0.5e-4]}))[3]
    assert found.answer == "cannot tell" and found.effect is None and found.details


def test_an_interval_decides_against_a_margin() -> None:
    assert verdict_of(0.001, 0.5, 0.02) == "appears"
    assert verdict_of(0.0, 0.5, 0.02) == "cannot tell"
    assert verdict_of(-0.5, 0.02, 0.02) == "cannot tell"
    assert verdict_of(0.001, 0.5, 0.02, claims_none=True) == "does not appear"
