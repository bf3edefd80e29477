"""Answers of a server, noted in a file as they come: hashes of the requests and the answers, neither prompts nor the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunescope.errors import IntegrityError, ModelError
from tunescope.runs.records import SCHEMA_VERSION


class NotedAnswers:
    """The answers known so far, and the file they are noted in: a context manager that keeps the file open, and others away from it.

    Args:
        path: the file; made where it does not exist. None: nothing is noted.

    Attributes:
        known: hash of a request -> its answer.

    Raises:
        ModelError: on entering, the file cannot be written, or another program is at it.
        IntegrityError: on entering, a line of it is damaged.

    Example:
        >>> with NotedAnswers(None) as answers:
        ...     answers.note("1f", "it", "qwen3")
        ...     answers.known
        {'1f': 'it'}
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: Any = None
        self.known: dict[str, str] = {}

    def __enter__(self) -> NotedAnswers:
        if self._path is None:
            return self
        try:
            self._file = self._path.open("a+b")
        except OSError as error:
            raise ModelError(
                f"{self._path}: cannot be written ({error.strerror}); choose another file for the answers"
            ) from None
        try:
            _lock(self._file, self._path)
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def note(self, key: str, answer: str, model: str) -> None:
        """Keeps an answer under the hash of its request."""
        self.known[key] = answer
        if self._file is not None:
            row = {"schema_version": SCHEMA_VERSION, "key": key, "model": model, "answer": answer}
            self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            self._file.flush()

    def _load(self) -> None:
        self._file.seek(0)
        content: bytes = self._file.read()
        end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:end].split(b"\n")[:-1], 1):
            try:
                row = json.loads(line.decode())
                self.known[str(row["key"])] = str(row["answer"])
            except (ValueError, TypeError, KeyError, RecursionError):
                raise IntegrityError(
                    f"{self._path}:{number}: damaged; remove this line, its question is asked again"
                ) from None
        if end < len(content):
            self._file.truncate(end)  # what a kill left of a line


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there the user has to take care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ModelError(
            f"{path}: another program is noting answers in it; wait for it or choose another file"
        ) from None
