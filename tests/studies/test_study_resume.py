"""What may be resumed, and what is refused: changed settings, data or weights, a foreign or damaged run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import StopsAfter, write_study

from tunescope import models
from tunescope.config import Config, load
from tunescope.errors import GateError, IntegrityError, RunError, TunescopeError
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.studies import poc, tune
from tunescope.studies.progress import Silent


class StopsIn(Silent):
    """Asks to stop, as Ctrl-C does, at the first unit of a stage."""

    def __init__(self, stage: str) -> None:
        self.wanted, self.now = stage, ""

    def stage(self, name: str, total: int | None = None) -> None:
        self.now = name

    def stopping(self) -> bool:
        return self.now == self.wanted


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def stopped_run(folder: Path, model: Path, stage: str, **changes: Any) -> Config:
    """A study of its own that was stopped in a stage."""
    arms = {"arms": ["nothing", "selected", "random"]}
    config = load(write_study(folder, model, **(arms | changes)))
    with pytest.raises(KeyboardInterrupt):
        poc.run(config, progress=StopsIn(stage))
    return config


@pytest.fixture(scope="module")
def stopped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run stopped in the middle of tuning `random`; tests put back what they change."""
    folder = tmp_path_factory.mktemp("stopped")
    own = Path(shutil.copytree(model, folder / "model"))
    return stopped_run(folder, own, "random: tune")


@contextlib.contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def refusal(config: Config, kind: type[TunescopeError], exit_code: int) -> str:
    """Resumes, and returns the error; nothing of the run may change but its status."""
    run = config.output_dir
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(kind) as caught:
        poc.run(config, resume=True)
    assert caught.value.exit_code == exit_code
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after.get(path)} <= {"status.json"}
    assert before.keys() == after.keys()
    return str(caught.value)


def test_a_stopped_run_says_so_and_keeps_a_checkpoint(stopped: Config) -> None:
    run = RunFolder.open(stopped.output_dir)
    status = run.read_json("status.json")
    assert (status["state"], status["stage"], status["error"]) == ("failed", "arm random", "stopped by the user")
    assert (run.path / "arms" / "random" / "checkpoint.safetensors").is_file()
    steps = [(row["arm"], row["step"]) for row in run.read_jsonl("steps.jsonl")]
    assert steps[-1] == ("random", 1) and steps[-2][0] == "selected"


def test_it_is_not_overwritten_without_resume(stopped: Config) -> None:
    with pytest.raises(RunError, match=r"a run is already there.*--resume"):
        poc.run(stopped)


@pytest.mark.parametrize("override", ["seed: 4", "num_epochs: 3", "max_test_examples: 4"])
def test_changed_settings_are_refused_and_named(stopped: Config, override: str) -> None:
    key = override.partition(":")[0]
    section = {"num_epochs": "tuning.", "max_test_examples": "data."}.get(key, "")
    other = load(stopped.output_dir / "config.yaml", [section + override.replace(": ", "=")])
    said = refusal(other, RunError, 2)
    assert "settings differ" in said and f"+{override}" in said.replace("+  ", "+")


def test_changed_data_are_refused_by_file(stopped: Config) -> None:
    path = stopped.tasks[1].test
    assert path is not None
    with changed(path, path.read_bytes().replace(b"A ", b"B ", 1)):
        said = refusal(stopped, IntegrityError, 5)
    assert str(path) in said and "changed since this run began" in said and len(said.splitlines()) == 1


def test_swapped_files_are_refused(stopped: Config) -> None:
    one, other = stopped.tasks[0].train, stopped.tasks[0].test
    assert one and other
    first, second = one.read_bytes(), other.read_bytes()
    with changed(one, second), changed(other, first):
        said = refusal(stopped, IntegrityError, 5)
    assert len(said.splitlines()) == 2


def test_changed_weights_are_refused(stopped: Config) -> None:
    path = Path(stopped.model) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with changed(path, bytes(content)):
        said = refusal(stopped, IntegrityError, 5)
    assert "the weights changed" in said


@pytest.mark.parametrize("where", [30, 900, -40])
def test_a_damaged_checkpoint_is_refused(stopped: Config, where: int) -> None:
    path = stopped.output_dir / "arms" / "random" / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 255
    with changed(path, bytes(content)):
        said = refusal(stopped, IntegrityError, 5)
    assert str(path) in said and "remove it" in said


def test_a_checkpoint_that_was_cut_short_is_passed_over_for_the_one_before(model: Path, tmp_path: Path) -> None:
    long = {"tuning": {"num_epochs": 4, "batch_size": 8, "lora_rank": 2, "patience": 0, "learning_rate": 1e-3}}
    runs = {name: load(write_study(tmp_path / name, model, **long)) for name in ("whole", "cut")}
    tune.run(runs["whole"], "selected")
    with pytest.raises(KeyboardInterrupt):
        tune.run(runs["cut"], "selected", progress=StopsAfter(14))
    file = runs["cut"].output_dir / "arms" / "selected" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    notes = Notes()
    tune.run(runs["cut"], "selected", resume=True, progress=notes)
    said = [note for note in notes.notes if "checkpoint" in note]
    assert len(said) == 1 and said[0].startswith(
        f"{file}: damaged or cut short; going on from the checkpoint before it"
    )
    assert 0 < int(said[0].rpartition(" ")[2]) < 14
    left = {
        name: {
            path.relative_to(config.output_dir): path.read_bytes()
            for path in config.output_dir.rglob("*")
            if path.suffix == ".safetensors"
        }
        for name, config in runs.items()
    }
    assert left["cut"] == left["whole"] and len(left["whole"]) == 1, "and no checkpoint is left behind"
    steps = [
        [row | {"seconds": 0} for row in RunFolder.open(config.output_dir).read_jsonl("steps.jsonl")]
        for config in runs.values()
    ]
    assert steps[0] == steps[1]


def test_a_newer_schema_is_refused(stopped: Config) -> None:
    path = stopped.output_dir / "status.json"
    newer = json.dumps(json.loads(path.read_bytes()) | {"schema_version": 99}).encode()
    with changed(path, newer):
        assert "newer tunescope" in refusal(stopped, RunError, 2)


def test_the_run_of_another_study_is_refused(stopped: Config) -> None:
    with pytest.raises(RunError, match="holds a run of `poc`, not of `tune`"):
        tune.run(stopped, "selected", resume=True)


def test_a_run_at_which_another_process_works_is_refused(stopped: Config) -> None:
    with (stopped.output_dir / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another process" in refusal(stopped, RunError, 2)


def test_it_goes_on_from_another_folder_and_ends_like_a_run_that_nothing_stopped(
    stopped: Config, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # files are named relative to it
    notes = Notes()
    resumed = poc.run(stopped, resume=True, progress=notes)
    assert any("continues after step 1 of 10" in note for note in notes.notes)
    arms = [arm.value for arm in stopped.arms]
    for name, key in (("results.json", "results"), ("risk.json", "risks")):
        rows = [row for row in run.read_json(name)[key] if row["arm"] in arms]
        assert len(rows) > 5 and sorted(map(str, resumed.read_json(name)[key])) == sorted(map(str, rows))
    answers = [{arm: row["answers"][arm] for arm in arms} for row in run.read_jsonl("samples.jsonl")]
    assert [row["answers"] for row in resumed.read_jsonl("samples.jsonl")] == answers
    for arm in arms[1:]:
        name = f"weights/{arm}/adapter_model.safetensors"
        assert (resumed.path / name).read_bytes() == (run.path / name).read_bytes()
    assert not (resumed.path / "arms").exists()
    assert resumed.read_json("status.json")["state"] == "done"
    assert ledger.verify(resumed.path / "ledger.jsonl").n == 3


@pytest.mark.parametrize("stage", ["score the blocks", "nothing: measure"])
def test_stopped_where_there_is_no_checkpoint_it_can_go_on(stage: str, model: Path, tmp_path: Path) -> None:
    config = stopped_run(
        tmp_path, model, stage, arms=["nothing", "selected"], tuning={"learning_rate": 1e-3, "num_epochs": 1}
    )
    run = poc.run(config, resume=True)
    steps = [row["step"] for row in run.read_jsonl("steps.jsonl")]
    assert steps == [1, 2, 3, 4, 5]
    assert run.read_json("status.json")["state"] == "done"


# A finished run.


@pytest.fixture
def copy(run: RunFolder, config: Config, tmp_path: Path) -> Config:
    """The settings of a finished run of the test's own."""
    target = Path(shutil.copytree(run.path, tmp_path / "run"))
    own = load(run.path / "config.yaml", [f"output_dir={target}"])
    text = (target / "config.yaml").read_text(encoding="utf-8").replace(str(run.path), str(target))
    (target / "config.yaml").write_text(text, encoding="utf-8")
    return own


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_returned_at_once_and_unchanged(copy: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run needs no model")

    monkeypatch.setattr(models, "load_located", forbidden)
    before = contents(copy.output_dir)
    run = poc.run(copy, resume=True)
    assert run.path == copy.output_dir
    assert contents(run.path) == before


def test_a_run_that_was_killed_while_it_tidied_up_is_tidied_up(copy: Config) -> None:
    before = contents(copy.output_dir)
    run = RunFolder(copy.output_dir)
    run.set_status("running", stage="decide")
    run.write_json("arms/selected/tuned.json", {})
    poc.run(copy, resume=True)
    assert run.read_json("status.json")["state"] == "done"
    after = contents(copy.output_dir)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {"status.json"}


def test_a_gate_that_was_not_passed_is_told_every_time(model: Path, tmp_path: Path) -> None:
    config = load(write_study(tmp_path, model, arms=["nothing"], gate={"fail": True, "min_test_examples": 5}, guard=[]))
    for resume in (False, True):
        with pytest.raises(GateError, match="and gate") as caught:
            poc.run(config, resume=resume)
        assert caught.value.exit_code == 3
        assert RunFolder.open(config.output_dir).read_json("status.json")["state"] == "done"
