"""Rules for output that has nothing to do with the instruction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.metrics import unrelated_flags

PROMPT = (
    "Summarise the incident in one sentence.\n\nAt 06:40 the coolant pump of line 4 stopped, the operator restarted it "
    "twice, and after the third stop maintenance replaced the seal and the bearing."
)
REFERENCES = ("The coolant pump of line 4 stopped three times until maintenance replaced seal and bearing.",)
JAPANESE = "次の連絡を一文で要約してください。\n\n午前六時四十分に四号ラインの冷却ポンプが停止しました。"


def flags(output, *, prompt=PROMPT, references=REFERENCES, other_labels=("positive", "negative"), hit_limit=False):
    return unrelated_flags(output, prompt=prompt, references=references, other_labels=other_labels, hit_limit=hit_limit)


@pytest.mark.parametrize("output", ["", " \n\t", "\u200b\ufeff", "\x00\x07"])
def test_output_without_a_visible_character_is_empty(output):
    assert flags(output) == ("empty",)


@pytest.mark.parametrize("output", ["positive", " Negative.", "ＰＯＳＩＴＩＶＥ"])
def test_a_label_of_another_task_is_flagged(output):
    assert flags(output) == ("label_of_other_task",)


def test_a_label_is_fine_where_it_is_right_or_part_of_an_answer():
    assert flags("positive", references=("Positive",)) == ()
    assert flags("The test was positive.") == ()


@pytest.mark.parametrize("output", [PROMPT, PROMPT[:120], PROMPT.upper(), "Incident: " + PROMPT.split("\n\n")[1]])
def test_repeating_the_prompt_is_flagged(output):
    assert flags(output) == ("copies_prompt",)


def test_an_answer_that_quotes_the_prompt_is_not_a_copy():
    assert flags(REFERENCES[0]) == ()
    assert flags("The coolant pump of line 4 stopped and the operator restarted it twice.") == ()


def test_copying_is_fine_where_a_right_answer_copies():
    assert flags(PROMPT + " Done.", references=(PROMPT,)) == ()
    assert flags(PROMPT + " Done.", references=(REFERENCES[0], PROMPT)) == ()


def test_a_short_prompt_must_be_repeated_in_full():
    assert flags("Name a colour!", prompt="name a colour", references=("red",)) == ("copies_prompt",)
    assert flags("a colour", prompt="name a colour", references=("red",)) == ()


@pytest.mark.parametrize(
    ("output", "references", "wrong"),
    [
        ("The pump stopped.", ("四号ラインのポンプが停止した。",), True),
        ("насос остановился", REFERENCES, True),
        ("ポンプが停止", REFERENCES, True),
        ("四号线冷却泵早上停止运行需要维修", ("四号ラインの冷却ポンプが停止した。",), True),
        ("四号ポンプ停止", ("四号ラインの冷却ポンプが停止した。",), False),
        ("設備", ("せつび",), False),
        ("カタカナ", ("設備",), False),
        ("SAP R3 の pump 停止ですね。確認します", ("SAP R3 の pump が停止",), False),
        ("12:40", REFERENCES, False),
        ("ok", ("四号",), False),
        ("The pump", ("42", "17"), False),
    ],
)
def test_the_wrong_script_is_flagged(output, references, wrong):
    assert ("wrong_script" in flags(output, references=references)) == wrong


def test_without_letters_in_the_right_answers_the_prompt_says_the_script():
    assert flags("The pump stopped.", prompt=JAPANESE, references=("42",)) == ("wrong_script",)


@pytest.mark.parametrize(
    "output",
    [
        "The pump. " + "It stopped again. " * 5,
        "no " * 30,
        "!" * 50,
        "停止しました。" * 6,
        "Well: " + "a b c d e f g " * 4,
    ],
)
def test_repetition_up_to_the_limit_is_endless(output):
    assert "endless" in flags(output, hit_limit=True)
    assert "endless" not in flags(output, hit_limit=False)


def test_a_long_answer_without_repetition_is_not_endless():
    assert flags(" ".join(f"Step {i} took {i * i} s." for i in range(80)), hit_limit=True) == ()


@given(st.text(max_size=200), st.text(max_size=100), st.lists(st.text(max_size=30), max_size=3), st.booleans())
def test_any_output_gets_known_flags_only(output, prompt, references, hit_limit):
    known = {"empty", "label_of_other_task", "copies_prompt", "wrong_script", "endless"}
    found = unrelated_flags(output, prompt=prompt, references=references, other_labels=("x",), hit_limit=hit_limit)
    assert set(found) <= known
    assert len(set(found)) == len(found)


@given(st.text(min_size=1, max_size=60).filter(lambda text: any(c.isalnum() for c in text)), st.text(max_size=60))
def test_a_right_answer_is_never_flagged(answer, prompt):
    assert (
        unrelated_flags(answer, prompt=prompt, references=[answer], other_labels=["x", answer], hit_limit=False) == ()
    )


def test_the_answer_of_an_example_in_the_prompt_is_a_copy_unless_it_is_right():
    asked = {"prompt": "Sum up: the belt slipped.", "other_labels": [], "hit_limit": False}
    shown = ["Pump seven leaked.", "門が故障"]
    assert unrelated_flags(" pump SEVEN leaked", references=["Belt slipped."], shown=shown, **asked) == (
        "copies_demonstration",
    )
    assert unrelated_flags("門が故障。", references=["ベルトが滑った"], shown=shown, **asked) == (
        "copies_demonstration",
    )
    assert unrelated_flags("Pump seven leaked.", references=["Pump seven leaked."], shown=shown, **asked) == ()
    assert unrelated_flags("Pump seven leaked again.", references=["Belt slipped."], shown=shown, **asked) == ()
    assert unrelated_flags("Pump seven leaked.", references=["Belt slipped."], **asked) == ()
