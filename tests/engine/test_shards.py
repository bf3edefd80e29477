"""A shard gives back what was appended; what was broken off anywhere leaves nothing that counts, and nothing is written over."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.engine import shards
from tunescope.engine.shards import (
    INDEX,
    RECORD_BYTES,
    STATES,
    DamagedError,
    Record,
    ShardReader,
    ShardWriter,
    unpacked,
)

SHELF = b"shelf"


def entry(number, size=10):
    return number.to_bytes(32, "big"), memoryview(bytes([number % 256]) * size)


def append(writer, *entries):
    writer.claim(sum(len(data) for _, data in entries))
    writer.append(entries)


def everything(stem, shelf=SHELF):
    """Name -> bytes of all entries, read twice."""
    reader = ShardReader(stem, shelf)
    found = {}
    for record in reader.new_records(stem.with_suffix(INDEX).stat().st_size):
        first, second = bytearray(record.size), bytearray(record.size)
        reader.check_into(record, memoryview(first))
        reader.copy_into(record, memoryview(second))
        assert first == second
        found[record.name] = bytes(first)
    reader.close()
    return found


@pytest.fixture
def writer(tmp_path):
    made = ShardWriter(tmp_path, SHELF)
    yield made
    made.close()


def test_what_was_appended_comes_back(writer):
    entries = [entry(i, size) for i, size in enumerate([0, 1, 5000, 3])]
    append(writer, *entries[:2])
    append(writer, *entries[2:])
    assert everything(writer.stem) == {name: bytes(data) for name, data in entries}
    writer.close()
    assert everything(writer.stem) == {name: bytes(data) for name, data in entries}
    assert writer.stem.with_suffix(STATES).stat().st_size == writer.size == 5004


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_a_record_is_what_was_packed_and_of_its_shelf_alone(name, offset, size, digest):
    record = Record(name, offset, size, digest)
    data = record.packed(SHELF)
    assert len(data) == RECORD_BYTES
    assert unpacked(data, SHELF) == record
    assert unpacked(data, b"other") is None


def test_what_is_claimed_and_never_written_is_given_back_at_the_end(writer):
    append(writer, entry(1))
    writer.claim(5000)
    assert writer.stem.with_suffix(STATES).stat().st_size == 5010
    writer.close()
    assert writer.stem.with_suffix(STATES).stat().st_size == 10
    assert len(everything(writer.stem)) == 1


class Stop(BaseException):
    pass


@pytest.mark.parametrize("kind", [Stop, OSError])
@pytest.mark.parametrize("calls", range(3))
@pytest.mark.parametrize("written", [0, 4])
def test_a_write_that_is_broken_off_leaves_nothing_and_ends_the_shard(writer, monkeypatch, kind, calls, written):
    """At the first or second entry, or at their records; before or in the middle of it."""
    append(writer, entry(1), entry(2))
    left = [calls]

    def broken(file, data):
        if left[0] == 0:
            file.write(data[:written])
            raise kind
        left[0] -= 1
        whole(file, data)

    whole = shards._write_all
    monkeypatch.setattr(shards, "_write_all", broken)
    writer.claim(20)
    with pytest.raises(kind):
        writer.append([entry(3), entry(4)])
    assert not writer.usable
    assert set(everything(writer.stem)) == {entry(1)[0], entry(2)[0]}
    writer.close()
    assert set(everything(writer.stem)) == {entry(1)[0], entry(2)[0]}


def test_an_interrupted_claim_does_not_look_like_meddling(writer):
    append(writer, entry(1))
    writer.claim(500)
    append(writer, entry(2))
    assert len(everything(writer.stem)) == 2


@pytest.mark.parametrize("length", [0, 5, 11])
def test_a_file_of_another_length_is_not_grown(writer, length):
    append(writer, entry(1))
    os.truncate(writer.stem.with_suffix(STATES), length)
    with pytest.raises(OSError, match="somebody changed the length"):
        writer.claim(10)
    writer.close()
    assert writer.stem.with_suffix(STATES).stat().st_size == min(length, 10)


def test_a_shard_that_was_removed_is_not_written(writer):
    append(writer, entry(1))
    writer.stem.with_suffix(STATES).unlink()
    with pytest.raises(FileNotFoundError, match="it was removed"):
        writer.claim(10)


def test_a_reader_follows_a_growing_shard(writer):
    reader = ShardReader(writer.stem, SHELF)
    for i in range(5):
        append(writer, entry(i, 3000))
        (record,) = reader.new_records(writer.stem.with_suffix(INDEX).stat().st_size)
        target = memoryview(bytearray(3000))
        reader.check_into(record, target)
        target[:] = bytes(3000)
        reader.copy_into(record, target)
        assert target == entry(i, 3000)[1]
    assert reader.new_records(writer.stem.with_suffix(INDEX).stat().st_size) == []
    reader.close()


def test_half_a_record_is_left_for_later(writer):
    append(writer, entry(1))
    append(writer, entry(2))
    reader = ShardReader(writer.stem, SHELF)
    assert reader.new_records(RECORD_BYTES - 1) == []
    assert [r.name for r in reader.new_records(2 * RECORD_BYTES - 1)] == [entry(1)[0]]
    assert [r.name for r in reader.new_records(2 * RECORD_BYTES)] == [entry(2)[0]]
    assert reader.damaged_records == 0


def test_a_shard_in_use_is_locked_and_one_that_is_gone_says_so(writer, tmp_path):
    append(writer, entry(1))
    reader = ShardReader(writer.stem, SHELF)
    (record,) = reader.new_records(RECORD_BYTES)
    writer.close()
    file = writer.stem.with_suffix(STATES)
    with file.open("rb") as other:
        assert shards.lock(other, shared=False)
        with pytest.raises(FileNotFoundError, match="was evicted"):
            reader.check_into(record, memoryview(bytearray(10)))
    reader.check_into(record, memoryview(bytearray(10)))
    with file.open("rb") as other:
        assert not shards.lock(other, shared=False)
    reader.close()
    file.unlink()
    with pytest.raises(FileNotFoundError):
        reader.check_into(record, memoryview(bytearray(10)))


def test_bytes_that_changed_are_damaged(writer):
    append(writer, entry(1))
    reader = ShardReader(writer.stem, SHELF)
    (record,) = reader.new_records(RECORD_BYTES)
    file = writer.stem.with_suffix(STATES)
    file.write_bytes(b"x" * 10)
    with pytest.raises(DamagedError, match="does not match its hash"):
        reader.check_into(record, memoryview(bytearray(10)))
    os.truncate(file, 9)
    for read in (reader.check_into, reader.copy_into):
        with pytest.raises(DamagedError, match="cut short"):
            read(record, memoryview(bytearray(10)))
    reader.close()
