from __future__ import annotations

import pytest

from tunescope.errors import DataError
from tunescope.replay import FileTagger


def written(tmp_path, name: str, text: str | bytes):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_both_formats_say_the_same(tmp_path):
    lines = '{"instruction": "Sort, \\"now\\".\\nPlease", "tags": ["sorting", "lists"]}\n\n{"instruction": "要約", "tags": []}\n'
    table = '\ufeffinstruction,tags\n"Sort, ""now"".\nPlease",sorting; lists;\n要約,\n'
    one = FileTagger(written(tmp_path, "tags.jsonl", lines))
    other = FileTagger(written(tmp_path, "tags.csv", table))
    wanted = ["要約", 'Sort, "now".\nPlease', "要約"]
    assert one(wanted) == other(wanted) == [(), ("sorting", "lists"), ()]


def test_missing_and_extra_rows_are_named(tmp_path):
    file = written(tmp_path, "tags.csv", 'instruction,tags\n"two\nlines",a\nextra,b\nkept,c\n')
    tagger = FileTagger(file)
    found = {(f.code, f.severity, f.file, f.line): f.message for f in tagger.findings(["kept", "lost"])}
    assert found == {
        ("tags_missing", "error", str(file), None): "no row for the instruction: lost; add one, its tags may be empty",
        ("tags_extra", "warning", str(file), 2): "instruction is not in the data: two\nlines",
        ("tags_extra", "warning", str(file), 4): "instruction is not in the data: extra",
    }
    with pytest.raises(DataError, match=r"tags\.csv: no row for the instruction: lost"):
        tagger(["kept", "lost"])
    assert tagger(["kept"]) == [("c",)]


def test_many_missing_rows_are_counted(tmp_path):
    tagger = FileTagger(written(tmp_path, "tags.jsonl", ""))
    with pytest.raises(DataError) as caught:
        tagger([f"i{n}" for n in range(25)])
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1].endswith("5 more instructions have no row")


@pytest.mark.parametrize(
    ("name", "text", "problems"),
    [
        (
            "tags.jsonl",
            '{"instruction": "a", "tags": ["x"]}\nnot json\n[1]\n{"tags": []}\n{"instruction": "b", "tags": "x"}\n{"instruction": "a", "tags": []}\n',
            [
                ":2: is not JSON",
                ":3: is '[1]'",
                ":4: `instruction` is None",
                ":5: `tags` is 'x'",
                ":6: the same instruction has other tags in line 1",
            ],
        ),
        (
            "tags.csv",
            "instruction,tags\na,x\na,y\nb\nc,x,y\n",
            [":3: the same", ":4: has more or fewer", ":5: has more or fewer"],
        ),
        ("tags.csv", "text,tags\na,x\n", [":1: no column instruction; the columns"]),
        ("tags.csv", "", [":1: no column instruction and no column tags"]),
        ("tags.csv", 'instruction,tags\na,x\n"open,y\n', [":3: is not CSV"]),
        ("tags.txt", "a", ["not from '.txt'"]),
        ("tags.csv", b"instruction,tags\n\xff,x\n", ["byte 17 is not UTF-8"]),
    ],
)
def test_wrong_rows_are_named_all_at_once(tmp_path, name, text, problems):
    file = written(tmp_path, name, text)
    with pytest.raises(DataError) as caught:
        FileTagger(file)
    assert len(caught.value.problems) == len(problems)
    for said, expected in zip(caught.value.problems, problems, strict=True):
        assert said.startswith(str(file))
        assert expected in said


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read \(No such file"):
        FileTagger(tmp_path / "none.csv")
