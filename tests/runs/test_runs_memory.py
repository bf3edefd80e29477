from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tunescope.errors import IntegrityError, RunError
from tunescope.runs import folder, kept
from tunescope.runs import memory as memory_module
from tunescope.runs.memory import Kept, Memory, fingerprint

BASE = {"name": "smollm2-135m", "sha256": "ab"}


def example(text: str, **more) -> dict:
    return {"instruction": "Which desk?", "input": text, "targets": ["it"]} | more


def one(name: str, *, task: str = "routing", text: str | None = None) -> Kept:
    return Kept(task, name, example(text or f"text {task} {name}"), "inscl", "stage-1", {"code": "random", "n": 1})


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory.create(tmp_path / "memory", base_model=BASE, budget_examples=10, budget_bytes=5000)


def files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != ".lock"}


def test_what_is_written_is_read_sorted_and_whole(memory):
    given = [one("b"), one("a", task="summary"), one("a", text="要約\u2028\nline")]
    memory.write(given)
    assert [(k.task, k.id) for k in memory.kept] == [("routing", "a"), ("routing", "b"), ("summary", "a")]
    again = Memory.open(memory.path, base_model=BASE)
    assert again.kept == memory.kept
    assert set(map(fingerprint, (k.example for k in again.kept))) == {fingerprint(k.example) for k in given}
    assert (again.base_model, again.budget_examples, again.budget_bytes) == (BASE, 10, 5000)
    assert again.kept[0].to_dict() == given[2].to_dict()
    index = json.loads((memory.path / "index.json").read_text())
    assert index["n_examples"] == 3
    assert index["n_bytes"] == (memory.path / "examples.jsonl").stat().st_size
    memory.write([])
    assert Memory.open(memory.path).kept == ()


def test_the_order_of_writing_changes_nothing(tmp_path):
    rows = [one(name) for name in "abc"]
    for name, order in (("x", rows), ("y", rows[::-1])):
        Memory.create(tmp_path / name, base_model=BASE).write(order)
    assert files(tmp_path / "x") == files(tmp_path / "y")
    assert Memory.open(tmp_path / "x").digest == Memory.open(tmp_path / "y").digest


def test_tuples_come_back_as_lists_at_once(memory):
    memory.write([Kept("t", "1", example("x", targets=("a", "b"), history=(("user", "hi"),)), "random", "1", {})])
    assert memory.kept[0].example["targets"] == ["a", "b"]
    assert memory.kept == Memory.open(memory.path).kept


# Budget


def test_more_than_the_budget_is_refused_and_changes_nothing(memory):
    memory.write([one("a")])
    before = files(memory.path)
    with pytest.raises(RunError, match=r"11 examples with \d+ bytes are over the budget of 10 examples and 5000 bytes"):
        memory.write([one(str(i)) for i in range(11)])
    with pytest.raises(RunError, match="1 examples with 6"):
        memory.write([one("a", text="x" * 6000)])
    assert files(memory.path) == before
    memory.write([one(str(i)) for i in range(10)])


def test_the_fitting_are_the_first_that_fit(memory):
    rows = [one(str(i)) for i in range(20)]
    assert memory.fitting(rows) == rows[:10]
    assert [k.id for k in memory.fitting([one("a"), one("big", text="x" * 9000), one("b")])] == ["a"]
    memory.write([one("0")])
    memory.forget(["0"])
    assert memory.fitting(rows) == rows[1:11]
    small = Memory.create(memory.path.parent / "small", base_model=BASE, budget_bytes=500)
    fitting = small.fitting(rows)
    small.write(fitting)
    assert 0 < (small.path / "examples.jsonl").stat().st_size <= 500
    with pytest.raises(RunError, match="over the budget"):
        small.write(rows[: len(fitting) + 1])


def test_the_budget_can_change_but_not_below_what_is_kept(memory):
    memory.write([one("a"), one("b")])
    with pytest.raises(RunError, match=r"2 examples .* over the budget of 1 examples and any number of bytes"):
        memory.set_budget(budget_examples=1, budget_bytes=None)
    memory.set_budget(budget_examples=2, budget_bytes=None)
    assert (Memory.open(memory.path).budget_examples, Memory.open(memory.path).budget_bytes) == (2, None)
    assert len(memory.kept) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([one("a"), one("a")], "example 'a' of task 'routing' is given twice"),
        ([Kept("t", "1", {"input": "x", "targets": []}, "p", "s", {})], "instruction missing"),
        ([Kept("t", "1", example("x"), "p", "s", {"n": float("nan")})], "example '1' of task 't': is no plain JSON"),
        ([Kept("t", "1", example("x", targets=[float("inf")]), "p", "s", {})], "is no plain JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_changes_nothing(memory, rows, message):
    before = files(memory.path)
    with pytest.raises(RunError, match=message):
        memory.write(rows)
    assert files(memory.path) == before


# Withdrawal


def test_a_withdrawn_example_is_gone_and_its_content_never_comes_back(memory):
    memory.write([one("a", text="secret"), one("b"), one("c", task="summary", text="secret")])
    gone = memory.forget(["a"], task="routing")
    assert [(k.task, k.id) for k in gone] == [
        ("routing", "a"),
        ("summary", "c"),
    ]  # the same content in another task too
    assert [k.id for k in memory.kept] == ["b"]
    assert b"secret" not in b"".join(files(memory.path).values())
    again = Memory.open(memory.path)
    assert again.is_withdrawn(example("secret", id="new", task="other", attributes={"site": "x"}))
    assert not again.is_withdrawn(example("secret!"))
    with pytest.raises(RunError, match="example 'z' of task 'routing' was withdrawn and may not come back"):
        again.write([one("b"), one("z", text="secret")])
    assert [k.id for k in again.fitting([one("z", text="secret"), one("b")])] == ["b"]


def test_an_example_can_be_withdrawn_that_was_never_kept(memory):
    memory.write([one("a"), one("b")])
    gone = memory.forget_examples([example("never kept"), dict(one("a").example)])
    assert [k.id for k in gone] == ["a"]
    assert memory.is_withdrawn(example("never kept"))
    assert len(memory.withdrawn) == 2


@pytest.mark.parametrize(
    ("ids", "task", "message"),
    [
        (["a", "x1"], None, r"no example 'x1' is kept.*nothing was withdrawn"),
        (["ticket-18"], None, r"did you mean ticket-17\?"),
        (["same"], None, "id 'same' occurs in the tasks routing, summary; say which task is meant"),
        (["a"], "summary", "no example 'a' of task 'summary' is kept"),
    ],
)
def test_an_unknown_or_ambiguous_id_withdraws_nothing(memory, ids, task, message):
    memory.write([one("a"), one("ticket-17"), one("same"), one("same", task="summary")])
    before = files(memory.path)
    with pytest.raises(RunError, match=message):
        memory.forget(ids, task=task)
    assert files(memory.path) == before


def test_the_content_names_an_example_and_nothing_else_does():
    base = example("x")
    assert fingerprint(base) == fingerprint(example("x", system=None, history=(), file="f", line=3))
    for other in (
        example("y"),
        example("x", targets=["hr"]),
        example("x", system="s"),
        example("x", history=[["user", "h"]]),
    ):
        assert fingerprint(other) != fingerprint(base)


# Integrity


@pytest.mark.parametrize("name", ["examples.jsonl", "index.json"])
@pytest.mark.parametrize("change", ["edit", "cut", "empty", "remove"])
def test_a_changed_file_is_noticed(memory, name, change):
    memory.write([one("a"), one("b")])
    memory.forget(["b"])
    path = memory.path / name
    text = path.read_bytes()
    if change == "remove":
        path.unlink()
    else:
        path.write_bytes({"edit": text.replace(b"a", b"o", 1), "cut": text[:-20], "empty": b""}[change])
    error = RunError if (name, change) == ("index.json", "remove") else IntegrityError
    for act in (lambda: Memory.open(memory.path), lambda: memory.write([one("c")]), lambda: memory.forget(["a"])):
        with pytest.raises(error) as caught:
            act()
        assert str(memory.path) in str(caught.value)


def test_a_withdrawal_cannot_be_taken_back_by_editing_the_index(memory):
    memory.forget_examples([example("secret")])
    path = memory.path / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"withdrawn": []}))
    with pytest.raises(IntegrityError, match="does not match its own hash"):
        Memory.open(memory.path)


def test_an_older_memory_put_back_changes_the_digest(memory):
    memory.write([one("a")])
    digest = memory.digest
    memory.forget(["a"])
    assert memory.digest != digest
    assert Memory.open(memory.path).digest == memory.digest


def test_another_base_model_is_refused_with_the_difference(memory):
    Memory.open(memory.path, base_model=dict(reversed(BASE.items())))
    with pytest.raises(
        RunError, match=r"made with another base model \(sha256 'ab', now 'cd'\); go on with that model"
    ):
        Memory.open(memory.path, base_model=BASE | {"sha256": "cd"})
    with pytest.raises(RunError, match="sha256 'ab', now None"):
        Memory.open(memory.path, base_model={"name": "smollm2-135m"})


@pytest.mark.parametrize("step", range(1, 4))
@pytest.mark.parametrize("action", ["write", "forget"])
def test_a_kill_between_two_files_leaves_a_memory_that_opens(memory, monkeypatch, step, action):
    memory.write([one("a", text="secret"), one("b")])
    before = memory.kept
    written = []

    def killed(path, text):
        written.append(path)
        if len(written) == step:
            raise KeyboardInterrupt
        folder.write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(kept, "write_text", killed)
        patch.setattr(memory_module, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            memory.write([one("c")]) if action == "write" else memory.forget(["a"])
    again = Memory.open(memory.path)
    old, new = before, ((one("c"),) if action == "write" else before[1:])
    if action == "forget":  # from the first file on the example is out of use
        assert again.kept == (old if step == 1 else new)
        assert again.is_withdrawn(example("secret")) == (step > 1)
    else:
        assert again.kept == (old if step < 3 else new)
    again.write([one("d")])
    assert [k.id for k in Memory.open(memory.path).kept] == ["d"]


def test_a_reader_does_not_take_a_change_under_way_for_damage(memory, monkeypatch):
    memory.write([one("a")])
    reads = []
    original = Path.read_bytes

    def read(self):
        content = original(self)
        reads.append(self.name)
        if len(reads) == 1:  # between index and examples somebody writes
            Memory.open(memory.path).write([one("b")])
        return content

    monkeypatch.setattr(Path, "read_bytes", read)
    assert [k.id for k in Memory.open(memory.path).kept] == ["b"]


# One at a time


def test_two_programs_do_not_change_it_at_once(memory, tmp_path):
    code = f"""
        from pathlib import Path
        from tunescope.runs.memory import Memory
        with Memory(Path({str(memory.path)!r})).locked():
            print("locked", flush=True)
            input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        for act in (lambda: memory.write([one("a")]), lambda: memory.forget_examples([example("x")])):
            with pytest.raises(RunError, match="another program is at work in this memory; wait for it"):
                act()
        assert Memory.open(memory.path).kept == ()  # reading is free
        other.communicate("\n")
    memory.write([one("a")])


def test_a_change_builds_on_what_others_did_meanwhile(memory):
    memory.write([one("a"), one("b")])
    Memory.open(memory.path).forget(["a"])
    memory.forget(["b"])
    assert memory.kept == Memory.open(memory.path).kept == ()
    assert len(memory.withdrawn) == 2


def test_several_changes_fit_under_one_lock(memory):
    with memory.locked():
        memory.write([one("a")])
        memory.forget(["a"])
    with pytest.raises(RunError, match="there is no memory"):
        Memory(memory.path / "no").write([])


# Making and moving


def test_a_folder_that_holds_something_is_left_alone(tmp_path, memory):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for path in (memory.path, tmp_path / "other"):
        with pytest.raises(RunError, match="the folder is not empty"):
            Memory.create(path, base_model=BASE)
    with pytest.raises(RunError, match="is a file"):
        Memory.create(tmp_path / "other" / "notes.txt", base_model=BASE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".index.json.part").write_text("{")
    assert Memory.create(tmp_path / "empty", base_model=BASE).kept == ()
    assert sorted(files(tmp_path / "empty")) == ["examples.jsonl", "index.json"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base_model": {}}, "give at least its name"),
        ({"base_model": {"name": 3}}, "all values as text"),
        ({"budget_examples": 0}, "a budget of 0 examples keeps nothing"),
        ({"budget_bytes": -5}, "a budget of -5 bytes keeps nothing"),
    ],
)
def test_a_memory_that_makes_no_sense_is_refused(tmp_path, more, message):
    with pytest.raises(RunError, match=message):
        Memory.create(tmp_path / "m", **{"base_model": BASE} | more)
    assert not (tmp_path / "m").exists()


def test_what_is_no_memory_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError, match=r"is not a memory \(it has no index\.json\)"):
            Memory.open(path)


def test_a_newer_memory_is_refused(memory):
    path = memory.path / "index.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(RunError, match="schema version 99 was written by a newer tunescope"):
        Memory.open(memory.path)


def test_an_export_is_the_memory_again(memory, tmp_path):
    memory.write([one("a", text="要約\u2028"), one("b")])
    memory.forget(["b"])
    file = tmp_path / "export.jsonl"
    memory.export(file)
    copy = Memory.load_export(file, tmp_path / "copy", base_model=BASE)
    assert (copy.kept, copy.withdrawn, copy.digest, copy.budget_examples) == (
        memory.kept,
        memory.withdrawn,
        memory.digest,
        10,
    )
    assert files(copy.path) == files(memory.path)
    with pytest.raises(RunError, match="is there already"):
        memory.export(file)
    with pytest.raises(RunError, match="the folder is not empty"):
        Memory.load_export(file, tmp_path / "copy")
    with pytest.raises(RunError, match="another base model"):
        Memory.load_export(file, tmp_path / "other", base_model={"name": "qwen"})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("change", ["edit", "cut", "other"])
def test_a_changed_export_makes_no_memory(memory, tmp_path, change):
    memory.write([one("a"), one("b")])
    file = tmp_path / "export.jsonl"
    memory.export(file)
    text = file.read_bytes()
    file.write_bytes({"edit": text.replace(b"routing", b"rooting"), "cut": text[:-10], "other": b"{}\n"}[change])
    with pytest.raises(IntegrityError, match=r"export\.jsonl"):
        Memory.load_export(file, tmp_path / "copy")
    with pytest.raises(RunError, match="cannot be read"):
        Memory.load_export(tmp_path / "none.jsonl", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_copied_folder_is_a_memory(memory, tmp_path):
    memory.write([one("a")])
    shutil.copytree(memory.path, tmp_path / "copy")
    assert Memory.open(tmp_path / "copy").kept == memory.kept


def test_the_page_on_the_run_folder_describes_both_files(memory):
    memory.write([one("a")])
    page = (Path(__file__).parents[2] / "docs/run-folder.md").read_text(encoding="utf-8")
    section = page.partition("\n## memory\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^    (\w+): (.+)", inspect.getdoc(Kept).partition("Attributes:\n")[2], re.MULTILINE)
    assert [name for name, _ in rows] == [field.name for field in dataclasses.fields(Kept)]
    for name, meaning in rows:
        assert f"| `{name}` | {meaning.replace('``', '`')} |" in section
    assert set(re.findall(r"`(\w+)`", section)) >= set(json.loads((memory.path / "index.json").read_text())) - {
        "schema_version"
    }
