"""Containers and hostile files: always findings, never a traceback."""

import csv
import hashlib
import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunescope.data.lines import MAX_LINE_BYTES
from tunescope.data.read import SUFFIXES, read_file

ROWS = [
    {"instruction": "Which desk?", "input": 'ドアが開かない, "again"', "output": "facility"},
    {"instruction": "Which desk?", "input": "Screen\nis black", "output": "it"},
]
LINE = '{"prompt": "q", "completion": "a"}\n'


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def write_rows(path, rows):
    suffix = path.suffix
    if suffix == ".jsonl":
        write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif suffix == ".json":
        write(path, json.dumps(rows, indent=1))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path, **more):
    return read_file(path, task="t", **more)


def codes(result):
    return [(finding.code, finding.line) for finding in result.findings]


def only_error(result):
    assert len(result.errors) == 1, result.findings
    error = result.errors[0]
    assert error.message.isprintable()
    return error


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestContractOfAllContainers:
    def test_same_rows_give_same_examples(self, tmp_path, suffix):
        result = read(write_rows(tmp_path / f"a{suffix}", ROWS))
        assert result.findings == ()
        assert [(e.instruction, e.input, e.targets[0]) for e in result.examples] == [tuple(r.values()) for r in ROWS]
        assert (result.format, result.n_rows) == ("alpaca", 2)

    def test_hash_is_that_of_the_bytes(self, tmp_path, suffix):
        path = write_rows(tmp_path / f"a{suffix}", ROWS)
        assert read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_columns_can_be_mapped(self, tmp_path, suffix):
        rows = [
            {"no": "7", "ticket": "x", "desk": "it", "site": "n"},
            {"no": "8", "ticket": "y", "desk": "hr", "site": "s"},
        ]
        path = write_rows(tmp_path / f"a{suffix}", rows)
        columns = {"input": "ticket", "output": "desk", "id": "no"}
        result = read(path, columns=columns, attributes=("site",), instruction="Which?")
        assert result.findings == ()
        assert result.format == "columns"
        assert [(e.id, e.instruction, e.input, e.attributes["site"]) for e in result.examples] == [
            ("7", "Which?", "x", "n"),
            ("8", "Which?", "y", "s"),
        ]

    def test_bad_row_is_named_and_the_others_are_read(self, tmp_path, suffix):
        rows = [ROWS[0], {**ROWS[1], "output": ""}, {**ROWS[0], "input": "third"}]
        result = read(write_rows(tmp_path / f"a{suffix}", rows))
        assert only_error(result).code == "empty_target"
        assert only_error(result).line == (3 if suffix in (".csv", ".tsv") else 2)  # a table has a header line
        assert [e.input for e in result.examples] == [ROWS[0]["input"], "third"]

    def test_duplicate_ids_are_an_error_with_both_lines(self, tmp_path, suffix):
        rows = [{"id": "A", "input": "x", "output": "a"}, {"id": "A", "input": "y", "output": "b"}]
        error = only_error(read(write_rows(tmp_path / f"a{suffix}", rows)))
        first, second = (2, 3) if suffix in (".csv", ".tsv") else (1, 2)
        assert (error.code, error.line) == ("id_duplicate", second)
        assert f"line {first}" in error.message

    def test_one_row_is_a_warning(self, tmp_path, suffix):
        result = read(write_rows(tmp_path / f"a{suffix}", ROWS[:1]))
        assert codes(result) == [("one_row", None)]
        assert len(result.examples) == 1

    def test_empty_file_is_an_error(self, tmp_path, suffix):
        assert only_error(read(write(tmp_path / f"a{suffix}", b""))).code == "file_empty"

    def test_unknown_keys_say_what_is_allowed(self, tmp_path, suffix):
        result = read(write_rows(tmp_path / f"a{suffix}", [{"frage": "x", "antwort": "y"}] * 2))
        assert {finding.code for finding in result.errors} == {"format_unknown"}
        assert "'frage'" in result.errors[0].message
        assert "allowed: instruction/input/output" in result.errors[0].message
        assert (result.format, result.n_rows) == ("unknown", 2)

    def test_garbage_is_an_error_of_one_line(self, tmp_path, suffix):
        result = read(write(tmp_path / f"a{suffix}", bytes(range(256)) * 20))
        assert result.errors
        assert all(finding.message.isprintable() for finding in result.findings)

    def test_too_large_a_file_is_refused_before_it_is_read(self, tmp_path, suffix):
        path = write_rows(tmp_path / f"a{suffix}", ROWS)
        assert only_error(read(path, limit_bytes=10)).code == "file_too_large"

    def test_missing_file_names_the_nearest(self, tmp_path, suffix):
        write_rows(tmp_path / f"train{suffix}", ROWS)
        error = only_error(read(tmp_path / f"trian{suffix}"))
        assert error.code == "file_missing"
        assert f"did you mean train{suffix}?" in error.message

    def test_a_cut_off_file_is_an_error_not_a_crash(self, tmp_path, suffix):
        path = write_rows(tmp_path / f"a{suffix}", ROWS)
        write(path, path.read_bytes()[:-7])
        result = read(path)
        if suffix in (".csv", ".tsv"):  # cut inside a cell that is not quoted: still a table, one field short
            assert result.errors or result.examples[-1].targets != ("it",)
        else:
            assert result.errors


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
class TestEncodings:
    def test_byte_order_mark_is_accepted_and_noted(self, tmp_path, suffix):
        path = write_rows(tmp_path / f"a{suffix}", ROWS)
        write(path, b"\xef\xbb\xbf" + path.read_bytes())
        result = read(path)
        assert [(f.code, f.severity, f.line) for f in result.findings] == [("bom", "info", 1)]
        assert result.examples[0].input == ROWS[0]["input"]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_utf16_and_utf32_are_named(self, tmp_path, suffix, encoding):
        path = write_rows(tmp_path / f"a{suffix}", [{"input": "plain " * 20, "output": "x"}] * 2)
        write(path, path.read_text(encoding="utf-8").encode(encoding))
        error = only_error(read(path))
        assert error.code == "encoding_wrong"
        assert "UTF-16" in error.message
        assert "save it as UTF-8" in error.message

    @pytest.mark.parametrize(
        ("encoding", "likely", "text"),
        [
            ("cp932", "cp932", "会議室のドアが開かないので修理をお願いします。昨日から鍵が回りません。"),
            ("euc_jp", "euc_j", "会議室のドアが開かないので修理をお願いします。昨日から鍵が回りません。"),
            ("cp1252", "cp1252", "Die Tür im Büro läßt sich nicht öffnen, bitte prüfen."),
        ],
    )
    def test_likely_encoding_and_byte_are_named(self, tmp_path, suffix, encoding, likely, text):
        rows = [{"input": "first", "output": "x"}, {"input": text, "output": "y"}, {"input": text * 2, "output": "z"}]
        path = write_rows(tmp_path / f"a{suffix}", rows)
        raw = path.read_bytes().decode()
        if suffix == ".json":
            raw = json.dumps(rows, ensure_ascii=False, indent=1)
        write(path, raw.encode(encoding))
        error = read(path).errors[0]
        assert error.code == "encoding_wrong"
        offset = next(i for i, byte in enumerate(path.read_bytes()) if byte > 127)
        assert f"byte {offset} " in error.message
        assert f"likely {likely}" in error.message
        assert error.line == path.read_bytes()[:offset].count(b"\n") + 1


class TestJsonl:
    def test_truncated_line_is_named_and_the_rest_is_read(self, tmp_path):
        result = read(
            write(tmp_path / "a.jsonl", LINE + '{"prompt": "q2", "compl\n' + '{"prompt": "r", "completion": "b"}\n')
        )
        assert (only_error(result).code, only_error(result).line) == ("json_invalid", 2)
        assert "breaks off" in only_error(result).message
        assert [e.id for e in result.examples] == ["a-1", "a-3"]
        assert result.n_rows == 3

    def test_line_numbers_count_blank_lines(self, tmp_path):
        result = read(
            write(tmp_path / "a.jsonl", "\n\n" + LINE + "\r\n" + LINE.replace("q", "r").replace("\n", "\r\n"))
        )
        assert [e.line for e in result.examples] == [3, 5]
        assert result.findings == ()

    @pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
    def test_nan_is_refused(self, tmp_path, name):
        error = only_error(
            read(write(tmp_path / "a.jsonl", LINE + f'{{"prompt": "q", "completion": {name}}}\n' + LINE))
        )
        assert (error.code, error.line) == ("json_invalid", 2)
        assert name in error.message

    def test_a_huge_number_is_refused(self, tmp_path):
        error = only_error(read(write(tmp_path / "a.jsonl", f'{LINE}{{"prompt": "q", "completion": {"9" * 5000}}}\n')))
        assert (error.code, error.line) == ("json_invalid", 2)

    def test_a_key_twice_is_refused(self, tmp_path):
        error = only_error(
            read(write(tmp_path / "a.jsonl", LINE + '{"prompt": "a", "prompt": "b", "completion": "c"}\n'))
        )
        assert error.code == "json_invalid"
        assert "'prompt'" in error.message

    @pytest.mark.parametrize("depth", [65, 900, 100_000])
    def test_deep_nesting_is_refused(self, tmp_path, depth):
        bad = '{"prompt": ' + "[" * depth + "]" * depth + ', "completion": "x"}\n'
        result = read(write(tmp_path / "a.jsonl", LINE + bad + LINE.replace("q", "r")))
        assert (only_error(result).code, only_error(result).line) == ("json_too_deep", 2)
        assert len(result.examples) == 2

    @pytest.mark.parametrize("value", ["3", "null", '"text"', "[]", "true"])
    def test_a_line_that_is_no_object_is_an_error(self, tmp_path, value):
        error = only_error(read(write(tmp_path / "a.jsonl", LINE + value + "\n")))
        assert (error.code, error.line) == ("type_wrong", 2)

    def test_mixed_formats_name_both_and_the_first_line(self, tmp_path):
        other = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
        result = read(write(tmp_path / "a.jsonl", "\n" + LINE + other + "\n"))
        error = only_error(result)
        assert (error.code, error.line) == ("format_mixed", 3)
        assert "messages" in error.message
        assert "prompt_completion since line 2" in error.message
        assert len(result.examples) == 1

    def test_unknown_role_is_named_with_its_line(self, tmp_path):
        bad = json.dumps({"messages": [{"role": "tool", "content": "q"}, {"role": "assistant", "content": "a"}]})
        error = only_error(read(write(tmp_path / "a.jsonl", bad + "\n")))
        assert (error.code, error.line) == ("role_unknown", 1)

    def test_lone_surrogate_from_an_escape_is_an_error(self, tmp_path):
        error = only_error(read(write(tmp_path / "a.jsonl", LINE + '{"prompt": "x\\ud83d", "completion": "y"}\n')))
        assert (error.code, error.line) == ("surrogate", 2)

    def test_a_surrogate_pair_is_a_character(self, tmp_path):
        result = read(write(tmp_path / "a.jsonl", LINE + '{"prompt": "\\ud83d\\ude00", "completion": "y"}\n'))
        assert result.findings == ()
        assert result.examples[1].prompt_text == "😀"

    def test_a_misspelt_key_is_a_warning_and_others_an_info(self, tmp_path):
        row = '{"instruction": "a", "inputs": "b", "output": "c", "zzz": 1}\n'
        result = read(write(tmp_path / "a.jsonl", row + row.replace('"a"', '"d"')))
        assert [(f.code, f.severity) for f in result.findings] == [("key_ignored", "warning"), ("key_ignored", "info")]
        assert "did you mean input?" in result.findings[0].message

    def test_many_bad_lines_end_in_one_line(self, tmp_path):
        result = read(write(tmp_path / "a.jsonl", "x\n" * 100))
        assert len(result.findings) == 21
        assert result.findings[-1].message == "and 80 more"
        assert result.n_rows == 100

    @pytest.mark.parametrize("ending", ["\n", ""])
    def test_a_50_mb_line_is_skipped_with_bounded_memory(self, tmp_path, ending):
        path = tmp_path / "a.jsonl"
        with path.open("wb") as stream:
            stream.write(LINE.encode())
            for _ in range(50):
                stream.write(b"x" * 2**20)
            stream.write((ending + LINE.replace("q", "r")).encode() if ending else b"")
        tracemalloc.start()
        try:
            result = read(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        error = only_error(result)
        assert (error.code, error.line) == ("line_too_long", 2)
        assert f"{50 * 2**20 + len(ending):,} bytes" in error.message
        assert [e.line for e in result.examples] == ([1, 3] if ending else [1])
        assert peak < 3 * MAX_LINE_BYTES

    def test_a_stray_byte_does_not_hide_the_other_lines(self, tmp_path):
        result = read(
            write(tmp_path / "a.jsonl", LINE.encode() + b'{"prompt": "\xff"}\n' + LINE.replace("q", "r").encode())
        )
        assert (only_error(result).code, only_error(result).line) == ("encoding_wrong", 2)
        assert [e.line for e in result.examples] == [1, 3]


class TestJson:
    def test_super_naturalinstructions_task(self, tmp_path):
        document = {
            "Definition": ["Say it."],
            "Positive Examples": [],
            "Negative Examples": [],
            "Instances": [{"input": "a", "output": ["x", "y"]}, {"input": "b", "output": "z"}],
            "Instance License": ["Apache 2.0"],
        }
        result = read(write(tmp_path / "task1.json", json.dumps(document)))
        assert result.findings == ()
        assert (result.format, result.n_rows) == ("super_ni", 2)
        assert [(e.id, e.targets) for e in result.examples] == [("task1-1", ("x", "y")), ("task1-2", ("z",))]

    def test_super_naturalinstructions_in_jsonl_is_refused(self, tmp_path):
        result = read(write(tmp_path / "a.jsonl", json.dumps({"Definition": "a", "Instances": []}) + "\n"))
        assert only_error(result).code == "format_unknown"

    def test_jsonl_in_a_json_file_says_how_to_name_it(self, tmp_path):
        error = only_error(read(write(tmp_path / "a.json", LINE * 2)))
        assert (error.code, error.line) == ("json_invalid", 2)
        assert "name the file .jsonl" in error.message

    @pytest.mark.parametrize(
        ("text", "code"),
        [("[]", "file_empty"), ("3", "type_wrong"), ("[3]", "type_wrong"), ("[" * 99_999, "json_too_deep")],
    )
    def test_wrong_documents(self, tmp_path, text, code):
        assert only_error(read(write(tmp_path / "a.json", text))).code == code


class TestCsv:
    def test_rows_are_named_by_the_line_they_begin_on(self, tmp_path):
        text = 'input,output\n"two\nlines",a\nplain,\n'
        result = read(write(tmp_path / "a.csv", text))
        assert result.examples[0].line == 2
        assert (only_error(result).code, only_error(result).line) == ("empty_target", 4)

    def test_a_quote_that_is_never_closed_is_named_where_it_opens(self, tmp_path):
        error = only_error(read(write(tmp_path / "a.csv", 'input,output\na,b\n"c,d\n' + "e,f\n" * 50)))
        assert (error.code, error.line) == ("csv_invalid", 3)
        assert "never closed" in error.message

    def test_a_wrong_number_of_cells_is_named_and_the_rest_is_read(self, tmp_path):
        result = read(write(tmp_path / "a.csv", "input,output\na,b,c\nd,e\nf\n"))
        assert [(f.code, f.line) for f in result.errors] == [("csv_invalid", 2), ("csv_invalid", 4)]
        assert [e.input for e in result.examples] == ["d"]

    def test_semicolons_are_read_and_noted(self, tmp_path):
        result = read(write(tmp_path / "a.csv", 'input;output\n"a;b";c\nd;e\n'))
        assert codes(result) == [("csv_delimiter", 1)]
        assert [e.input for e in result.examples] == ["a;b", "d"]

    def test_a_column_twice_is_an_error(self, tmp_path):
        assert only_error(read(write(tmp_path / "a.csv", "input,output,input\n1,2,3\n"))).code == "csv_invalid"

    def test_a_header_alone_is_an_empty_file(self, tmp_path):
        assert only_error(read(write(tmp_path / "a.csv", "input,output\n"))).code == "file_empty"

    def test_a_long_cell_is_read_and_the_global_limit_is_left_as_it_was(self, tmp_path):
        before = csv.field_size_limit()
        result = read(write(tmp_path / "a.csv", f"input,output\n{'x' * 500_000},a\ny,b\n"))
        assert len(result.examples[0].input) == 500_000
        assert csv.field_size_limit() == before

    def test_a_missing_mapped_column_names_the_nearest(self, tmp_path):
        result = read(write(tmp_path / "a.csv", "txt,label\na,b\n"), columns={"input": "text", "output": "label"})
        assert only_error(result).code == "field_missing"
        assert "did you mean txt?" in only_error(result).message


class TestParquet:
    def test_lists_and_chats_are_read(self, tmp_path):
        path = write_rows(
            tmp_path / "a.parquet", [{"input": "a", "output": ["x", "y"]}, {"input": "b", "output": ["z"]}]
        )
        assert read(path).examples[0].targets == ("x", "y")
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        path = write_rows(tmp_path / "b.parquet", [{"messages": turns}] * 2)
        assert read(path).format == "messages"

    def test_a_number_column_as_answer_is_an_error_per_row(self, tmp_path):
        result = read(write_rows(tmp_path / "a.parquet", [{"input": "a", "output": 1}, {"input": "b", "output": 2}]))
        assert [(f.code, f.line) for f in result.errors] == [("type_wrong", 1), ("type_wrong", 2)]

    def test_a_text_file_with_this_ending_is_named(self, tmp_path):
        assert only_error(read(write(tmp_path / "a.parquet", LINE))).code == "parquet_invalid"


class TestPaths:
    def test_a_folder_is_refused(self, tmp_path):
        (tmp_path / "a.jsonl").mkdir()
        error = only_error(read(tmp_path / "a.jsonl"))
        assert error.code == "file_unreadable"
        assert "folder" in error.message

    def test_a_loop_of_links_is_refused(self, tmp_path):
        (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
        (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
        error = only_error(read(tmp_path / "a.jsonl"))
        assert error.code == "file_unreadable"
        assert "loop" in error.message

    def test_a_pipe_is_refused_without_waiting(self, tmp_path):
        os.mkfifo(tmp_path / "a.jsonl")
        assert only_error(read(tmp_path / "a.jsonl")).code == "file_unreadable"

    def test_a_link_and_a_climbing_path_are_read(self, tmp_path):
        write(tmp_path / "a.jsonl", LINE)
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
        for path in (tmp_path / "sub" / "link.jsonl", tmp_path / "sub" / ".." / "a.jsonl"):
            assert len(read(path).examples) == 1

    @pytest.mark.parametrize("name", ["a.txt", "a", "a.jsonl.gz", "a.xlsx"])
    def test_another_ending_names_the_allowed_ones(self, tmp_path, name):
        error = only_error(read(write(tmp_path / name, LINE)))
        assert error.code == "file_type"
        assert ".parquet" in error.message

    @pytest.mark.parametrize(
        "path", ["a\x00b.jsonl", "x" * 5000 + ".jsonl", "no/such/folder/a.jsonl", "", "a\nb.jsonl", "\udcff.jsonl"]
    )
    def test_impossible_paths_are_one_printable_line(self, path):
        error = only_error(read(path))
        assert error.file.isprintable()
        error.file.encode()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_without_permission_is_named(self, tmp_path):
        path = write(tmp_path / "a.jsonl", LINE)
        path.chmod(0)
        assert only_error(read(path)).code == "file_unreadable"

    def test_findings_name_the_file_as_the_user_wrote_it(self, tmp_path):
        result = read(tmp_path / "a.jsonl", shown_as="data/a.jsonl")
        assert (result.path, only_error(result).file, only_error(result).task) == ("data/a.jsonl", "data/a.jsonl", "t")


def read_bytes(suffix, content):
    with tempfile.TemporaryDirectory() as folder:
        return read(write(Path(folder) / f"a{suffix}", content))


LIKE_JSON = st.text(alphabet='{}[]",:\\ \n\ruDd8019.eE-+truefalsninputo;\t\x00é', max_size=80).map(lambda s: s.encode())


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(content=st.binary(max_size=200) | LIKE_JSON)
@example(content=b"\xef\xbb\xbf")
@example(content=b'input;output\n"')
@example(content=b"\xff\xfe")
@settings(max_examples=80, deadline=None, database=None)
def test_arbitrary_bytes_never_raise_and_nothing_is_silent(suffix, content):
    result = read_bytes(suffix, content)
    assert result.errors or result.examples
    for finding in result.findings:
        assert finding.message.isprintable()
        json.dumps(finding.to_dict(), ensure_ascii=False).encode()


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda s: s.strip())


@given(
    st.lists(st.tuples(texts, texts), min_size=2, max_size=5),
    st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]),
)
@settings(max_examples=60, deadline=None, database=None)
def test_what_was_written_is_read(pairs, suffix):
    rows = [{"input": prompt, "output": answer} for prompt, answer in pairs]
    with tempfile.TemporaryDirectory() as folder:
        result = read(write_rows(Path(folder) / f"a{suffix}", rows))
    assert result.errors == ()
    assert [(e.input, e.targets[0]) for e in result.examples] == pairs
