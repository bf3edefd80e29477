"""What holds for every test and every doctest: no network, fixed seeds, one thread, a cache of its own.

It stands beside `tests` and `src`, because pytest gives the doctests in `src` no fixtures from `tests`.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# Read when torch and the Hugging Face libraries are imported, so before any of them; subprocesses inherit them.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every machine; no time limit, since speed is not what tests are about.
settings.register_profile(
    "tunescope", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tunescope")

# They hold no doctests, and collected as modules two of one name could not stand on one command line.
collect_ignore_glob = ["tests/conftest.py", "tests/*/conftest.py"]

_numbers = itertools.count()


class NetworkError(RuntimeError):
    """A test tried to reach the network; not an OSError, so that no code under test takes it for an outage."""


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Sockets of other kinds (a pair between two processes, say) work as ever."""

    def guarded(method: str) -> Any:
        original = getattr(socket.socket, method)

        def call(self: socket.socket, *arguments: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(arguments[-1])
            return original(self, *arguments)

        return call

    def refuse(where: object, *_: object, **__: object) -> NoReturn:
        raise NetworkError(f"tests use no network, and this one tried to reach {where!r}; give it a fake instead")

    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, method, guarded(method))
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache while fixtures of a wider scope are made."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESCOPE_CACHE", str(root / "shared"))
        yield root


@pytest.fixture(autouse=True)
def alone(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test an empty cache, the same seeds and one thread, whatever ran before it."""
    monkeypatch.setenv("TUNESCOPE_CACHE", str(cache_root / str(next(_numbers))))
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:  # a test that never imports it should not wait for it
        sys.modules["torch"].manual_seed(0)
        sys.modules["torch"].set_num_threads(1)
