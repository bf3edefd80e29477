"""Embeddings of instructions, computed once and mapped into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tunescope.errors import IntegrityError, UserError
from tunescope.replay.pool import Floats


class EmbeddingStore:
    """Keeps embeddings in a folder, one file per list of texts, found again by content.

    A file is named after the SHA-256 of the texts, of the embedder's name and of the precision. It is written whole or not at all, and holds nothing
    but numbers; which text a row belongs to only the key knows.

    Args:
        folder: made where it does not exist.
        half: store float16 instead of float32: half the size, cosines right to about 1e-3.

    Example:
        >>> import tempfile
        >>> store = EmbeddingStore(Path(tempfile.mkdtemp()))
        >>> lengths = lambda texts: np.array([[len(t), 1.0] for t in texts])
        >>> store.get(["Sort.", "Translate."], embedder="lengths", embed=lengths).tolist()
        [[5.0, 1.0], [10.0, 1.0]]
    """

    def __init__(self, folder: Path, *, half: bool = False) -> None:
        self.folder = folder
        self.dtype = np.dtype(np.float16 if half else np.float32)

    def get(
        self, texts: Sequence[str], *, embedder: str, embed: Callable[[Sequence[str]], Floats], chunk: int = 1024
    ) -> Floats:
        """Returns one row per text, read-only and memory-mapped; `embed` is called only if these texts are not there yet.

        Args:
            texts: at least one; the order counts, so give the sorted ones of `group_instructions`.
            embedder: names the model, its revision and how it embeds; part of the key.
            embed: function of at most `chunk` texts that returns their vectors, shape (texts, d).
            chunk: texts embedded at a time.

        Returns:
            Shape (texts, d), float32 or float16.

        Raises:
            UserError: no texts, or `embed` returns another number of rows, a zero vector or a number that is not finite.
            IntegrityError: the stored file is damaged.
        """
        if not texts:
            raise UserError("no texts to embed; give at least one")
        path = self.path(texts, embedder=embedder)
        if not path.exists():
            self._write(path, texts, embed, max(1, chunk))
        try:
            rows: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise IntegrityError(f"{path}: damaged ({str(error)[:80]}); remove it, it is computed again") from None
        if rows.ndim != 2 or len(rows) != len(texts) or rows.dtype != self.dtype:
            raise IntegrityError(
                f"{path}: holds shape {rows.shape} for {len(texts)} texts; remove it, it is computed again"
            )
        return rows

    def path(self, texts: Sequence[str], *, embedder: str) -> Path:
        """Returns the file that the embeddings of these texts have or will have."""
        key = hashlib.sha256()
        for part in (self.dtype.name, embedder, *texts):
            content = part.encode()
            key.update(f"{len(content)}:".encode() + content)
        return self.folder / f"{key.hexdigest()[:40]}.npy"

    def _write(self, path: Path, texts: Sequence[str], embed: Callable[[Sequence[str]], Floats], chunk: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(
            f".{path.name}.{os.getpid()}.part"
        )  # two programs may embed the same: the last one wins
        rows: Floats | None = None
        try:
            for start in range(0, len(texts), chunk):
                part = texts[start : start + chunk]
                vectors = self._checked(embed(part), part, None if rows is None else rows.shape[1])
                if rows is None:
                    shape = (len(texts), vectors.shape[1])
                    rows = np.lib.format.open_memmap(scratch, mode="w+", dtype=self.dtype, shape=shape)
                rows[start : start + len(part)] = vectors
            assert isinstance(rows, np.memmap)
            rows.flush()
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def _checked(self, vectors: Floats, texts: Sequence[str], columns: int | None) -> Floats:
        given = np.asarray(vectors)
        if given.ndim != 2 or len(given) != len(texts) or given.shape[1] != (columns or given.shape[1]):
            raise UserError(
                f"embed returned shape {given.shape} for {len(texts)} texts; one vector per text, all of one length, is needed"
            )
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, which is refused below
            rounded = given.astype(self.dtype)
        wrong = ~np.isfinite(rounded).all(axis=1) | ~rounded.any(axis=1)
        if wrong.any():
            text = texts[int(np.argmax(wrong))]
            raise UserError(
                f"the embedding of {text[:60]!r} is zero or not finite as {self.dtype.name}; check the model and its precision"
            )
        return rounded
