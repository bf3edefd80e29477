"""What a piece tells in another process is heard once, whole and in order; and it hears when to stop."""

from __future__ import annotations

from pathlib import Path

from tunescope.studies import told
from tunescope.studies.told import Hearing, Telling, say


def test_what_is_told_is_heard_once_and_in_order(tmp_path: Path) -> None:
    hearing = Hearing(tmp_path, ["a", "b"])
    piece = Telling(tmp_path, "a")
    piece.stage("tune", 10)
    piece.note("two words")
    rows = hearing.hear("a")
    assert [row.get("stage") or row.get("note") for row in rows] == [None, "tune", "two words"]
    assert rows[1]["total"] == 10 and hearing.hear("a") == [] and hearing.hear("b") == []
    assert hearing.begun == {"a": 1, "b": 0}


def test_units_are_gathered_and_none_is_lost(tmp_path: Path) -> None:
    hearing, piece = Hearing(tmp_path, ["a"]), Telling(tmp_path, "a")
    for _ in range(1000):
        piece.advance()
    piece.note("end")
    rows = hearing.hear("a")
    assert sum(row["units"] for row in rows) == 1000 and len(rows) < 20


def test_a_second_beginning_is_a_second_attempt_and_going_on_elsewhere_is_not(tmp_path: Path) -> None:
    hearing = Hearing(tmp_path, ["a"])
    for begins in (True, False, True):
        Telling(tmp_path, "a", begins=begins)
    hearing.hear("a")
    assert hearing.begun["a"] == 2


def test_half_a_line_of_a_killed_piece_hides_nothing_that_follows(tmp_path: Path) -> None:
    hearing, _ = Hearing(tmp_path, ["a"]), Telling(tmp_path, "a")
    with (tmp_path / "arms/a/progress.jsonl").open("a") as file:
        file.write('{"units": 3, "no')
    assert [row.get("begins") for row in hearing.hear("a")] == [True]
    Telling(tmp_path, "a").note("again")
    assert hearing.hear("a")[-1]["note"] == "again"


def test_a_driver_that_comes_back_does_not_hear_the_past(tmp_path: Path) -> None:
    Telling(tmp_path, "a").note("of the run before")
    assert Hearing(tmp_path, ["a"]).hear("a") == []


def test_the_word_to_stop_is_heard_and_taken_back_for_the_next_run(tmp_path: Path, monkeypatch: object) -> None:
    told._SECONDS, before = 0.0, told._SECONDS
    try:
        piece = Telling(tmp_path, "a")
        assert not piece.stopping()
        say(tmp_path, stop=False)
        assert not piece.stopping()
        say(tmp_path, stop=True)
        assert piece.stopping()
        say(tmp_path, stop=False)
        assert piece.stopping(), "who stops does not begin again"
        assert not Telling(tmp_path, "a").stopping()
    finally:
        told._SECONDS = before
