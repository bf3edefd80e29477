"""States reach the device as they lie in the cache; on a GPU through pinned buffers that are not overwritten too early."""

import pytest
import torch
from kept_states import make_row, open_at, states_for

from simulated_device import Event, simulated
from tunescope.engine.staging import DeviceReader, staged

ROWS = [make_row(i) for i in range(40)]


def test_on_the_cpu_it_reads_the_cache(tmp_path):
    with open_at(tmp_path) as cache:
        reader = DeviceReader(cache, "cpu")
        assert reader.read(ROWS, 3) is None
        cache.write(ROWS, 3, states_for(ROWS))
        assert torch.equal(reader.read(ROWS, 3), states_for(ROWS))


def test_what_is_written_through_it_is_in_the_cache(tmp_path):
    with open_at(tmp_path) as cache:
        DeviceReader(cache, "cpu").write(ROWS[:5], 2, states_for(ROWS[:5]))
        assert torch.equal(cache.read(ROWS[:5], 2), states_for(ROWS[:5]))


def test_a_cache_is_read_through_pinned_memory_on_a_gpu_alone(tmp_path):
    with open_at(tmp_path) as cache:
        assert staged(cache, torch.device("cpu")) is cache
        found = staged(cache, torch.device("cuda"))
        assert isinstance(found, DeviceReader) and found.cache is cache
        assert staged(found, torch.device("cuda")) is found
    assert staged(None, torch.device("cuda")) is None


def test_a_buffer_is_filled_again_only_when_its_copy_is_over(tmp_path, monkeypatch):
    did = []

    class Watched(Event):
        def record(self):
            super().record()
            did.append(("copied", id(self)))

        def synchronize(self):
            super().synchronize()
            did.append(("waited", id(self)))

    with simulated() as device, open_at(tmp_path) as cache:
        monkeypatch.setattr(torch, "Event", Watched)
        cache.write(ROWS, 3, states_for(ROWS))
        reader = DeviceReader(cache, device)
        batches = [ROWS[i : i + 1 + i % 7] for i in range(12)]
        for batch in batches:
            assert torch.equal(reader.read(batch, 3).cpu(), states_for(batch))
    copies = [event for what, event in did if what == "copied"]
    assert len(copies) == len(batches)
    wanted = []
    for i, event in enumerate(copies):  # the copy before the last used the same buffer
        wanted += [("waited", copies[i - 2])] if i > 1 else []
        wanted.append(("copied", event))
    assert did == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_batches_in_flight_are_not_overwritten(tmp_path, dtype):
    with open_at(tmp_path, dtype=dtype) as cache:
        cache.write(ROWS, 3, states_for(ROWS, dtype=dtype))
        reader = DeviceReader(cache, "cuda")
        assert reader.read([make_row(99)], 3) is None
        batches = [ROWS[i : i + 1 + i % 7] for i in range(33)]
        busy = torch.randn(4000, 4000, device="cuda")
        found = []
        for batch in batches:  # the device is behind, so copies are under way while the next batch is read
            for _ in range(3):
                busy = busy @ busy / 4000
            found.append(reader.read(batch, 3))
        for batch, states in zip(batches, found, strict=True):
            assert states.device.type == "cuda"
            assert torch.equal(states.cpu(), states_for(batch, dtype=dtype))
