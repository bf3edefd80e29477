"""Prompts vary in their instruction alone, from the seed, the epoch and the example's own name; never the answer."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data import Augmentation, ChatFormat, Example, check_templates, noisy, vary
from tunescope.errors import DataError
from tunescope.testing import byte_tokenizer

POOL = [
    Example(
        str(i), "desk", "Which desk?", f"Case {i}.", (("it", "hr", "facility")[i % 3],), "Be brief.", (("user", "Hi"),)
    )
    for i in range(12)
]
TEMPLATES = {"desk": ["Name the desk.", "Task: {instruction}"]}
ALL = Augmentation(seed=3, templates=TEMPLATES, demonstrations=3, noise_fraction=0.5)
TEXT = st.text(max_size=30)


def epoch_of(how, epoch, examples=POOL):
    return [vary(example, how, epoch=epoch, pool=POOL) for example in examples]


@given(TEXT, TEXT, st.lists(TEXT, min_size=1, max_size=3), st.lists(TEXT, max_size=3), st.integers(0, 9))
def test_only_the_instruction_changes(instruction, material, targets, templates, epoch):
    example = Example("1", "t", instruction, material, tuple(targets), "sys", (("user", "Hi"),), {"site": "A"}, "f", 4)
    how = Augmentation(0, {"t": templates}, demonstrations=2, noise_fraction=1.0)
    varied = vary(example, how, epoch=epoch, pool=POOL)
    assert asdict(varied.example) | {"instruction": instruction} == asdict(example)
    assert all(shown in POOL for shown in varied.demonstrations)


def test_the_target_tokens_are_the_same_in_every_epoch():
    chat = ChatFormat(byte_tokenizer())
    plain = [chat.encode(example).target_ids for example in POOL]
    for epoch in range(5):
        rows = [chat.encode(v.example, demonstrations=v.demonstrations) for v in epoch_of(ALL, epoch)]
        assert [row.target_ids for row in rows] == plain
        assert [row.prompt_ids for row in rows] != [chat.encode(example).prompt_ids for example in POOL]


def test_it_depends_on_seed_epoch_task_and_id_alone():
    whole = epoch_of(ALL, 2)
    assert epoch_of(ALL, 2) == whole
    assert epoch_of(ALL, 2, POOL[::-1]) == whole[::-1]
    assert epoch_of(ALL, 2, POOL[5:6]) == whole[5:6]
    moved = [replace(example, file="elsewhere", line=9) for example in POOL]
    assert [v.example.instruction for v in epoch_of(ALL, 2, moved)] == [v.example.instruction for v in whole]
    assert epoch_of(replace(ALL, seed=4), 2) != whole


def test_epochs_differ():
    seen = [epoch_of(ALL, epoch) for epoch in range(6)]
    assert all(seen[i] != seen[j] for i in range(6) for j in range(i))
    one = {str(epoch_of(ALL, epoch)[0]) for epoch in range(12)}
    assert len(one) > 6


def test_every_wording_is_read_about_as_often_as_the_own_one():
    how = Augmentation(seed=0, templates=TEMPLATES)
    read = [v.example.instruction for epoch in range(100) for v in epoch_of(how, epoch)]
    counts = [read.count(text) for text in ("Which desk?", "Name the desk.", "Task: Which desk?")]
    assert sum(counts) == 1200 and all(340 < count < 460 for count in counts)


def test_templates_of_another_task_are_not_used():
    how = Augmentation(seed=0, templates={"mood": ["How?"]})
    assert [v.example for v in epoch_of(how, 1)] == POOL


def test_braces_in_a_template_are_only_text():
    how = Augmentation(seed=0, templates={"desk": ['Answer {"desk": ...} {instruction} {x}']})
    read = {vary(POOL[0], how, epoch=epoch).example.instruction for epoch in range(20)}
    assert read == {"Which desk?", 'Answer {"desk": ...} Which desk? {x}'}


def test_demonstrations_vary_in_number_and_order_and_never_show_the_example_itself():
    how = Augmentation(seed=0, demonstrations=2)
    twin = replace(POOL[0], id="twin")
    shown = [vary(POOL[0], how, epoch=epoch, pool=[*POOL, twin]).demonstrations for epoch in range(300)]
    assert {len(s) for s in shown} == {0, 1, 2}
    assert all(e.prompt_text != POOL[0].prompt_text for s in shown for e in s)
    pairs = {tuple(e.id for e in s) for s in shown if len(s) == 2}
    assert any((b, a) in pairs for a, b in pairs)
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert len(vary(POOL[0], replace(how, demonstrations=99), epoch=8, pool=POOL[:3]).demonstrations) <= 2


def test_noise_comes_as_often_as_it_should():
    how = Augmentation(seed=0, noise_fraction=0.25)
    changed = [v.example.instruction != "Which desk?" for epoch in range(100) for v in epoch_of(how, epoch)]
    assert 0.2 < sum(changed) / len(changed) < 0.3


@given(st.text(min_size=1, max_size=60), st.integers(0, 1000))
def test_noise_changes_case_or_white_space_and_nothing_else(text, seed):
    other = noisy(text, np.random.default_rng(seed))
    assert "".join(other.split()).casefold() == "".join(text.split()).casefold()
    assert (other != text) == bool(text.strip())
    assert text.split() == other.split() or sum(a != b for a, b in zip(text.split(), other.split(), strict=True)) == 1


def test_words_of_the_answer_keep_their_case():
    found = {noisy("Say HR or It", np.random.default_rng(seed), keep=["HR", "Facility."]) for seed in range(300)}
    assert all(text.split()[1] == "HR" for text in found)
    assert {"Say HR or IT", "Say HR or it", "say HR or It", "SAY HR or It", "Say  HR or It"} <= found


def test_case_alone_makes_no_control_token():
    chat = ChatFormat(byte_tokenizer())
    found = {noisy("Close <END> tags", np.random.default_rng(seed)) for seed in range(200)}
    assert len(found) > 6 and all(chat.control_token_in(text) is None for text in found)


def test_a_language_without_case_gets_white_space():
    found = {noisy("担当の窓口は?", np.random.default_rng(seed)) for seed in range(50)}
    assert found == {" 担当の窓口は?", "担当の窓口は? ", "担当の窓口は?\n"}


def test_nothing_on_is_nothing_varied():
    how = Augmentation(seed=0, templates={"desk": []})
    assert not how.varies and all(on.varies for on in (ALL, Augmentation(0, demonstrations=1)))
    assert [v.example for v in epoch_of(how, 3)] == POOL


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([replace(POOL[0], instruction="What now?"), POOL[1]], r"instructions differ within the task \(2 of them\)"),
        ([replace(POOL[0], input=" ", file="a.jsonl", line=3)], r"a.jsonl:3 has no input beside its instruction"),
    ],
)
def test_a_wording_that_would_drop_the_case_is_refused(examples, said):
    check_templates(examples, ["Task: {instruction}"])
    with pytest.raises(
        DataError, match=rf"task 'desk': template 'Name it.' has no {{instruction}}, but {said}"
    ) as caught:
        check_templates(examples, ["Name it.", "Name it!"])
    assert len(caught.value.problems) == 2


def test_a_wording_may_replace_an_instruction_that_all_examples_share():
    check_templates(POOL, ["Name the desk."])
    check_templates([], ["Name the desk."])
