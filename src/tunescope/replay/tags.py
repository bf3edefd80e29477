"""Tags made comparable: one spelling, and one name for those that mean nearly the same."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tunescope.errors import UserError
from tunescope.replay.pool import Floats

_WORKING_MEMORY_MIB = 64


def normalise_tag(tag: str) -> str:
    """Returns a tag in lower case, letters only, and English plurals made singular; it may be empty.

    Letters are those of any script, with their combining marks; full-width and half-width forms become one. Everything else separates words.
    Words of the letters a to z lose the ending of a plural by rule (``ies -> y``, ``sses -> ss``, ``s ->``, not after s, u or i). There is no
    dictionary: all that counts is that two spellings of a tag become the same, and a rule that is wrong for a word is wrong for it
    everywhere. Verb forms stay: cutting -ing and -ed by rule joins as many wrong words (*building*, *need*) as right ones.

    Args:
        tag: as a tagger wrote it.

    Source:
        The plural rules follow Harman 1991, "How effective is suffixing?" (S-stemmer), with -is, -sses, -xes, -ches and -shes
        added. InsCL's released code keeps a to z only, which leaves nothing of a Japanese tag, and lemmatises with a dictionary to download.

    Example:
        >>> [normalise_tag(t) for t in ["Text Classification(s)", "Summaries", "Data-analysis", "感情分析 2", "ﾃｷｽﾄ"]]
        ['text classification s', 'summary', 'data analysis', '感情分析', 'テキスト']
        >>> normalise_tag("123")
        ''
    """
    folded = unicodedata.normalize("NFKC", tag).lower()
    letters = "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in re.sub(r"['’]s\b", "", folded))
    return " ".join(_singular(word) for word in letters.split())


def _singular(word: str) -> str:
    if len(word) < 4 or not word.isascii() or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


def merge_tags(
    tags: Sequence[Sequence[str]],
    *,
    embed: Callable[[Sequence[str]], Floats] | None = None,
    eps: float = 0.1,
    min_samples: int = 5,
    max_clustered: int = 20_000,
) -> list[tuple[str, ...]]:
    """Normalises raw tags, replaces every tag of a cluster by the most frequent one in it, and drops duplicates.

    Args:
        tags: one list per instruction.
        embed: see `tag_names`.
        eps: see `tag_names`.
        min_samples: see `tag_names`.
        max_clustered: see `tag_names`.

    Returns:
        One tuple per instruction, each tag once, in the order of first occurrence; it may be empty.

    Raises:
        UserError: see `tag_names`.

    Example:
        >>> merge_tags([["Summaries", "summary!"], ["Law"], []])
        [('summary',), ('law',), ()]
    """
    spelled: dict[str, str] = {}
    normal = []
    for row, given in enumerate(tags):
        if isinstance(given, str):
            raise UserError(
                f"tags of instruction {row} are the text {given[:50]!r}; give a list of tags, it may hold one or none"
            )
        for tag in given:
            if tag not in spelled:
                spelled[tag] = normalise_tag(tag)
        normal.append([spelled[tag] for tag in given if spelled[tag]])
    counts = Counter(tag for given in normal for tag in set(given))
    names = tag_names(counts, embed=embed, eps=eps, min_samples=min_samples, max_clustered=max_clustered)
    return [tuple(dict.fromkeys(names[tag] for tag in given)) for given in normal]


def tag_names(
    counts: Mapping[str, int],
    *,
    embed: Callable[[Sequence[str]], Floats] | None = None,
    eps: float = 0.1,
    min_samples: int = 5,
    max_clustered: int = 20_000,
) -> dict[str, str]:
    """Returns for each tag the one that stands for it: the most frequent of its DBSCAN cluster, or itself.

    Args:
        counts: tag -> number of instructions that carry it.
        embed: function of the tags that returns one vector each, shape (n, d). None: TF-IDF of their character 2- to 4-grams, which sees
            spelling, not meaning, and works in every language.
        eps: largest cosine distance of neighbours.
        min_samples: tags in a neighbourhood, itself included, that make a cluster.
        max_clustered: only so many of the most frequent tags are clustered, which bounds time and memory; the others stand for themselves.

    Raises:
        UserError: `embed` does not return one finite vector per tag, or a setting is out of range.

    Source:
        Wang et al., arXiv 2403.11435, after InsTag (Lu et al. 2023, arXiv 2308.07074): PhraseBERT vectors, DBSCAN with eps 0.1 and
        min_samples 5. The released code skips the cluster with the highest number; ours replaces in all.

    Example:
        >>> counts = {"classify review": 9, "classify reviewer": 2, "classify reviewers": 1, "law": 3}
        >>> names = tag_names(counts, eps=0.4, min_samples=2)
        >>> names["classify reviewers"], names["law"]
        ('classify review', 'law')
    """
    if not 0 < eps < 2 or min_samples < 1 or max_clustered < 1:
        raise UserError(
            f"eps {eps}, min_samples {min_samples}, max_clustered {max_clustered}: eps must be above 0 and below 2, the others at least 1"
        )
    frequent = sorted(counts, key=lambda tag: (-counts[tag], tag))  # so the first of a cluster stands for it
    names = {tag: tag for tag in frequent}
    clustered = sorted(
        frequent[:max_clustered]
    )  # DBSCAN gives a tag between two clusters to the first: make that one fixed
    if len(clustered) < max(2, min_samples):
        return names
    import sklearn
    from sklearn.cluster import DBSCAN

    vectors = _spelling(clustered) if embed is None else _embedded(clustered, embed)
    with sklearn.config_context(working_memory=_WORKING_MEMORY_MIB):
        labels = DBSCAN(eps=eps, min_samples=min_samples, metric="cosine", algorithm="brute").fit(vectors).labels_
    cluster_of = {tag: label for tag, label in zip(clustered, labels.tolist(), strict=True) if label >= 0}
    leader: dict[int, str] = {}
    for tag in frequent:
        if tag in cluster_of:
            names[tag] = leader.setdefault(cluster_of[tag], tag)
    return names


def _spelling(tags: Sequence[str]) -> Floats:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors: Floats = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), lowercase=False).fit_transform(tags)
    return vectors


def _embedded(tags: Sequence[str], embed: Callable[[Sequence[str]], Floats]) -> Floats:
    vectors = np.asarray(embed(tags))
    if vectors.ndim != 2 or len(vectors) != len(tags) or not np.isfinite(vectors).all():
        raise UserError(
            f"embed returned shape {vectors.shape} for {len(tags)} tags; one finite vector per tag is needed"
        )
    return vectors
