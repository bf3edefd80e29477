import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.data.check import check_duplicates, check_labels, check_leakage, normalise
from tunescope.data.example import Example
from tunescope.data.lengths import LengthRow, length_findings
from tunescope.data.read import FileRead

LONG = "The compressor in hall 3 makes a grinding noise since this morning and the pressure drops every few minutes."
NEAR = LONG.replace("this morning", "this mornin")
OTHER = "Who can tell me where the invoices of last year are kept, I need three of them for the audit on Thursday."


def row(number, text, *targets, instruction="Which desk?", file="a.jsonl", history=()):
    return Example(str(number), "t", instruction, text, targets or ("x",), None, tuple(history), {}, file, number)


def file_of(*rows, path="a.jsonl"):
    return FileRead(path, "t", "alpaca", rows, (), "", len(rows))


def numbered(*texts, **more):
    return file_of(*(row(i, text, **more) for i, text in enumerate(texts, 1)))


def found(check):
    return [(finding.code, finding.line) for finding in check.findings]


class TestNormalise:
    @given(st.text())
    @settings(max_examples=400, deadline=None, database=None)
    def test_is_idempotent(self, text):
        assert normalise(normalise(text)) == normalise(text)

    @given(st.text())
    @settings(max_examples=200, deadline=None, database=None)
    def test_ignores_space_around_and_doubled(self, text):
        assert normalise(f" \n{text}\t ") == normalise(text)
        assert normalise(text.replace(" ", "  ")) == normalise(text)

    @pytest.mark.parametrize(
        ("a", "b"), [("ＡＢＣ　１", "abc 1"), ("STRASSE", "straße"), ("ｶﾞｽ", "ガス"), ("é", "e\u0301")]
    )
    def test_same_text_in_other_characters_is_equal(self, a, b):
        assert normalise(a) == normalise(b)


class TestLabels:
    def test_known_labels_are_counted_in_the_order_of_the_task(self):
        read = file_of(row(1, "a", "hr"), row(2, "b", "it"), row(3, "c", "it"))
        check = check_labels(read, ["it", "hr"], train=True)
        assert list(check.counts.items()) == [("it", 2), ("hr", 1)]
        assert check.findings == ()

    @pytest.mark.parametrize(
        ("label", "part"),
        [
            ("facilty", "did you mean facility?"),
            ("Facility", "only in case or white space from 'facility'"),
            ("facility ", "only in case or white space"),
            ("zzz", "allowed: it, facility"),
        ],
    )
    def test_unknown_label_says_what_was_meant(self, label, part):
        check = check_labels(file_of(row(5, "a", label)), ["it", "facility"], train=False)
        assert found(check) == [("label_unknown", 5)]
        assert check.findings[0].severity == "error"
        assert part in check.findings[0].message
        assert sum(check.counts.values()) == 0

    def test_every_answer_of_a_list_must_be_a_label(self):
        assert found(check_labels(file_of(row(1, "a", "it", "zzz")), ["it", "hr"], train=False)) == [
            ("label_unknown", 1)
        ]

    def test_a_label_without_training_example_is_a_warning_only_in_training(self):
        read = file_of(row(1, "a", "it"))
        assert found(check_labels(read, ["it", "hr"], train=True)) == [("label_missing", None)]
        assert found(check_labels(read, ["it", "hr"], train=False)) == []

    @pytest.mark.parametrize(("n", "expected"), [(10, []), (11, [("label_imbalance", None)])])
    def test_imbalance_is_noted_above_ten_to_one(self, n, expected):
        rows = [row(0, "rare", "hr"), *(row(i, f"text {i}", "it") for i in range(1, n + 1))]
        assert found(check_labels(file_of(*rows), ["it", "hr"], train=True)) == expected

    def test_same_prompt_with_another_label_is_a_conflict_with_both_lines(self):
        check = check_labels(
            file_of(row(1, "Door stuck", "it"), row(2, "door  STUCK", "hr")), ["it", "hr"], train=False
        )
        assert found(check) == [("label_conflict", 2)]
        assert "line 1" in check.findings[0].message

    def test_same_prompt_with_another_free_text_is_an_info(self):
        check = check_labels(file_of(row(1, "Door stuck", "a"), row(2, "Door stuck", "b")), None, train=True)
        assert found(check) == [("several_answers", 2)]
        assert check.counts == {}

    @pytest.mark.parametrize(
        "other",
        [
            row(2, "Door stuck", "hr", instruction="Mood?"),
            row(2, "Door stuck", "hr", history=[("user", "x"), ("assistant", "y")]),
        ],
    )
    def test_same_input_under_another_instruction_or_history_is_no_conflict(self, other):
        assert found(check_labels(file_of(row(1, "Door stuck", "it"), other), ["it", "hr"], train=False)) == []


class TestDuplicates:
    def test_the_first_stays_and_the_later_ones_are_dropped(self):
        check = check_duplicates(numbered("The door", OTHER, " the  DOOR", "The door"))
        assert found(check) == [("duplicate_exact", 3), ("duplicate_exact", 4)]
        assert "line 1" in check.findings[0].message
        assert check.drop == {"3", "4"}

    def test_near_duplicates_are_found_with_their_similarity(self):
        check = check_duplicates(numbered(LONG, OTHER, NEAR))
        assert found(check) == [("duplicate_near", 3)]
        assert "line 1" in check.findings[0].message
        assert "0.9" in check.findings[0].message
        assert check.drop == {"3"}

    def test_the_threshold_decides(self):
        assert check_duplicates(numbered(LONG, NEAR), near_threshold=0.99).drop == frozenset()
        assert check_duplicates(numbered(LONG, NEAR), near_threshold=1).drop == frozenset()

    def test_equal_or_near_prompts_with_other_answers_stay(self):
        read = file_of(row(1, LONG, "a"), row(2, NEAR, "b"), row(3, LONG, "c"))
        assert check_duplicates(read).drop == frozenset()

    def test_a_near_row_with_another_answer_still_catches_its_own_repeats(self):
        read = file_of(row(1, LONG, "a"), row(2, NEAR, "b"), row(3, NEAR + "!", "b"))
        check = check_duplicates(read)
        assert check.drop == {"3"}
        assert "line 2" in check.findings[0].message

    def test_a_common_instruction_does_not_make_rows_alike(self):
        assert check_duplicates(numbered("short one", "other two", instruction=LONG * 5)).drop == frozenset()

    def test_without_input_the_instruction_is_compared(self):
        read = file_of(row(1, "", instruction=LONG), row(2, "", instruction=NEAR), row(3, "", instruction=OTHER))
        assert check_duplicates(read).drop == {"2"}

    def test_same_input_under_another_instruction_stays(self):
        assert check_duplicates(file_of(row(1, LONG), row(2, LONG, instruction="Shorten"))).drop == frozenset()

    @pytest.mark.parametrize("texts", [[], ["a"], ["a", "b"], ["", " "], ["\ud800", "x"]])
    def test_tiny_and_odd_files_have_no_false_duplicates(self, texts):
        read = file_of(*(row(i, text, instruction=f"say {text!r}") for i, text in enumerate(texts)))
        assert check_duplicates(read).drop == frozenset()

    def test_near_search_agrees_with_comparing_all_pairs(self):
        rng = random.Random(3)
        letters = "abcdefghij "
        texts = ["".join(rng.choice(letters) for _ in range(150)) for _ in range(60)]
        for source in list(texts):
            changed = list(source)
            for _ in range(rng.choice([1, 2, 6])):
                changed[rng.randrange(150)] = "z"
            texts.append("".join(changed))
        grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in map(normalise, texts)]
        near = {
            j
            for j in range(len(texts))
            if any(len(grams[i] & grams[j]) >= 0.85 * len(grams[i] | grams[j]) for i in range(j))
        }
        assert 20 < len(near) < 60
        got = {int(number) - 1 for number in check_duplicates(numbered(*texts)).drop}
        assert got <= near
        assert len(got) >= 0.97 * len(near)

    @given(st.lists(st.text(max_size=12), max_size=8))
    @settings(max_examples=60, deadline=None, database=None)
    def test_what_is_left_has_no_duplicates_and_covers_all(self, texts):
        rows = [row(i, text) for i, text in enumerate(texts, 1)]
        drop = check_duplicates(file_of(*rows)).drop
        kept = [r for r in rows if r.id not in drop]
        assert check_duplicates(file_of(*kept)).drop == frozenset()
        assert {normalise(r.input) for r in kept} <= {normalise(t) for t in texts}
        assert bool(kept) == bool(rows)

    def test_many_duplicates_end_in_one_line(self):
        check = check_duplicates(numbered(*["same"] * 50))
        assert len(check.findings) == 21
        assert check.findings[-1].message == "and 29 more"
        assert len(check.drop) == 49


class TestLeakage:
    def test_equal_and_near_prompts_are_named_with_the_line_in_the_test_file(self):
        train = numbered(LONG, "unrelated", NEAR)
        test = file_of(row(7, LONG.upper(), "other", file="test.jsonl"), path="test.jsonl")
        check = check_leakage(train, [test])
        assert found(check) == [("leakage", 1), ("leakage", 3)]
        assert all("test.jsonl:7" in finding.message for finding in check.findings)
        assert all(finding.file == "a.jsonl" for finding in check.findings)
        assert check.drop == {"1", "3"}

    def test_all_test_files_are_looked_at(self):
        train = numbered(LONG, OTHER)
        tests = [file_of(row(1, text, file=name), path=name) for name, text in (("b", LONG), ("c", OTHER))]
        assert check_leakage(train, tests).drop == {"1", "2"}

    def test_a_reworded_instruction_does_not_hide_a_long_input(self):
        train = file_of(row(1, LONG), row(2, "Kyoto"))
        test = file_of(row(1, LONG, instruction="Pick a team"), row(2, "Kyoto", instruction="Which country?"))
        assert check_leakage(train, [test]).drop == {"1"}

    def test_disjoint_files_do_not_leak(self):
        assert check_leakage(numbered(LONG), [numbered(OTHER)]).drop == frozenset()
        assert check_leakage(numbered(LONG), []).drop == frozenset()

    def test_after_dropping_nothing_leaks(self):
        train, test = numbered(LONG, NEAR, OTHER), numbered(LONG + " Please hurry.", "x")
        drop = check_leakage(train, [test], near_threshold=0.7).drop
        assert drop
        left = file_of(*(r for r in train.examples if r.id not in drop))
        assert check_leakage(left, [test], near_threshold=0.7).drop == frozenset()


class TestLengths:
    @pytest.mark.parametrize(
        ("prompt", "target", "expected"),
        [
            (50, 50, []),
            (50, 51, ["target_truncated"]),
            (100, 1, ["target_truncated"]),
            (500, 1, ["target_truncated"]),
            (10, 0, ["target_no_tokens"]),
            (76, 20, ["prompt_long"]),
            (75, 25, []),
        ],
    )
    def test_limits(self, prompt, target, expected):
        check = length_findings([LengthRow("a", 3, prompt, target)], max_length=100)
        assert [finding.code for finding in check.findings] == expected
        assert all(finding.line == 3 for finding in check.findings)

    def test_message_tells_how_much_is_cut_and_which_limit_would_do(self):
        rows = [LengthRow("a", 1, 90, 15), LengthRow("a", 2, 120, 10)]
        partly, entirely = length_findings(rows, max_length=100).findings
        assert "by 5 of 15 tokens" in partly.message
        assert "entirely" in entirely.message
        assert "data.max_length to 130" in partly.message

    def test_tables_are_per_file(self):
        rows = [LengthRow("a", i, i, 2 * i) for i in range(1, 101)] + [LengthRow("b", 1, 7, 3)]
        check = length_findings(rows, max_length=1000)
        assert check.prompt_tokens["a"].to_dict() == {"p50": 51, "p95": 96, "max": 100}
        assert check.target_tokens["a"].max == 200
        assert check.prompt_tokens["b"].to_dict() == {"p50": 7, "p95": 7, "max": 7}

    @given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), min_size=1))
    @settings(max_examples=60, deadline=None, database=None)
    def test_an_error_exactly_where_the_answer_does_not_fit(self, pairs):
        check = length_findings([LengthRow(f"f{i}", i, p, t) for i, (p, t) in enumerate(pairs)], max_length=1024)
        errors = {finding.line for finding in check.findings if finding.severity == "error"}
        assert errors == {i for i, (p, t) in enumerate(pairs) if t == 0 or p + t > 1024}
        table = check.prompt_tokens["f0"]
        assert table.p50 <= table.p95 <= table.max

    def test_no_rows_no_tables(self):
        assert length_findings([], max_length=10).prompt_tokens == {}
