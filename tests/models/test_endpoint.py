from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, Reply, answer
from tunescope.errors import IntegrityError, ModelError
from tunescope.models.endpoint import ChatEndpoint
from tunescope.models.endpoint import Reply as Served
from tunescope.replay import EndpointTagger

KEY = "sk-very-secret-4711"


pytestmark = pytest.mark.usefixtures("loopback")


def client(server: ChatServer | str, **more: Any) -> ChatEndpoint:
    url = server if isinstance(server, str) else server.url
    return ChatEndpoint(url, "m", **{"wait_seconds": 0.001, "timeout_seconds": 5, "concurrency": 1} | more)


def shout(_: int, prompt: str) -> Reply:
    return answer(prompt.upper())


def test_answers_come_in_the_order_of_the_prompts_and_equal_prompts_are_asked_once() -> None:
    prompts = [f"p{i}" for i in range(20)] + ["p3", "要約\n\u2028"]
    seen: list[tuple[int, int]] = []
    with ChatServer(shout) as server:
        endpoint = client(server, concurrency=4)
        assert endpoint.complete(prompts, progress=lambda *now: seen.append(now)) == [p.upper() for p in prompts]
    assert Counter(server.prompts()) == Counter(set(prompts))
    assert seen == [(i, 21) for i in range(1, 22)]
    assert endpoint.n_asked == 21


def test_the_request_is_what_the_interface_asks_for() -> None:
    with ChatServer(shout) as server:
        client(server.url + "/chat/completions/", max_tokens=7, temperature=0.5).complete(["hi"], system="Be brief.")
        client(server.url + "/").complete(["hi"])
    assert server.paths == ["/v1/chat/completions"] * 2
    assert server.bodies[0] == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    }
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert server.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in server.headers[0]


def test_no_more_requests_are_under_way_than_asked_for() -> None:
    arrived = threading.Barrier(3, timeout=10)

    def together(_: int, prompt: str) -> Reply:
        arrived.wait()  # three at a time, or never
        return answer(prompt)

    with ChatServer(together) as server:
        client(server, concurrency=3).complete([str(i) for i in range(9)])
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(b"busy", 429),
        Reply(b"busy", 429, {"Retry-After": "0.01"}),
        Reply(b"busy", 429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Reply(b"", 408),
        Reply(b"oops", 500),
        Reply(b"", 503),
        Reply(status=None),
        Reply(b'{"choices": [{"mess', announced=1000),
    ],
    ids=["429", "429 with seconds", "429 with a date", "408", "500", "503", "closed at once", "closed half-way"],
)
def test_what_may_pass_is_tried_again(trouble: Reply) -> None:
    with ChatServer(lambda number, prompt: trouble if number < 2 else shout(number, prompt)) as server:
        assert client(server).complete(["hi"]) == ["HI"]
    assert len(server.bodies) == 3


def test_a_server_that_does_not_answer_in_time_is_asked_again() -> None:
    over = threading.Event()
    with ChatServer(lambda n, p: Reply(wait=over) if n == 0 else shout(n, p)) as server:
        assert client(server, timeout_seconds=0.2).complete(["hi"]) == ["HI"]
        over.set()
    assert len(server.bodies) == 2


def test_the_server_is_given_the_time_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waits.append(timeout))
    replies = [
        Reply(b"", 500),
        Reply(b"", 429, {"Retry-After": "7"}),
        Reply(b"", 500),
        Reply(b"", 429, {"Retry-After": "9999"}),
    ]
    endpoint = client("http://127.0.0.1:1/v1", wait_seconds=2.0)
    sent = iter(replies)

    def send(*_: Any) -> Any:
        from tunescope.models.endpoint import _AgainError, _seconds

        for reply in sent:
            raise _AgainError("", _seconds(reply.headers.get("Retry-After")))
        return answer("done").body, ""

    monkeypatch.setattr(endpoint, "_send", send)
    assert endpoint._one({}, whole=True).text == "done"
    assert waits == [2.0, 7.0, 8.0, 60.0]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (Reply(b"down for\nrepair", 500), r"status 500 \(down for repair\) \(3 attempts\)"),
        (Reply(status=None), r"no answer \(.*\) \(3 attempts\)"),
    ],
)
def test_what_does_not_pass_is_one_line_that_names_the_address(trouble: Reply, message: str) -> None:
    with ChatServer(lambda *_: trouble) as server, pytest.raises(ModelError, match=message) as caught:
        client(server, max_attempts=3).complete(["hi"])
    assert len(server.bodies) == 3
    assert server.url + "/chat/completions" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line_too() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match=rf"endpoint {url}/chat/completions: no answer \(.*refused.*\) \(2 attempts\)"):
        client(url, max_attempts=2).complete(["hi"])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(b"<html>Log in"), r"the answer is no chat completion \('<html>Log in'\)"),
        (Reply(b""), "the answer is no chat completion"),
        (Reply(b'{"choices": [{"message"'), "no chat completion"),
        (Reply(b"\xff\xfe"), "no chat completion"),
        (Reply(b"[]"), "no chat completion"),
        (Reply(b'{"choices": []}'), "no chat completion"),
        (Reply(b'{"choices": [{"message": {"content": null}}]}'), "no chat completion"),
        (Reply(b'{"choices": [{"text": "old"}]}'), "no chat completion"),
        (Reply(b"[" * 100_000), "no chat completion"),
        (answer(["a"]), "no chat completion"),
        (Reply(b'{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}'), "no chat completion"),
        (answer("be", finish_reason="content_filter"), "a filter of the server cut an answer off"),
        (
            Reply(b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 513}}'),
            "has 513 tokens, and max_tokens is 512",
        ),
        (answer("cut", finish_reason="length"), "cut off at max_tokens 512; raise max_tokens"),
        (Reply(b'{"error": "no such model"}', 404), r'status 404 \(\{"error": "no such model"\}\); check address'),
        (Reply(b"who are you", 401), "check the key in TUNESCOPE_API_KEY"),
        (Reply(b"", 302, {"Location": "http://elsewhere.example/v1"}), "status 302"),
    ],
)
def test_nonsense_is_an_error_at_once(reply: Reply, message: str) -> None:
    with ChatServer(lambda *_: reply) as server, pytest.raises(ModelError, match=message) as caught:
        client(server).complete(["hi"])
    assert len(server.bodies) == 1
    assert server.url in str(caught.value)


def test_an_answer_without_a_reason_to_stop_is_an_answer() -> None:
    with ChatServer(lambda *_: Reply(b'{"choices": [{"message": {"content": ""}}]}')) as server:
        assert client(server).complete(["hi"]) == [""]


def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    replies = [answer("fine"), Reply(f"wrong key {KEY}".encode(), 403), Reply(f"echo {KEY}".encode())]
    notes = tmp_path / "answers.jsonl"
    with ChatServer(lambda number, _: replies[number]) as server:
        endpoint = client(server, api_key_variable="MY_KEY", resume_file=notes)
        endpoint.complete(["hi"])
        errors = []
        for prompt in ("a", "b"):
            with pytest.raises(ModelError) as caught:
                endpoint.complete([prompt])
            errors.append(str(caught.value))
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 3
    assert KEY not in "".join(errors) + caplog.text + repr(endpoint) + repr(vars(endpoint)) + notes.read_text()
    assert "<key>" in errors[0] and "<key>" in errors[1]


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_API_KEY", "a\nb")
    with pytest.raises(ModelError, match="check TUNESCOPE_API_KEY") as caught:
        client("http://127.0.0.1:9/v1").complete(["hi"])
    assert "a\nb" not in str(caught.value)


def test_whole_chats_are_asked_once_and_given_as_they_come() -> None:
    chats = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in "abcab"]
    with ChatServer(lambda n, p: answer(p.upper(), finish_reason="length" if p == "b" else "stop")) as server:
        found = list(client(server, more={"stop": ["\n"]}).replies(chats))
    assert found == [([0, 3], Served("A", False)), ([1, 4], Served("B", True)), ([2], Served("C", False))]
    assert [body["messages"] for body in server.bodies] == chats[:3]
    assert all(body["stop"] == ["\n"] for body in server.bodies)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_nothing_is_asked_before_the_last_answer_was_taken(concurrency: int) -> None:
    """So that a kill loses no more answers than may be under way."""
    with ChatServer(shout) as server:
        taken = 0
        for _ in client(server, concurrency=concurrency).replies(
            [[{"role": "user", "content": str(i)}] for i in range(9)]
        ):
            time.sleep(0.02)
            assert len(server.bodies) <= taken + concurrency
            taken += 1
    assert taken == 9


@pytest.mark.parametrize("reply", [Reply(b"", 404), Reply(b"", 500), Reply(b"<html>"), Reply(b'{"data": []}')])
def test_a_server_that_answers_the_knock_is_there(reply: Reply) -> None:
    with ChatServer(shout, at_knock=reply) as server:
        client(server).knock()
    assert server.knocks == ["/v1/models"]


@pytest.mark.parametrize(("reply", "knocks"), [(Reply(b"", 401), 1), (Reply(b"", 503), 2), (Reply(status=None), 2)])
def test_a_server_that_is_not_there_or_lets_nobody_in_is_one_line(reply: Reply, knocks: int) -> None:
    with ChatServer(shout, at_knock=reply) as server, pytest.raises(ModelError, match=server.url) as caught:
        client(server, max_attempts=2).knock()
    assert len(server.knocks) == knocks and "\n" not in str(caught.value)


# What was answered is noted


def test_nothing_is_asked_twice_after_an_error_half_way(tmp_path: Path) -> None:
    notes = tmp_path / "answers.jsonl"
    prompts = [f"p{i}" for i in range(8)]
    down = threading.Event()
    with ChatServer(lambda n, p: Reply(b"", 400) if p == "p5" and not down.is_set() else shout(n, p)) as server:
        with pytest.raises(ModelError, match="status 400"):
            client(server, resume_file=notes).complete(prompts)
        assert server.prompts() == prompts[:6]
        assert len(notes.read_text().splitlines()) == 5
        down.set()
        with notes.open("ab") as file:
            file.write(b'{"key": "torn')  # as a kill leaves it
        assert client(server, resume_file=notes).complete(prompts) == [p.upper() for p in prompts]
    assert Counter(server.prompts()) == Counter(prompts) + Counter(["p5"])
    assert client("http://127.0.0.1:1/v1", resume_file=notes, max_attempts=1).complete(prompts[::-1])[0] == "P7"
    rows = [json.loads(line) for line in notes.read_text().splitlines()]
    assert all(set(row) == {"schema_version", "key", "model", "answer"} for row in rows)


def test_those_under_way_are_still_noted_when_one_fails(tmp_path: Path) -> None:
    notes = tmp_path / "answers.jsonl"
    failed = threading.Event()

    def reply(_: int, prompt: str) -> Reply:
        return Reply(b"", 400) if prompt == "bad" else Reply(answer("slow").body, wait=failed)

    with ChatServer(reply) as server:
        endpoint = client(server, concurrency=2, resume_file=notes)
        stop = endpoint._stop
        endpoint._stop = lambda futures: (stop(futures), failed.set())  # type: ignore[method-assign, func-returns-value]
        with pytest.raises(ModelError, match="status 400"):
            endpoint.complete(["slow", "bad", "never"])
    assert sorted(server.prompts()) == ["bad", "slow"]
    assert [json.loads(line)["answer"] for line in notes.read_text().splitlines()] == ["slow"]


@pytest.mark.parametrize("change", ["model", "max_tokens", "temperature", "system"])
def test_an_answer_to_another_question_is_not_used(tmp_path: Path, change: str) -> None:
    notes = tmp_path / "answers.jsonl"
    with ChatServer(shout) as server:
        client(server, resume_file=notes).complete(["hi"])
        if change == "system":
            client(server, resume_file=notes).complete(["hi"], system="Be brief.")
        elif change == "model":
            ChatEndpoint(server.url, "other", resume_file=notes).complete(["hi"])
        else:
            client(server, resume_file=notes, **{change: 1}).complete(["hi"])
    assert len(server.bodies) == 2


def test_two_programs_do_not_note_into_one_file(tmp_path: Path) -> None:
    notes = tmp_path / "answers.jsonl"
    inner: list[str] = []

    with ChatServer(shout) as server:

        def meanwhile(*_: int) -> None:
            with pytest.raises(ModelError, match="another program is noting answers in it") as caught:
                client(server, resume_file=notes).complete(["there"])
            inner.append(str(caught.value))

        client(server, resume_file=notes).complete(["hi"], progress=meanwhile)
    assert len(inner) == 1
    assert server.prompts() == ["hi"]


def test_a_damaged_file_of_answers_is_named_by_line(tmp_path: Path) -> None:
    notes = tmp_path / "answers.jsonl"
    notes.write_text('{"key": "a", "answer": "b"}\nnonsense\n')
    with pytest.raises(IntegrityError, match=r"answers\.jsonl:2: damaged"):
        client("http://127.0.0.1:1/v1", resume_file=notes).complete(["hi"])
    with pytest.raises(ModelError, match="cannot be written"):
        client("http://127.0.0.1:1/v1", resume_file=tmp_path / "no" / "folder").complete(["hi"])


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http:///v1", "http://host:99999/v1", "http://a b/v1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ModelError, match="an address such as"):
        client(url)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    for url in (f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}"):
        with pytest.raises(ModelError, match="must hold no password") as caught:
            client(url)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"max_attempts": 0}, {"concurrency": 0}, {"timeout_seconds": 0}, {"temperature": -1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="counts of at least 1"):
        client("http://127.0.0.1:1/v1", **wrong)


def test_instructions_are_tagged_through_it_and_none_twice(tmp_path: Path) -> None:
    notes = tmp_path / "answers.jsonl"

    def reply(number: int, prompt: str) -> Reply:
        return Reply(b"", 500) if number == 2 else answer(json.dumps(["sorting"] if "Sort" in prompt else []))

    instructions = ["Sort.", "Count.", "Sort again.", "Name."]
    with ChatServer(reply) as server:
        once = client(server, resume_file=notes, max_attempts=1)
        with pytest.raises(ModelError, match="status 500"):
            EndpointTagger(once.complete, name="m")(instructions)
        again = EndpointTagger(client(server, resume_file=notes).complete, name="m")(instructions)
    assert again == [("sorting",), (), ("sorting",), ()]
    assert max(Counter(server.prompts()).values()) <= 2
    assert len(server.bodies) == 5
