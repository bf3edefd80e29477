"""The ledger: an append-only record of decisions in which every line seals the one before.

Each line of ``ledger.jsonl`` is canonical JSON (sorted keys, no spaces, UTF-8) with ``schema_version, seq, time, actor,
event, details, algorithm, previous, hash``; ``hash`` covers all other fields, and ``previous`` is the hash of the line
before (64 zeros in line 1). ``ledger.head`` beside it holds the number of lines and the last hash, because a chain
alone does not notice that its end was cut off. It is written atomically before and after each line, so that a crash in
between is not taken for an attack.

What it protects against: a changed, removed, inserted or reordered line, and a cut-off end, by anyone who does not take
the trouble to compute the chain anew.

What it does not protect against: without a key, someone who may write to the folder can rewrite all lines and the head
consistently. Two remedies: keep the last hash somewhere else (print it, mail it) and compare; or set a key in the
environment variable ``TUNESCOPE_LEDGER_KEY``, then lines and head are HMACs that only a holder of the key can make.
Even with a key, an *older* genuine copy of both files passes, deleting both files leaves nothing to check, and whoever
holds the key can write what they like; only a hash kept elsewhere shows these.

Two programs may append at the same time: a lock on the file (``fcntl``) makes one wait. On systems without ``fcntl``
(Windows) there is no lock, and only one program may write.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tunescope.errors import IntegrityError
from tunescope.runs.records import SCHEMA_VERSION

KEY_VARIABLE = "TUNESCOPE_LEDGER_KEY"
GENESIS = "0" * 64
_FIELDS = {"schema_version", "seq", "time", "actor", "event", "details", "algorithm", "previous", "hash"}
_LONGEST_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class LedgerCheck:
    """What a ledger that passed holds.

    Attributes:
        n: number of lines.
        head: hash of the last line; keep it elsewhere to notice that everything was rewritten.
        keyed: whether the lines are HMACs with a key.
    """

    n: int
    head: str
    keyed: bool


def key_from_environment() -> bytes | None:
    """Gives the key from the environment variable ``TUNESCOPE_LEDGER_KEY``, or None where it is not set or empty."""
    text = os.environ.get(KEY_VARIABLE, "")
    return os.fsencode(text) if text else None


def append(
    path: Path,
    event: str,
    details: dict[str, Any],
    *,
    actor: str,
    key: bytes | None = None,
    now: datetime | None = None,
) -> str:
    """Writes one decision to the end of the ledger and makes sure that it is on disk.

    Args:
        path: the ledger; it is made where it does not exist, its folder must.
        event: what was decided, for example ``plan_approved``.
        details: the numbers behind it, plain JSON values.
        actor: who decided: a person's name, or the program.
        key: for HMAC-SHA256 instead of SHA-256; a ledger is keyed from its first line to its last.
        now: time of the decision, with time zone; default: now.

    Returns:
        The hash of the new line.

    Raises:
        ValueError: if `event` or `actor` is empty, `now` has no time zone, the key is empty, or `details` are not
            plain JSON.
        IntegrityError: if the last line is incomplete or does not match the head, or the ledger is keyed otherwise.
        OSError: if it cannot be written; then nothing of the line stays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = Path(folder) / "ledger.jsonl"
        ...     head = append(ledger, "data_accepted", {"rows": 600}, actor="tunescope")
        ...     verify(ledger) == LedgerCheck(n=1, head=head, keyed=False)
        True
    """
    moment = datetime.now(UTC) if now is None else now
    if not event or not actor:
        raise ValueError(
            f"got event {event!r} and actor {actor!r}: a decision needs both, what was decided and by whom"
        )
    if moment.tzinfo is None:
        raise ValueError(f"now is {moment.isoformat()} without a time zone: use datetime.now(UTC)")
    _check_key(key)
    kept = _plain(details)
    with path.open("a+b") as file, _locked(file):
        n, previous = _end(path, file, key)
        entry: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "seq": n + 1,
            "time": moment.astimezone(UTC).isoformat(timespec="microseconds"),
            "actor": actor,
            "event": event,
            "details": kept,
            "algorithm": _algorithm(key),
            "previous": previous,
        }
        entry["hash"] = _digest(entry, key)
        _write_head(path, n, previous, entry["hash"], key)
        _write_line(file, _canonical(entry) + b"\n")
        _write_head(path, n + 1, entry["hash"], None, key)
    return str(entry["hash"])


def verify(path: Path, *, key: bytes | None = None) -> LedgerCheck:
    """Checks every line of a ledger and its end.

    Args:
        path: the ledger.
        key: the key it was written with, None if it was written without.

    Returns:
        Number of lines and last hash.

    Raises:
        ValueError: if the key is empty.
        IntegrityError: naming the first line that was changed, removed, inserted, moved or left incomplete; or if the
            end does not match ``ledger.head``, a file is missing, the ledger is empty, or it is keyed otherwise.
        OSError: if it cannot be read.
    """
    _check_key(key)
    if not path.exists():
        raise IntegrityError(f"{path}: there is no ledger, though every run writes one: restore it from a copy")
    previous, n = GENESIS, 0
    with path.open("rb") as file, _locked(file, shared=True):
        for n, line in enumerate(file, start=1):
            previous = _check_line(path, line, n, previous, key)
        if n == 0:
            raise IntegrityError(f"{path}: the ledger is empty, though every run writes at least one line: restore it")
        _check_head(path, n, previous, key)
    return LedgerCheck(n, previous, key is not None)


def _check_line(path: Path, line: bytes, seq: int, previous: str, key: bytes | None) -> str:
    """Returns the hash of a line that is as it was written, at its place."""
    where = f"{path} line {seq}"
    if not line.endswith(b"\n"):
        raise IntegrityError(_torn(where, len(line)))
    try:
        entry = json.loads(line)
        whole = isinstance(entry, dict) and set(entry) == _FIELDS and _canonical(entry) + b"\n" == line
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise IntegrityError(f"{where}: this is not a line that tunescope wrote, it was changed or damaged")
    if entry["algorithm"] != _algorithm(key):
        raise IntegrityError(f"{where}: {_wrong_key(entry['algorithm'], key)}")
    claimed = str(entry.pop("hash"))
    if not hmac.compare_digest(_digest(entry, key).encode(), claimed.encode("utf-8", "replace")):
        hint = " (or the key is another one)" if key else ""
        raise IntegrityError(f"{where}: the line does not match its hash, it was changed{hint}")
    if entry["seq"] != seq or entry["previous"] != previous:
        raise IntegrityError(
            f"{where}: the line says that it is number {entry['seq']} after hash {str(entry['previous'])[:12]}, "
            f"the line before has hash {previous[:12]}: a line was removed, inserted or moved"
        )
    return claimed


def _check_head(path: Path, n: int, last: str, key: bytes | None) -> None:
    """Compares the end of the ledger with what the head says, allowing for a crash while a line was written."""
    head = _read_head(path, key)
    if head is None:
        raise IntegrityError(
            f"{_head_path(path)}: missing, so nobody can tell whether lines were cut off after line {n}: restore it"
        )
    states = {(head["n"], head["hash"])}
    if head["pending"] is not None:
        states.add((head["n"] + 1, head["pending"]))
    if (n, last) not in states:
        raise IntegrityError(
            f"{path} line {n}: the ledger ends here with hash {last[:12]}, but {_head_path(path).name} counts "
            f"{head['n']} lines and ends with {head['hash'][:12]}: lines were removed or added at the end"
        )


def _end(path: Path, file: IO[bytes], key: bytes | None) -> tuple[int, str]:
    """Returns number and hash of the last line, after checking it alone against the head."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        head = _read_head(path, key)
        if head is not None and head["n"] > 0:
            raise IntegrityError(
                f"{path}: the ledger is empty, but {_head_path(path).name} counts {head['n']} lines: restore it"
            )
        return 0, GENESIS
    line = _last_line(file, size)
    if not line.endswith(b"\n"):
        raise IntegrityError(_torn(f"{path} last line", len(line)))
    try:
        entry = json.loads(line)
        seq, previous = int(entry["seq"]), str(entry["previous"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise IntegrityError(f"{path} last line: this is not a line that tunescope wrote: run the audit") from None
    last = _check_line(path, line, seq, previous, key)
    _check_head(path, seq, last, key)
    return seq, last


def _last_line(file: IO[bytes], size: int) -> bytes:
    """Returns the last line with its end, reading backwards only as far as needed."""
    tail = b""
    while len(tail) < size and b"\n" not in tail[:-1]:
        wanted = min(size, max(_LONGEST_TAIL_BYTES, 2 * len(tail)))
        file.seek(size - wanted)
        tail = file.read(wanted)
    return tail[tail[:-1].rfind(b"\n") + 1 :]


def _torn(where: str, length: int) -> str:
    return (
        f"{where}: the line is incomplete ({length} bytes without an end), the program stopped while it was written: "
        f"keep a copy, remove these {length} bytes from the end of the file, and try again"
    )


def _wrong_key(algorithm: object, key: bytes | None) -> str:
    if key is None:
        return (
            f"sealed with {algorithm!s:.20}: set the key in {KEY_VARIABLE} (a ledger is keyed as a whole or not at all)"
        )
    return (
        f"sealed without a key ({algorithm!s:.20}), but a key was given: unset {KEY_VARIABLE} for a ledger that was "
        "written without; one that was written with a key has been tampered with"
    )


def _write_line(file: IO[bytes], line: bytes) -> None:
    size = file.seek(0, os.SEEK_END)
    try:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)  # a full disk must not leave half a line
        raise


def _head_path(path: Path) -> Path:
    return path.with_suffix(".head")


def _write_head(path: Path, n: int, last: str, pending: str | None, key: bytes | None) -> None:
    """Writes the head beside the old one and swaps it in; `pending` is the hash of a line about to be written."""
    head = {"schema_version": SCHEMA_VERSION, "n": n, "hash": last, "pending": pending, "algorithm": _algorithm(key)}
    head["seal"] = _digest(head, key)
    beside = path.with_suffix(".head.new")
    with beside.open("wb") as file:
        file.write(_canonical(head) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(_head_path(path))


def _read_head(path: Path, key: bytes | None) -> dict[str, Any] | None:
    """Returns the head's fields, None where there is no head."""
    where = _head_path(path)
    if not where.exists():
        return None
    try:
        head = json.loads(where.read_bytes())
        seal = head.pop("seal")
        whole = isinstance(head["n"], int) and isinstance(head["hash"], str)
        whole = whole and (head["pending"] is None or isinstance(head["pending"], str))
        algorithm = head["algorithm"]
        right = hmac.compare_digest(_digest(head, key).encode(), str(seal).encode("utf-8", "replace"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise IntegrityError(f"{where}: this is not what tunescope wrote, it was changed or damaged") from None
    if algorithm != _algorithm(key):
        raise IntegrityError(f"{where}: {_wrong_key(algorithm, key)}")
    if not (whole and right):
        raise IntegrityError(f"{where}: the file does not match its seal, it was changed")
    return dict(head)


def _algorithm(key: bytes | None) -> str:
    return "sha256" if key is None else "hmac-sha256"


def _check_key(key: bytes | None) -> None:
    if key == b"":
        raise ValueError(f"the key is empty: give a key, or None (unset {KEY_VARIABLE}) for a ledger without")


def _plain(details: dict[str, Any]) -> Any:
    """Returns details as they will be read back."""
    try:
        return json.loads(json.dumps(details, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"details are not plain JSON ({error}): use texts, finite numbers, lists and dictionaries"
        ) from None


def _canonical(value: dict[str, Any]) -> bytes:
    """Returns the one way of writing a value; escaped where it holds half a surrogate pair, which UTF-8 cannot."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(value: dict[str, Any], key: bytes | None) -> str:
    text = _canonical(value)
    return hashlib.sha256(text).hexdigest() if key is None else hmac.new(key, text, hashlib.sha256).hexdigest()


@contextmanager
def _locked(file: IO[bytes], *, shared: bool = False) -> Iterator[None]:
    """Holds the only right to write, or a right to read, where the system has `fcntl`."""
    try:
        import fcntl
    except ImportError:  # Windows: one writer at a time is the user's part, see the module
        yield
        return
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
