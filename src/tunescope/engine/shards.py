"""A shard: two files that only grow, the bytes of many entries and a record of each.

One process alone writes a shard, so nothing has to be agreed on while writing. An entry counts once its record is complete, and a record is
written after the bytes that it describes. So a kill at any moment leaves bytes that nobody will look at, and never half an entry. A
record carries a hash of its own, bound to the shelf that it stands on; the bytes have another, in the record.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO

STATES, INDEX = ".states", ".index"
_BODY = struct.Struct("<32sQQ32s")  # name of the entry, offset, size, sha256 of the bytes
_CHECK_BYTES = 16
RECORD_BYTES = _BODY.size + _CHECK_BYTES


@dataclass(frozen=True, slots=True)
class Record:
    """Where an entry lies in its shard.

    Attributes:
        name: 32 bytes by which it is found.
        offset: of its first byte.
        size: in bytes.
        digest: sha256 of its bytes.
    """

    name: bytes
    offset: int
    size: int
    digest: bytes

    @property
    def end(self) -> int:
        """Offset behind its last byte."""
        return self.offset + self.size

    def packed(self, shelf: bytes) -> bytes:
        """Returns the record as it stands in an index.

        Args:
            shelf: name of the shelf; a record that was copied to another one is no record there.

        Example:
            >>> record = Record(b"n" * 32, 8, 4, b"d" * 32)
            >>> len(record.packed(b"shelf")) == RECORD_BYTES, unpacked(record.packed(b"shelf"), b"shelf") == record
            (True, True)
            >>> unpacked(record.packed(b"shelf"), b"another") is None
            True
        """
        body = _BODY.pack(self.name, self.offset, self.size, self.digest)
        return body + hashlib.sha256(shelf + body).digest()[:_CHECK_BYTES]


def unpacked(data: bytes, shelf: bytes) -> Record | None:
    """Returns the record that `Record.packed` made, or None if these bytes are none, or one of another shelf."""
    body, check = data[: _BODY.size], data[_BODY.size :]
    if hashlib.sha256(shelf + body).digest()[:_CHECK_BYTES] != check:
        return None
    return Record(*_BODY.unpack(body))


class DamagedError(Exception):
    """Bytes are missing or are not those that were written; says how in a few words."""


class ShardReader:
    """Reads one shard, whoever wrote it and while it grows.

    Args:
        stem: path of the shard without the endings.
        shelf: name of the shelf.

    Attributes:
        damaged_records: records that were no records of this shelf.
    """

    def __init__(self, stem: Path, shelf: bytes) -> None:
        self.stem = stem
        self.damaged_records = 0
        self._shelf = shelf
        self._indexed = 0
        self._file: FileIO | None = None
        self._map: mmap.mmap | None = None

    @property
    def is_open(self) -> bool:
        """Whether the file of the states is open, and so in use."""
        return self._file is not None

    def new_records(self, index_bytes: int) -> list[Record]:
        """Returns the records that were added since the last call.

        Args:
            index_bytes: size of the index now; a record at its end that is not complete is left for later.

        Raises:
            OSError: the index cannot be read.
        """
        end = index_bytes - index_bytes % RECORD_BYTES
        if end <= self._indexed:
            return []
        with self.stem.with_suffix(INDEX).open("rb") as file:
            file.seek(self._indexed)
            data = file.read(end - self._indexed)
        data = data[: len(data) - len(data) % RECORD_BYTES]
        self._indexed += len(data)
        found = [unpacked(data[i : i + RECORD_BYTES], self._shelf) for i in range(0, len(data), RECORD_BYTES)]
        self.damaged_records += found.count(None)
        return [record for record in found if record is not None]

    def check_into(self, record: Record, target: memoryview) -> None:
        """Reads an entry from the file and compares its hash; a bad sector or a cut file is an error here, not a signal.

        Args:
            record: the entry.
            target: as many bytes as it has, filled.

        Raises:
            DamagedError: the file is shorter, or the bytes are others.
            FileNotFoundError: the shard is gone.
            OSError: it cannot be read.
        """
        file = self._open()
        filled = 0
        while filled < record.size:
            count = _read_at(file, target[filled:], record.offset + filled)
            if not count:
                raise DamagedError("cut short")
            filled += count
        if hashlib.sha256(target).digest() != record.digest:
            raise DamagedError("does not match its hash")

    def copy_into(self, record: Record, target: memoryview) -> None:
        """Copies an entry that was checked before out of the memory map.

        The pages are given back at once: they stay in the system's page cache and do not count as memory of this process.

        Args:
            record: the entry.
            target: as many bytes as it has, filled.

        Raises:
            DamagedError: the file has become shorter.
            OSError: it cannot be read.
        """
        if not record.size:
            return
        file = self._open()
        # A read beyond the end of a mapped file is a signal that ends the process.
        if (size := os.fstat(file.fileno()).st_size) < record.end:
            raise DamagedError("cut short")
        if self._map is None or len(self._map) < record.end:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        with memoryview(self._map) as whole:
            target[:] = whole[record.offset : record.end]
        if hasattr(mmap, "MADV_DONTNEED"):
            start = record.offset - record.offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, record.end - start)

    def close(self) -> None:
        """Lets go of the files; from then on the shard may be evicted."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._file is not None:
            touch(self.stem)
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()  # a cache that somebody forgot to release

    def _open(self) -> FileIO:
        """The file, locked against eviction for as long as it is open."""
        if self._file is None:
            file = FileIO(self.stem.with_suffix(STATES))
            if not lock(file, shared=True) or not os.fstat(file.fileno()).st_nlink:
                file.close()
                raise FileNotFoundError(f"{self.stem} was evicted")
            touch(self.stem)
            self._file = file
        return self._file


class ShardWriter:
    """A new shard that this process alone writes.

    Args:
        folder: of the shelf; it must be there.
        shelf: name of the shelf.

    Attributes:
        stem: path of the shard without the endings.
        size: bytes of entries written.

    Raises:
        OSError: the files cannot be made.
    """

    def __init__(self, folder: Path, shelf: bytes) -> None:
        self.stem = folder / secrets.token_hex(8)
        self.size = 0
        self._shelf = shelf
        self._process = os.getpid()
        self._claimed = 0
        self._whole = True
        self._file = FileIO(self.stem.with_suffix(STATES), "x+")
        lock(self._file, shared=True)
        try:
            self._index = FileIO(self.stem.with_suffix(INDEX), "xb")
        except OSError:
            self.stem.with_suffix(STATES).unlink(missing_ok=True)
            self._file.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether this process may go on writing: it is not a fork of the writer, and no write was broken off."""
        return self._whole and self._process == os.getpid()

    def claim(self, count: int) -> None:
        """Makes the file longer, so that other processes count the bytes before they are written.

        Raises:
            FileNotFoundError: somebody removed the shard.
            OSError: somebody changed its length, or the file cannot grow.
        """
        status = os.fstat(self._file.fileno())
        if not status.st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed")
        if status.st_size != self._claimed:
            # Grown again it would hold zeros where checked entries were, and readers would not notice.
            raise OSError(errno.EIO, "somebody changed the length of its files")
        self._file.truncate(self.size + count)
        self._claimed = self.size + count

    def append(
        self,
        entries: Sequence[tuple[bytes, memoryview]],
        *,
        settling: contextlib.AbstractContextManager[None] | None = None,
    ) -> None:
        """Writes entries, and then their records. If that is broken off, none of them counts and the shard is at its end.

        Args:
            entries: name (32 bytes) and bytes of each; their size was claimed.
            settling: entered while bytes that were claimed for records leave this file and come back in the index, so that nobody counts in between.

        Raises:
            OSError: they could not be written, for example on a full disk.
        """
        self._whole = False
        records, end = [], self.size
        self._file.seek(end)
        for name, data in entries:
            _write_all(self._file, data)
            records.append(Record(name, end, len(data), hashlib.sha256(data).digest()))
            end += len(data)
        self.size = end  # before the records: what they describe is never written over
        indexed = self._index.tell()
        try:
            with settling or contextlib.nullcontext():
                if self._claimed > end:
                    self._file.truncate(end)
                    self._claimed = end
                _write_all(self._index, b"".join(record.packed(self._shelf) for record in records))
        except BaseException:
            with contextlib.suppress(OSError):
                self._index.truncate(indexed)
            raise
        self._whole = True

    def close(self) -> None:
        """Ends the shard; a fork's copy is closed without touching the files."""
        if self._process == os.getpid() and not self._file.closed:
            with contextlib.suppress(OSError):
                if os.fstat(self._file.fileno()).st_size > self.size:  # claimed and not written
                    self._file.truncate(self.size)
            touch(self.stem)
        self._index.close()
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_index"):  # else it could not be made
            self.close()


def lock(file: IO[bytes] | FileIO, *, shared: bool) -> bool:
    """Takes a lock on an open file that ends when it is closed, or with the process; says whether it was free.

    Where there is no such lock (Windows, some network file systems) it always is: what is open there stays readable all the same.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def touch(stem: Path) -> None:
    """Notes that a shard was used; a folder that cannot be written keeps no order of use."""
    with contextlib.suppress(OSError):
        os.utime(stem.with_suffix(STATES))


def _read_at(file: FileIO, target: memoryview, offset: int) -> int:
    """Without moving the place in the file, where the system can do so: a forked process shares it."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [target], offset)
    file.seek(offset)
    return file.readinto(target) or 0


def _write_all(file: FileIO, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
