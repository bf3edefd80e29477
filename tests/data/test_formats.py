"""One contract for all row formats, then what is particular to each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.data.findings import FINDINGS_PER_CODE, FindingList, shown
from tunescope.data.formats import detect_format, example_from_row
from tunescope.data.rows import MAX_DEPTH, depth_of, super_ni_rows

COLUMNS = {"input": "text", "output": "label", "id": "key"}


def row_of(fmt, prompt, answer):
    return {
        "alpaca": {"instruction": "", "input": prompt, "output": answer},
        "prompt_completion": {"prompt": prompt, "completion": answer},
        "messages": {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]},
        "sharegpt": {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]},
        "columns": {"text": prompt, "label": answer, "key": None},
    }[fmt]


FORMATS = ("alpaca", "prompt_completion", "messages", "sharegpt", "columns")


def read(row, *, columns=None, **more):
    fmt = detect_format(row, columns)
    return example_from_row(row, fmt, task="t", file="a.jsonl", line=7, default_id="a-7", columns=columns, **more)


def mapping(fmt):
    return COLUMNS if fmt == "columns" else None


def only_problem(result):
    assert len(result.problems) == 1, result.problems
    return result.problems[0]


@pytest.mark.parametrize("fmt", FORMATS)
class TestContractOfAllFormats:
    def test_is_detected(self, fmt):
        assert detect_format(row_of(fmt, "q", "a"), mapping(fmt)) == fmt

    def test_prompt_answer_place_and_id_arrive(self, fmt):
        result = read(row_of(fmt, "Wie spät?", "四時"), columns=mapping(fmt))
        example = result.example
        assert result.problems == ()
        assert (example.prompt_text, example.targets) == ("Wie spät?", ("四時",))
        assert (example.id, example.task, example.file, example.line) == ("a-7", "t", "a.jsonl", 7)

    @pytest.mark.parametrize("wrong", [3, 2.5, True, {"a": 1}])
    def test_a_wrong_type_in_the_answer_is_named(self, fmt, wrong):
        result = read(row_of(fmt, "q", wrong), columns=mapping(fmt))
        assert result.example is None
        assert only_problem(result).code == "type_wrong"
        assert "allowed" in only_problem(result).message

    @pytest.mark.parametrize("wrong", [3, ["q"], {"a": 1}])
    def test_a_wrong_type_in_the_prompt_is_named(self, fmt, wrong):
        result = read(row_of(fmt, wrong, "a"), columns=mapping(fmt))
        assert result.example is None
        assert only_problem(result).code == "type_wrong"

    @pytest.mark.parametrize("empty", ["", " \n\t"])
    def test_an_empty_answer_is_an_error(self, fmt, empty):
        assert only_problem(read(row_of(fmt, "q", empty), columns=mapping(fmt))).code == "empty_target"

    @pytest.mark.parametrize("empty", ["", " \n"])
    def test_an_empty_prompt_is_an_error(self, fmt, empty):
        assert only_problem(read(row_of(fmt, empty, "a"), columns=mapping(fmt))).code == "empty_prompt"

    @pytest.mark.parametrize("field", ["prompt", "answer"])
    def test_a_lone_surrogate_is_an_error(self, fmt, field):
        texts = ("q\ud800", "a") if field == "prompt" else ("q", "a\udfff")
        result = read(row_of(fmt, *texts), columns=mapping(fmt))
        assert result.example is None
        assert only_problem(result).code == "surrogate"

    @pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x9f", "\u202e"])
    def test_a_control_character_is_a_warning_and_the_row_is_kept(self, fmt, character):
        result = read(row_of(fmt, f"q{character}", "a"), columns=mapping(fmt))
        assert result.example is not None
        assert (only_problem(result).code, only_problem(result).severity) == ("control_character", "warning")

    def test_line_ends_and_tabs_are_no_control_characters(self, fmt):
        assert read(row_of(fmt, "a\tb\r\nc", "x"), columns=mapping(fmt)).problems == ()

    def test_texts_are_not_changed(self, fmt):
        prompt, answer = "  ＡＢＣ <b> \n", " x\u00a0"
        example = read(row_of(fmt, prompt, answer), columns=mapping(fmt)).example
        assert (example.prompt_text, example.targets[0]) == (prompt, answer)


@pytest.mark.parametrize("fmt", ["alpaca", "prompt_completion", "columns"])
class TestSeveralAnswers:
    def test_a_list_of_texts_keeps_its_order(self, fmt):
        assert read(row_of(fmt, "q", ["b", "a"]), columns=mapping(fmt)).example.targets == ("b", "a")

    @pytest.mark.parametrize("answer", [[], None])
    def test_no_answer_is_an_error(self, fmt, answer):
        assert only_problem(read(row_of(fmt, "q", answer), columns=mapping(fmt))).code == "empty_target"

    def test_one_empty_answer_among_several_is_an_error(self, fmt):
        assert only_problem(read(row_of(fmt, "q", ["a", ""]), columns=mapping(fmt))).code == "empty_target"

    def test_a_number_in_the_list_is_an_error(self, fmt):
        assert only_problem(read(row_of(fmt, "q", ["a", 3]), columns=mapping(fmt))).code == "type_wrong"


class TestInstruction:
    def test_of_the_task_fills_in_only_where_the_row_has_none(self):
        own = read({"instruction": "own", "input": "i", "output": "a"}, instruction="task").example
        none = read({"input": "i", "output": "a"}, instruction="task").example
        assert (own.instruction, none.instruction) == ("own", "task")

    def test_of_the_task_makes_the_prompt_the_input(self):
        example = read({"prompt": "p", "completion": "c"}, instruction="task").example
        assert (example.instruction, example.input) == ("task", "p")

    def test_missing_answer_suggests_the_misspelt_key(self):
        problem = only_problem(read({"instruction": "a", "ouput": "b"}))
        assert problem.code == "field_missing"
        assert "did you mean ouput?" in problem.message


class TestColumns:
    def test_a_missing_column_names_the_nearest(self):
        problem = only_problem(read({"txt": "q", "label": "a", "key": 1}, columns=COLUMNS))
        assert problem.code == "field_missing"
        assert "'text'" in problem.message
        assert "did you mean txt?" in problem.message

    def test_id_and_attributes_come_from_the_original_row(self):
        row = {"text": "q", "label": "a", "key": 12, "site": "north", "floor": 3}
        example = read(row, columns=COLUMNS, attributes=("site", "floor")).example
        assert (example.id, dict(example.attributes)) == ("12", {"site": "north", "floor": "3"})

    def test_a_missing_attribute_is_a_warning(self):
        result = read({"prompt": "q", "completion": "a"}, attributes=("site",))
        assert result.example is not None
        assert only_problem(result).code == "attribute_missing"

    def test_an_attribute_that_is_a_list_is_an_error(self):
        problem = only_problem(read({"prompt": "q", "completion": "a", "site": []}, attributes=("site",)))
        assert problem.code == "type_wrong"


@pytest.mark.parametrize("value", [True, 1.5, [], {}])
def test_an_id_is_text_or_a_whole_number(value):
    assert only_problem(read({"prompt": "q", "completion": "a", "id": value})).code == "type_wrong"


def chat(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


class TestChat:
    def test_last_answer_is_the_target_and_the_rest_is_history(self):
        turns = [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
        example = read(chat(*turns)).example
        assert (example.system, example.prompt_text, example.targets) == ("s", "3", ("4",))
        assert example.history == (("user", "1"), ("assistant", "2"))

    def test_the_chat_can_be_put_together_again(self):
        turns = [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
        messages = read(chat(*turns)).example.messages()
        assert [(m["role"], m["content"]) for m in messages] == turns[:-1]

    def test_an_unknown_role_names_it_and_the_allowed_ones(self):
        problem = only_problem(read(chat(("user", "1"), ("asistant", "2"))))
        assert problem.code == "role_unknown"
        for part in ("turn 2", "'asistant'", "did you mean assistant?", "system, user, assistant"):
            assert part in problem.message

    def test_sharegpt_roles_do_not_count_for_messages(self):
        assert only_problem(read(chat(("human", "1"), ("gpt", "2")))).code == "role_unknown"

    @pytest.mark.parametrize(
        "turns",
        [
            [("user", "1"), ("user", "2"), ("assistant", "3")],
            [("assistant", "1"), ("user", "2"), ("assistant", "3")],
            [("user", "1"), ("system", "s"), ("assistant", "2")],
            [("assistant", "1")],
        ],
    )
    def test_turns_that_do_not_alternate_are_an_error(self, turns):
        assert only_problem(read(chat(*turns))).code == "turn_order"

    def test_unanswered_turns_at_the_end_are_left_out_with_a_warning(self):
        result = read(chat(("user", "1"), ("assistant", "2"), ("user", "3")))
        assert result.example.targets == ("2",)
        assert only_problem(result).code == "turn_unanswered"

    @pytest.mark.parametrize("turns", [[("user", "1")], [("system", "1")]])
    def test_a_chat_without_an_answer_is_an_error(self, turns):
        assert only_problem(read(chat(*turns))).code == "empty_target"

    @pytest.mark.parametrize("value", [None, "text", [], {}, [3], [{"role": "user"}], [{"content": "x"}], [[]]])
    def test_anything_but_a_list_of_turns_is_an_error(self, value):
        result = read({"messages": value})
        assert result.example is None
        assert only_problem(result).code in ("type_wrong", "role_unknown")

    def test_sharegpt_takes_the_system_message_from_beside(self):
        row = {"system": "s", **row_of("sharegpt", "q", "a")}
        assert read(row).example.system == "s"


class TestSuperNaturalInstructions:
    def test_definition_is_the_instruction_and_all_outputs_are_right(self):
        document = {"Definition": ["One.", "Two."], "Instances": [{"id": "x", "input": "i", "output": ["a", "b"]}]}
        assert detect_format(document) == "super_ni"
        (row,) = super_ni_rows(document)
        example = example_from_row(row, "super_ni", task="t", file="f", line=1, default_id="d").example
        assert (example.id, example.instruction, example.input, example.targets) == ("x", "One.\nTwo.", "i", ("a", "b"))

    @pytest.mark.parametrize(
        "document",
        [
            {"Definition": 3, "Instances": []},
            {"Definition": [], "Instances": []},
            {"Definition": ["a", 3], "Instances": []},
            {"Definition": "a", "Instances": {}},
            {"Definition": "a", "Instances": [3]},
        ],
    )
    def test_wrong_types_say_what_is_allowed(self, document):
        with pytest.raises(ValueError, match="allowed"):
            list(super_ni_rows(document))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
known_keys = st.sampled_from(
    ["instruction", "input", "output", "prompt", "completion", "messages", "conversations", "id"]
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | json_values, "content": json_values}
)


@given(st.dictionaries(known_keys | st.text(max_size=4), json_values | st.lists(turns, max_size=4), max_size=5))
@settings(max_examples=150, deadline=None, database=None)
def test_any_row_gives_an_example_or_an_error_and_one_line_messages(row):
    fmt = detect_format(row)
    if fmt is None or fmt == "super_ni":
        return
    result = read(row)
    errors = [problem for problem in result.problems if problem.severity == "error"]
    assert (result.example is None) == bool(errors)
    for problem in result.problems:
        assert problem.message.isprintable()


@given(st.text() | st.integers() | st.floats() | st.none() | st.booleans())
@settings(max_examples=100, deadline=None, database=None)
def test_a_shown_value_is_short_printable_and_encodable(value):
    assert shown(value).isprintable()
    assert len(shown(value)) < 700  # 60 characters, each escaped to at most 10
    shown(value).encode()


def test_depth_counts_lists_and_objects_and_stops_above_the_limit():
    assert [depth_of(3), depth_of([]), depth_of({"a": [{}]})] == [0, 1, 3]
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert depth_of(deep) == MAX_DEPTH + 1


def test_findings_beyond_the_limit_are_counted_not_kept():
    found = FindingList("f", "t")
    for line in range(FINDINGS_PER_CODE + 3):
        found.add("x", "error", line, "m")
    found.add("y", "info", 1, "n")
    findings = found.findings()
    assert len(findings) == FINDINGS_PER_CODE + 2
    assert (findings[-1].code, findings[-1].severity, findings[-1].message) == ("x", "error", "and 3 more")
