"""What the base model makes of instructions: one vector each, kept by content, so that none is read twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunescope import layers, models, replay
from tunescope.errors import DataError, RunError
from tunescope.studies.bench import Bench
from tunescope.studies.machine import release_memory
from tunescope.studies.progress import Progress, ticker

POOLING = "last_block_mean"  # how a text becomes a vector, by a name that the report words


class Embedder:
    """Embeds texts with the base model, which is loaded when the first text is read that nobody embedded before.

    A text is read as it is, without the chat template; its vector is the mean over its tokens of the last block's output. Vectors are kept
    in ``instructions/`` in the user's cache, by text, base weights and number format.

    Args:
        bench: names the base model.
        progress: told about the texts that are read.

    Source:
        Wang et al., InsCL, NAACL 2024 (arXiv 2403.11435), section 3.2, who take the mean of the last hidden states. Theirs stand after the
        final norm, ours before it, since `layers.capture` pools what blocks give.
    """

    def __init__(self, bench: Bench, progress: Progress) -> None:
        self._bench, self._progress = bench, progress
        self._loaded: Any = None
        self._store = replay.EmbeddingStore(models.cache_folder() / "instructions")
        self.name = f"{bench.located.sha256}, {bench.config.dtype}, {POOLING}"

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Returns one vector per text, (n, d_model); texts may repeat.

        Raises:
            DataError: a text has no tokens for this model, or holds one of its control tokens.
            RunError: the cache cannot be written.
        """
        try:
            return self._store.get(texts, embedder=self.name, embed=self._read)
        except OSError as error:
            raise RunError(
                f"{self._store.folder}: the cache of instructions cannot be written ({error.strerror or error}); free some space, or set "
                "TUNESCOPE_CACHE to a folder that can be written; then run the same command with --resume"
            ) from None

    def release(self) -> None:
        """Gives the memory of the base model back."""
        self._loaded = None
        release_memory()

    def _read(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        chat = self._bench.chat
        rows = []
        for text in texts:
            if marker := chat.control_token_in(text):
                raise DataError(
                    f"the text {text[:60]!r} contains {marker!r}, a control token of this model; remove or rewrite it"
                )
            rows.append(chat.answer_ids(text))
            if not rows[-1]:
                raise DataError(
                    f"the text {text[:60]!r} has no tokens for this model; write out what is to be done, or use policy random"
                )
        self._loaded = self._loaded or self._bench.load()
        self._progress.stage("read the instructions", len(texts))
        tokens = self._bench.config.evaluation.batch_tokens
        states = layers.capture(self._loaded.model, rows, batch_tokens=tokens, done=ticker(self._progress))
        mean: npt.NDArray[np.float32] = states.mean[-1]
        return mean
