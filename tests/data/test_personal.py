from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.data.example import Example
from tunescope.data.personal import check_personal, find_personal
from tunescope.data.read import FileRead

# All numbers below are published test numbers or made up; the check digits are valid where they have to be.
PERSONAL = [
    ("email", "jo.doe@firma.co.jp"),
    ("email", "müller+x@firma.de"),
    ("phone", "+49 30 901820"),
    ("phone", "+1 650 253 0000"),
    ("phone", "+81-3-1234-5678"),
    ("phone", "+81 90-1234-5678"),
    ("phone", "03-1234-5678"),
    ("phone", "090-1234-5678"),
    ("phone", "09012345678"),
    ("phone", "0120-123-456"),
    ("phone", "０９０－１２３４－５６７８"),
    ("phone", "(415) 555-2671"),
    ("phone", "415-555-2671"),
    ("phone", "020 7946 0958"),
    ("phone", "01 42 68 53 00"),
    ("phone", "030/901820"),
    ("card", "4111 1111 1111 1111"),
    ("card", "4111111111111111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("card", "3782 822463 10005"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "DE89370400440532013000"),
    ("iban", "GB82 WEST 1234 5698 7654 32"),
    ("my_number", "123456789018"),
    ("my_number", "1234 5678 9018"),
    ("my_number", "１２３４５６７８９０１８"),
]

HARMLESS = [
    "Part 4711-0815, 12 pcs",
    "P/N 03-1234-5678",
    "品番 03-1234-5678",
    "serial 090-1234-5678",
    "order 0123456789",
    "ticket #0312345678",
    "pump 020-7946-0958B",
    "invoice 2024-000123, lot 2024-001-0234",
    "2024-03-01 08:30",
    "01.02.2024 08:30",
    "01/02/2024 0830 1215",
    "2024/03/01, 20240301, 202403011015",
    "令和6年3月1日 10時30分",
    "shift 06:00-14:00",
    "1,234,567.89 EUR for 10.000.000 screws",
    "0.123 456 789 mm",
    "torque 25-30 Nm, 100-200 h, 0.5-1.5 mm",
    "100 200 300 400",
    "0800 1200 1600 2000",
    "192.168.100.200",
    "EN 10204-3.1, ISO 9001:2015, v1.2.3",
    "SAP 4500012345",
    "ISBN 978-3-16-148410-0",
    "EAN 4006381333931",
    "4111111111111112",
    "1234567812345678",
    "DE00 3704 0044 0532 0130 00",
    "123456789012",
    "part no. 123456789018",
    "0000-0000-0000",
    "１２０個",
    "write to help@example.com or a@b.test",
    "user@host and @name",
]


@pytest.mark.parametrize(("kind", "value"), PERSONAL)
@pytest.mark.parametrize("around", ["{}", "Please note {}.", "Wie besprochen: {}, danke", "担当は{}です。", "({})"])
def test_personal_data_is_found_and_masked(kind, value, around):
    if kind == "email" and around == "担当は{}です。":
        around = "担当は {} です。"  # without a space the border of an address cannot be told
    matches = find_personal(around.format(value))
    assert [match.kind for match in matches] == [kind]
    assert len(matches[0].masked) == 3
    assert value not in matches[0].masked
    start = around.index("{")
    assert start <= matches[0].start < matches[0].end <= start + len(value)


@pytest.mark.parametrize("text", HARMLESS)
def test_parts_dates_times_and_quantities_are_not_reported(text):
    assert find_personal(text) == ()


def test_a_word_for_phone_reports_a_number_without_separators():
    assert [m.kind for m in find_personal("電話番号: 0312345678")] == ["phone"]
    assert find_personal("0312345678") == ()


def test_my_number_words_lift_the_exceptions_but_not_the_check_digit():
    assert [m.kind for m in find_personal("個人番号 part 123456789018")] == ["my_number"]
    assert find_personal("マイナンバー 123456789012") == ()


def test_matches_are_in_order_and_do_not_overlap():
    matches = find_personal("a@firma.de, 4111 1111 1111 1111, +49 30 901820, DE89370400440532013000")
    assert [m.kind for m in matches] == ["email", "card", "phone", "iban"]
    assert all(a.end <= b.start for a, b in pairwise(matches))


def test_findings_name_the_place_and_never_show_the_value():
    secret = "tanaka@firma.jp"
    rows = tuple(
        Example(str(i), "t", f"Mail {secret}", "x", ("a", secret), None, (("user", secret),), {"by": secret}, "f", i)
        for i in (1, 2)
    )
    findings = check_personal(FileRead("f", "t", "alpaca", rows, (), "", 2))
    places = [(finding.line, finding.message.split(" holds")[0]) for finding in findings]
    assert places == [
        (1, "instruction"),
        (1, "answer 2"),
        (1, "turn 1"),
        (1, "attribute by"),
        (2, "answer 2"),
        (2, "turn 1"),
        (2, "attribute by"),
    ]
    assert {(finding.code, finding.severity) for finding in findings} == {("personal_email", "warning")}
    assert all(secret not in finding.message and "anaka" not in finding.message for finding in findings)


@given(st.text(alphabet="0123456789+-() ./@aAEe０９－\n", max_size=60) | st.text(max_size=60))
@settings(max_examples=150, deadline=None, database=None)
def test_any_text_gives_spans_inside_it(text):
    for match in find_personal(text):
        assert 0 <= match.start < match.end <= len(text)
