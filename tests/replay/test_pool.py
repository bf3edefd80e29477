from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import DataError, UserError
from tunescope.replay import Chosen, PoolTask, ReplayPool, group_instructions


@given(texts=st.lists(st.sampled_from(["Sort.", "sort.", "Sort. ", "並べ替え", "Count."]), max_size=20))
def test_equal_texts_are_grouped_with_their_frequency(texts):
    grouped = group_instructions(texts)
    assert list(grouped.texts) == sorted(set(texts))
    assert [grouped.texts[k] for k in grouped.of] == texts
    assert grouped.counts.tolist() == [texts.count(text) for text in grouped.texts]


def test_a_task_does_not_depend_on_the_order_of_its_examples():
    ids, texts = ["b", "a", "c"], ["Sort.", "Count.", "Sort."]
    vectors = np.arange(6.0).reshape(3, 2)
    one = PoolTask.build("t", ids, texts, example_embeddings=vectors)
    other = PoolTask.build("t", ids[::-1], texts[::-1], example_embeddings=vectors[::-1])
    assert one.ids == other.ids == ("a", "b", "c")
    assert one.grouped.of.tolist() == other.grouped.of.tolist() == [0, 1, 1]
    assert one.example_embeddings.tolist() == other.example_embeddings.tolist() == [[2, 3], [0, 1], [4, 5]]
    assert len(one) == 3


@pytest.mark.parametrize(
    ("ids", "texts", "more", "error", "message"),
    [
        ([], [], {}, DataError, "'t': no examples"),
        (["a"], [" \n"], {}, DataError, r"1 of 1 examples have no instruction \(first: 'a'\)"),
        (["a", "b", "b"], ["x"] * 3, {}, DataError, "id 'b' occurs more than once"),
        (["a"], ["x", "y"], {}, UserError, "1 ids for 2 instructions"),
        (["a", "b"], ["x", "x"], {"embeddings": np.ones((2, 3))}, UserError, "1 rows are needed, one per distinct"),
        (["a", "b"], ["x", "x"], {"example_embeddings": np.ones(2)}, UserError, "2 rows are needed, one per example"),
        (["a", "b"], ["x", "x"], {"tags": [["p"], ["q"]]}, UserError, "2 lists of tags for 1 distinct"),
    ],
)
def test_a_task_that_does_not_fit_together_is_refused(ids, texts, more, error, message):
    with pytest.raises(error, match=message):
        PoolTask.build("t", ids, texts, **more)


def test_a_pool_needs_different_names_and_distances_of_its_own_tasks():
    a, b = (PoolTask.build(name, ["1"], ["Sort."]) for name in "ab")
    assert [task.name for task in ReplayPool(PoolTask.build("c", ["1"], ["x"]), (b, a)).ordered] == ["a", "b"]
    with pytest.raises(UserError, match="every task needs a name of its own"):
        ReplayPool(a, (a, b))
    with pytest.raises(UserError, match=r"differ in \['a', 'x'\]"):
        ReplayPool(b, (a,), {"x": 0.1})


def test_a_choice_is_saved_and_read_as_plain_values():
    chosen = Chosen("t", "1", {"code": "random", "budget": 3})
    assert Chosen.from_dict(chosen.to_dict()) == chosen
