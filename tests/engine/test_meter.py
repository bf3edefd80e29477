"""The meter reports what happened inside, and nothing where it cannot know."""

import threading
import time

import numpy as np
import pytest

from tunescope.engine import Meter, meter

MEGABYTE = 2**20


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """Energy counters as Linux shows them: two packages, and a part of one that must not be counted again."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000000")
    monkeypatch.setattr(meter, "_RAPL", tmp_path)
    return tmp_path


def test_time_and_memory_are_measured():
    with Meter() as found:
        start = found.peak_memory_bytes
        block = np.ones(150 * MEGABYTE // 8)
        while found.peak_memory_bytes < start + 140 * MEGABYTE:  # ends with the first sample
            time.sleep(0.005)
        del block
        time.sleep(0.03)
    assert found.seconds >= 0.03
    assert found.peak_memory_bytes >= start + 140 * MEGABYTE  # the peak, not what is left


def test_a_meter_ends_with_its_block_even_after_an_error():
    before = threading.active_count()
    with pytest.raises(KeyError), Meter() as found:
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before
    assert found.seconds > 0


def test_energy_is_the_sum_of_the_packages(counters):
    with Meter() as found:
        (counters / "intel-rapl:0" / "energy_uj").write_text("37000000")
        (counters / "intel-rapl:1" / "energy_uj").write_text("37000000")
        (counters / "intel-rapl:0:0" / "energy_uj").write_text("999000000")
    assert found.energy_kwh == pytest.approx(72 / 3.6e6)


def test_energy_is_unknown_after_a_counter_began_anew(counters):
    with Meter() as found:
        (counters / "intel-rapl:0" / "energy_uj").write_text("5")
    assert found.energy_kwh is None


@pytest.mark.parametrize("place", ["empty", "unreadable"])
def test_energy_is_unknown_where_the_machine_does_not_tell(place, counters, tmp_path, monkeypatch):
    if place == "empty":
        monkeypatch.setattr(meter, "_RAPL", tmp_path / "none")
    else:  # a folder in the place of the file: an OSError even for the root user
        (counters / "intel-rapl:1" / "energy_uj").unlink()
        (counters / "intel-rapl:1" / "energy_uj").mkdir()
    with Meter() as found:
        pass
    assert found.energy_kwh is None
