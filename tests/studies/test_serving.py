"""A server answers in words: the same prompts, every fault one line, nothing asked twice, and the run says who answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_study import settings, write_study
from workers import SIGKILLED, outcome, start

from chat_server import ChatServer, Reply, answer
from tunescope import report
from tunescope.config import Config, load
from tunescope.data import ChatFormat
from tunescope.errors import ConfigError, ModelError, RunError
from tunescope.models import greedy, load_located, locate
from tunescope.runs.folder import RunFolder
from tunescope.studies import evaluate, poc
from tunescope.studies.demonstrations import at_test
from tunescope.studies.inputs import read_inputs
from tunescope.studies.progress import Silent

pytestmark = pytest.mark.usefixtures("loopback")

KEY = "sk-very-secret-4711"
SAME_BYTES = ("results.json", "samples.jsonl", "verdict.json")


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def served_study(folder: Path, weights: Path, url: str, *, labels: bool = False, **generation: Any) -> Path:
    """A study of the summaries, in two arms, with a server; questions come one after the other."""
    tasks = settings(weights)["tasks"]
    return write_study(
        folder,
        weights,
        arms=["nothing", "prompt"],
        tasks=tasks if labels else tasks[2:],
        guard=["data/guard.jsonl"] if labels else [],
        evaluation={"max_new_tokens": 9, "demonstrations": 2, "n_bootstrap": 200, "latency_requests": 0},
        generation={"endpoint": url, "model": "base", "concurrency": 1, "max_attempts": 1} | generation,
    )


def says(prompt: str) -> Reply:
    return answer(f"belt {prompt[-4:]}")


def bytes_of(run: Path, url: str) -> dict[str, bytes]:
    """What must not depend on an interruption; the address is another one in every test."""
    return {name: (run / name).read_bytes().replace(url.encode(), b"URL") for name in SAME_BYTES}


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[Any]]:
    """The files of a run that nothing interrupted, and the chats that it asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda self, to: super(socket.socket, self).connect(to))
        patch.setattr(
            socket,
            "getaddrinfo",
            lambda host, port, *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))],
        )
        patch.setenv("no_proxy", "127.0.0.1")
        with ChatServer(lambda _, prompt: says(prompt)) as server:
            run = poc.run(load(served_study(tmp_path_factory.mktemp("served"), model, server.url)))
            return bytes_of(run.path, server.url), chats(server)


def chats(server: ChatServer) -> list[str]:
    return [json.dumps(body["messages"]) for body in server.bodies]


def test_the_server_is_asked_exactly_what_the_model_here_would_be(model: Path, tmp_path: Path) -> None:
    with ChatServer(lambda _, prompt: says(prompt)) as server:
        config = load(
            served_study(tmp_path, model, server.url, labels=True, template_arguments={"enable_thinking": False}),
            ["evaluation.stop=[x, y]"],
        )
        run = poc.run(config)
    wanted = []
    for arm in ("nothing", "prompt"):
        task = read_inputs(config).tasks[2]
        examples = (*task.test, *task.out_of_domain["summary.plant_b"])
        shown = at_test(config, task, arm)
        wanted += [json.dumps(example.messages(shown(example))) for example in examples]
    assert Counter(chats(server)) == Counter(wanted) and len(wanted) == 26
    assert all(len(json.loads(chat)) == 5 for chat in wanted[13:])  # two finished examples, then the question
    fixed = {key: value for key, value in server.bodies[0].items() if key != "messages"}
    assert fixed == {
        "model": "base",
        "max_tokens": 9,
        "temperature": 0.0,
        "stop": ["x", "y"],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert server.knocks == ["/v1/models"]
    by = {
        (row["task"], arm): a["answered_by"]
        for row in run.read_jsonl("samples.jsonl")
        for arm, a in row["answers"].items()
    }
    assert {task: who for (task, _), who in by.items()} == {
        "summary": f"base at {server.url}",
        "routing": None,
        "mood": None,
        "guard": None,
    }


def test_what_is_scored_is_cut_as_here(model: Path, tmp_path: Path) -> None:
    with ChatServer(lambda *_: answer("  belt fixed\n\nUser: and now?", finish_reason="length")) as server:
        run = poc.run(load(served_study(tmp_path, model, server.url), ['evaluation.stop=["\\n\\n", "User:"]']))
    assert {a["text"] for row in run.read_jsonl("samples.jsonl") for a in row["answers"].values()} == {"belt fixed"}


def test_a_server_of_the_same_model_gives_the_same_numbers(model: Path, tmp_path: Path) -> None:
    loaded = load_located(locate(str(model)), dtype="bfloat16", device="cpu")
    chat, alone = ChatFormat(loaded.tokenizer), threading.Lock()

    def generate(number: int, _: str) -> Reply:
        with alone:
            ids = chat.prompt_ids(server.bodies[number]["messages"])
            [[(_, found)]] = greedy(loaded.model, [ids], stop_ids=chat.stop_ids, max_new_tokens=9)
        return answer(chat.decode(found.ids, special=False), finish_reason="length" if found.hit_limit else "stop")

    with ChatServer(generate) as server:
        study = served_study(tmp_path, model, server.url, concurrency=3)
        served = poc.run(load(study))
        assert server.most_at_once > 1
    own = ["generation.endpoint=null", "generation.model=null", f"output_dir={tmp_path / 'here'}"]
    here = poc.run(load(study, own))
    assert served.read_json("results.json")["results"] == here.read_json("results.json")["results"]
    rows = [run.read_jsonl("samples.jsonl") for run in (served, here)]
    for row in rows[0]:
        for given in row["answers"].values():
            assert given.pop("answered_by") == f"base at {server.url}"
    for row in rows[1]:
        assert all(given.pop("answered_by") is None for given in row["answers"].values())
    assert rows[0] == rows[1]


def test_a_run_says_which_arm_was_answered_where_and_never_the_key(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    notes = Notes()
    with ChatServer(lambda _, prompt: says(prompt)) as server:
        study = served_study(
            tmp_path, model, server.url, model=None, arms={"prompt": "big"}, api_key_variable="MY_KEY", concurrency=4
        )
        run = poc.run(load(study), progress=notes)
    assert {body["model"] for body in server.bodies} == {"big"} and len(server.bodies) == 13
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    rows = [
        {"arm": "nothing", "task": "summary", "by": "here", "answers": 13},
        {"arm": "prompt", "task": "summary", "by": f"big at {server.url}", "answers": 13},
    ]
    assert run.read_json("results.json")["answered_by"] == rows
    events = {row["event"]: row["details"] for row in run.read_jsonl("ledger.jsonl")}
    named = {"endpoint": server.url, "model": None, "arms": {"prompt": "big"}, "template_arguments": {}}
    assert events["answered by"] == {"answers": rows} and events["generation server"] == named
    assert run.read_json("environment.json")["generation"] == named
    assert "nothing: free answers are generated here, since generation names no model for this arm" in notes.notes
    assert f"prompt: free answers come from big at {server.url}" in notes.notes
    page = report.build(run.path).read_text(encoding="utf-8")
    assert f"big at {server.url}" in page and "Not all arms were answered at the same place" in page
    assert KEY not in "".join(path.read_text(errors="replace") for path in run.path.rglob("*") if path.is_file())


def test_without_a_server_nothing_is_said_of_one(run: RunFolder) -> None:
    assert run.read_json("environment.json")["generation"] is None
    assert run.read_json("results.json")["answered_by"] == []
    assert "Who generated the free answers" not in (run.path / "report.html").read_text(encoding="utf-8")
    assert not {row["event"] for row in run.read_jsonl("ledger.jsonl")} & {"answered by", "generation server"}


# Faults

BROKEN: dict[str, tuple[Callable[[], Reply], str]] = {
    "a page": (lambda: Reply(b"<html><body>Log in"), "no chat completion"),
    "no choice": (lambda: Reply(b'{"choices": []}'), "no chat completion"),
    "three choices": (lambda: Reply(b'{"choices": [{"message": {"content": "a"}}, {}, {}]}'), "no chat completion"),
    "half of a JSON": (lambda: Reply(b'{"choices": [{"message"'), "no chat completion"),
    "another interface": (lambda: Reply(b'{"choices": [{"text": "belt"}]}'), "no chat completion"),
    "no text": (lambda: Reply(b'{"choices": [{"message": {"content": null}}]}'), "no chat completion"),
    "too long": (
        lambda: Reply(b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 10}}'),
        "has 10 tokens, and max_tokens is 9",
    ),
    "a filter": (lambda: answer("be", finish_reason="content_filter"), "a filter of the server"),
    "an error": (lambda: Reply(b"out of memory", 500), r"status 500 \(out of memory\) \(1 attempts\)"),
    "no such model": (lambda: Reply(b"unknown model", 404), r"status 404 \(unknown model\); check address"),
    "gone": (lambda: Reply(status=None), r"no answer \(.*\) \(1 attempts\)"),
    "cut off": (lambda: Reply(b'{"choices": [{"mess', announced=1000), "no answer"),
    "too slow": (lambda: Reply(wait=threading.Event()), r"no answer \(timed out\)"),
}


def test_after_every_fault_it_goes_on_and_ends_with_the_same_bytes(
    model: Path, tmp_path: Path, expected: tuple[dict[str, bytes], list[Any]]
) -> None:
    faults = iter(BROKEN.items())
    broken = []

    def reply(number: int, prompt: str) -> Reply:
        if number % 2 and (fault := next(faults, None)) is not None:
            broken.append(fault)
            return fault[1][0]()
        return says(prompt)

    with ChatServer(reply) as server:
        config = load(served_study(tmp_path, model, server.url, timeout_seconds=0.5))
        for name in BROKEN:
            with pytest.raises(ModelError, match=BROKEN[name][1]) as caught:
                poc.run(config, resume=True)
            said = str(caught.value)
            assert broken[-1][0] == name
            assert caught.value.exit_code == 2 and "\n" not in said
            assert server.url in said and said.endswith("the answers so far are kept: go on with --resume")
            status = RunFolder.open(config.output_dir).read_json("status.json")
            assert status["state"] == "failed" and status["error"] == said[:500]
        run = poc.run(config, resume=True)
        assert bytes_of(run.path, server.url) == expected[0]
        asked = Counter(chats(server))
        assert sum(asked.values()) == len(expected[1]) + len(
            BROKEN
        )  # a question that got no answer is asked again, no other
        assert asked.keys() == set(expected[1])


def test_killed_while_a_question_is_under_way_only_that_one_is_asked_again(
    model: Path, tmp_path: Path, expected: tuple[dict[str, bytes], list[Any]]
) -> None:
    kill_at, worker = [4, 11, 20], []

    def reply(number: int, prompt: str) -> Reply:
        if kill_at and number == kill_at[0]:
            kill_at.pop(0)
            os.kill(worker[-1].pid, signal.SIGKILL)
        return says(prompt)

    with ChatServer(reply) as server:
        study = served_study(tmp_path, model, server.url)
        for _ in range(3):
            worker.append(start(study, tmp_path / "run"))
            worker[-1].join(120)
            assert worker[-1].exitcode == SIGKILLED
        assert outcome(study, tmp_path / "run") == 0
        assert bytes_of(tmp_path / "run", server.url) == expected[0]
        again = Counter(chats(server)) - Counter(expected[1])
        assert sum(again.values()) == 3


def test_what_passes_is_tried_again_without_a_word(model: Path, tmp_path: Path) -> None:
    with ChatServer(lambda n, prompt: Reply(b"", 503, {"Retry-After": "0.01"}) if n % 2 else says(prompt)) as server:
        run = poc.run(load(served_study(tmp_path, model, server.url, max_attempts=3), ["arms=[nothing]"]))
    assert run.read_json("status.json")["state"] == "done" and len(server.bodies) == 25


@pytest.mark.parametrize(
    ("at_knock", "message"),
    [
        (Reply(b"who?", 401), "check the key in TUNESCOPE_API_KEY"),
        (Reply(b"", 502), "status 502"),
        (Reply(status=None), "no answer"),
    ],
)
def test_a_server_that_is_not_there_leaves_nothing_behind(
    model: Path, tmp_path: Path, at_knock: Reply, message: str
) -> None:
    with ChatServer(lambda _, prompt: says(prompt), at_knock=at_knock) as server:
        config = load(served_study(tmp_path, model, server.url))
        with pytest.raises(ModelError, match=message) as caught:
            poc.run(config)
    assert "\n" not in str(caught.value) and not config.output_dir.exists() and not server.bodies


@pytest.mark.parametrize("status", [404, 405, 500, 501])
def test_a_server_that_cannot_list_its_models_is_there_all_the_same(model: Path, tmp_path: Path, status: int) -> None:
    with ChatServer(lambda _, prompt: says(prompt), at_knock=Reply(b"", status)) as server:
        poc.run(load(served_study(tmp_path, model, server.url), ["arms=[nothing]"]))
    assert len(server.bodies) == 13


# What may change between the parts of a run


def half_done(folder: Path, model: Path) -> Config:
    with ChatServer(lambda n, prompt: says(prompt) if n < 5 else Reply(b"", 400)) as server:
        config = load(served_study(folder, model, server.url))
        with pytest.raises(ModelError):
            poc.run(config)
    return config


def test_a_server_may_move_and_the_run_says_so(model: Path, tmp_path: Path) -> None:
    config = half_done(tmp_path, model)
    with ChatServer(lambda _, prompt: says(prompt)) as server:
        moved = {"endpoint": server.url, "timeout_seconds": 7.0, "concurrency": 2, "max_attempts": 2}
        run = poc.run(config.model_copy(update={"generation": config.generation.model_copy(update=moved)}), resume=True)
        assert len(server.bodies) == 26 - 5
    by = Counter((row["arm"], row["by"]) for row in run.read_json("results.json")["answered_by"])
    assert by == {
        ("nothing", f"base at {config.generation.endpoint}"): 1,
        ("nothing", f"base at {server.url}"): 1,
        ("prompt", f"base at {server.url}"): 1,
    }
    servers = [
        row["details"]["endpoint"] for row in run.read_jsonl("ledger.jsonl") if row["event"] == "generation server"
    ]
    assert servers == [config.generation.endpoint, server.url]


@pytest.mark.parametrize("change", [{"model": "other"}, {"endpoint": None, "model": None}, {"arms": {"prompt": "x"}}])
def test_other_models_are_another_run(model: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    config = half_done(tmp_path, model)
    other = config.model_copy(update={"generation": config.generation.model_copy(update=change)})
    with pytest.raises(RunError, match="settings differ"):
        poc.run(other, resume=True)


# Arms that a server can answer for


def test_an_arm_that_the_run_tunes_cannot_be_served_yet(model: Path, tmp_path: Path) -> None:
    study = served_study(tmp_path, model, "http://127.0.0.1:9/v1", arms={"selected": "mine", "promt": "big"})
    config = load(study, ["arms=[nothing, prompt, selected]"])
    with pytest.raises(ConfigError) as caught:
        poc.run(config)
    first, second = str(caught.value).splitlines()
    assert "'selected'; a server can answer for nothing, prompt here" in first and "tunescope evaluate --arm" in first
    assert "'promt' (did you mean prompt?)" in second
    assert not config.output_dir.exists()


def test_saved_weights_are_measured_through_a_server_that_has_them(model: Path, run: RunFolder, tmp_path: Path) -> None:
    with ChatServer(lambda _, prompt: says(prompt)) as server:
        study = served_study(tmp_path, model, server.url, labels=True, model=None, arms={"mine": "tuned"})
        found = evaluate.run(load(study), arms={"mine": run.path / "weights" / "selected"})
    assert {body["model"] for body in server.bodies} == {"tuned"} and len(server.bodies) == 13
    who = {(row["arm"], row["by"]) for row in found.read_json("results.json")["answered_by"]}
    assert who == {("nothing", "here"), ("prompt", "here"), ("mine", f"tuned at {server.url}")}
    rows = found.read_jsonl("samples.jsonl")
    assert all(row["answers"]["mine"]["confidence"] for row in rows if row["task"] == "routing")
