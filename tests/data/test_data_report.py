import json

import pytest

from tunescope.data import DataReport, LengthRow, TaskFile, build_report, finding_line, length_findings, read_file


def read(folder, name, rows, task="desk"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_file(path, task=task, shown_as=name)


@pytest.fixture
def report(tmp_path):
    train = [
        {"input": "My screen is black since the update of last night.", "output": "it"},
        {"input": "my screen is black since the update of last night.", "output": "it"},
        {"input": "The heater in hall 2 is off and it is very cold.", "output": "facility"},
        {"input": "Write to tanaka@firma.jp about it.", "output": "It"},
    ]
    test = [{"input": "The heater in hall 2 is off and it is very cold!", "output": "facility"}] * 2
    files = [
        TaskFile(read(tmp_path, "train.jsonl", train), "train"),
        TaskFile(read(tmp_path, "test.jsonl", test), "test"),
    ]
    return build_report(files, labels={"desk": ["it", "facility"]})


def test_every_check_has_its_say(report):
    assert {finding.code for finding in report.findings} == {
        "duplicate_exact",
        "label_unknown",
        "leakage",
        "personal_email",
    }
    assert [finding.code for finding in report.errors] == ["label_unknown"]


def test_training_rows_are_dropped_and_test_rows_never(report):
    assert report.drop == {("desk", "train.jsonl"): {"train-2", "train-3"}}
    assert [(file.path, file.rows, file.used) for file in report.files] == [("train.jsonl", 4, 2), ("test.jsonl", 2, 2)]


def test_nothing_is_dropped_unless_wanted(tmp_path):
    rows = [{"input": "x", "output": "a"}] * 2
    files = [TaskFile(read(tmp_path, "a.jsonl", rows), "train")]
    assert build_report(files, drop_duplicates=False).drop == {}
    assert build_report(files).files[0].used == 1


def test_files_of_another_task_do_not_leak(tmp_path):
    rows = [{"input": "x", "output": "a"}, {"input": "y", "output": "b"}]
    files = [
        TaskFile(read(tmp_path, "a.jsonl", rows, "one"), "train"),
        TaskFile(read(tmp_path, "b.jsonl", rows, "two"), "test"),
    ]
    assert build_report(files).findings == ()


def test_as_a_dictionary_it_is_what_data_json_holds(report):
    lengths = length_findings([LengthRow("train.jsonl", 1, 20, 2), LengthRow("train.jsonl", 2, 30, 3)], max_length=64)
    full = report.with_lengths(lengths, task="desk").with_example(
        "train.jsonl", "train-1", [("Hi", False), (" it", True)]
    )
    values = json.loads(json.dumps(full.to_dict()))
    assert list(values) == ["schema_version", "files", "label_counts", "findings", "example"]
    assert list(values["files"][0]) == [
        "path",
        "task",
        "role",
        "format",
        "rows",
        "used",
        "sha256",
        "prompt_tokens",
        "target_tokens",
    ]
    assert values["files"][0]["prompt_tokens"] == {"p50": 30, "p95": 30, "max": 30}
    assert values["files"][1]["prompt_tokens"] == {}
    assert values["label_counts"] == {
        "desk": {"train.jsonl": {"it": 2, "facility": 1}, "test.jsonl": {"it": 0, "facility": 2}}
    }
    assert values["example"] == {"file": "train.jsonl", "id": "train-1", "tokens": [["Hi", False], [" it", True]]}
    assert list(values["findings"][0]) == ["code", "severity", "file", "line", "message", "task"]


def test_lengths_of_another_task_are_not_taken(report):
    lengths = length_findings([LengthRow("train.jsonl", 1, 20, 2)], max_length=64)
    assert report.with_lengths(lengths, task="other").files[0].prompt_tokens == {}


def test_table_shows_every_file_label_and_finding(report):
    table = report.table()
    for file in report.files:
        assert file.path in table
    assert "it 2, facility 1" in table
    for finding in report.findings:
        assert finding_line(finding) in table.splitlines()


def test_an_unreadable_file_is_reported_with_no_rows(tmp_path):
    report = build_report([TaskFile(read_file(tmp_path / "no.jsonl", task="t", shown_as="no.jsonl"), "train")])
    assert [finding.code for finding in report.errors] == ["file_missing"]
    assert (report.files[0].rows, report.files[0].used, report.files[0].sha256) == (0, 0, "")


def test_a_report_without_findings_says_so():
    assert DataReport((), {}, ()).table().endswith("no findings")
