from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import UserError
from tunescope.replay import instruction_information

TAGS = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=12)


@given(tags=TAGS)
def test_equals_the_sum_written_out(tags):
    found = instruction_information(tags)
    for own, value in zip(tags, found, strict=True):
        expected = sum(math.log(len(tags) / sum(tag in other for other in tags)) for tag in set(own))
        assert value == pytest.approx(expected, abs=1e-12)
        assert value >= 0


@given(tags=TAGS, data=st.data())
def test_order_and_repetition_change_nothing(tags, data):
    order = data.draw(st.permutations(range(len(tags))))
    found = instruction_information(tags)
    assert instruction_information([tags[i] + tags[i][::-1] for i in order]) == [found[i] for i in order]


def test_equals_numbers_worked_out_by_hand():
    assert instruction_information([["a"], ["a", "b"]]) == [0.0, math.log(2)]
    assert instruction_information([["only"]]) == [0.0]
    assert instruction_information([]) == []
    assert instruction_information([[], [], ["a"]]) == [0.0, 0.0, math.log(3)]


def test_a_text_in_place_of_a_list_is_refused():
    with pytest.raises(UserError, match="tags of instruction 1 are the text 'law'"):
        instruction_information([["law"], "law"])
