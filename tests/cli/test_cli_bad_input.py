"""Bad input of every kind: the right exit code, one line per problem with file and line, and nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Finished, Outcome, small

Command = Callable[..., Outcome]
TRAIN = r"data/routing\.train\.jsonl"


@pytest.fixture
def study(model: Path, tmp_path: Path) -> Path:
    """A study of the test's own, which it may damage."""
    return small(model, tmp_path)


def assert_refused(said: Outcome, patterns: list[str], *, code: int = 2) -> None:
    """One line per problem, in order; nothing on stdout, no traceback."""
    assert said.code == code, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert len(said.problems) == len(patterns), said.err
    for line, pattern in zip(said.problems, patterns, strict=True):
        assert re.search(pattern, line), f"{pattern!r} is not in {line!r}"
        assert line.isprintable() and len(line) < 1200
    # Apart from the problems there is only progress.
    assert all(re.match(r"error: |\[ *\d+ s\] ", line) for line in said.err.splitlines())


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def row(text: str = "A lamp", label: Any = "it", **more: Any) -> bytes:
    return json.dumps({"instruction": "Desk?", "input": text, "output": label} | more).encode() + b"\n"


DEEP = b'{"instruction": ' + b"[" * 100_000 + b"]" * 100_000 + b', "output": "it"}\n'
CHAT = b'{"messages": [{"role": "wizard", "content": "x"}, {"role": "assistant", "content": "it"}]}\n'
DATA: dict[str, tuple[bytes, list[str]]] = {
    "encoding": (
        row() + '{"instruction": "ドアが開かない", "output": "it"}\n'.encode("cp932"),
        [":2: not UTF-8.*cp932"],
    ),
    "utf-16": (row().decode().encode("utf-16"), [": looks like UTF-16"]),
    "cut-off line": (row() + row()[:30] + b"\n" + row("An oven", id=3), [":2: not JSON at column .*breaks off"]),
    "two bad lines": (b"{\n" + row() + b"nonsense\n", [":1: not JSON", ":3: not JSON"]),
    "no object": (row() + b'["Desk?", "it"]\n', [":2: the line is .*one object per line"]),
    "wrong type": (row() + row({"a": 1}), [r":2: "]),  # type: ignore[arg-type]
    "a number as answer": (row() + b'{"instruction": "Desk?", "output": null}\n', [r":2: "]),
    "unknown role": (row()[:0] + CHAT, [":1: .*wizard"]),
    "mixed formats": (row() + b'{"prompt": "Desk?", "completion": "it"}\n', [":2: .*(format|alpaca)"]),
    "unknown keys": (row() + b'{"question": "Desk?", "answer": "it"}\n', [":2: "]),
    "empty": (b"", [": the file is empty"]),
    "blank": (b"\n\n  \n", [": .*(empty|no rows)"]),
    "one row": (row(), [r"learning_rate is auto"]),
    "unknown label": (row() + row("An oven", "sales"), [":2: label 'sales' is unknown"]),
    "label in capitals": (row() + row("An oven", "IT"), [":2: label 'IT' differs only in case"]),
    "empty answer": (row() + row("An oven", ""), [":2: "]),
    "no room for the answer": (row() + row("x" * 400), [r":2: prompt \d+ \+ answer .*cut entirely.*max_length to \d+"]),
    "duplicate id": (row(id="a") + row("An oven", id="b") + row("A car", id="a"), [":3: .*'a'.*line 1"]),
    "deeply nested": (row() + DEEP, [":2: nested deeper than 64"]),
    "not a number": (row() + b'{"instruction": NaN, "output": "it"}\n', [":2: holds NaN"]),
    "a key twice": (row() + b'{"output": "it", "output": "hr"}\n', [":2: key 'output' stands twice"]),
    "control token": (
        row() + row("Hi<end><assistant>it"),
        [":2: the text contains '<(end|assistant)>', a control token"],
    ),
    "50 MB in a line": (row() + row("x" * 50_000_000), [":2: the line has 50,"]),
}


@pytest.mark.parametrize("kind", DATA)
def test_a_bad_data_file_is_refused_by_file_and_line(kind: str, study: Path, command: Command, tmp_path: Path) -> None:
    content, problems = DATA[kind]
    (tmp_path / "data" / "routing.train.jsonl").write_bytes(content)
    before = files_below(tmp_path)
    override = ["tuning.learning_rate=auto"] if kind == "one row" else []
    said = command("poc", study, *override)
    assert_refused(said, [p if kind == "one row" else TRAIN + p for p in problems])
    assert not (tmp_path / "run").exists() and files_below(tmp_path) == before


def test_a_data_check_of_a_bad_file_says_the_same(study: Path, command: Command, tmp_path: Path) -> None:
    content, _ = DATA["two bad lines"]
    (tmp_path / "data" / "routing.train.jsonl").write_bytes(content)
    said = command("data", "check", study)
    assert said.code == 2 and "2 error(s)" in said.err and "Traceback" not in said.err
    assert all(re.search(rf"routing\.train\.jsonl:{n}: error: not JSON", said.out) for n in (1, 3))


def test_a_byte_order_mark_is_left_out_and_named(study: Path, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "data" / "routing.train.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    said = command("data", "check", study)
    assert said.code == 0 and re.search(r"routing\.train\.jsonl:1: info: .*byte order mark", said.out)


OTHER_FILES: dict[str, tuple[str, bytes | None, list[str]]] = {
    "missing": ("nowhere.jsonl", None, [r"nowhere\.jsonl: .*(no such|not there|missing|exist)"]),
    "a folder": ("data", None, [r"data: .*folder"]),
    "unknown ending": ("train.docx", b"PK", [r"train\.docx: .*\.jsonl"]),
    "table without a mapping": ("train.csv", b"frage,antwort\nDesk?,it\n", [r"train\.csv:2: .*columns"]),
    "torn table": ("train.csv", b'instruction,output\n"Desk?,it\n', [r"train\.csv:2: .*double quote"]),
    "no table": ("train.parquet", b"PAR1 nonsense", [r"train\.parquet: not a readable Parquet"]),
    "one object over lines": ("train.json", b'{"instruction": "x",\n "output"', [r"train\.json:2: not JSON"]),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_of_another_kind_is_refused(kind: str, study: Path, command: Command, tmp_path: Path) -> None:
    name, content, problems = OTHER_FILES[kind]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(command("poc", study, f"tasks.0.train={tmp_path / name}"), problems)
    assert not (tmp_path / "run").exists()


def test_problems_of_all_files_are_told_at_once(study: Path, command: Command, tmp_path: Path) -> None:
    for name in ("routing.train.jsonl", "routing.test.jsonl", "routing.plant_b.jsonl", "guard.jsonl"):
        (tmp_path / "data" / name).write_bytes(row() + b"nonsense\n")
    names = [r"routing\.train", r"routing\.test", r"routing\.plant_b", "guard"]
    assert_refused(command("poc", study), [rf"{name}\.jsonl:2: not JSON" for name in names])


SETTINGS: dict[str, tuple[str, list[str]]] = {
    "unknown key": ("seeds: 1", [r"study\.yaml:\d+: unknown setting 'seeds' \(did you mean seed"]),
    "misspelt key in a section": ("tuning: {lora_rnak: 4}", [r"study\.yaml:\d+: .*'tuning.lora_rnak'.*lora_rank"]),
    "wrong type": ("seed: tomorrow", [r"study\.yaml:\d+: seed: got 'tomorrow', needs a whole number"]),
    "several": (
        "seed: -1\ndtype: float16\ntuning: {num_epochs: 0}",
        [r"\d+: seed: got -1", r"\d+: dtype: got 'float16'", r"\d+: tuning.num_epochs: got 0"],
    ),
    "contradiction": ("arms: [nothing, random]", [r"\d+: arms: random is the control of selected"]),
    "a tag": ("output_dir: !!python/object/apply:os.system ['touch owned']", [r"\d+: YAML tag '.*' is not allowed"]),
    "an anchor": ("guard: &a [x.jsonl]", [r"\d+: YAML anchors and aliases are not allowed"]),
    "no YAML": ("guard: [x.jsonl", [r"\d+: not valid YAML"]),
    "a control character": ("language: \x00en", [r"\d+: not valid YAML"]),
    "a key twice": ("seed: 1\nseed: 2", [r"\d+: 'seed' is set twice"]),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_wrong_settings_are_refused_by_line(
    kind: str, study: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, problems = SETTINGS[kind]
    keys = {line.partition(":")[0] for line in text.splitlines()}
    kept = []
    skipping = False
    for line in study.read_text(encoding="utf-8").splitlines():
        skipping = line.partition(":")[0] in keys or (skipping and line[:1] in (" ", "-"))
        if not skipping:
            kept.append(line)
    study.write_text("\n".join([*kept, text]) + "\n", encoding="utf-8")
    before = files_below(tmp_path)
    for name in ("poc", "tune", "evaluate", "doctor"):
        assert_refused(command(name, study), problems)
    assert_refused(command("data", "check", study), problems)
    assert files_below(tmp_path) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("nowhere.yaml", None, "no such settings file"),
        ("empty.yaml", b"", "the file is empty"),
        ("list.yaml", b"- a\n- b\n", "a settings file is a list of `key: value` lines"),
        ("latin.yaml", "currency: café\n".encode("latin-1"), "not UTF-8"),
        ("large.yaml", b"# " + b"x" * 2_000_000, "too long for a settings file"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(
    name: str, content: bytes | None, problem: str, command: Command, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(command("poc", tmp_path / name), [rf"{re.escape(str(tmp_path / name))}.*{re.escape(problem)}"])


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (["seed"], ["override 'seed': write key=value"]),
        (["sed=1"], [r"override sed=1: unknown setting 'sed' \(did you mean seed"]),
        (["seed=x", "tuning.num_epochs=0"], ["override seed=x: seed: got 'x'", "override tuning.num_epochs=0: "]),
        (["tasks.4.name=x"], ["override 'tasks.4.name=x': "]),
        (["selection.blocks=[block.44]"], ["selection.blocks: layer pattern 'block.44' matches nothing.*block.0 to block.3"]),
        (["tuning.target_modules=[qkv]"], ["tuning.target_modules: part 'qkv' is not known.*allowed: q, k, v"]),
        (["device=cuda:9"], ["device cuda:9: this machine has"]),
        (["tasks.0.labels=null"], ["accuracy needs labels"]),
        (["revision=main"], ["a revision is for hub ids"]),
        (["tasks.0.name=../../x"], [r"tasks.0.name: got '\.\./\.\./x'"]),
        (["tasks.0.test=/dev/zero"], ["/dev/zero: "]),
    ],
)  # fmt: skip
def test_wrong_overrides_are_refused_as_they_were_typed(
    overrides: list[str], problems: list[str], study: Path, command: Command, tmp_path: Path
) -> None:
    assert_refused(command("poc", study, *overrides), problems)
    assert not (tmp_path / "run").exists()


# Models.


def damaged_model(kind: str, model: Path, folder: Path) -> str:
    """Returns the name of a model that cannot be used."""
    if not kind.endswith("folder"):
        return {"misspelt": "smollm2-135m-instrct", "no such id": "owner/model", "not a model": __file__}[kind]
    own = Path(shutil.copytree(model, folder / "model"))
    weights = own / "model.safetensors"
    if kind.startswith("cut-off"):
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind.startswith("nonsense"):
        weights.write_bytes(b"\x80\x04nonsense")
    elif kind.startswith("pickled"):
        weights.rename(own / "pytorch_model.bin")
    elif kind.startswith("empty"):
        weights.unlink()
    elif kind.startswith("other family"):
        config = json.loads((own / "config.json").read_text())
        (own / "config.json").write_text(
            json.dumps(config | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
        )
    elif kind.startswith("unknown family"):
        (own / "config.json").write_text('{"model_type": "mamba9"}')
    elif kind.startswith("torn config"):
        (own / "config.json").write_text('{"model_type": ')
    elif kind.startswith("wider"):
        config = json.loads((own / "config.json").read_text())
        (own / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    elif kind.startswith("no tokenizer"):
        for path in own.glob("*token*"):
            path.unlink()
    return str(own)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("misspelt", "did you mean smollm2-135m-instruct"),
        ("no such id", "cannot be fetched from the hub"),
        ("not a model", "is a file but not .gguf"),
        ("cut-off folder", r"model\.safetensors: damaged"),
        ("nonsense folder", r"model\.safetensors: damaged"),
        ("pickled folder", "only pickled weights"),
        ("empty folder", r"no \*\.safetensors weights"),
        ("other family folder", "'gpt2' is not supported"),
        ("unknown family folder", "mamba9|config.json"),
        ("torn config folder", "config.json is missing or not readable"),
        ("wider folder", "weights are missing or of another shape|cannot be loaded"),
        ("no tokenizer folder", "cannot be loaded|tokenizer"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    kind: str, problem: str, study: Path, model: Path, command: Command, tmp_path: Path
) -> None:
    name = damaged_model(kind, model, tmp_path)
    assert_refused(command("poc", study, f"model={json.dumps(name)}"), [problem])
    assert not (tmp_path / "run").exists()


def test_damaged_adapters_are_an_integrity_error_and_foreign_ones_bad_input(
    finished: Finished, study: Path, command: Command, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(finished.run / "weights" / "selected", tmp_path / "adapter"))
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert_refused(command("evaluate", study, "--weights", adapter), [r"adapter_model\.safetensors: damaged"], code=5)
    file.write_bytes(whole)
    (adapter / "adapter_config.json").unlink()
    assert_refused(command("evaluate", study, "--weights", adapter), ["holds neither adapter_config.json"])
    assert_refused(command("evaluate", study, "--weights", tmp_path / "no"), ["--weights .*no such folder"])
    assert not (tmp_path / "run").exists()


def test_names_of_arms_and_tasks_of_the_harness_are_checked(
    finished: Finished, study: Path, command: Command, tmp_path: Path
) -> None:
    adapter = finished.run / "weights" / "selected"
    given = ["--arm", "selected", "--arm", "=x", "--arm", f"a={adapter}", "--arm", f"a={adapter}"]
    problems = ["--arm selected: write NAME=PATH", "--arm =x: write NAME=PATH", "the name 'a' is given twice"]
    assert_refused(command("evaluate", study, *given), problems)
    assert_refused(command("evaluate", study, "--arm", f"a={tmp_path / 'no'}"), ["--arm a=.*no such folder"])
    assert_refused(command("evaluate", study, "--arm", f"prompt={adapter}"), ["not be nothing or prompt"])
    said = command("evaluate", study, "--lm-eval", tmp_path / "no.yaml")
    assert said.code == 2 and re.search(
        r"lm-evaluation-harness is not installed|no\.yaml: cannot be read", said.problems[0]
    )
    assert not (tmp_path / "run").exists()


def test_an_arm_that_is_not_tuned_is_refused(study: Path, command: Command, tmp_path: Path) -> None:
    assert_refused(command("tune", study, "--arm", "prompt"), ["--arm 'prompt': is not tuned; allowed: selected"])
    assert not (tmp_path / "run").exists()


# Folders.


def test_a_folder_that_holds_something_is_left_as_it_is(study: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    for arguments in (["poc"], ["poc", "--resume"], ["tune"], ["evaluate"]):
        name, *rest = arguments
        assert_refused(command(name, study, *rest), ["not empty and is not a run"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    assert_refused(command("poc", study, f"output_dir={study}"), ["is a file, a run folder is needed"])
    assert_refused(command("poc", study, f"output_dir={study / 'x'}"), ["cannot be made"])


def test_an_existing_run_is_not_overwritten(finished: Finished, command: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in files_below(finished.run)}
    assert_refused(command("poc", finished.study, "seed=5"), ["a run is already there.*--resume"])
    assert_refused(command("poc", finished.study, "seed=6", "--resume"), [r"settings differ .*-seed: 5; \+seed: 6"])
    assert {path: path.stat().st_mtime_ns for path in files_below(finished.run)} == before


@pytest.mark.parametrize("arguments", [["report"], ["audit", "verify"], ["export"], ["poc", "--resume"]])
def test_a_run_of_a_newer_schema_is_refused_by_every_command(
    arguments: list[str], study: Path, finished: Finished, command: Command, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished.run, tmp_path / "run"))
    for path in run.glob("*.json"):
        path.write_text(
            path.read_text(encoding="utf-8").replace('"schema_version": 1', '"schema_version": 99'), "utf-8"
        )
    before = {path: path.read_bytes() for path in files_below(run)}
    if arguments[0] == "poc":
        said = command("poc", study, "--resume")
    else:
        said = command(*arguments, run, *(["selected", "--to", tmp_path / "out"] if arguments == ["export"] else []))
    assert_refused(said, ["schema.version (is )?99.*newer"])
    assert {path: path.read_bytes() for path in files_below(run)} == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["report"], ["audit", "verify"], ["export"]])
def test_what_is_no_run_is_refused(arguments: list[str], command: Command, tmp_path: Path) -> None:
    rest = ["selected", "--to", str(tmp_path / "out")] if arguments == ["export"] else []
    assert_refused(command(*arguments, tmp_path / "nowhere", *rest), ["no such run folder"])
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(command(*arguments, tmp_path, *rest), ["not a run folder"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_file_of_a_run_is_named(content: str, finished: Finished, command: Command, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.run, tmp_path / "run"))
    (run / "results.json").write_text(content)
    said = command("report", run)
    assert said.code in (2, 5) and len(said.problems) == 1 and "results.json" in said.problems[0]
    assert "Traceback" not in said.err


# Disk full.


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size` bytes, which fails as a full disk does, below Python too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [2_000, 80_000])
def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(
    size: int, study: Path, command: Command, tmp_path: Path
) -> None:
    """The small limit stops at the first files, the larger one at the checkpoint, which safetensors writes."""
    arms = ["arms=[nothing, full]", "tuning.learning_rate=1e-4"]
    with largest_file(size):
        said = command("poc", study, *arms)
    assert said.code == 2 and said.out == "" and "Traceback" not in said.err
    assert len(said.problems) == 1 and re.search("free some.*--resume", said.problems[0])
    run = tmp_path / "run"
    assert (run / "steps.jsonl").exists() == (size > 2_000)
    assert not list(run.rglob("*.part"))
    again = command("poc", study, *arms, "--resume")
    assert again.code == 0, again.err
    assert [json.loads(line)["step"] for line in (run / "steps.jsonl").read_text().splitlines()] == [1, 2]


def test_an_export_for_which_there_is_no_room_leaves_nothing(
    finished: Finished, command: Command, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished.run, tmp_path / "run"))
    with largest_file(20_000):
        said = command("export", run, "selected", "--to", tmp_path / "out" / "merged")
    assert_refused(said, ["no space left; free some"])
    assert list((tmp_path / "out").iterdir()) == []
    assert command("audit", "verify", run).code == 0


def test_a_disk_that_is_full_from_the_start_leaves_nothing_to_remove(
    study: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "run" / "status.json"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert_refused(command("poc", study), [r"status\.json: no space left"])
    assert files_below(tmp_path / "run") == set()
    assert command("evaluate", study, "arms=[nothing]").code == 0  # the empty folder is as good as none
