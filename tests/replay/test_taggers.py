from __future__ import annotations

import math
from collections import Counter

import pytest

from tunescope.errors import DataError, UserError
from tunescope.replay import EndpointTagger, FileTagger, LocalTagger, Tagger, key_phrases

INSTRUCTIONS = [
    "Translate the court ruling into German.",
    "Translate the review into French.",
    "Classify the review by sentiment.",
    "Classify the support ticket.",
    "次の文章を要約してください。",
    "次の文章を翻訳してください。",
    "12345",
]


@pytest.fixture(params=["local", "endpoint", "file"])
def tagger(request, tmp_path) -> Tagger:
    if request.param == "local":
        return LocalTagger()
    if request.param == "endpoint":
        return EndpointTagger(lambda prompts: [f'["tag {len(p)}"]' for p in prompts], name="fake")
    file = tmp_path / "tags.csv"
    file.write_text("instruction,tags\n" + "".join(f'"{text}",one;two\n' for text in INSTRUCTIONS), encoding="utf-8")
    return FileTagger(file)


def test_a_tagger_gives_each_instruction_its_own_whatever_the_order(tagger):
    tags = tagger(INSTRUCTIONS)
    assert tagger(INSTRUCTIONS[::-1]) == tags[::-1]
    assert len(tags) == len(INSTRUCTIONS)
    assert all(isinstance(own, tuple) and all(isinstance(tag, str) for tag in own) for own in tags)
    assert tagger([]) == []
    assert tagger.name.startswith(("local", "endpoint fake", "file tags.csv"))


def test_local_tags_are_the_weightiest_phrases_that_share_no_word():
    tags = LocalTagger(max_tags=2)(INSTRUCTIONS)
    assert tags[-1] == ()
    held = Counter(phrase for text in INSTRUCTIONS for phrase in set(key_phrases(text)))
    for text, own in zip(INSTRUCTIONS, tags, strict=True):
        words = [word for tag in own for word in tag.split()]
        assert len(words) == len(set(words))
        assert set(own) <= set(key_phrases(text))
        shared = [phrase for phrase in key_phrases(text) if held[phrase] > 1]
        assert bool(shared) == (bool(own) and held[own[0]] > 1)
        if own:
            weight = {p: list(key_phrases(text)).count(p) * math.log(7 / held[p]) for p in key_phrases(text)}
            assert weight[own[0]] == max(weight[p] for p in (shared or weight))


def test_counting_with_little_memory_still_finds_what_is_common():
    many = [f"Summarize report number{chr(97 + i % 26)}{chr(97 + i // 26)} briefly" for i in range(300)]
    exact, little = LocalTagger()(many), LocalTagger(max_phrases=20)(many)
    assert all("summarize report" in own for own in little)
    assert Counter(tag for own in exact for tag in own)["summarize report"] == 300


def test_an_endpoint_is_asked_once_per_instruction_with_its_text():
    asked: list[str] = []

    def ask(prompts):
        asked.extend(prompts)
        return ['```json\n["law", "translation"]\n```', " [] "]

    assert EndpointTagger(ask, name="m")(["Translate {this}.", "Sort."]) == [("law", "translation"), ()]
    assert ["Translate {this}." in asked[0], "Sort." in asked[1]] == [True, True]


@pytest.mark.parametrize("nonsense", ["", "law, tax", '{"tags": ["law"]}', '["law", 3]', '["law"', "null", '"law"'])
def test_an_answer_that_is_no_list_of_tags_is_refused_or_counted(nonsense):
    def ask(prompts):
        return ['["law"]'] * (len(prompts) - 1) + [nonsense]

    with pytest.raises(DataError, match=r"tags from m: 1 of 3 answers are no JSON list of tags \(instruction 'c'"):
        EndpointTagger(ask, name="m")(["a", "b", "c"])
    patient = EndpointTagger(ask, name="m", tolerated_fraction=0.34)
    assert patient(["a", "b", "c"]) == [("law",), ("law",), ()]
    assert patient.unreadable == 1


def test_settings_out_of_range_are_refused():
    for build in (lambda: LocalTagger(max_tags=0), lambda: EndpointTagger(list, name="m", tolerated_fraction=2)):
        with pytest.raises(UserError):
            build()
