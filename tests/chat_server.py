"""A server on this machine that speaks the chat completions interface, and whatever else a test wants it to say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Reply:
    """What the server sends; `announced` bytes are promised, whatever the body holds; no status: the connection is closed at once."""

    body: bytes = b""
    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    wait: threading.Event | None = None


def answer(text: Any, **more: Any) -> Reply:
    """A chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return Reply(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode())


class ChatServer:
    """Answers each request with what `reply` makes of its number (from 0) and its last message; keeps what it was sent.

    A request without a question, for the list of models, gets `at_knock`.
    """

    def __init__(
        self, reply: Callable[[int, str], Reply], *, at_knock: Reply = Reply(b'{"object": "list", "data": []}')
    ) -> None:
        self.at_knock = at_knock
        self.knocks: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        lock = threading.Lock()
        now = [0]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.knocks.append(self.path)
                self.send(outer.at_knock)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    now[0] += 1
                    outer.most_at_once = max(outer.most_at_once, now[0])
                try:
                    self.send(reply(number, body["messages"][-1]["content"]))
                finally:
                    with lock:
                        now[0] -= 1

            def send(self, reply: Reply) -> None:
                if reply.wait is not None:
                    reply.wait.wait(10)
                if reply.status is None:
                    return
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", "application/json")
                    length = len(reply.body) if reply.announced is None else reply.announced
                    for name, value in (reply.headers | {"Content-Length": str(length)}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(reply.body)
                except ConnectionError:  # the client has gone
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self.prompts = lambda: [body["messages"][-1]["content"] for body in self.bodies]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
