"""States reach the device as they lie in the cache; on a GPU through pinned buffers that are not overwritten too early."""

import pytest
import torch
from kept_states import make_row, open_at, states_for

from tunescope.engine.staging import DeviceReader

ROWS = [make_row(i) for i in range(40)]


def test_on_the_cpu_it_reads_the_cache(tmp_path):
    with open_at(tmp_path) as cache:
        reader = DeviceReader(cache, "cpu")
        assert reader.read(ROWS, 3) is None
        cache.write(ROWS, 3, states_for(ROWS))
        assert torch.equal(reader.read(ROWS, 3), states_for(ROWS))


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
