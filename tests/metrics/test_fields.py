"""Scores of JSON answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import DataError
from tunescope.metrics import json_fields

LEAVES = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text(max_size=8)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
RIGHT = '{"site": "Plant B", "units": 3, "parts": ["seal", "bolt"]}'


@given(JSON)
def test_a_value_scores_1_against_itself_however_it_is_written(value):
    assert json_fields(json.dumps(value, indent=2), json.dumps(value, ensure_ascii=False)) == 1.0


@given(JSON, JSON)
def test_the_score_is_symmetric_and_between_0_and_1(x, y):
    one, other = json_fields(json.dumps(x), json.dumps(y)), json_fields(json.dumps(y), json.dumps(x))
    assert one == pytest.approx(other)
    assert 0.0 <= one <= 1.0


@given(st.text(max_size=80))
def test_any_output_gets_a_score(output):
    assert 0.0 <= json_fields(output, RIGHT) <= 1.0


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        (RIGHT, 1.0),
        ('{"units": 3.0, "parts": ["Seal.", "BOLT"], "site": " plant  b"}', 1.0),
        ('{"site": "Plant B", "units": 3}', 2 * 2 / (2 + 4)),
        ('{"site": "Plant B", "units": 3, "parts": ["seal", "bolt"], "extra": 1}', 2 * 4 / (5 + 4)),
        ('{"site": "Plant B", "units": "3", "parts": ["bolt", "seal"]}', 2 * 1 / 8),
        ('{"Site": "Plant B"}', 0.0),
        ("{}", 0.0),
        ("[]", 0.0),
        ("", 0.0),
        ("Plant B", 0.0),
        ('{"site": "Plant B", "units": NaN}', 0.0),
        ('{"site": "Plant B", "units"', 0.0),
    ],
)
def test_right_fields_raise_and_missing_wrong_or_additional_ones_lower_the_score(prediction, score):
    assert json_fields(prediction, RIGHT) == pytest.approx(score)


@pytest.mark.parametrize(
    "prediction",
    [
        f"```json\n{RIGHT}\n```",
        f"Sure [1], here it is: {RIGHT} Anything else? {{}}",
        f"{{not json}} but {RIGHT}",
        "\ufeff" + RIGHT,
    ],
)
def test_json_inside_other_text_is_found(prediction):
    assert json_fields(prediction, RIGHT) == 1.0


def test_only_the_first_readable_object_counts():
    assert json_fields('{"a": 1} {"a": 2}', '{"a": 2}') == 0.0


def test_a_list_is_found_where_the_reference_is_one():
    assert json_fields('The parts {of it}: ["seal", "bolt"].', '["seal", "bolt"]') == 1.0


def test_fields_of_different_objects_are_not_mixed():
    assert json_fields('[{"a": 1, "b": 4}, {"a": 3, "b": 2}]', '[{"a": 1, "b": 2}, {"a": 3, "b": 4}]') == 0.5


def test_true_is_not_1_and_null_is_not_empty():
    assert json_fields('{"a": true}', '{"a": 1}') == 0.0
    assert json_fields('{"a": null}', '{"a": ""}') == 0.0
    assert json_fields('{"a": "true"}', '{"a": true}') == 0.0


@pytest.mark.parametrize(
    "output",
    ["[" * 200_000, '{"a":' * 200_000, "{" * 2_000_000, '{"a": ' + "9" * 50_000 + "}", "x" * 5_000_000],
    ids=["lists", "objects", "braces", "digits", "letters"],
)
def test_hostile_output_scores_0(output):
    assert json_fields(output, RIGHT) == 0.0


def test_deep_nesting_is_compared_without_recursion():
    deep = '{"a":' * 400 + "1" + "}" * 400
    assert json_fields(deep, deep) == 1.0
    assert json_fields(deep.replace("1", "2"), deep) == 0.0


@pytest.mark.parametrize("reference", ["Plant B", "", "{", "[" * 100_000, "NaN"])
def test_a_reference_that_is_not_json_is_a_data_error(reference):
    with pytest.raises(DataError, match="is not JSON"):
        json_fields("{}", reference)
