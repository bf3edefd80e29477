"""A plan that a person edited: what may be written there, and how a mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunescope.errors import RunError
from tunescope.models import PARTS
from tunescope.runs.plan import Alternative, Plan, PlannedArm, Price, plan_text
from tunescope.studies.plan_file import read_plan

BLOCKS = tuple(f"block.{i}" for i in range(30))
PRICE = Price(84.3, 12.0, 1_240_000_000, 0.0134)
PROPOSAL = Plan(
    arms=(
        PlannedArm("selected", "by score", "lora", BLOCKS[20:30], PARTS, scores=dict.fromkeys(BLOCKS[20:30], 1.5)),
        PlannedArm("random", "drawn", "lora", BLOCKS[0:20:2], PARTS, forecast=PRICE),
        PlannedArm("lora-all", "all", "lora", BLOCKS, PARTS, forecast=PRICE),
        PlannedArm("full", "all weights", "weights", BLOCKS, (), whole_model=True, forecast=PRICE),
    ),
    alternatives=(
        Alternative("half", BLOCKS[15:], forecast=PRICE),
        Alternative("everything", BLOCKS, whole_model=True, forecast=PRICE),
    ),
    rests_on={"model": "0" * 64, "data": "12" * 32, "settings": "1e" * 32},
)
TEXT = plan_text(PROPOSAL, run="runs/a", n_layers=30, resume="tunescope poc runs/a/config.yaml --resume")
LAYERS = "layers: [block.20-29] "


def read(text: str, folder: Path, proposal: Plan = PROPOSAL) -> Plan:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return read_plan(path, proposal, n_layers=30, seed=3)


def edited(old: str, new: str) -> str:
    assert TEXT.count(old) >= 1, old
    return TEXT.replace(old, new, 1)


def refused(text: str, folder: Path) -> list[str]:
    with pytest.raises(RunError) as caught:
        read(text, folder)
    assert caught.value.exit_code == 2
    return [problem.removeprefix(f"{folder}/plan.yaml:") for problem in caught.value.problems]


def test_what_was_written_reads_back_to_the_same_plan(tmp_path: Path) -> None:
    assert read(TEXT, tmp_path) == PROPOSAL
    assert read(TEXT, tmp_path).sha256 == PROPOSAL.sha256


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# The plan of this run", "# My notes"),
        (LAYERS, "layers: block.20-29 "),
        (LAYERS, "layers: ['block.2?'] "),
        (LAYERS, "layers: [20-24, 25, block.26, 'block.27', block.28-29] "),
        (LAYERS, "layers:\n    - block.29\n    - block.20-28\n    "),
        ("modules: [q, k, v, o, gate, up, down]", "modules: [down, up, gate, o, v, k, q]"),
        ('why: "by score"', "why: by score  # a comment"),
        ("schema_version: 1\n", "\n\nschema_version: 1\n"),
        ("peak_memory_bytes: 1240000000", "peak_memory_bytes: 1.24e9"),
    ],
)
def test_another_way_of_writing_the_same_has_the_same_hash(old: str, new: str, tmp_path: Path) -> None:
    assert read(edited(old, new), tmp_path).sha256 == PROPOSAL.sha256
    assert read(edited(old, new).replace("\n", "\r\n"), tmp_path).sha256 == PROPOSAL.sha256


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (LAYERS, "layers: [block.19-28] "),
        ('why: "by score"', 'why: "by hand"'),
        ("tuning_seconds: 84.3", "tuning_seconds: 84.2"),
        ("machine_cost: 0.0134", "machine_cost: 0"),
        ("      block.20: 1.5", "      block.20: 1.6"),
        ('name: "half"', 'name: "a half"'),
    ],
)
def test_every_other_change_has_another_hash(old: str, new: str, tmp_path: Path) -> None:
    assert read(edited(old, new), tmp_path).sha256 != PROPOSAL.sha256


def test_layers_modules_and_reasons_may_be_changed_and_arms_deleted(tmp_path: Path) -> None:
    head, rest = TEXT.split("  random:\n")
    _, tail = rest.split("# What else could be tuned")
    text = f"{head}# What else could be tuned{tail}".replace(LAYERS, "layers: [3, block.28-29] ")
    plan = read(text.replace("modules: [q, k, v, o, gate, up, down]", "modules: [v, q]"), tmp_path)
    (arm,) = plan.arms
    assert (arm.arm, arm.layers, arm.modules) == ("selected", ("block.3", "block.28", "block.29"), ("q", "v"))
    assert (
        read(TEXT.partition("# What else")[0] + TEXT[TEXT.index("# What the plan was made") :], tmp_path).alternatives
        == ()
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        # YAML
        ("arms:\n", "arms: [\n", "not valid YAML"),
        ("state: proposed", "state: !!python/object:os.system proposed", "YAML tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("state: proposed", "state: &a proposed", "anchors and aliases are not allowed in a plan"),
        ("state: proposed", "state: proposed\nstate: approved", "'state' is set twice; keep one"),
        ("  random:\n", "  selected:\n", "'selected' is set twice"),
        ("schema_version: 1", "schema_version: 2", "schema version 2 was written by a newer tunescope"),
        ("schema_version: 1", "schema_version: one", "schema_version: got 'one', needs 1"),
        ("schema_version: 1\n", "", "schema_version: got nothing, needs 1"),
        ("schema_version: 1", "schema_version: true", "schema_version: got True"),
        # Keys
        ("state: proposed", "stat: proposed", "unknown key 'stat' (did you mean state?)"),
        ("    modules: [q", "    module: [q", "unknown key 'arms.selected.module' (did you mean modules?)"),
        ("  random:\n", "  randm:\n", "unknown key 'arms.randm' (did you mean random?)"),
        ("      basis: measured", "      bases: measured", "unknown key 'arms.selected.forecast.bases'"),
        ("      block.20: 1.5", "      block.200: 1.5", "unknown key 'arms.selected.scores.block.200'"),
        ("state: proposed", "1: proposed", "'1' is not a key of a plan"),
        # Types
        ("state: proposed", "state: aproved", "state: got 'aproved' (did you mean approved"),
        ('why: "by score"', "why: 3", "arms.selected.why: got 3, needs text"),
        ("tuning_seconds: 84.3", "tuning_seconds: -1", "arms.random.forecast.tuning_seconds: got -1, needs a number of at"),
        ("tuning_seconds: 84.3", "tuning_seconds: .inf", "tuning_seconds: got inf, needs a number"),
        ("tuning_seconds: 84.3", "tuning_seconds: soon", "tuning_seconds: got 'soon', needs a number"),
        (LAYERS, "layers: {a: b} ", "arms.selected.layers: got a mapping, needs a list of names"),
        (LAYERS, "layers: [true] ", "arms.selected.layers: got True, needs a list of names"),
        ("basis: measured", "basis: guessed", "basis: got 'guessed'; allowed: measured, estimated"),
        # Layers and modules
        (LAYERS, "layers: [] ", "arms.selected.layers: no layer pattern given, so nothing would move"),
        (LAYERS, "layers: ", "arms.selected.layers: got nothing, needs a list of names"),
        (LAYERS, "layers: [block.30] ", "(did you mean block.3, block.0, "),
        (LAYERS, "layers: [block.25-30] ", "layer pattern 'block.25-30' matches nothing"),
        (LAYERS, "layers: [layers.2] ", "layer pattern 'layers.2' matches nothing"),
        ("modules: [q, k,", "modules: [qq, k,", "arms.selected.modules: part 'qq' is not known (did you mean q?)"),
        ("modules: [q, k, v, o, gate, up, down]", "modules: []", "arms.selected.modules: no part given, so nothing would move"),
        ("modules: [q, k, v, o, gate, up, down]", "modules: whole blocks", "LoRA adapts parts of a block"),
        # What is not for editing
        ("method: lora", "method: weights", "arms.selected.method: got 'weights', was lora; it is not for editing"),
        ("layers: [block.0-29]", "layers: [block.1-29]", "arms.lora-all is LoRA on all blocks; put it back"),
        ("layers: all weights", "layers: [block.1]", "arms.full moves all weights; put it back"),
        ('currency: "EUR"', 'currency: "USD"', "currency is not for editing; put it back"),
        ("rests_on:\n", "rests_on: {}\nx:\n", "rests_on is not for editing"),
        ("    trainable_parameters", '    mask_sha256: "ab"\n    trainable_parameters', "mask_sha256 is not for editing"),
        ("    trainable_parameters", "    matrices: [block.1.q]\n    trainable_parameters", "matrices is not for editing"),
    ],
)  # fmt: skip
def test_a_bad_edit_is_named_with_its_line(old: str, new: str, problem: str, tmp_path: Path) -> None:
    text = edited(old, new)
    found = refused(text, tmp_path)
    mine = [line for line in found if problem in line]
    assert mine, found
    number = int(mine[0].partition(":")[0])
    changed = [n for n, (a, b) in enumerate(zip(text.splitlines(), TEXT.splitlines(), strict=False), 1) if a != b]
    if "got nothing, needs 1" not in problem:  # what is missing has no line
        assert changed[0] - 2 <= number <= changed[0] + 2
    assert all("\n" not in line for line in found)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = edited(LAYERS, "layers: [block.99] ").replace("method: lora", "method: lara").replace("basis:", "bases:")
    found = refused(text, tmp_path)
    assert len(found) > 5 and len(found) == len(set(found))


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "- a\n- b\n", "plan\n", "arms: {}\n", "\x00", "arms:\n  selected: 3\n"]
)
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said", "left"),
    [
        (
            "layers: [block.15-29]",
            "layers: [block.99]",
            "alternatives.0.layers: layer pattern 'block.99'",
            ["everything"],
        ),
        ("layers: [block.15-29]", "layers: [block.1, blok.2, true]", "alternatives.0.layers: got True", ["everything"]),
        ('- name: "half"', '- nam: "half"', "unknown key 'alternatives.0.nam' (did you mean name?)", ["everything"]),
        ('- name: "everything"', "- name: 3", "alternatives.1.name: got 3, needs text", ["half"]),
        ("alternatives:\n", "alternatives: all\nx: &a\n", "", None),
    ],
)
def test_a_mistake_in_the_alternatives_is_one_note_and_stops_nothing(
    old: str, new: str, said: str, left: list[str] | None, tmp_path: Path
) -> None:
    if left is None:  # what is no plan at all is refused, wherever it stands
        assert refused(edited(old, new), tmp_path)
        return
    path = tmp_path / "plan.yaml"
    path.write_text(edited(old, new), encoding="utf-8")
    notes: list[str] = []
    plan = read_plan(path, PROPOSAL, n_layers=30, seed=3, note=notes.append)
    (note,) = notes
    assert said in note and "left out: nothing is tuned from the alternatives" in note and "\n" not in note
    number = int(note.removeprefix(f"{path}:").partition(":")[0])
    changed = [
        n for n, (a, b) in enumerate(zip(edited(old, new).splitlines(), TEXT.splitlines(), strict=True), 1) if a != b
    ]
    assert abs(number - changed[0]) <= 1
    assert plan.arms == PROPOSAL.arms
    assert [other.name for other in plan.alternatives] == left
    assert plan.sha256 != PROPOSAL.sha256  # so that a change after the approval is noticed


def test_alternatives_that_are_no_list_are_a_note(tmp_path: Path) -> None:
    start, end = TEXT.index("alternatives:"), TEXT.index("# What the plan was made with")
    path = tmp_path / "plan.yaml"
    path.write_text(f"{TEXT[:start]}alternatives: none\n{TEXT[end:]}", encoding="utf-8")
    notes: list[str] = []
    assert read_plan(path, PROPOSAL, n_layers=30, seed=3, note=notes.append).alternatives == ()
    assert len(notes) == 1 and "alternatives: got 'none', needs a list" in notes[0]


def test_a_mistake_in_an_arm_is_told_without_the_notes(tmp_path: Path) -> None:
    text = edited(LAYERS, "layers: [block.99] ").replace("layers: [block.15-29]", "layers: [block.98]")
    (problem,) = refused(text, tmp_path)
    assert "arms.selected.layers" in problem and "block.98" not in problem


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing; run `tunescope plan` with --resume"):
        read_plan(tmp_path / "plan.yaml", PROPOSAL, n_layers=30, seed=3)
    (tmp_path / "plan.yaml").write_bytes(b"state: \xff\xfe")
    with pytest.raises(RunError, match="not UTF-8"):
        read_plan(tmp_path / "plan.yaml", PROPOSAL, n_layers=30, seed=3)


# The control.


def without(arm: str) -> str:
    """The text with one arm deleted."""
    lines = TEXT.splitlines(keepends=True)
    start = lines.index(f"  {arm}:\n")
    end = next(n for n in range(start + 1, len(lines)) if not lines[n].startswith("    "))
    return "".join(lines[:start] + lines[end:])


def test_a_control_with_another_budget_is_refused_with_one_that_fits(tmp_path: Path) -> None:
    text = edited(LAYERS, "layers: [block.27-29] ")
    (problem,) = refused(text, tmp_path)
    assert "random moves 10 block(s) and selected 3, so random is no control at the same budget" in problem
    offered = problem.partition("write ")[2].partition(" (drawn")[0]
    start = text.index("layers:", text.index("  random:"))
    end = text.index("    modules:", start)
    plan = read(f"{text[:start]}{offered}\n{text[end:]}", tmp_path)
    random, selected = plan.arm("random"), plan.arm("selected")
    assert random and selected and len(random.layers) == 3 and random.layers != selected.layers


def test_a_control_with_other_modules_or_the_same_blocks_is_refused(tmp_path: Path) -> None:
    (problem,) = refused(edited("modules: [q, k, v, o, gate, up, down]", "modules: [q, v]"), tmp_path)
    assert "write modules: [q, v], or delete random" in problem
    even = ", ".join(BLOCKS[0:20:2])
    (problem,) = refused(edited(LAYERS, f"layers: [{even}] "), tmp_path)
    assert "random moves exactly the blocks of selected" in problem


def test_a_control_without_what_it_controls_is_refused(tmp_path: Path) -> None:
    (problem,) = refused(without("selected"), tmp_path)
    assert "random is the control of selected, which is gone" in problem
    assert [arm.arm for arm in read(without("random"), tmp_path).arms] == ["selected", "lora-all", "full"]


def test_a_control_that_is_tuned_alone_needs_nothing_beside_it(tmp_path: Path) -> None:
    alone = Plan(PROPOSAL.arms[1:2], rests_on=PROPOSAL.rests_on)
    text = plan_text(alone, run="r", n_layers=30, resume="x").replace("block.18", "block.19")
    assert read(text, tmp_path, alone).arms[0].layers[-1] == "block.19"


def test_a_plan_that_tunes_nothing_is_refused(tmp_path: Path) -> None:
    head, tail = TEXT[: TEXT.index("  selected:\n")], TEXT[TEXT.index("# What else") :]
    (problem,) = refused(head + tail, tmp_path)
    assert "no arm is left, so nothing would be tuned" in problem
