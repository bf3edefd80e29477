"""A run folder survives kills and full disks, is never overwritten, and says what is wrong with it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import IntegrityError, RunError
from tunescope.runs.folder import RunFolder, write_text

SRC = Path(__file__).parents[2] / "src"
CONFIG = "seed: 1\nmodel: m\n"


def create(path: Path, config: str = CONFIG, *, study: str = "poc", resume: bool = False) -> RunFolder:
    return RunFolder.create(path, config, study=study, command="tunescope poc c.yaml", resume=resume)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def child(code: str, *arguments: object, **settings: Any) -> subprocess.Popen[str]:
    """A second process that has the run folder's module at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", "from tunescope.runs.folder import *\nimport sys, time\n" + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(SRC)} | settings.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def result(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


# Writing whole or not at all


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_written_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "設備\r\n\u2028x\n")
    assert (tmp_path / "a").read_bytes() == "設備\r\n\u2028x\n".encode()
    write_text(tmp_path / "a", "")
    assert contents(tmp_path) == {"a": b""}


@pytest.mark.parametrize("target", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_the_old_file_and_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    monkeypatch.setattr(target, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert contents(tmp_path) == {"a.json": b"old"}


@pytest.mark.parametrize("target", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_at_the_first_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(target, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.json", "new")
    assert contents(tmp_path) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_a_write_that_stops_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_text(Path(sys.argv[1]), "x" * 1_000_000)
except OSError as error:
    print(error.strerror)
"""
    assert result(child(code, tmp_path / "a")) == "File too large\n"
    assert contents(tmp_path) == {"a": b"old"}


def test_a_number_that_is_none_is_not_written(run: RunFolder) -> None:
    run.write_json("costs.json", {"total_seconds": 1.5})
    before = contents(run.path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("costs.json", {"total_seconds": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_jsonl("samples.jsonl", [{"a": 1}, {"a": float("inf")}])
    assert contents(run.path) == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 there")
def test_a_kill_leaves_one_version_or_the_other(tmp_path: Path) -> None:
    size = 300_000
    code = f"""
run = RunFolder(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for letter in "ab":
        run.write_json("results.json", {{"results": letter * {size}}})
"""
    run = create(tmp_path / "run")
    for attempt in range(4):
        process = child(code, run.path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * attempt)
        process.kill()
        process.communicate()
        assert set(run.read_json("results.json")["results"]) in ({"a"}, {"b"})
        assert len(run.read_json("results.json")["results"]) == size
        create(run.path, resume=True)  # whatever the kill left, the run can be continued


# Starting a run


def test_a_new_run_saves_its_settings_before_anything_else(tmp_path: Path) -> None:
    run = create(tmp_path / "a" / "b" / "run")
    assert contents(run.path).keys() == {"config.yaml", "status.json"}
    assert (run.path / "config.yaml").read_text() == CONFIG
    status = run.read_json("status.json")
    assert (status["state"], status["study"], status["command"]) == ("running", "poc", "tunescope poc c.yaml")


@pytest.mark.parametrize("leftover", [".lock", ".status.json.part", ".config.yaml.part"])
def test_what_a_kill_leaves_before_the_first_file_is_no_obstacle(tmp_path: Path, leftover: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / leftover).write_text("torn")
    assert create(tmp_path / "run").read_json("status.json")["state"] == "running"


def test_a_kill_between_the_first_two_files_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    replace = Path.replace
    for allowed in (0, 1):  # how many files are there when it happens
        path = tmp_path / str(allowed)
        calls = iter([replace] * allowed)
        monkeypatch.setattr(Path, "replace", lambda *a, calls=calls: next(calls, killed)(*a))
        with pytest.raises(Killed):
            create(path)
        monkeypatch.setattr(Path, "replace", replace)
        run = create(path, resume=True)
        assert (run.path / "config.yaml").read_text() == CONFIG


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/a.txt", "config.yaml"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="not empty and is not a run; choose another output_dir"):
        create(tmp_path, resume=resume)
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(RunError, match="is a file, a run folder is needed"):
        create(tmp_path / "a")
    with pytest.raises(RunError, match="cannot be made \\(Not a directory\\); choose another output_dir"):
        create(tmp_path / "a" / "run")


@pytest.mark.parametrize("state", ["running", "done", "failed", "awaiting-approval"])
def test_a_run_is_never_overwritten(run: RunFolder, state: Any) -> None:
    run.set_status(state, stage="x")
    before = contents(run.path)
    with pytest.raises(RunError, match=rf"already there \(state {state}\).*--resume"):
        create(run.path)
    assert contents(run.path) == before


@pytest.mark.parametrize("state", ["running", "done", "failed"])
def test_a_run_is_resumed_with_the_same_settings(run: RunFolder, state: Any) -> None:
    started = run.read_json("status.json")["started"]
    run.set_status(state, stage="x", error="disk full" if state == "failed" else None)
    create(run.path, resume=True)
    status = run.read_json("status.json")
    assert (status["state"], status["error"], status["finished"], status["started"]) == ("running", None, None, started)
    assert (run.path / "config.yaml").read_text() == CONFIG


def test_resume_starts_a_run_that_is_not_there_yet(tmp_path: Path) -> None:
    assert create(tmp_path / "new", resume=True).has("config.yaml")


def test_resume_with_other_settings_is_refused_and_names_them(run: RunFolder) -> None:
    before = contents(run.path)
    with pytest.raises(RunError, match=r"settings differ.*\(-seed: 1; \+seed: 2\); put them back to resume"):
        create(run.path, CONFIG.replace("1", "2"), resume=True)
    assert contents(run.path) == before


def test_resume_as_another_study_is_refused(run: RunFolder) -> None:
    before = contents(run.path)
    with pytest.raises(RunError, match="holds a run of `poc`, not of `tune`"):
        create(run.path, study="tune", resume=True)
    assert contents(run.path) == before


def test_resume_of_a_status_without_its_fields_is_refused(run: RunFolder) -> None:
    (run.path / "status.json").write_text('{"schema_version": 1}')
    with pytest.raises(RunError, match="holds a run of `None`"):
        create(run.path, resume=True)
    with pytest.raises(RunError, match="state None"):
        create(run.path)


def test_settings_that_are_no_text_are_told_as_a_difference(run: RunFolder) -> None:
    (run.path / "config.yaml").write_bytes(b"seed: \xff\n")
    with pytest.raises(RunError, match="settings differ"):
        create(run.path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_of_a_newer_schema_is_refused(run: RunFolder, resume: bool) -> None:
    (run.path / "status.json").write_text('{"schema_version": 2, "state": "done", "study": "poc"}')
    before = contents(run.path)
    for act in (lambda: create(run.path, resume=resume), lambda: RunFolder.open(run.path)):
        with pytest.raises(RunError, match="schema version 2 was written by a newer tunescope; this one reads up to 1"):
            act()
    assert contents(run.path) == before


def test_the_check_alone_writes_nothing(tmp_path: Path, run: RunFolder) -> None:
    RunFolder.check_free(tmp_path / "new", CONFIG, study="poc")
    assert not (tmp_path / "new").exists()
    before = contents(run.path)
    RunFolder.check_free(run.path, CONFIG, study="poc", resume=True)
    with pytest.raises(RunError, match="already there"):
        RunFolder.check_free(run.path, CONFIG, study="poc")
    assert contents(run.path) == before


# Opening and reading


def test_only_a_run_is_opened(tmp_path: Path, run: RunFolder) -> None:
    assert RunFolder.open(run.path).path == run.path
    with pytest.raises(RunError, match="no such run folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run folder \(it has no status\.json\)"):
        RunFolder.open(tmp_path)


def test_a_file_that_is_not_there_yet_says_how_to_go_on(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"results\.json: missing; the run did not get that far .*--resume"):
        run.read_json("results.json")


def test_a_file_that_cannot_be_read_says_why(run: RunFolder) -> None:
    (run.path / "results.json").mkdir()
    with pytest.raises(RunError, match=r"results\.json: cannot be read \(Is a directory\)"):
        run.read_json("results.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"schema_version": 1',
        b"\xff\xfe",
        b"[1]",
        b"null",
        b"{}",
        b'{"schema_version": "1"}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_an_integrity_error(run: RunFolder, content: bytes) -> None:
    (run.path / "status.json").write_bytes(content)
    for act in (lambda: run.read_json("status.json"), lambda: RunFolder.open(run.path), lambda: create(run.path)):
        with pytest.raises(IntegrityError, match=r"status\.json: damaged"):
            act()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=8,
)
rows = st.dictionaries(st.text(), plain, max_size=3)


@given(values=rows)
def test_json_reads_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    run = RunFolder(tmp_path_factory.getbasetemp())
    values.pop("schema_version", None)
    run.write_json("sub/any.json", values)
    assert run.read_json("sub/any.json") == {"schema_version": 1, **values}


@given(first=st.lists(rows, max_size=3), more=st.lists(rows, max_size=3))
def test_jsonl_reads_back_what_was_written_and_appended(
    tmp_path_factory: pytest.TempPathFactory, first: list[dict[str, Any]], more: list[dict[str, Any]]
) -> None:
    run = RunFolder(tmp_path_factory.getbasetemp())
    run.write_jsonl("sub/any.jsonl", first)
    run.append_jsonl("sub/any.jsonl", more)
    assert run.read_jsonl("sub/any.jsonl") == first + more


def test_a_jsonl_that_is_not_there_has_no_rows(run: RunFolder) -> None:
    assert run.read_jsonl("steps.jsonl") == []


STEPS = [{"arm": "selected", "step": i, "note": "設備\u2028x"} for i in range(1, 4)]


def test_a_kill_at_any_byte_loses_at_most_the_row_being_written(run: RunFolder) -> None:
    run.append_jsonl("steps.jsonl", STEPS)
    path = run.path / "steps.jsonl"
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    new = {"arm": "selected", "step": 99}
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = STEPS[: sum(end <= cut for end in ends)]  # a row without only its line end is whole
        assert run.read_jsonl("steps.jsonl") == kept
        run.append_jsonl("steps.jsonl", [new])
        assert run.read_jsonl("steps.jsonl") == [*kept, new]


@pytest.mark.parametrize("line", [b'{"step": 2', b"\xff\xfe{}", b"3", b"[" * 100_000, b'{"a": "\xff"}'])
def test_a_damaged_line_in_the_middle_is_named(run: RunFolder, line: bytes) -> None:
    (run.path / "steps.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(IntegrityError, match=r"steps\.jsonl:2: damaged"):
        run.read_jsonl("steps.jsonl")


def test_a_damaged_last_line_that_was_ended_is_named(run: RunFolder) -> None:
    (run.path / "steps.jsonl").write_bytes(b'{"step": 1}\n{"step"\n')
    with pytest.raises(IntegrityError, match=r"steps\.jsonl:2: damaged"):
        run.read_jsonl("steps.jsonl")


def test_appended_rows_are_on_the_disk_before_the_call_returns(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append((run.path / "steps.jsonl").read_bytes()))
    run.append_jsonl("steps.jsonl", [{"a": 1}, {"a": 2}])
    assert seen == [b'{"a": 1}\n{"a": 2}\n']


# Status


def test_the_status_keeps_what_is_not_given(run: RunFolder) -> None:
    started = run.read_json("status.json")["started"]
    run.set_status("failed", stage="arm full", error="設備が止まった")
    run.set_status("done", stage="done")
    status = run.read_json("status.json")
    assert (status["study"], status["command"], status["started"]) == ("poc", "tunescope poc c.yaml", started)
    assert (status["state"], status["stage"], status["error"]) == ("done", "done", None)
    assert status["finished"] >= started


def test_the_status_does_not_depend_on_the_language_of_the_system(run: RunFolder) -> None:
    code = """
run = RunFolder.open(Path(sys.argv[1]))
run.set_status("failed", stage="x", error="\\u8a2d\\u5099")
run.set_status("failed", stage="y", error="\\u8a2d\\u5099")
"""
    result(child(code, run.path, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}))
    assert run.read_json("status.json")["error"] == "設備"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunError(["first", "second"]), "first"),
        (ValueError(""), "ValueError"),
        (KeyboardInterrupt(), "stopped by the user"),
        (MemoryError("x" * 1000), "x" * 500),
    ],
)
def test_an_error_is_noted_and_goes_on(run: RunFolder, error: BaseException, said: str) -> None:
    run.set_status("running", stage="arm full")
    with pytest.raises(type(error)) as caught, run.locked():
        raise error
    assert caught.value is error
    status = run.read_json("status.json")
    assert (status["state"], status["stage"], status["error"]) == ("failed", "arm full", said)


def test_the_error_itself_counts_when_it_cannot_be_noted(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    (run.path / "status.json").write_text("{")
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError


# Two processes

TAKE = """
run = RunFolder.open(Path(sys.argv[1]))
try:
    with run.locked():
        print("taken", flush=True)
        time.sleep(float(sys.argv[2]))
except Exception as error:
    print(error, flush=True)
"""
needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="no flock there")


@needs_locks
def test_a_second_process_is_kept_out_until_the_first_is_done(run: RunFolder) -> None:
    with run.locked():
        before = contents(run.path)
        assert "another process is at work in this run; wait for it" in result(child(TAKE, run.path, 0))
        assert contents(run.path) == before
    assert result(child(TAKE, run.path, 0)) == "taken\n"


@needs_locks
def test_a_killed_process_does_not_keep_its_lock(run: RunFolder) -> None:
    process = child(TAKE, run.path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    with pytest.raises(RunError, match="another process is at work"), run.locked():
        pass
    process.kill()
    process.communicate()
    with run.locked():
        assert run.read_json("status.json")["state"] == "running"


def test_a_finished_run_may_be_locked_again(run: RunFolder) -> None:
    for _ in range(2):
        with run.locked():
            run.set_status("done", stage="done")
    assert run.read_json("status.json")["state"] == "done"
    assert json.loads((run.path / "status.json").read_text())["schema_version"] == 1
