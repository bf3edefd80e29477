"""Hidden states at the input of the lowest moving block, kept on disk: what lies below it never changes, so it is computed once.

Bytes are tokens x width x size of a number; nothing is padded. An entry is found by the tokens of its row and by everything else that
changes a number (`Shelf`), so arms, seeds and later runs share entries. It is checked against its hash when a process first reads it, and then
copied out of a memory map. Whatever goes wrong, the caller computes instead, and is told so once.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tunescope import __version__
from tunescope.engine.entries import OpenShelf, name_of
from tunescope.engine.shards import RECORD_BYTES, DamagedError
from tunescope.engine.shelves import BudgetError, Shelf, locked, room_for
from tunescope.errors import TunescopeError
from tunescope.models.packed import Row

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_LARGEST_SHARD_BYTES = 1 << 30
_SHARDS_IN_BUDGET = 16  # so that eviction takes a small part of what is there


@dataclass
class CacheCounts:
    """What a cache did in this process.

    Attributes:
        tokens_read: tokens served.
        tokens_written: tokens kept.
        tokens_checked: tokens compared with their hash.
        damaged: entries dropped because they were not as written.
    """

    tokens_read: int = 0
    tokens_written: int = 0
    tokens_checked: int = 0
    damaged: int = 0


class ActivationCache:
    """The states of rows at the input of a block; made by `open_cache`.

    Several processes may use one folder at a time: each writes shards of its own and finds what the others have finished. It is safe to
    call from several threads. Not valid with dropout or noise below the block.

    Args:
        root: the cache folder.
        shelf_of: what the states at a block have in common.
        dtype: number format of the states.
        d_model: width.
        budget_bytes: that all shards in the folder together may take.
        keep_free_bytes: that the disk has to keep free.
        note: told, in one line and once for each kind of trouble, what is computed instead and why.

    Attributes:
        budget_bytes: as given.
        counts: what was read and written in this process.
        stopped: why nothing more is written, or None.
    """

    def __init__(
        self,
        root: Path,
        *,
        shelf_of: Callable[[int], Shelf],
        dtype: torch.dtype,
        d_model: int,
        budget_bytes: int,
        keep_free_bytes: int,
        note: Callable[[str], None],
    ) -> None:
        self.root = root
        self.dtype = dtype
        self.d_model = d_model
        self.counts = CacheCounts()
        self.stopped: str | None = None
        self._shelf_of = shelf_of
        self.budget_bytes = budget_bytes
        self._keep_free_bytes = keep_free_bytes
        self._note = note
        self._noted: set[str] = set()
        self._open: dict[int, OpenShelf] = {}
        self._mutex = threading.RLock()

    def missing(self, rows: Sequence[Row], k: int) -> list[int]:
        """Returns which rows have no states here.

        Args:
            rows: encoded examples.
            k: the states are those at the input of this block.

        Returns:
            Indices into `rows`, ascending. What is listed as there may still turn out damaged when it is read.
        """
        with self._mutex:
            shelf = self._at(k)
            names = [name_of(row) for row in rows]
            if any(name not in shelf.entries for name in names):
                self._refresh(shelf)
            return [i for i, name in enumerate(names) if name not in shelf.entries]

    def read(self, rows: Sequence[Row], k: int, *, out: torch.Tensor | None = None) -> torch.Tensor | None:
        """Returns the states of rows, or None if those of any row are not here.

        Args:
            rows: encoded examples.
            k: the states are those at the input of this block.
            out: (at least sum of tokens, d_model) to be filled instead of a new tensor, for example in pinned memory.

        Returns:
            (sum of tokens, d_model) on the CPU, the rows one behind the other, in the number format of the model and without a
            gradient: a copy that the caller may change, and that autograd may take as a leaf.

        Raises:
            TunescopeError: `out` is too small, of another number format, or not contiguous.
        """
        with self._mutex:
            shelf = self._at(k)
            names = [name_of(row) for row in rows]
            if any(name not in shelf.entries for name in names):
                self._refresh(shelf)
            if any(name not in shelf.entries for name in names):
                return None
            n_tokens = sum(_length(row) for row in rows)
            states = self._target(n_tokens, out)
            data = _as_bytes(states)
            start, complete = 0, True
            for name, row in zip(names, rows, strict=True):
                end = start + self._row_bytes(row, shelf)
                complete &= self._fill(
                    shelf, name, data[start:end]
                )  # after a bad entry too, so that all of them are known
                start = end
            if not complete:
                return None
            self.counts.tokens_read += n_tokens
            return states

    def write(self, rows: Sequence[Row], k: int, states: torch.Tensor) -> None:
        """Keeps the states of rows that are not here yet, unless writing has stopped (`stopped`).

        Args:
            rows: encoded examples.
            k: the states are those at the input of this block.
            states: (sum of tokens, d_model) on any device, the rows one behind the other, in the number format of the model.

        Raises:
            TunescopeError: `states` has another shape or number format than these rows need.
        """
        with self._mutex:
            shelf = self._at(k)
            n_tokens = sum(_length(row) for row in rows)
            if states.shape != (n_tokens, self.d_model) or states.dtype != self.dtype:
                raise TunescopeError(
                    f"states of {tuple(states.shape)} in {states.dtype} cannot be kept for {len(rows)} rows of {n_tokens} tokens: "
                    f"needed are {(n_tokens, self.d_model)} in {self.dtype}"
                )
            self._refresh(shelf)
            new: dict[bytes, tuple[int, int]] = {}
            start = 0
            for row in rows:
                end = start + self._row_bytes(row, shelf)
                if (name := name_of(row)) not in shelf.entries:
                    new.setdefault(name, (start, end))
                start = end
            if not new or self.stopped is not None:
                return
            data = _as_bytes(states.detach().to("cpu").contiguous())
            try:
                self._append(shelf, [(name, data[start:end]) for name, (start, end) in new.items()])
            except OSError as error:
                self._stop(shelf, error)
                return
            self._refresh(shelf)
            self.counts.tokens_written += sum(end - start for start, end in new.values()) // shelf.token_bytes

    def make_room(self, rows: Sequence[Row], k: int) -> bool:
        """Evicts what has to go and makes the first file, so that what stands against writing shows before anything is computed.

        Args:
            rows: encoded examples that will be written.
            k: the states are those at the input of this block.

        Returns:
            Whether they can be written as far as one can tell now; if not, `note` was told.
        """
        with self._mutex:
            shelf = self._at(k)
            if self.stopped is None:
                try:
                    shelf.writer_for(0, self._shard_bytes)
                    with self._room(shelf, sum(self._row_bytes(row, shelf) + RECORD_BYTES for row in rows)):
                        pass
                except OSError as error:
                    self._stop(shelf, error)
            return self.stopped is None

    def states(self, rows: Sequence[Row], k: int, compute: Callable[[list[Row]], torch.Tensor]) -> torch.Tensor:
        """Returns the states of rows, and computes and keeps what is not here.

        Args:
            rows: encoded examples.
            k: the states are those at the input of this block.
            compute: gives the states of some rows, (sum of tokens, d_model), in the number format of the model.

        Returns:
            (sum of tokens, d_model), on the CPU if nothing had to be computed, else on the device of `compute`.
        """
        if (found := self.read(rows, k)) is not None:
            return found
        absent = self.missing(rows, k)
        fresh = compute([rows[i] for i in absent]).detach()
        self.write([rows[i] for i in absent], k, fresh)
        parts = dict(zip(absent, fresh.split([_length(rows[i]) for i in absent]), strict=True))
        there = [i for i in range(len(rows)) if i not in parts]
        if there:
            kept = self.read([rows[i] for i in there], k)
            if kept is None:  # damaged, or evicted by another process since
                return compute(list(rows)).detach()
            parts |= zip(there, kept.to(fresh.device).split([_length(rows[i]) for i in there]), strict=True)
        return torch.cat([parts[i] for i in range(len(rows))])

    def release(self) -> None:
        """Lets go of all files, so that they may be evicted; they are opened again when they are needed."""
        with self._mutex:
            for shelf in self._open.values():
                shelf.close()
            self._open.clear()

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _at(self, k: int) -> OpenShelf:
        if k not in self._open:
            if k < 0:
                raise TunescopeError(f"there is no block.{k}; blocks are counted from 0")
            self._open[k] = OpenShelf(self.root, self._shelf_of(k), self.dtype.itemsize)
        return self._open[k]

    def _refresh(self, shelf: OpenShelf) -> None:
        try:
            damaged = shelf.refresh()
        except OSError as error:
            self._say(
                "read",
                f"the activation cache {self.root} cannot be read ({_reason(error)}): states are computed instead",
            )
            return
        if damaged:
            self._damaged(shelf, damaged, "is no record of this base and block")

    def _fill(self, shelf: OpenShelf, name: bytes, target: memoryview) -> bool:
        """Fills the bytes of one row; entries that turn out bad are dropped until one is good or none is left."""
        while (entry := shelf.entries.get(name)) is not None:
            try:
                if entry.record.size != len(target):
                    raise DamagedError("has another length than its row")
                if entry.checked:
                    entry.shard.copy_into(entry.record, target)
                else:
                    entry.shard.check_into(entry.record, target)
                    entry.checked = True
                    self.counts.tokens_checked += len(target) // shelf.token_bytes
                return True
            except DamagedError as error:
                shelf.drop(name)
                self._damaged(shelf, 1, str(error))
            except FileNotFoundError:
                shelf.drop_shard(entry.shard)
                if not self.root.is_dir():
                    self._say("gone", f"the activation cache {self.root} was removed: states are computed instead")
            except OSError as error:
                shelf.drop_shard(entry.shard)
                self._say(
                    "read",
                    f"the activation cache {self.root} cannot be read ({_reason(error)}): states are computed instead",
                )
        return False

    def _append(self, shelf: OpenShelf, entries: Sequence[tuple[bytes, memoryview]]) -> None:
        count = sum(len(data) for _, data in entries)
        if shelf.writer is not None and not self.root.is_dir():
            raise FileNotFoundError(errno.ENOENT, "it was removed")
        writer = shelf.writer_for(count, self._shard_bytes)
        with_records = count + len(entries) * RECORD_BYTES
        with self._room(shelf, with_records):
            writer.claim(with_records)
        writer.append(entries, settling=locked(self.root))

    @property
    def _shard_bytes(self) -> int:
        return min(_LARGEST_SHARD_BYTES, self.budget_bytes // _SHARDS_IN_BUDGET)

    def _room(self, shelf: OpenShelf, count: int) -> contextlib.AbstractContextManager[None]:
        return room_for(
            self.root,
            count,
            budget_bytes=self.budget_bytes,
            keep_free_bytes=self._keep_free_bytes,
            release=lambda: self._release_others(shelf),
        )

    def _release_others(self, kept: OpenShelf) -> None:
        """Another block than the one in work belongs to an arm that is over, or can be read again."""
        for k, shelf in list(self._open.items()):
            if shelf is not kept:
                shelf.close()
                del self._open[k]

    def _stop(self, shelf: OpenShelf, error: OSError) -> None:
        self.stopped = _reason(error)
        for one in self._open.values():
            one.end_writing()
        if isinstance(error, BudgetError):
            text = (
                f"the activation cache {self.root} has reached its budget of {self.budget_bytes:,} bytes with what is in use: states that are not "
                "in it are computed every time; raise engine.cache_bytes to keep them"
            )
        else:
            text = f"the activation cache {self.root} cannot be written ({self.stopped}): what is in it is used, other states are computed every time"
        self._say("write", text)

    def _damaged(self, shelf: OpenShelf, count: int, how: str) -> None:
        self.counts.damaged += count
        self._say(
            "damaged",
            f"the activation cache {self.root / shelf.shelf.folder} is damaged (an entry {how}): such entries are dropped and computed again; "
            "`tunescope cache verify` lists them",
        )

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._noted:
            self._noted.add(kind)
            self._note(text)

    def _target(self, n_tokens: int, out: torch.Tensor | None) -> torch.Tensor:
        if out is None:
            return torch.empty((n_tokens, self.d_model), dtype=self.dtype)
        fits = out.ndim == 2 and out.shape[0] >= n_tokens and out.shape[1] == self.d_model
        if not fits or out.dtype != self.dtype or not out.is_contiguous() or out.device.type != "cpu":
            raise TunescopeError(
                f"a buffer of {tuple(out.shape)} in {out.dtype} on {out.device} cannot take {n_tokens} states: needed are at least "
                f"{(n_tokens, self.d_model)} in {self.dtype}, contiguous and on the CPU"
            )
        return out[:n_tokens]

    def _row_bytes(self, row: Row, shelf: OpenShelf) -> int:
        return _length(row) * shelf.token_bytes


def open_cache(
    root: Path,
    *,
    base_sha256: str,
    dtype: torch.dtype,
    d_model: int,
    budget_bytes: int,
    numerics: str = "",
    keep_free_bytes: int = 1 << 30,
    note: Callable[[str], None] = lambda text: None,
) -> ActivationCache:
    """Opens a cache; the folder is made when something is first written.

    Args:
        root: the cache folder; models, blocks and processes share it.
        base_sha256: hash of the base weights (`ModelInfo.sha256`).
        dtype: number format of the states, ``torch.float32`` or ``torch.bfloat16``.
        d_model: width.
        budget_bytes: that everything in the folder together may take.
        numerics: what else decides how sums are rounded (`numerics_of`).
        keep_free_bytes: that the disk has to keep free.
        note: told in one line, once for each kind of trouble, that states are computed instead.

    Returns:
        The cache.

    Raises:
        TunescopeError: another number format, or no hash of the base.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> row = SimpleNamespace(prompt_ids=(7, 8), target_ids=(9,))
        >>> folder = Path(tempfile.mkdtemp())
        >>> with open_cache(folder, base_sha256="3fa9", dtype=torch.float32, d_model=2, budget_bytes=10**6) as cache:
        ...     print(cache.read([row], 5))
        ...     cache.write([row], 5, torch.arange(6.0).view(3, 2))
        ...     print(cache.read([row, row], 5).shape, cache.missing([row], 6))
        None
        torch.Size([6, 2]) [0]
    """
    if dtype not in DTYPES:
        raise TunescopeError(f"states in {dtype} cannot be kept; allowed: {', '.join(map(str, DTYPES))}")
    if not base_sha256:
        raise TunescopeError("states cannot be kept without the hash of the base weights: another base would find them")

    def shelf_of(k: int) -> Shelf:
        return Shelf(base_sha256, DTYPES[dtype], d_model, k, numerics)

    return ActivationCache(
        Path(root),
        shelf_of=shelf_of,
        dtype=dtype,
        d_model=d_model,
        budget_bytes=budget_bytes,
        keep_free_bytes=keep_free_bytes,
        note=note,
    )


def numerics_of(device: str | torch.device, attention: str) -> str:
    """Returns what decides, besides weights and tokens, how sums are rounded; states made in another way are not found.

    Args:
        device: where the model computes.
        attention: which attention it uses, such as the name that transformers knows it by.

    Example:
        >>> numerics_of("cpu", "tunescope_packed").split()[:2]
        ['tunescope_packed', 'cpu']
    """
    kind = torch.device(device).type
    machine = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{attention} {kind} {machine} torch {torch.__version__} tunescope {__version__}"


def _length(row: Row) -> int:
    return len(row.prompt_ids) + len(row.target_ids)


def _as_bytes(states: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor as bytes; numpy knows no bfloat16."""
    return memoryview(states.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
