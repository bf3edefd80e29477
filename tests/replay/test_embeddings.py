from __future__ import annotations

import numpy as np
import pytest

from tunescope.errors import IntegrityError, UserError
from tunescope.replay import EmbeddingStore


class Embedder:
    """Counts its calls; the vector of a text is its length and a one."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, texts):
        self.calls.append(len(texts))
        return np.array([[len(text), 1.0, 0.1] for text in texts])


def test_what_is_there_is_not_embedded_again(tmp_path):
    store, embed = EmbeddingStore(tmp_path / "new" / "cache"), Embedder()
    first = store.get(["a", "bb", "ccc"], embedder="m", embed=embed, chunk=2)
    assert embed.calls == [2, 1]
    assert first.tolist() == np.array([[1, 1, 0.1], [2, 1, 0.1], [3, 1, 0.1]], dtype=np.float32).tolist()
    again = EmbeddingStore(tmp_path / "new" / "cache").get(["a", "bb", "ccc"], embedder="m", embed=embed)
    assert embed.calls == [2, 1]
    assert again.tolist() == first.tolist()
    assert isinstance(again, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        again[0, 0] = 9


def test_other_texts_another_order_model_or_precision_are_embedded_anew(tmp_path):
    embed = Embedder()
    paths = set()
    for half, embedder, texts in [
        (False, "m", ["ab", "c"]),
        (False, "m", ["c", "ab"]),
        (False, "m", ["a", "bc"]),
        (False, "m", ["abc"]),
        (False, "n", ["ab", "c"]),
        (True, "m", ["ab", "c"]),
    ]:
        store = EmbeddingStore(tmp_path, half=half)
        rows = store.get(texts, embedder=embedder, embed=embed)
        assert rows.dtype == (np.float16 if half else np.float32)
        paths.add(store.path(texts, embedder=embedder))
    assert len(paths) == len(embed.calls) == 6


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        (lambda texts: np.ones((1, 2)), r"shape \(1, 2\) for 2 texts"),
        (lambda texts: np.ones(2), r"shape \(2,\) for 2 texts"),
        (lambda texts: np.array([[1.0, 0.0], [0.0, 0.0]]), "the embedding of 'b' is zero or not finite"),
        (lambda texts: np.array([[np.nan, 0.0], [0.0, 1.0]]), "the embedding of 'a' is zero or not finite"),
        (lambda texts: np.array([[1e6, 0.0], [0.0, 1.0]]), "the embedding of 'a' is zero or not finite as float16"),
    ],
)
def test_a_bad_embedding_is_refused_and_leaves_nothing(tmp_path, embed, message):
    with pytest.raises(UserError, match=message):
        EmbeddingStore(tmp_path, half=True).get(["a", "b"], embedder="m", embed=embed)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_half_way_leaves_nothing(tmp_path):
    def embed(texts):
        if "c" in texts:
            raise KeyboardInterrupt
        return np.ones((len(texts), 2))

    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore(tmp_path).get(["a", "b", "c"], embedder="m", embed=embed, chunk=1)
    assert list(tmp_path.iterdir()) == []


def test_chunks_of_other_lengths_are_refused(tmp_path):
    with pytest.raises(UserError, match="all of one length"):
        EmbeddingStore(tmp_path).get(
            ["a", "bb"], embedder="m", embed=lambda texts: np.ones((1, len(texts[0]))), chunk=1
        )


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_named(tmp_path, damage):
    store = EmbeddingStore(tmp_path)
    store.get(["a"], embedder="m", embed=Embedder())
    path = store.path(["a"], embedder="m")
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    with pytest.raises(IntegrityError, match="remove it, it is computed again"):
        store.get(["a"], embedder="m", embed=Embedder())


def test_no_texts_are_refused(tmp_path):
    with pytest.raises(UserError, match="no texts"):
        EmbeddingStore(tmp_path).get([], embedder="m", embed=Embedder())
