"""Scores of labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from tunescope.metrics import accuracy, correctness, macro_f1, macro_f1_contributions, macro_f1_statistic

LABELS = ("it", "hr", "facility", "quality")
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=60)


@given(PAIRS)
def test_macro_f1_and_accuracy_equal_scikit_learn(pairs):
    predictions, references = zip(*pairs, strict=True)
    expected = f1_score(references, predictions, average="macro", zero_division=0)
    assert macro_f1(predictions, references, LABELS) == pytest.approx(expected)
    assert accuracy(predictions, references) == pytest.approx(accuracy_score(references, predictions))


@given(PAIRS, st.randoms(use_true_random=False))
def test_order_and_repetition_of_examples_change_nothing(pairs, random):
    predictions, references = zip(*pairs, strict=True)
    shuffled = random.sample(pairs * 2, 2 * len(pairs))
    again, right = zip(*shuffled, strict=True)
    assert macro_f1(again, right, LABELS) == pytest.approx(macro_f1(predictions, references, LABELS))
    assert accuracy(again, right) == pytest.approx(accuracy(predictions, references))


@given(PAIRS)
def test_contributions_sum_to_macro_f1_and_wrong_answers_add_nothing(pairs):
    predictions, references = zip(*pairs, strict=True)
    parts = macro_f1_contributions(predictions, references, LABELS)
    assert parts.sum() == pytest.approx(macro_f1(predictions, references, LABELS))
    assert (parts[correctness(predictions, references) == 0] == 0).all()


@given(PAIRS, st.integers(0, 2**32 - 1))
def test_the_statistic_scores_each_resample_like_macro_f1(pairs, seed):
    predictions, references = (np.array(side) for side in zip(*pairs, strict=True))
    indices = np.random.default_rng(seed).integers(0, len(pairs), size=(5, len(pairs)))
    statistic = macro_f1_statistic(predictions.tolist(), references.tolist(), LABELS)
    expected = [macro_f1(predictions[row].tolist(), references[row].tolist(), LABELS) for row in indices]
    assert statistic(indices) == pytest.approx(expected)


def test_a_label_that_nothing_bears_is_left_out_and_one_only_predicted_counts_0():
    assert macro_f1(["it", "it"], ["it", "it"], LABELS) == 1.0
    assert macro_f1(["it", "hr"], ["it", "it"], LABELS) == pytest.approx((2 / 3 + 0) / 2)


def test_a_prediction_outside_the_labels_is_wrong_and_has_no_f1_of_its_own():
    assert macro_f1(["it", "???"], ["it", "it"], LABELS) == pytest.approx(2 / 3)
    assert macro_f1_contributions(["it", "???"], ["it", "it"], LABELS).sum() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [(["it"], [], "1 predictions for 0"), ([], [], "no examples"), (["it"], ["sales"], r"\['sales'\] are not among")],
)
def test_wrong_input_is_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        macro_f1(predictions, references, LABELS)
