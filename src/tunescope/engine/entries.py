"""What one process knows of a shelf: which rows are there, and where."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunescope.engine.shards import Record, ShardReader, ShardWriter
from tunescope.engine.shelves import Shelf, shards_in
from tunescope.models.packed import Row


def name_of(row: Row) -> bytes:
    """Returns the name of a row's entry: sha256 of its tokens. Where the answer begins changes no state."""
    ids = np.fromiter((*row.prompt_ids, *row.target_ids), dtype="<i8")
    return hashlib.sha256(ids.tobytes()).digest()


@dataclass(slots=True)
class Entry:
    """Where the states of a row lie.

    Attributes:
        shard: in which shard.
        record: where in it.
        checked: whether this process has compared them with their hash.
    """

    shard: ShardReader
    record: Record
    checked: bool = False


class OpenShelf:
    """A shelf in use.

    Args:
        root: the cache folder.
        shelf: what is on it.
        itemsize: bytes of a number.

    Attributes:
        entries: name of a row -> where its states lie.
        token_bytes: of one token's state.
        writer: the shard in work, or None.
    """

    def __init__(self, root: Path, shelf: Shelf, itemsize: int) -> None:
        self.root = root
        self.shelf = shelf
        self.key = shelf.key
        self.token_bytes = shelf.d_model * itemsize
        self.entries: dict[bytes, Entry] = {}
        self.writer: ShardWriter | None = None
        self._spare: dict[bytes, list[Entry]] = {}  # two processes computed the same row
        self._shards: dict[Path, ShardReader] = {}

    def refresh(self) -> int:
        """Forgets shards that are gone and reads the records that were added since; returns how many were none.

        Raises:
            OSError: the folder or an index cannot be read.
        """
        damaged = 0
        listed = shards_in(self.root / self.shelf.folder)
        for stem in self._shards.keys() - {files.stem for files in listed}:
            if not self._shards[stem].is_open:  # evicted since; what is open can be read whatever happened to its name
                self.drop_shard(self._shards.pop(stem))
        for files in listed:
            shard = self._shards.setdefault(files.stem, ShardReader(files.stem, self.key))
            before = shard.damaged_records
            try:
                records = shard.new_records(files.index_bytes)
            except FileNotFoundError:  # evicted since
                continue
            damaged += shard.damaged_records - before
            for record in records:
                entry = Entry(shard, record)
                if self.entries.setdefault(record.name, entry) is not entry:
                    self._spare.setdefault(record.name, []).append(entry)
        return damaged

    def drop(self, name: bytes) -> None:
        """Forgets an entry; another one of the same row takes its place."""
        spare = self._spare.get(name, [])
        if spare:
            self.entries[name] = spare.pop()
        else:
            del self.entries[name]

    def drop_shard(self, shard: ShardReader) -> None:
        """Forgets everything in a shard."""
        for entries in self._spare.values():
            entries[:] = [entry for entry in entries if entry.shard is not shard]
        for name in [name for name, entry in self.entries.items() if entry.shard is shard]:
            self.drop(name)
        shard.close()

    def writer_for(self, count: int, limit: int) -> ShardWriter:
        """Returns a shard of this process in which the bytes do not exceed the largest size of a shard, a new one if need be.

        Raises:
            OSError: it cannot be made.
        """
        if self.writer is not None and (not self.writer.usable or self.writer.size + count > max(limit, count)):
            self.end_writing()
        if self.writer is None:
            self.writer = ShardWriter(self.shelf.make_in(self.root), self.key)
        return self.writer

    def end_writing(self) -> None:
        """Closes the shard in work."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def close(self) -> None:
        """Lets go of all files."""
        self.end_writing()
        for shard in self._shards.values():
            shard.close()
