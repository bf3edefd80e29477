"""What conftest.py promises to every test."""

from __future__ import annotations

import os
import random
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

FAMILIES = [(socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET6, ("::1", 9, 0, 0))]
seen: dict[str, object] = {}


@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_no_socket_reaches_the_network(family: int, address: tuple) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as stream, socket.socket(family, socket.SOCK_DGRAM) as datagram:
        for reach in (stream.connect, stream.connect_ex, datagram.connect, lambda to: datagram.sendto(b"x", to)):
            with pytest.raises(RuntimeError, match="tests use no network, and this one tried to reach"):
                reach(address)


def test_no_name_is_looked_up_and_no_page_fetched() -> None:
    with pytest.raises(RuntimeError, match=r"tests use no network.*example\.com"):
        socket.create_connection(("example.com", 443), timeout=1)
    with pytest.raises(RuntimeError, match="tests use no network"):
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)


def test_processes_of_this_machine_may_talk() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"hello")
        assert other.recv(5) == b"hello"


def test_the_hub_is_offline() -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_draws_the_same_numbers_with_one_thread(turn: int) -> None:
    drawn = (random.random(), float(np.random.random()), float(torch.rand(())))
    assert seen.setdefault("drawn", drawn) == drawn
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)  # the next turn finds one again


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_has_an_empty_cache_of_its_own(turn: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = Path(os.environ["TUNESCOPE_CACHE"])
    assert cache.is_relative_to(tmp_path_factory.getbasetemp())
    assert not cache.exists()
    cache.mkdir()
    assert seen.setdefault(f"cache {3 - turn}", None) != cache
    seen[f"cache {turn}"] = cache
