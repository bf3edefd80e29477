"""The page on formats is true: its examples are read, its table of codes is complete."""

import re
from pathlib import Path

import pytest
import yaml

import tunescope.data
from tunescope.data import read_file

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = [(kind, row_format, text) for kind, row_format, text in BLOCKS if kind != "yaml"]
MAPPING = next(yaml.safe_load(text) for kind, _, text in BLOCKS if kind == "yaml")


@pytest.mark.parametrize(("kind", "row_format", "text"), FILES)
def test_example_is_read_as_its_heading_says(tmp_path, kind, row_format, text):
    path = tmp_path / f"example.{kind}"
    path.write_text(text, encoding="utf-8")
    more = MAPPING if row_format == "columns" else {}
    read = read_file(path, task="t", **more)
    assert read.findings == ()
    assert read.format == row_format
    assert len(read.examples) == 2


def test_every_row_format_has_an_example():
    table = set(re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \|$", PAGE.split("Rules for all")[0], re.MULTILINE))
    assert table == {row_format for _, row_format, _ in FILES}
    assert len(table) == 6


def test_the_table_of_codes_is_that_of_the_source():
    folder = Path(tunescope.data.__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    raised = set(re.findall(r'(?:found\.add|RowProblem|_RowError|UnusableError)\(\s*"(\w+)"', source))
    raised |= set(
        re.findall(
            r'Finding\(\s*"(\w+)"',
            "".join(
                (folder.parent / "studies" / name).read_text(encoding="utf-8")
                for name in ("inputs.py", "demonstrations.py")
            ),
        )
    )
    raised |= {f"personal_{kind}" for kind in ("email", "phone", "card", "iban", "my_number")}
    described = set(re.findall(r"^\| `(\w+)` \| (?:error|warning|info)", PAGE, re.MULTILINE))
    assert described == raised
    assert len(raised) > 35
