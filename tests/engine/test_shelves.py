"""The folder of the cache as a whole: what is listed, checked and removed, whatever else lies in it."""

import os

import pytest
from kept_states import files_in, make_row, open_at, states_for

from tunescope.engine.shards import INDEX, RECORD_BYTES, STATES
from tunescope.engine.shelves import Shelf, all_shards, clear, remove, shards_in, stored, verify
from tunescope.errors import RunError

ROWS = [make_row(i) for i in range(5)]


@pytest.fixture
def root(tmp_path):
    with open_at(tmp_path) as cache:
        cache.write(ROWS, 3, states_for(ROWS))
    return tmp_path


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert stored(tmp_path / "none") == []
    assert verify(tmp_path / "none").problems == ()
    assert clear(tmp_path / "none") == (0, 0)
    assert shards_in(tmp_path / "none") == []


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for look in (stored, verify, clear):
        with pytest.raises(RunError, match=r"file: the cache cannot be read \(Not a directory\)"):
            look(tmp_path / "file")


def test_what_is_stored_is_described(root):
    (one,) = stored(root)
    assert (one.shelf.block, one.shelf.dtype, one.n_shards, one.n_entries) == (3, "float32", 1, 5)
    assert one.size_bytes == states_for(ROWS).nbytes + 5 * RECORD_BYTES
    (shard,) = all_shards(root)
    assert one.used == shard.used == shard.stem.with_suffix(STATES).stat().st_mtime


def test_every_entry_is_checked(root):
    done = []
    checked = verify(root, done=done.append)
    assert (checked.n_entries, checked.n_bytes, checked.problems, checked.damaged) == (
        5,
        states_for(ROWS).nbytes,
        (),
        (),
    )
    assert sum(done) == sum(shard.size_bytes for shard in all_shards(root))


def test_what_belongs_to_another_shelf_is_found(root):
    with open_at(root, numerics="other") as cache:
        cache.write(ROWS, 3, states_for(ROWS))
    first, second = (one.folder for one in stored(root))
    (index,) = first.glob(f"*{INDEX}")
    (other,) = second.glob(f"*{INDEX}")
    other.write_bytes(index.read_bytes())
    checked = verify(root)
    assert checked.n_entries == 5
    assert len(checked.problems) == 1
    assert "5 of 5 entries: is no record of this shelf" in checked.problems[0]


def test_an_index_without_its_states_is_damaged_and_goes(root):
    for file in files_in(root, STATES):
        file.unlink()
    assert all(remove(shard) for shard in all_shards(root))
    assert files_in(root, INDEX) == []


def test_states_without_an_index_take_space_and_go(root):
    for file in files_in(root, INDEX):
        file.unlink()
    assert verify(root).n_entries == 0
    assert stored(root)[0].size_bytes == states_for(ROWS).nbytes
    assert clear(root) == (states_for(ROWS).nbytes, 0)


def test_facts_that_were_changed_are_not_believed_and_are_written_again(root):
    (one,) = stored(root)
    facts = one.folder / "shelf.json"
    good = facts.read_text()
    for text in ("", "[]", "{}", good.replace('"block": 3', '"block": 4'), good.replace("float32", "bfloat16")):
        facts.write_text(text)
        assert stored(root)[0].shelf is None
    with open_at(root) as cache:
        cache.write([make_row(70)], 3, states_for([make_row(70)]))
    assert stored(root)[0].shelf == one.shelf


def test_the_name_of_a_shelf_tells_it_apart():
    one = Shelf("a" * 64, "float32", 8, 3, "x")
    others = [
        Shelf("a" * 12 + "b" * 52, "float32", 8, 3, "x"),
        Shelf("a" * 64, "bfloat16", 8, 3, "x"),
        Shelf("a" * 64, "float32", 9, 3, "x"),
        Shelf("a" * 64, "float32", 8, 4, "x"),
        Shelf("a" * 64, "float32", 8, 3, "y"),
    ]
    assert len({one.folder, *(other.folder for other in others)}) == 6
    assert len({one.key, *(other.key for other in others)}) == 6


def test_used_last_is_listed_first(root):
    with open_at(root) as cache:
        cache.write(ROWS, 9, states_for(ROWS))
    for block, moment in ((3, 2000), (9, 1000)):
        for one in stored(root):
            if one.shelf.block == block:
                for file in one.folder.glob(f"*{STATES}"):
                    os.utime(file, (moment, moment))
    assert [one.shelf.block for one in stored(root)] == [3, 9]
