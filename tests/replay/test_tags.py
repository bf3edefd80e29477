from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import UserError
from tunescope.replay import merge_tags, normalise_tag, tag_names


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Sentiment Analysis", "sentiment analysis"),
        ("sentiment-analysis!", "sentiment analysis"),
        ("  Sentiment\tANALYSIS 2 ", "sentiment analysis"),
        ("Customer's reviews", "customer review"),
        ("customer’s Review", "customer review"),
        ("summaries", "summary"),
        ("classes", "class"),
        ("boxes matches crashes cases phrases", "box match crash case phrase"),
        ("business status analysis gas", "business status analysis gas"),
        ("感情分析", "感情分析"),
        ("テキスト分類2", "テキスト分類"),
        ("ﾃｷｽﾄ ＡＢＣ", "テキスト abc"),
        ("Übersetzungen", "übersetzungen"),
        ("अनुवाद", "अनुवाद"),
        ("ÉTÉ", "été"),
        ("42 %", ""),
        ("", ""),
    ],
)
def test_spellings_become_one(written, normal):
    assert normalise_tag(written) == normal


@given(tag=st.text(max_size=40))
def test_a_normal_tag_is_stable_lower_and_holds_letters_alone(tag):
    normal = normalise_tag(tag)
    assert normal == normal.strip() == normal.lower()
    assert normalise_tag(normal) == normal
    assert not any(c.isdigit() or c in "!?.,-'_" for c in normal)


def vectors_on_a_circle(angles):
    """An `embed` that puts every tag at its angle, in degrees."""
    return lambda tags: np.array([[np.cos(np.radians(angles[t])), np.sin(np.radians(angles[t]))] for t in tags])


def test_every_cluster_is_replaced_by_its_most_frequent_tag_the_last_one_too():
    # Three clusters of five; the released code leaves the last of them as it is.
    names = [f"{cluster}{tag}" for cluster in "pqr" for tag in "abcde"]
    angles = {name: 120 * "pqr".index(name[0]) + "abcde".index(name[1]) for name in names}
    counts = dict.fromkeys(names, 1) | {"pc": 5, "qa": 5, "re": 5}
    found = tag_names(counts, embed=vectors_on_a_circle(angles))
    assert {name: found[name] for name in names} == {name: {"p": "pc", "q": "qa", "r": "re"}[name[0]] for name in names}


def test_a_cluster_needs_five_tags_within_reach_and_others_stay():
    angles = {"a": 0, "b": 2, "c": 4, "d": 6, "far": 180}
    four = tag_names(dict.fromkeys(angles, 1), embed=vectors_on_a_circle(angles))
    assert four == {name: name for name in angles}
    five = tag_names(dict.fromkeys([*angles, "e"], 1), embed=vectors_on_a_circle(angles | {"e": 8}))
    assert five == dict.fromkeys("abcde", "a") | {"far": "far"}  # of equally frequent ones the first by name


def test_spelling_alone_joins_variants_and_no_more():
    variants = [f"text classification{end}" for end in ("", " x", " y", " z", " w")]
    counts = dict.fromkeys(variants, 1) | {"text classification": 9, "translation": 3, "感情分析": 2}
    found = tag_names(counts, eps=0.3)
    assert {found[v] for v in variants} == {"text classification"}
    assert (found["translation"], found["感情分析"]) == ("translation", "感情分析")


def test_merged_tags_are_normal_distinct_and_in_order():
    raw = [["Law", "Summaries", "summary", "99"], [], ["law", "LAW!"], ["要約"]]
    assert merge_tags(raw) == [("law", "summary"), (), ("law",), ("要約",)]
    assert merge_tags([]) == []


@given(
    tags=st.lists(st.lists(st.sampled_from(["law", "laws", "tax", "taxes", "要約", "a b"]), max_size=4), max_size=10),
    data=st.data(),
)
def test_the_order_of_instructions_changes_nothing(tags, data):
    order = data.draw(st.permutations(range(len(tags))))
    merged = merge_tags(tags, eps=0.5, min_samples=2)
    assert merge_tags([tags[i] for i in order], eps=0.5, min_samples=2) == [merged[i] for i in order]


def test_frequency_counts_instructions_not_mentions():
    angles = {"p": 0, "q": 1, "x": 2, "y": 3, "z": 4}
    tags = [["p", "p", "p", "p"], ["q"], ["q"], ["x"], ["y"], ["z"]]
    assert Counter(t for own in merge_tags(tags, embed=vectors_on_a_circle(angles)) for t in own) == {"q": 6}


def test_only_the_most_frequent_are_clustered_where_there_are_too_many():
    angles = {name: i for i, name in enumerate("abcdef")}
    counts = dict(zip("abcdef", (9, 8, 7, 6, 5, 1), strict=True))
    found = tag_names(counts, embed=vectors_on_a_circle(angles), max_clustered=5)
    assert found == dict.fromkeys("abcde", "a") | {"f": "f"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"embed": lambda tags: np.ones((1, 2))}, r"embed returned shape \(1, 2\) for 6 tags"),
        ({"embed": lambda tags: np.full((6, 2), np.nan)}, "one finite vector per tag"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"min_samples": 0}, "min_samples 0"),
    ],
)
def test_what_cannot_be_clustered_is_refused(more, message):
    with pytest.raises(UserError, match=message):
        merge_tags([list("abcdef")], **more)
    with pytest.raises(UserError, match="tags of instruction 0 are the text"):
        merge_tags(["law"])
