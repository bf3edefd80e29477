"""The errors: one tree, one exit code each, and the drawing of it in the module is true."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope import errors
from tunescope.errors import TunescopeError, did_you_mean

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, TunescopeError)]


@pytest.mark.parametrize("error", CLASSES)
def test_several_problems_are_one_line_each(error: type[TunescopeError]) -> None:
    assert error(["a", "b"]).problems == ("a", "b")
    assert str(error(p for p in ["a", "b"])) == "a\nb"
    assert error("one").problems == ("one",)


def test_the_drawing_is_the_tree() -> None:
    drawn = re.findall(r"^ {4}([│├└─ ]*)(\w+) +(\d)", errors.__doc__ or "", re.MULTILINE)
    assert len(drawn) == len(CLASSES)
    parents: dict[int, type] = {}
    for indent, name, code in drawn:
        found = getattr(errors, name)
        depth = len(indent) // 4
        assert found.exit_code == int(code)
        assert found.__bases__[0] is (parents[depth - 1] if depth else Exception)
        parents[depth] = found


def test_user_errors_end_with_2_and_only_integrity_with_5() -> None:
    for error in CLASSES:
        assert (error.exit_code == 2) is issubclass(error, errors.UserError)
        assert (error.exit_code == 5) is issubclass(error, errors.IntegrityError)


def test_the_nearest_names_come_first_and_far_ones_not_at_all() -> None:
    allowed = ["lora_rank", "lora_alpha", "seed"]
    assert did_you_mean("lora_rnak", allowed) == " (did you mean lora_rank, lora_alpha?)"
    assert did_you_mean("lora_rnak", allowed, limit=1) == " (did you mean lora_rank?)"
    assert did_you_mean("gravity", allowed) == ""
    assert did_you_mean("seed", []) == ""


@given(st.text(), st.lists(st.text(min_size=1), min_size=1))
def test_only_allowed_names_are_suggested(name: str, allowed: list[str]) -> None:
    said = did_you_mean(name, allowed, limit=1)
    assert said == "" or said[len(" (did you mean ") : -len("?)")] in allowed
