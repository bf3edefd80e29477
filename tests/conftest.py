"""For tests of clients of a server: this machine is open to them, and nothing else is.

That this file stands here also lets tests of every folder import `chat_server`.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens this machine, and nothing else, to a test: the real client talks to a real server."""

    def connect(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] == "127.0.0.1"
        super(socket.socket, self).connect(address)

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        assert host == "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TUNESCOPE_API_KEY", raising=False)
