"""For tests of every folder: this machine is open to clients of a server and nothing else is; a device that is not the processor.

That this file stands here also lets tests of every folder import `chat_server` and `simulated_device`.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tells PyTorch of the simulated device before any test runs: it counts the devices at the first backward pass of a process."""
    if "simulated_device" in sys.modules or any("device" in getattr(item, "fixturenames", ()) for item in items):
        from simulated_device import register

        register()


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


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device that is not the processor: one that is simulated, and a GPU where there is one."""
    import torch

    from simulated_device import simulated

    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        yield "cuda:0"
    else:
        with simulated() as name:
            yield name
