"""The cache folder as a whole: a shelf per base, number format and block, with shards on it; what is there, what has to go.

::

    <root>/lock                                 held while room is made
    <root>/<base>-<dtype>-block.<k>-<hash>/     a shelf; shelf.json says what is on it
        <random>.states, <random>.index         a shard
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from tunescope.engine.shards import INDEX, RECORD_BYTES, STATES, DamagedError, Record, ShardReader, lock
from tunescope.errors import RunError
from tunescope.models.package import cache_folder

_FACTS = "shelf.json"
_FORMAT = 1  # of the files: another one is another shelf
_PATIENCE_SECONDS = 5.0


def default_root() -> Path:
    """Returns the folder that is used where `engine.cache` names none."""
    return cache_folder() / "states"


@dataclass(frozen=True)
class Shelf:
    """What all entries of a shelf have in common: everything but the tokens that changes a number.

    Attributes:
        base_sha256: hash of the base weights.
        dtype: number format of the states, ``float32`` or ``bfloat16``.
        d_model: width.
        block: the states are those at the input of this block.
        numerics: what else decides how sums are rounded: attention, device, library version.
    """

    base_sha256: str
    dtype: str
    d_model: int
    block: int
    numerics: str

    @cached_property
    def key(self) -> bytes:
        """Hash of all of it, 32 bytes; it is bound into every record."""
        return hashlib.sha256(self._text().encode()).digest()

    @cached_property
    def folder(self) -> str:
        """Name of its folder.

        Example:
            >>> Shelf("3fa91c04d5e6" + "0" * 52, "bfloat16", 576, 20, "").folder[:31]
            '3fa91c04d5e6-bfloat16-block.20-'
        """
        return f"{self.base_sha256[:12]}-{self.dtype}-block.{self.block}-{self.key.hex()[:16]}"

    def make_in(self, root: Path) -> Path:
        """Makes the folder and returns it; a new cache is for its owner alone, because texts can be guessed from hidden states.

        Raises:
            OSError: it cannot be made.
        """
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = root / self.folder
        folder.mkdir(exist_ok=True)
        if _shelf_of(folder) is None:
            scratch = folder / f".{_FACTS}.{os.getpid()}"
            scratch.write_text(self._text(), encoding="utf-8")
            scratch.replace(folder / _FACTS)
        return folder

    def _text(self) -> str:
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)


@dataclass(frozen=True)
class ShardFiles:
    """A shard as the file system shows it.

    Attributes:
        stem: path without the endings.
        size_bytes: of both files.
        index_bytes: of the index.
        used: time of the last use, in seconds since 1970.
    """

    stem: Path
    size_bytes: int
    index_bytes: int
    used: float


def shards_in(folder: Path) -> list[ShardFiles]:
    """Returns the shards of a shelf; none where the folder is not there.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[str, tuple[int, int, float]] = {}
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for entry in entries:
        stem, ending = os.path.splitext(entry.name)  # noqa: PTH122 - thousands of entries, and a Path is slow
        if ending not in (STATES, INDEX):
            continue
        with contextlib.suppress(FileNotFoundError):  # evicted since
            status = entry.stat()
            size, index, used = found.get(stem, (0, 0, 0.0))
            index += status.st_size if ending == INDEX else 0
            found[stem] = (size + status.st_size, index, max(used, status.st_mtime) if ending == STATES else used)
    return [ShardFiles(folder / stem, *values) for stem, values in sorted(found.items())]


def all_shards(root: Path) -> list[ShardFiles]:
    """Returns the shards of all shelves.

    Raises:
        OSError: a folder cannot be read.
    """
    return [shard for folder in _folders(root) for shard in shards_in(folder)]


def remove(shard: ShardFiles) -> bool:
    """Removes a shard that no process has in use; says whether it is gone."""
    path = shard.stem.with_suffix(STATES)
    try:
        with path.open("rb") as file:
            if not lock(file, shared=False):
                return False
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # an index alone
    except OSError:
        return False
    with contextlib.suppress(OSError):
        shard.stem.with_suffix(INDEX).unlink(missing_ok=True)
    return True


class BudgetError(OSError):
    """What is in use takes the whole budget."""


@contextlib.contextmanager
def room_for(
    root: Path, count: int, *, budget_bytes: int, keep_free_bytes: int, release: Callable[[], None]
) -> Iterator[None]:
    """Makes room for bytes by removing shards, least recently used first, and holds the lock while the caller claims them.

    Args:
        root: the cache folder.
        count: bytes wanted.
        budget_bytes: that all shards together may take.
        keep_free_bytes: that the disk has to keep free.
        release: called if nothing else helps, to let go of shards that this process no longer needs.

    Raises:
        BudgetError: what is in use leaves no room in the budget.
        OSError: the disk has no room, or the folder cannot be written.
    """
    with locked(root):
        shards = sorted(all_shards(root), key=lambda shard: shard.used)
        over_budget = sum(shard.size_bytes for shard in shards) + count - budget_bytes
        over_disk = count + keep_free_bytes - shutil.disk_usage(root).free
        excess = max(over_budget, over_disk)
        for attempt in range(2):
            for shard in list(shards):
                if excess <= 0:
                    break
                if remove(shard):
                    shards.remove(shard)
                    excess -= shard.size_bytes
            if excess > 0 and attempt == 0:
                release()
        if excess > 0:
            if over_disk >= over_budget:
                raise OSError(errno.ENOSPC, f"less than {keep_free_bytes / 1e9:.3g} GB of the disk would stay free")
            raise BudgetError(errno.EDQUOT, "its budget is used up")
        yield


@dataclass(frozen=True)
class Stored:
    """What a shelf holds.

    Attributes:
        folder: its folder.
        shelf: what is on it, or None if that cannot be read.
        n_shards: number of shards.
        n_entries: rows of which the states are there; one in two shards counts twice.
        size_bytes: on the disk.
        used: time of the last use, in seconds since 1970; 0 without shards.
    """

    folder: Path
    shelf: Shelf | None
    n_shards: int
    n_entries: int
    size_bytes: int
    used: float


def stored(root: Path) -> list[Stored]:
    """Returns what a cache folder holds, last used first; nothing if it is not there.

    Raises:
        RunError: the folder cannot be read.
    """
    found = []
    with _readable(root):
        for folder in _folders(root):
            shards = shards_in(folder)
            found.append(
                Stored(
                    folder=folder,
                    shelf=_shelf_of(folder),
                    n_shards=len(shards),
                    n_entries=sum(shard.index_bytes // RECORD_BYTES for shard in shards),
                    size_bytes=sum(shard.size_bytes for shard in shards),
                    used=max((shard.used for shard in shards), default=0.0),
                )
            )
    return sorted(found, key=lambda one: (-one.used, one.folder.name))


@dataclass(frozen=True)
class Checked:
    """What was found when every entry was read.

    Attributes:
        n_entries: that are as they were written.
        n_bytes: of them.
        problems: one line for each shard with something damaged.
        damaged: those shards.
    """

    n_entries: int
    n_bytes: int
    problems: tuple[str, ...]
    damaged: tuple[ShardFiles, ...]


def verify(root: Path, *, done: Callable[[int], None] = lambda n: None) -> Checked:
    """Reads every entry and compares it with its hash.

    Args:
        root: the cache folder.
        done: called with the bytes of each shard that was read.

    Raises:
        RunError: the folder cannot be read.
    """
    n_entries = n_bytes = 0
    problems: list[str] = []
    damaged: list[ShardFiles] = []
    with _readable(root):
        for folder in _folders(root):
            shelf = _shelf_of(folder)
            for shard in shards_in(folder):
                if shelf is None:
                    problems.append(f"{shard.stem}: {_FACTS} beside it is missing or damaged, nobody will find it")
                    damaged.append(shard)
                    continue
                good, size, bad = _check_shard(shard, shelf)
                n_entries, n_bytes = n_entries + good, n_bytes + size
                if bad:
                    problems.append(f"{shard.stem}: {bad}")
                    damaged.append(shard)
                done(shard.size_bytes)
    return Checked(n_entries, n_bytes, tuple(problems), tuple(damaged))


def clear(root: Path, *, base: str = "") -> tuple[int, int]:
    """Removes what no process has in use.

    Args:
        root: the cache folder.
        base: beginning of the hash of the base model of which the states go; empty = all.

    Returns:
        Bytes removed, and bytes that stay because a process uses them.

    Raises:
        RunError: the folder cannot be read.
    """
    gone = kept = 0
    with _readable(root):
        for folder in _folders(root):
            shelf = _shelf_of(folder)
            if base and not (shelf.base_sha256 if shelf else folder.name).startswith(base):
                continue
            for shard in shards_in(folder):
                if remove(shard):
                    gone += shard.size_bytes
                else:
                    kept += shard.size_bytes
            with contextlib.suppress(OSError):
                if not shards_in(folder):
                    shutil.rmtree(folder)
    return gone, kept


def _check_shard(shard: ShardFiles, shelf: Shelf) -> tuple[int, int, str]:
    """Good entries, their bytes, and in words what is damaged."""
    reader = ShardReader(shard.stem, shelf.key)
    good = size = 0
    reasons: list[str] = []
    records: list[Record] = []
    try:
        records = reader.new_records(shard.index_bytes)
        for record in records:
            try:
                reader.check_into(record, memoryview(bytearray(min(record.size, shard.size_bytes))))
                good, size = good + 1, size + record.size
            except DamagedError as error:
                reasons.append(str(error))
    except FileNotFoundError:
        return good, size, ""  # evicted meanwhile
    except OSError as error:
        reasons.append(f"cannot be read ({error.strerror or error})")
    finally:
        reader.close()
    if reader.damaged_records:
        reasons.append("is no record of this shelf")
    n_bad = len(records) - good + reader.damaged_records
    return good, size, f"{n_bad} of {len(records) + reader.damaged_records} entries: {reasons[0]}" if reasons else ""


def _folders(root: Path) -> list[Path]:
    """The shelves; what else lies in the folder is not looked at."""
    try:
        return sorted(path for path in root.iterdir() if "-block." in path.name and path.is_dir())
    except FileNotFoundError:
        return []


def _shelf_of(folder: Path) -> Shelf | None:
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        shelf = Shelf(**{name: facts[name] for name in Shelf.__dataclass_fields__})
        return shelf if shelf.folder == folder.name else None  # changed, or of another version
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _readable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or root}: the cache cannot be read ({error.strerror or error}); check the path and its rights"
        ) from None


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process at a time; waiting ends, because whoever holds the lock may have been stopped.

    Args:
        root: the cache folder.

    Raises:
        OSError: another process holds the lock for seconds, or the folder cannot be written.
    """
    with (root / "lock").open("ab") as file:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not lock(file, shared=False):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "another process holds its lock")
            time.sleep(0.001)
        yield
