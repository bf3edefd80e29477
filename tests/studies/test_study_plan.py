"""Plan, edit, approve, tune: who may change what until when, and what a kill in between leaves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tiny_study import write_study

from tunescope import models, report
from tunescope.config import Config, load
from tunescope.errors import ApprovalError, ConfigError, IntegrityError, RunError, UserError
from tunescope.runs import folder as folders
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast
from tunescope.studies import approve, plan, plan_folder, poc, tune

QUICK = {"num_epochs": 1, "lora_rank": 2, "learning_rate": 1e-3}
SELECTED, RANDOM = "    layers: [block.0-1] ", "    layers: [block.2-3] "  # of the random model with this seed


def study_of(folder: Path, model: Path, approval: str) -> Config:
    arms = ["nothing", "selected", "random", "lora-all"]
    return load(write_study(folder, model, arms=arms, tuning=QUICK, approval=approval, guard=[]))


@pytest.fixture(scope="module")
def required(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A planned run that waits for approval; tests work on copies."""
    config = study_of(tmp_path_factory.mktemp("required"), model, "required")
    plan.run(config, command="tunescope plan study.yaml")
    return config


@pytest.fixture(scope="module")
def free(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A planned run that needs no approval."""
    config = study_of(tmp_path_factory.mktemp("free"), model, "not_required")
    plan.run(config)
    return config


def copy_of(config: Config, target: Path) -> Config:
    """A run of the test's own."""
    source = config.output_dir
    shutil.copytree(source, target)
    text = (source / "config.yaml").read_text(encoding="utf-8").replace(str(source), str(target))
    (target / "config.yaml").write_text(text, encoding="utf-8")
    return load(target / "config.yaml")


@pytest.fixture
def waiting(required: Config, tmp_path: Path) -> Config:
    return copy_of(required, tmp_path / "run")


@pytest.fixture
def open_run(free: Config, tmp_path: Path) -> Config:
    return copy_of(free, tmp_path / "run")


def edit(config: Config, *changes: tuple[str, str]) -> None:
    path = config.output_dir / "plan.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


def swap(config: Config) -> None:
    """`selected` and `random` exchange their blocks."""
    edit(config, (SELECTED, "    layers: [2, 3]# "), (RANDOM, "    layers: [block.0-1] # "))


def events(config: Config) -> list[tuple[str, str]]:
    """What the ledger says about the plan, with its hash; the ledger must be whole."""
    path = config.output_dir / "ledger.jsonl"
    rows = RunFolder(config.output_dir).read_jsonl("ledger.jsonl")
    assert ledger.verify(path, key=ledger.key_from_environment()).n == len(rows)
    return [(row["event"], row["details"]["sha256"]) for row in rows if row["event"].startswith("plan")]


def status(config: Config) -> tuple[str, str]:
    values = RunFolder(config.output_dir).read_json("status.json")
    return values["state"], values["stage"]


def moved(config: Config) -> dict[str, tuple[str, ...]]:
    """What was really tuned: the blocks in the weights that were saved."""
    found = {}
    for file in sorted(config.output_dir.glob("weights/*/adapter_model.safetensors")):
        numbers = {int(match[1]) for name in load_file(file) if (match := re.search(r"layers\.(\d+)\.", name))}
        found[file.parent.name] = tuple(f"block.{n}" for n in sorted(numbers))
    return found


@pytest.fixture
def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("this needs no model")

    monkeypatch.setattr(models, "load_located", forbidden)


# Planning.


def test_a_plan_says_what_moves_why_and_at_what_price(required: Config) -> None:
    run = RunFolder.open(required.output_dir)
    values = yaml.safe_load((run.path / "plan.yaml").read_text(encoding="utf-8"))
    assert list(values["arms"]) == ["selected", "random", "lora-all"] and values["state"] == "proposed"
    (scores,) = run.read_json("layers.json")["scores"]
    forecasts = {row["arm"]: Forecast.from_dict(row) for row in run.read_json("arms/forecast.json")["forecast"]}
    for arm, planned in values["arms"].items():
        assert planned["trainable_parameters"] == forecasts[arm].trainable_parameters > 0
        assert planned["forecast"]["tuning_seconds"] == round(forecasts[arm].tuning_seconds, 1)
        assert planned["forecast"]["basis"] == "measured"
    selected = values["arms"]["selected"]
    assert selected["scores"] == {f"block.{i}": float(f"{scores['values'][i]:.4g}") for i in (0, 1)}
    assert "largest mean gradient norm" in selected["why"]
    names = [other["name"] for other in values["alternatives"]]
    assert any("sixth" in name for name in names) and any("arm full" in name for name in names)
    assert all(other["forecast"]["basis"] == "estimated" for other in values["alternatives"])
    assert status(required) == ("awaiting-approval", "plan")
    assert events(required) == [("plan proposed", plan.look(run).sha256)]
    assert not (run.path / "weights").exists() and not run.has("steps.jsonl")


def test_nothing_is_written_by_a_preview_which_shows_the_same(required: Config, tmp_path: Path) -> None:
    config = load(required.output_dir / "config.yaml", [f"output_dir={tmp_path / 'run'}"])
    forecasts, selections, proposed = plan.preview(config)
    assert [f.arm for f in forecasts] == ["nothing", "selected", "random", "lora-all"]
    there = plan.look(RunFolder(required.output_dir))
    assert [a.moves for a in proposed.arms] == [a.moves for a in there.arms] and proposed.alternatives
    assert list(selections) == [a.arm for a in there.arms]
    assert list(tmp_path.iterdir()) == []


def test_settings_that_tune_nothing_have_no_plan(required: Config, tmp_path: Path) -> None:
    config = load(required.output_dir / "config.yaml", [f"output_dir={tmp_path / 'run'}", "arms=[nothing]"])
    with pytest.raises(ConfigError, match="none of them tunes anything"):
        plan.run(config)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_not_overwritten_but_looked_at_again(waiting: Config, without_a_model: None) -> None:
    with pytest.raises(RunError, match="a run is already there"):
        plan.run(waiting)
    before = (waiting.output_dir / "plan.yaml").read_bytes()
    swap(waiting)
    _, seen = plan.run(waiting, resume=True)
    assert seen.arms[0].layers == ("block.2", "block.3") and seen.arms[0].forecast.basis == "estimated"
    assert events(waiting)[1:] == [] and (waiting.output_dir / "plan.yaml").read_bytes() != before


# Waiting, approving, tuning.


@pytest.mark.usefixtures("without_a_model")
def test_nothing_is_tuned_before_the_approval(waiting: Config) -> None:
    with pytest.raises(ApprovalError, match=r"waits for approval.*tunescope approve .* --by .*--resume") as caught:
        poc.run(waiting, resume=True)
    assert caught.value.exit_code == 4 and len(caught.value.problems) == 1
    assert status(waiting) == ("awaiting-approval", "plan")
    edit(waiting, ("state: proposed", "state: not required"))
    with pytest.raises(ApprovalError):
        poc.run(waiting, resume=True)
    edit(waiting, ("state: not required", "state: approved"))
    with pytest.raises(IntegrityError, match="says that it is approved, but the ledger has no approval") as forged:
        poc.run(waiting, resume=True)
    assert forged.value.exit_code == 5
    assert not (waiting.output_dir / "weights").exists()


@pytest.mark.parametrize("name", ["", "  ", "\t\n", "a\nb", "\x1b[31mred", "x" * 201])
def test_an_approval_needs_a_name(name: str, waiting: Config) -> None:
    before = (waiting.output_dir / "plan.yaml").read_bytes()
    with pytest.raises(UserError, match="give the name of the person who approves") as caught:
        approve.run(waiting.output_dir, name)
    assert caught.value.exit_code == 2
    assert (waiting.output_dir / "plan.yaml").read_bytes() == before and len(events(waiting)) == 1


def test_an_approved_plan_is_tuned_as_a_person_edited_it(waiting: Config) -> None:
    swap(waiting)
    edit(waiting, ("modules: [q, k, v, o, gate, up, down]", "modules: [v, q]"), ("why: ", "why: mine #"))
    edit(waiting, ("modules: [q, k, v, o, gate, up, down]", "modules: [q, v]"))
    done = approve.run(waiting.output_dir, " Ana Müller ")
    assert (done.by, done.already) == ("Ana Müller", False)
    assert [kind for kind, _ in events(waiting)] == ["plan proposed", "plan edited", "plan approved"]
    assert events(waiting)[1][1] == events(waiting)[2][1] == done.plan.sha256 != events(waiting)[0][1]
    values = yaml.safe_load((waiting.output_dir / "plan.yaml").read_text(encoding="utf-8"))
    assert (values["state"], values["approved_by"], values["approved_sha256"]) == (
        "approved",
        "Ana Müller",
        done.plan.sha256,
    )
    arm = values["arms"]["selected"]
    assert arm["layers"] == ["block.2-3"] and arm["modules"] == ["q", "v"] and arm["why"] == "mine"
    assert arm["forecast"]["basis"] == "estimated" and list(arm["scores"]) == ["block.2", "block.3"]
    assert values["arms"]["random"]["why"].startswith("changed by hand; proposed was block.2-3: ")
    run = poc.run(waiting, resume=True)
    assert moved(waiting) == {
        "lora-all": ("block.0", "block.1", "block.2", "block.3"),
        "random": ("block.0", "block.1"),
        "selected": ("block.2", "block.3"),
    }
    costs = run.read_json("costs.json")
    for before, after in zip(costs["forecast"], costs["actual"], strict=True):
        assert before["arm"] == after["arm"] and before["trainable_parameters"] == after["trainable_parameters"]
    selections = run.read_json("layers.json")["selections"]
    assert selections["selected"]["layers"] == ["block.2", "block.3"]
    assert selections["selected"]["modules"] == ["q", "v"] and selections["selected"]["trainable_parameters"] > 0
    page = report.build(run.path).read_text(encoding="utf-8")
    assert "Forecast against fact" in page
    assert status(waiting) == ("done", "done") and events(waiting)[-1][0] == "plan approved"
    with pytest.raises(RunError, match="the run is done, there is nothing left to approve"):
        approve.run(waiting.output_dir, "Ana")
    with pytest.raises(RunError, match="the run is done, its plan cannot be changed any more"):
        plan.run(waiting, resume=True)


@pytest.mark.usefixtures("without_a_model")
def test_a_mistake_in_the_alternatives_is_a_note_and_the_proposed_ones_come_back(waiting: Config) -> None:
    before = plan.look(RunFolder.open(waiting.output_dir))
    edit(waiting, ("  - name: ", "  - nmae: "))
    notes: list[str] = []
    assert plan.look(RunFolder.open(waiting.output_dir), notes.append).alternatives == before.alternatives
    done = approve.run(waiting.output_dir, "Ana")
    assert done.notes == tuple(notes) and len(notes) == 1
    assert "unknown key 'alternatives.0.nmae'" in notes[0] and "nothing is tuned from the alternatives" in notes[0]
    assert done.plan.sha256 == before.sha256
    edit(waiting, ("  - name: ", "  - nmae: "))
    with pytest.raises(IntegrityError, match="was changed after Ana approved it"):
        plan.run(waiting, resume=True)


@pytest.mark.usefixtures("without_a_model")
def test_approving_twice_says_so(waiting: Config) -> None:
    first = approve.run(waiting.output_dir, "Ana")
    text = (waiting.output_dir / "plan.yaml").read_bytes()
    again = approve.run(waiting.output_dir, "Bo")
    assert (again.already, again.by, again.at) == (True, "Ana", first.at)
    assert (waiting.output_dir / "plan.yaml").read_bytes() == text
    assert [kind for kind, _ in events(waiting)] == ["plan proposed", "plan approved"]
    assert status(waiting) == ("done", "plan")


@pytest.mark.usefixtures("without_a_model")
def test_a_plan_changed_after_its_approval_is_refused_until_it_is_approved_again(waiting: Config) -> None:
    approve.run(waiting.output_dir, "Ana")
    text = (waiting.output_dir / "plan.yaml").read_text(encoding="utf-8")
    for change in (
        (SELECTED, "    layers: [block.0, 3] "),
        ('why: "', 'why: "not '),
        ("tuning_seconds: ", "tuning_seconds: 9"),
        ('approved_by: "Ana"', 'approved_by: "Eve"'),
        (SELECTED, "    layers: [block.77] "),  # and one that cannot be tuned at all
        ("arms:\n", "arms: [\n"),
    ):
        edit(waiting, change)
        for look in (lambda: poc.run(waiting, resume=True), lambda: plan.run(waiting, resume=True)):
            with pytest.raises(IntegrityError, match=r"tunescope approve ") as caught:
                look()
            assert caught.value.exit_code == 5
        (waiting.output_dir / "plan.yaml").write_text(text, encoding="utf-8")
    plan.run(waiting, resume=True)  # put back, it is the approved one again
    edit(waiting, ("# The plan of this run", "# My notes on this run"), ("state: approved ", "state:    approved "))
    plan.run(waiting, resume=True)  # comments and blanks are no change
    swap(waiting)
    again = approve.run(waiting.output_dir, "Bo")
    assert not again.already
    kinds, digests = zip(*events(waiting), strict=True)
    assert kinds == ("plan proposed", "plan approved", "plan edited", "plan approved")
    assert len(set(digests)) == 2
    plan.run(waiting, resume=True)
    # Back to what was approved first: the last approval counts, so this needs a third one.
    (waiting.output_dir / "plan.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(IntegrityError):
        plan.run(waiting, resume=True)
    assert not approve.run(waiting.output_dir, "Ana").already
    assert [kind for kind, _ in events(waiting)].count("plan approved") == 3


@pytest.mark.usefixtures("without_a_model")
def test_a_doctored_price_is_written_anew_when_it_is_approved(waiting: Config) -> None:
    proposed = events(waiting)[0][1]
    edit(waiting, ("tuning_seconds: ", "tuning_seconds: 9"), ("peak_memory_bytes: ", "peak_memory_bytes: 1"))
    assert approve.run(waiting.output_dir, "Ana").plan.sha256 == proposed
    assert [kind for kind, _ in events(waiting)] == ["plan proposed", "plan approved"]


@pytest.mark.usefixtures("without_a_model")
@pytest.mark.parametrize("what", ["ledger", "settings", "plan gone", "no plan", "no run", "newer"])
def test_what_does_not_fit_is_refused(what: str, waiting: Config, tmp_path: Path) -> None:
    folder = waiting.output_dir
    approve.run(folder, "Ana")
    if what == "ledger":
        path = folder / "ledger.jsonl"
        path.write_text(path.read_text().replace('"by":"Ana"', '"by":"Eve"'))
        kind, said = IntegrityError, "ledger.jsonl line"
    elif what == "settings":
        path = folder / "config.yaml"
        path.write_text(path.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
        kind, said = IntegrityError, "settings of this run changed since the plan was made"
    elif what == "plan gone":
        (folder / "plan.yaml").unlink()
        kind, said = RunError, "missing"
        with pytest.raises(IntegrityError, match="was changed after Ana approved it"):
            poc.run(waiting, resume=True)
    elif what == "newer":
        edit(waiting, ("schema_version: 1", "schema_version: 2"))
        kind, said = RunError, "newer tunescope"
    elif what == "no plan":
        folder = RunFolder.create(tmp_path / "other", "seed: 1\n", study="poc", command="").path
        kind, said = RunError, "has no plan yet"
    else:
        folder, kind, said = tmp_path / "nowhere", RunError, "no such run folder"
    with pytest.raises(kind, match=said):
        approve.run(folder, "Bo")


@pytest.mark.usefixtures("without_a_model")
def test_a_bad_edit_is_named_and_can_be_mended(waiting: Config) -> None:
    edit(waiting, (SELECTED, "    layers: [block.4] "), ("    modules: [q, k", "    modules: [qq, k"))
    for look in (
        lambda: approve.run(waiting.output_dir, "Ana"),
        lambda: poc.run(waiting, resume=True),
        lambda: plan.run(waiting, resume=True),
    ):
        with pytest.raises(RunError) as caught:
            look()
        assert len(caught.value.problems) == 2 and all("plan.yaml:" in line for line in caught.value.problems)
    assert len(events(waiting)) == 1 and status(waiting) == ("awaiting-approval", "plan")
    edit(waiting, ("layers: [block.4]", "layers: [block.1-2]"), ("[qq, k", "[q, k"))
    assert approve.run(waiting.output_dir, "Ana").plan.arms[0].layers == ("block.1", "block.2")


# Without approval.


def test_edits_count_without_approval_too_and_are_noted(open_run: Config) -> None:
    assert status(open_run) == ("done", "plan")
    swap(open_run)
    path = open_run.output_dir / "plan.yaml"
    text = path.read_text(encoding="utf-8")
    start = text.index("  lora-all:\n")
    path.write_text(text[:start] + text[text.index("# What else") :], encoding="utf-8")
    run = poc.run(open_run, resume=True)
    assert moved(open_run) == {"random": ("block.0", "block.1"), "selected": ("block.2", "block.3")}
    kinds, digests = zip(*events(open_run), strict=True)
    assert kinds == ("plan proposed", "plan edited") and digests[0] != digests[1]
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values["state"] == "not required" and list(values["arms"]) == ["selected", "random"]
    assert values["arms"]["selected"]["forecast"]["basis"] == "measured"  # with real steps: the model was at hand
    costs = run.read_json("costs.json")
    assert [row["arm"] for row in costs["forecast"]] == ["nothing", "selected", "random"]
    assert {row["arm"] for row in run.read_json("results.json")["results"]} == {"nothing", "selected", "random"}
    assert set(run.read_json("layers.json")["selections"]) == {"selected", "random"}


class StopsError(Exception):
    """Stands for whatever stops a run."""


def test_a_plan_may_be_edited_until_the_first_weight_moves(open_run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: Any, **__: Any) -> None:
        raise StopsError

    monkeypatch.setattr("tunescope.studies.many_arms.measure_arm", stops)  # the arm `nothing`, before any is tuned
    with pytest.raises(StopsError):
        poc.run(open_run, resume=True)
    swap(open_run)
    monkeypatch.undo()
    monkeypatch.setattr("tunescope.studies.arms.engine.race", stops)
    monkeypatch.setattr("tunescope.studies.arms._fit", stops)
    with pytest.raises(StopsError):
        poc.run(open_run, resume=True)
    text = (open_run.output_dir / "plan.yaml").read_text(encoding="utf-8")
    edit(open_run, ("changed by hand", "other words"))
    with pytest.raises(IntegrityError, match="was changed after tuning began with it"):
        poc.run(open_run, resume=True)
    with pytest.raises(IntegrityError, match="was changed after tuning began with it"):
        approve.run(open_run.output_dir, "Ana")
    (open_run.output_dir / "plan.yaml").write_text(text, encoding="utf-8")
    monkeypatch.undo()
    poc.run(open_run, resume=True)
    assert moved(open_run)["selected"] == ("block.2", "block.3")
    assert [kind for kind, _ in events(open_run)] == ["plan proposed", "plan edited"]


def test_an_approval_that_nobody_asked_for_seals_the_plan_all_the_same(open_run: Config, without_a_model: None) -> None:
    approve.run(open_run.output_dir, "Ana")
    swap(open_run)
    with pytest.raises(IntegrityError, match="was changed after Ana approved it"):
        poc.run(open_run, resume=True)


# Tuning one arm.


def test_one_arm_alone_waits_for_its_approval_too(model: Path, tmp_path: Path) -> None:
    config = study_of(tmp_path, model, "required")
    with pytest.raises(ApprovalError, match="waits for approval"):
        tune.run(config, "random")
    assert status(config) == ("awaiting-approval", "plan") and not (config.output_dir / "weights").exists()
    edit(config, (RANDOM, "    layers: [block.3] "))
    done = approve.run(config.output_dir, "Ana")
    assert done.resume == f"tunescope tune {config.output_dir / 'config.yaml'} --arm random --resume"
    tune.run(config, "random", resume=True)
    assert moved(config) == {"random": ("block.3",)}


def test_a_plan_for_one_arm_is_continued_by_tune(model: Path, tmp_path: Path) -> None:
    config = study_of(tmp_path, model, "not_required")
    folder, proposed = plan.run(config, "selected")
    assert [arm.arm for arm in proposed.arms] == ["selected"]
    with pytest.raises(RunError, match="holds a run of `tune`, not of `poc`"):
        poc.run(config, resume=True)
    tune.run(config, "selected", resume=True)
    assert moved(config) == {"selected": ("block.0", "block.1")} and folder.has("costs.json")


# Kills.


class Killed(BaseException):
    """As by ``kill -9``: from here on this process writes nothing."""


@pytest.fixture
def kills_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[str]]:
    """Makes the n-th write, and all after it, fail; returns the names of the files written."""
    real_text, real_line = folders.write_text, ledger._write_line

    def arm(number: int | None) -> list[str]:
        written: list[str] = []
        dead = [False]

        def count(name: str) -> None:
            if dead[0] or len(written) + 1 == number:
                dead[0] = True
                raise Killed
            written.append(name)

        def text(path: Path, content: str) -> None:
            count(path.name)
            real_text(path, content)

        def line(file: Any, content: bytes) -> None:
            count("ledger.jsonl")
            real_line(file, content)

        monkeypatch.setattr(folders, "write_text", text)
        monkeypatch.setattr(plan_folder, "write_text", text)
        monkeypatch.setattr(ledger, "_write_line", line)
        return written

    return arm


@pytest.mark.usefixtures("without_a_model")
@pytest.mark.parametrize("number", range(1, 9))
def test_killed_at_any_write_an_approval_can_be_repeated(
    number: int, waiting: Config, kills_at: Callable[[int | None], list[str]]
) -> None:
    swap(waiting)
    written = kills_at(number)
    killed = False
    try:
        approve.run(waiting.output_dir, "Ana")
    except Killed:
        killed = True
    expected = ["forecast.json", "plan.yaml", "ledger.jsonl", "ledger.jsonl", "plan.yaml", "status.json"]
    assert written == expected[: number - 1] and killed == (number <= len(expected))
    kills_at(None)
    run = RunFolder(waiting.output_dir)
    if number <= 4:  # the ledger has no approval yet
        with pytest.raises(ApprovalError):
            approve.gate(run, required=True)
    else:
        approve.gate(run, required=True)
    again = approve.run(waiting.output_dir, "Bo")
    assert again.by == ("Bo" if number <= 4 else "Ana") and again.already == (number > 4)
    assert [kind for kind, _ in events(waiting)] == ["plan proposed", "plan edited", "plan approved"]
    approve.gate(run, required=True)
    assert plan.look(run).state == "approved" and plan.look(run).arms[0].layers == ("block.2", "block.3")
    assert "state: approved" in (run.path / "plan.yaml").read_text(encoding="utf-8")


def test_killed_at_any_write_planning_and_tuning_go_on(
    model: Path, tmp_path: Path, kills_at: Callable[[int | None], list[str]]
) -> None:
    """Each attempt dies two writes later than it began; what was written stays."""
    config = study_of(tmp_path, model, "required")
    seen: list[str] = []
    for _ in range(12):
        written = kills_at(4)
        try:
            plan.run(config, resume=True)
            break
        except Killed:
            seen += written
    else:
        pytest.fail(f"never ended: {seen}")
    kills_at(None)
    assert {"layers.json", "forecast.json", "plan.json", "plan.yaml", "ledger.jsonl"} <= set(seen)
    assert [kind for kind, _ in events(config)] == ["plan proposed"]
    (config.output_dir / "plan.yaml").unlink()  # lost, and nobody approved: it is written again
    with pytest.raises(ApprovalError):
        poc.run(config, resume=True)
    assert [kind for kind, _ in events(config)] == ["plan proposed"] and status(config)[0] == "awaiting-approval"
    plan.run(config, resume=True)
