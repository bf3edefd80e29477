"""The ledger notices every attack on every line."""

import json
import multiprocessing
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.errors import IntegrityError
from tunescope.runs import ledger
from tunescope.runs.ledger import LedgerCheck, append, key_from_environment, verify

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
N = 5
KEYS = [None, b"secret"]
LINES = range(1, N + 1)
FIELDS = ["schema_version", "seq", "time", "actor", "event", "details", "algorithm", "previous", "hash"]


@pytest.fixture(params=KEYS, ids=["plain", "keyed"])
def key(request):
    return request.param


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A ledger of five decisions with its head, once per key: every line costs three waits for the disk."""
    files = {}
    for key in KEYS:
        place = tmp_path_factory.mktemp("original") / "ledger.jsonl"
        for i in range(N):
            append(place, f"event{i}", {"rows": i, "名": "設備"}, actor="田中", key=key, now=NOW + timedelta(hours=i))
        files[key] = place.read_bytes(), place.with_suffix(".head").read_bytes()
    return files


@pytest.fixture
def path(tmp_path, key, originals):
    """A copy of that ledger."""
    place = tmp_path / "ledger.jsonl"
    ledger_bytes, head_bytes = originals[key]
    place.write_bytes(ledger_bytes)
    place.with_suffix(".head").write_bytes(head_bytes)
    return place


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def assert_caught(path, key, line=None):
    with pytest.raises(IntegrityError) as caught:
        verify(path, key=key)
    assert len(caught.value.problems) == 1
    assert caught.value.exit_code == 5
    if line is not None:
        assert f"line {line}:" in str(caught.value)


def test_an_untouched_ledger_passes_and_says_what_it_holds(path, key):
    last = json.loads(lines(path)[-1])
    assert verify(path, key=key) == LedgerCheck(N, last["hash"], key is not None)
    assert [json.loads(line)["seq"] for line in lines(path)] == list(LINES)
    assert set(last) == set(FIELDS)
    assert (last["time"], last["actor"]) == ("2026-01-02T07:04:05.000000+00:00", "田中")
    assert last["algorithm"] == ("sha256" if key is None else "hmac-sha256")


def test_append_returns_the_head(path, key):
    assert append(path, "verdict", {}, actor="tunescope", key=key) == verify(path, key=key).head


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("line", LINES)
def test_a_changed_field_is_caught_at_its_line(path, key, line, field):
    rows = lines(path)
    entry = json.loads(rows[line - 1])
    old = entry[field]
    entry[field] = old + 1 if isinstance(old, int) else {"rows": 99} if isinstance(old, dict) else old[:-1] + "~"
    assert entry[field] != old
    rows[line - 1] = ledger._canonical(entry) + b"\n"
    path.write_bytes(b"".join(rows))
    assert_caught(path, key, line)


@pytest.mark.parametrize("field", FIELDS)
def test_a_removed_or_added_field_is_caught(path, key, field):
    rows = lines(path)
    entry = json.loads(rows[1])
    del entry[field]
    path.write_bytes(b"".join([rows[0], ledger._canonical(entry) + b"\n", *rows[2:]]))
    assert_caught(path, key, 2)
    entry = json.loads(rows[1]) | {"note": "x"}
    path.write_bytes(b"".join([rows[0], ledger._canonical(entry) + b"\n", *rows[2:]]))
    assert_caught(path, key, 2)


@pytest.mark.parametrize("line", LINES)
def test_a_changed_line_with_a_new_plain_hash_breaks_the_chain_or_the_head(path, key, line):
    rows = lines(path)
    entry = json.loads(rows[line - 1])
    entry["details"] = {"rows": 99}
    entry.pop("hash")
    entry["hash"] = ledger._digest(entry, None)
    rows[line - 1] = ledger._canonical(entry) + b"\n"
    path.write_bytes(b"".join(rows))
    assert_caught(path, key, line if key or line == N else line + 1)


@pytest.mark.parametrize("line", LINES)
def test_a_dropped_line_is_caught(path, key, line):
    rows = lines(path)
    path.write_bytes(b"".join(rows[: line - 1] + rows[line:]))
    assert_caught(path, key, min(line, N - 1))


@pytest.mark.parametrize("line", LINES)
def test_a_repeated_line_is_caught(path, key, line):
    rows = lines(path)
    path.write_bytes(b"".join(rows[:line] + rows[line - 1 :]))
    assert_caught(path, key, line + 1)


@pytest.mark.parametrize("first", LINES)
@pytest.mark.parametrize("second", LINES)
def test_swapped_lines_are_caught(path, key, first, second):
    if first >= second:
        return
    rows = lines(path)
    rows[first - 1], rows[second - 1] = rows[second - 1], rows[first - 1]
    path.write_bytes(b"".join(rows))
    assert_caught(path, key, first)


@pytest.mark.parametrize("place", range(N + 1))
def test_an_inserted_line_is_caught_even_if_well_formed(path, key, place):
    rows = lines(path)
    previous = json.loads(rows[place - 1])["hash"] if place else ledger.GENESIS
    entry = json.loads(rows[0]) | {"seq": place + 1, "event": "forged", "previous": previous}
    entry.pop("hash")
    entry["hash"] = ledger._digest(entry, None)
    path.write_bytes(b"".join([*rows[:place], ledger._canonical(entry) + b"\n", *rows[place:]]))
    assert_caught(path, key, place + 1 if key or place == N else place + 2)


@pytest.mark.parametrize(
    "extra", [b"\n", b" \n", b"{}\n", b"null\n", b"garbage\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"]
)
@pytest.mark.parametrize("place", range(N + 1))
def test_an_inserted_piece_of_text_is_caught(path, key, place, extra):
    rows = lines(path)
    path.write_bytes(b"".join([*rows[:place], extra, *rows[place:]]))
    assert_caught(path, key, place + 1)


@pytest.mark.parametrize("n_kept", range(N))
def test_a_cut_off_end_is_caught_by_the_head(path, key, n_kept):
    path.write_bytes(b"".join(lines(path)[:n_kept]))
    assert_caught(path, key, n_kept or None)
    with pytest.raises(IntegrityError):
        append(path, "more", {}, actor="x", key=key)


def test_a_missing_or_older_or_edited_head_is_caught(path, key):
    head = path.with_suffix(".head")
    genuine = head.read_bytes()
    head.unlink()
    assert_caught(path, key)
    for forged in (b"", b"{}", b"[]", b"null", b"\xff", genuine.replace(b'"n":5', b'"n":4'), genuine[:-5]):
        head.write_bytes(forged)
        assert_caught(path, key)
        with pytest.raises(IntegrityError):
            append(path, "more", {}, actor="x", key=key)
    head.write_bytes(genuine)
    append(path, "more", {}, actor="x", key=key)
    head.write_bytes(genuine)
    assert_caught(path, key, N + 1)


def test_a_missing_or_empty_ledger_is_caught(tmp_path, key):
    place = tmp_path / "ledger.jsonl"
    assert_caught(place, key)
    place.touch()
    assert_caught(place, key)


def test_other_bytes_for_the_same_values_are_caught(path, key):
    rows = lines(path)
    rows[2] = json.dumps(json.loads(rows[2])).encode() + b"\n"
    path.write_bytes(b"".join(rows))
    assert_caught(path, key, 3)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_change_of_any_bytes_is_caught(tmp_path_factory, originals, data):
    key = data.draw(st.sampled_from(KEYS))
    text, head = originals[key]
    path = tmp_path_factory.mktemp("attacked") / "ledger.jsonl"
    path.with_suffix(".head").write_bytes(head)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 400)))
    attacked = text[:start] + data.draw(st.binary(max_size=20)) + text[end:]
    path.write_bytes(attacked)
    if attacked == text:
        assert verify(path, key=key).n == N
    else:
        assert_caught(path, key)


@pytest.mark.parametrize("n_bytes", [1, 2, 50])
def test_a_torn_last_line_is_refused_until_it_is_removed(path, key, n_bytes):
    text = path.read_bytes()
    path.write_bytes(text[:-n_bytes])
    assert_caught(path, key, N)
    with pytest.raises(IntegrityError, match=r"remove these .* bytes"):
        append(path, "more", {}, actor="x", key=key)
    assert path.read_bytes() == text[:-n_bytes]


@pytest.mark.parametrize("written", [0, 30, None])
def test_after_a_crash_while_writing_the_ledger_goes_on(path, key, written, monkeypatch):
    before = path.read_bytes()

    def crash(file, line):
        file.write(line[:written])
        file.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "_write_line", crash)
    with pytest.raises(KeyboardInterrupt):
        append(path, "lost", {}, actor="x", key=key)
    monkeypatch.undo()
    if written == 30:
        with pytest.raises(IntegrityError, match="remove these 30 bytes"):
            append(path, "more", {}, actor="x", key=key)
        path.write_bytes(path.read_bytes()[:-30])
    n = N + (written is None)
    assert verify(path, key=key).n == n
    append(path, "more", {}, actor="x", key=key)
    assert verify(path, key=key).n == n + 1
    assert path.read_bytes().startswith(before)


def test_a_crash_allows_no_other_line_than_the_one_announced(path, key, monkeypatch):
    monkeypatch.setattr(ledger, "_write_line", lambda file, line: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        append(path, "announced", {}, actor="x", key=key, now=NOW)
    monkeypatch.undo()
    head = path.with_suffix(".head").read_bytes()
    append(path, "another", {}, actor="x", key=key, now=NOW)
    path.with_suffix(".head").write_bytes(head)
    assert_caught(path, key, N + 1)


def test_a_full_disk_leaves_nothing_half_written(path, key, monkeypatch):
    before = path.read_bytes()
    real = os.fsync

    def full(descriptor):
        if os.fstat(descriptor).st_size > len(before):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        append(path, "more", {}, actor="x", key=key)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert verify(path, key=key).n == N


def test_keyed_and_unkeyed_lines_do_not_mix(path, key):
    other = None if key else b"secret"
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="TUNESCOPE_LEDGER_KEY"):
        append(path, "more", {}, actor="x", key=other)
    assert path.read_bytes() == before
    with pytest.raises(IntegrityError, match=r"line 1: .*TUNESCOPE_LEDGER_KEY"):
        verify(path, key=other)


def test_another_key_does_not_open_the_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(path, "event", {}, actor="x", key=b"one")
    assert_caught(path, b"two", 1)
    with pytest.raises(IntegrityError):
        append(path, "event", {}, actor="x", key=b"two")


@pytest.mark.parametrize("algorithm", ["sha256", "hmac-sha256"])
def test_without_the_key_nobody_can_cut_the_end_and_mend_the_head(tmp_path, algorithm):
    path = tmp_path / "ledger.jsonl"
    for i in range(3):
        append(path, "event", {"i": i}, actor="x", key=b"secret")
    rows = lines(path)
    path.write_bytes(b"".join(rows[:2]))
    head = json.loads(path.with_suffix(".head").read_bytes())
    head |= {"n": 2, "hash": json.loads(rows[1])["hash"], "algorithm": algorithm}
    del head["seal"]
    path.with_suffix(".head").write_bytes(ledger._canonical(head | {"seal": ledger._digest(head, None)}))
    assert_caught(path, b"secret")


def test_wrong_numbers_are_caught_even_where_the_whole_chain_is_new(tmp_path):
    path, previous = tmp_path / "ledger.jsonl", ledger.GENESIS
    append(path, "event", {}, actor="x")
    plain = json.loads(lines(path)[0])
    path.write_bytes(b"")
    for seq in (1, 3):
        entry = plain | {"seq": seq, "previous": previous}
        del entry["hash"]
        previous = entry["hash"] = ledger._digest(entry, None)
        path.write_bytes(path.read_bytes() + ledger._canonical(entry) + b"\n")
    ledger._write_head(path, 2, previous, None, None)
    assert_caught(path, None, 2)


def test_the_documented_limit_an_unkeyed_ledger_can_be_rewritten_as_a_whole(tmp_path):
    path = tmp_path / "ledger.jsonl"
    kept = append(path, "refused", {}, actor="x")
    path.unlink()
    path.with_suffix(".head").unlink()
    append(path, "approved", {}, actor="x")
    assert verify(path).head != kept  # only the hash kept elsewhere shows it


@pytest.mark.parametrize(
    "details",
    [
        {"x": "\ud800"},
        {"x": "\u2028\n\r\0</script>"},
        {"x": {"y": [1, None, True, 1.5e-300]}},
        {1: "a"},
        {"x": "ż" * 200_000},
    ],
    ids=["surrogate", "controls", "nested", "number-key", "long"],
)
def test_unusual_details_are_kept_and_verified(tmp_path, key, details):
    path = tmp_path / "ledger.jsonl"
    for _ in range(2):
        append(path, "event", details, actor="x", key=key)
    assert verify(path, key=key).n == 2
    assert len(lines(path)) == 2
    assert json.loads(lines(path)[0])["details"] == json.loads(json.dumps(details))


@pytest.mark.parametrize("details", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}], ids=["nan", "object", "set"])
def test_details_that_are_not_json_are_refused_and_nothing_is_written(tmp_path, details):
    with pytest.raises(ValueError, match="not plain JSON"):
        append(tmp_path / "ledger.jsonl", "event", details, actor="x")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError, match="what was decided and by whom"):
        append(path, "", {}, actor="x")
    with pytest.raises(ValueError, match="what was decided and by whom"):
        append(path, "event", {}, actor="")
    with pytest.raises(ValueError, match="without a time zone"):
        append(path, "event", {}, actor="x", now=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="key is empty"):
        append(path, "event", {}, actor="x", key=b"")
    with pytest.raises(ValueError, match="key is empty"):
        verify(path, key=b"")
    assert not path.exists()


def test_times_are_kept_in_utc(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(path, "event", {}, actor="x", now=NOW.astimezone(timezone(timedelta(hours=9))))
    assert json.loads(lines(path)[0])["time"] == "2026-01-02T03:04:05.000000+00:00"


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TUNESCOPE_LEDGER_KEY", "geheim")
    assert key_from_environment() == b"geheim"
    monkeypatch.setenv("TUNESCOPE_LEDGER_KEY", "")
    assert key_from_environment() is None
    monkeypatch.delenv("TUNESCOPE_LEDGER_KEY")
    assert key_from_environment() is None


def _write_many(path, name):
    for i in range(25):
        append(path, "event", {"i": i}, actor=name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the lock needs fcntl; run where there is fcntl")
def test_two_writers_at_once_lose_and_break_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert verify(path).n == 50
    entries = [json.loads(line) for line in lines(path)]
    for name in ("a", "b"):
        assert [entry["details"]["i"] for entry in entries if entry["actor"] == name] == list(range(25))
