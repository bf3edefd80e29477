"""The activation cache gives back what was put in, bit by bit, or nothing."""

import os
import resource
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kept_states import BUDGET, D_MODEL, files_in, make_row, open_at, states_for
from tiny_runs import make_rows

from tunescope.engine.activations import numerics_of, open_cache
from tunescope.engine.entries import name_of
from tunescope.errors import TunescopeError

ROWS = [make_row(i) for i in range(12)]


@pytest.fixture
def notes():
    return []


@pytest.fixture
def filled(tmp_path):
    """A cache folder in which the states of ROWS at block 3 lie."""
    with open_at(tmp_path / "cache") as cache:
        cache.write(ROWS, 3, states_for(ROWS))
    return tmp_path / "cache"


# What is put in comes out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_was_written_in_any_order_and_any_subset(tmp_path, dtype):
    with open_at(tmp_path, dtype=dtype) as cache:
        for start in range(0, len(ROWS), 5):
            part = ROWS[start : start + 5]
            cache.write(part, 3, states_for(part, dtype=dtype))
        wanted = [ROWS[i] for i in (7, 0, 11, 7, 3)]
        for _ in range(2):  # first from the file with its hash, then from the memory map
            found = cache.read(wanted, 3)
            assert found.dtype == dtype
            assert torch.equal(found, states_for(wanted, dtype=dtype))
        assert cache.counts.tokens_checked == sum(
            len(r.prompt_ids + r.target_ids) for r in {id(r): r for r in wanted}.values()
        )


def test_a_nan_and_an_infinity_come_back_as_they_were(tmp_path):
    states = states_for(ROWS[1:2])
    states[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    with open_at(tmp_path) as cache:
        cache.write(ROWS[1:2], 3, states)
        assert torch.equal(cache.read(ROWS[1:2], 3).view(torch.int32), states.view(torch.int32))


def test_a_later_process_finds_them(filled):
    with open_at(filled) as cache:
        assert cache.missing(ROWS, 3) == []
        assert torch.equal(cache.read(ROWS, 3), states_for(ROWS))


def test_the_result_may_be_changed_and_may_be_a_leaf(filled):
    with open_at(filled) as cache:
        first = cache.read(ROWS, 3)
        first.zero_()
        leaf = cache.read(ROWS, 3).requires_grad_()
        leaf.sum().backward()
        assert torch.equal(leaf.detach(), states_for(ROWS))
        assert leaf.grad is not None


def test_a_buffer_is_filled_instead_of_a_new_tensor(filled):
    with open_at(filled) as cache:
        buffer = torch.full((200, D_MODEL), -1.0)
        found = cache.read(ROWS, 3, out=buffer)
        assert found.data_ptr() == buffer.data_ptr()
        assert torch.equal(found, states_for(ROWS))
        assert bool((buffer[len(found) :] == -1).all())


@pytest.mark.parametrize(
    "buffer",
    [
        torch.empty(3, D_MODEL),
        torch.empty(200, D_MODEL + 1),
        torch.empty(200, D_MODEL, dtype=torch.bfloat16),
        torch.empty(200, 2 * D_MODEL)[:, ::2],
        torch.empty(200, D_MODEL, device="meta"),
    ],
    ids=["too short", "too wide", "another format", "not contiguous", "elsewhere"],
)
def test_a_buffer_that_does_not_fit_is_refused(filled, buffer):
    with open_at(filled) as cache, pytest.raises(TunescopeError, match=r"cannot take .* states: needed are at least"):
        cache.read(ROWS, 3, out=buffer)


def test_one_missing_row_is_none_and_is_named(filled):
    with open_at(filled) as cache:
        mixed = [ROWS[0], make_row(50), ROWS[1], make_row(51)]
        assert cache.read(mixed, 3) is None
        assert cache.missing(mixed, 3) == [1, 3]


def test_no_rows_are_no_states(tmp_path):
    with open_at(tmp_path / "cache") as cache:
        assert cache.read([], 3).shape == (0, D_MODEL)
        cache.write([], 3, torch.empty(0, D_MODEL))
    assert not (tmp_path / "cache").exists()


def test_a_row_without_tokens_has_no_states(tmp_path):
    rows = [SimpleNamespace(prompt_ids=(), target_ids=()), ROWS[4]]
    with open_at(tmp_path) as cache:
        cache.write(rows, 3, states_for(rows))
        for _ in range(2):
            assert torch.equal(cache.read(rows, 3), states_for(ROWS[4:5]))


def test_a_row_that_occurs_twice_is_kept_once(tmp_path):
    rows = [ROWS[5], ROWS[2], ROWS[5]]
    with open_at(tmp_path) as cache:
        cache.write(rows, 3, states_for(rows))
        cache.write(rows, 3, states_for(rows))
        assert torch.equal(cache.read(rows, 3), states_for(rows))
    (file,) = files_in(tmp_path, ".states")
    assert file.stat().st_size == states_for([ROWS[5], ROWS[2]]).nbytes


# What shares an entry, and what does not


def test_where_the_answer_begins_changes_no_state():
    whole = SimpleNamespace(prompt_ids=(1, 2, 3), target_ids=())
    assert name_of(whole) == name_of(SimpleNamespace(prompt_ids=(1,), target_ids=(2, 3)))
    assert name_of(whole) != name_of(SimpleNamespace(prompt_ids=(1, 2), target_ids=()))
    assert name_of(whole) != name_of(SimpleNamespace(prompt_ids=(1, 23), target_ids=()))


@pytest.mark.parametrize(
    "changed",
    [
        {"base_sha256": "another"},
        {"numerics": "another attention"},
        {"dtype": torch.bfloat16},
        {"d_model": D_MODEL // 2},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_changes_a_number_is_another_entry(filled, changed):
    with open_at(filled, **changed) as cache:
        assert cache.missing(ROWS, 3) == list(range(len(ROWS)))


def test_another_block_is_another_entry(filled):
    with open_at(filled) as cache:
        assert cache.read(ROWS, 2) is None
        cache.write(ROWS, 2, states_for(ROWS, salt="2"))
        assert torch.equal(cache.read(ROWS, 2), states_for(ROWS, salt="2"))
        assert torch.equal(cache.read(ROWS, 3), states_for(ROWS))


def test_files_of_another_model_are_not_taken_for_ones_own(filled, notes):
    """Somebody copies shards into the folder of another base, or renames the folder."""
    (mine,) = filled.glob("*-block.3-*")
    with open_at(filled, base_sha256="f" * 64) as cache:
        cache.write([make_row(99)], 3, states_for([make_row(99)]))
    (other,) = filled.glob("ffff*")
    for file in mine.glob("*.*"):
        shutil.copy(file, other)
    with open_at(filled, base_sha256="f" * 64, note=notes.append) as cache:
        assert cache.missing([*ROWS, make_row(99)], 3) == list(range(len(ROWS)))
        assert torch.equal(cache.read([make_row(99)], 3), states_for([make_row(99)]))
    assert len(notes) == 1
    assert "is no record of this base and block" in notes[0]


def test_what_rounds_differently_has_another_name():
    assert numerics_of("cpu", "eager") != numerics_of("cpu", "sdpa")
    assert torch.__version__ in numerics_of("cpu", "eager")


# Use by a tuner


def test_only_what_is_missing_is_computed(filled):
    asked = []

    def compute(rows):
        asked.append(rows)
        return states_for(rows)

    rows = [make_row(20), ROWS[3], make_row(21), ROWS[0]]
    with open_at(filled) as cache:
        for _ in range(2):
            assert torch.equal(cache.states(rows, 3, compute), states_for(rows))
    assert asked == [[rows[0], rows[2]]]


def test_nothing_of_the_graph_is_kept(tmp_path):
    weight = torch.ones(D_MODEL, requires_grad=True)
    with open_at(tmp_path) as cache:
        found = cache.states(ROWS, 3, lambda rows: states_for(rows) * weight)
        assert not found.requires_grad
        assert not cache.states(ROWS, 3, states_for).requires_grad


def test_encoded_examples_are_rows(tmp_path):
    rows = make_rows(5)
    with open_at(tmp_path) as cache:
        cache.write(rows, 1, states_for(rows))
        assert torch.equal(cache.read(rows[::-1], 1), states_for(rows[::-1]))


@pytest.mark.parametrize(
    "states", [torch.zeros(3, D_MODEL), torch.zeros(1, D_MODEL, dtype=torch.bfloat16), torch.zeros(1)]
)
def test_states_that_do_not_fit_their_rows_are_refused(tmp_path, states):
    with open_at(tmp_path) as cache, pytest.raises(TunescopeError, match="cannot be kept for 1 rows of 1 tokens"):
        cache.write(ROWS[:1], 3, states)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_could_confuse_bases_is_refused(tmp_path):
    with pytest.raises(TunescopeError, match="without the hash of the base"):
        open_at(tmp_path, base_sha256="")
    with pytest.raises(TunescopeError, match=r"float16 cannot be kept; allowed: torch.float32, torch.bfloat16"):
        open_at(tmp_path, dtype=torch.float16)
    with open_at(tmp_path) as cache, pytest.raises(TunescopeError, match=r"there is no block\.-1"):
        cache.read(ROWS, -1)


# Damage: never a wrong number


def serves_only_right_numbers(root, notes):
    """Reads every row alone; returns how many are still there."""
    right = 0
    with open_at(root, note=notes.append) as cache:
        for row in ROWS:
            for _ in range(2):
                found = cache.read([row], 3)
                assert found is None or torch.equal(found, states_for([row]))
            right += found is not None
        # Whatever was lost is computed again, and is there for the next process.
        assert torch.equal(cache.states(ROWS, 3, states_for), states_for(ROWS))
    with open_at(root) as cache:
        assert torch.equal(cache.read(ROWS, 3), states_for(ROWS))
    return right


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine")
    with open_at(root) as cache:
        for start in range(0, len(ROWS), 4):
            cache.write(ROWS[start : start + 4], 3, states_for(ROWS[start : start + 4]))
    return root


@given(st.data())
def test_a_bit_flipped_anywhere_is_never_served(pristine, tmp_path_factory, data):
    root = tmp_path_factory.mktemp("flipped") / "cache"
    shutil.copytree(pristine, root)
    (file,) = files_in(root, data.draw(st.sampled_from([".states", ".index"])))
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    notes = []
    assert serves_only_right_numbers(root, notes) == len(ROWS) - 1
    assert len(notes) == 1
    assert "is damaged" in notes[0]
    assert "computed again" in notes[0]


@given(st.data())
def test_a_file_cut_anywhere_is_never_served_beyond_the_cut(pristine, tmp_path_factory, data):
    root = tmp_path_factory.mktemp("cut") / "cache"
    shutil.copytree(pristine, root)
    (file,) = files_in(root, data.draw(st.sampled_from([".states", ".index"])))
    os.truncate(file, data.draw(st.integers(0, file.stat().st_size - 1)))
    assert serves_only_right_numbers(root, []) < len(ROWS)


def test_an_index_of_noise_is_no_index(pristine, tmp_path):
    root = tmp_path / "cache"
    shutil.copytree(pristine, root)
    (file,) = files_in(root, ".index")
    file.write_bytes(os.urandom(5000))
    notes = []
    assert serves_only_right_numbers(root, notes) == 0
    assert len(notes) == 1


def test_of_two_copies_the_good_one_is_served(pristine, tmp_path):
    """Two processes computed the same rows; the bytes of one are damaged. Which is looked at first depends on a random name."""
    root = tmp_path / "cache"
    shutil.copytree(pristine, root)
    (states,) = files_in(root, ".states")
    (index,) = files_in(root, ".index")
    for name in ("0", "g"):  # before and after any name of hexadecimal digits
        shutil.copy(index, index.with_name(f"{name}.index"))
        states.with_name(f"{name}.states").write_bytes(bytes(states.stat().st_size))
    notes = []
    with open_at(root, note=notes.append) as cache:
        assert torch.equal(cache.read(ROWS, 3), states_for(ROWS))
        assert torch.equal(cache.read(ROWS, 3), states_for(ROWS))
    assert len(notes) <= 1


def test_a_file_cut_while_it_is_mapped_is_not_read_beyond_its_end(filled, notes):
    """Reading a memory map behind the end of its file would kill the process."""
    with open_at(filled, note=notes.append) as cache:
        cache.read(ROWS, 3)
        cache.read(ROWS, 3)
        (file,) = files_in(filled, ".states")
        os.truncate(file, 100)
        assert cache.read(ROWS, 3) is None
        assert torch.equal(cache.states(ROWS, 3, states_for), states_for(ROWS))
    assert len(notes) == 1
    assert "cut short" in notes[0]


def test_a_file_cut_under_its_writer_is_not_grown_again(tmp_path, notes):
    """Grown again it would have its old length, with zeros where entries were that this process has checked already."""
    more = [make_row(i) for i in range(30, 50)]
    with open_at(tmp_path, note=notes.append) as cache:
        cache.write(ROWS, 3, states_for(ROWS))
        for _ in range(2):
            assert torch.equal(cache.read(ROWS, 3), states_for(ROWS))
        (file,) = files_in(tmp_path, ".states")
        os.truncate(file, 100)
        assert torch.equal(cache.states(more, 3, states_for), states_for(more))
        assert torch.equal(cache.states(ROWS, 3, states_for), states_for(ROWS))
    assert file.stat().st_size == 100
    assert ["somebody changed the length" in note for note in notes].count(True) == 1


# The folder


def test_a_folder_removed_during_the_run_changes_no_number(filled, notes):
    more = [make_row(i) for i in range(30, 40)]
    with open_at(filled, note=notes.append) as cache:
        assert torch.equal(cache.states(ROWS[:3], 3, states_for), states_for(ROWS[:3]))
        cache.write(more[:2], 3, states_for(more[:2]))
        shutil.rmtree(filled)
        for _ in range(2):
            assert torch.equal(cache.states([*ROWS, *more], 3, states_for), states_for([*ROWS, *more]))
        assert cache.stopped is not None
    assert not filled.exists(), "what somebody removed is not made again"
    assert [note for note in notes if "removed" in note] != []
    assert len(notes) == len(set(notes)) <= 2


def test_a_folder_removed_before_anything_was_opened_is_an_empty_cache(filled, notes):
    with open_at(filled, note=notes.append) as cache:
        assert cache.missing(ROWS, 3) == []
        shutil.rmtree(filled)
        assert cache.read(ROWS, 3) is None
        assert torch.equal(cache.states(ROWS, 3, states_for), states_for(ROWS))
    assert len(notes) == 1


@pytest.fixture
def read_only(filled):
    """The filled folder where nobody may write; root may write everywhere, so the test goes on as the user nobody."""
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    shutil.copytree(filled, place / "cache")
    folders = [place, place / "cache", *(path for path in (place / "cache").iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    for file in (place / "cache").rglob("*.*"):
        if file.is_file():
            file.chmod(0o444)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield place / "cache"
    if is_root:
        os.seteuid(0)
    for folder in folders:
        folder.chmod(0o755)
    shutil.rmtree(place)


def test_a_read_only_folder_is_read(read_only, notes):
    rows = [*ROWS, make_row(60)]
    with open_at(read_only, note=notes.append) as cache:
        for _ in range(2):
            assert torch.equal(cache.states(rows, 3, states_for), states_for(rows))
        assert cache.counts.tokens_written == 0
        assert not cache.make_room(rows, 3)
    assert len(notes) == 1
    assert "cannot be written (Permission denied)" in notes[0]


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path, notes):
    (tmp_path / "file").write_text("not a folder")
    with open_at(tmp_path / "file" / "cache", note=notes.append) as cache:
        for _ in range(2):
            assert torch.equal(cache.states(ROWS, 3, states_for), states_for(ROWS))
    assert len(notes) == 1


def test_a_new_cache_is_for_its_owner_alone(tmp_path):
    """Texts can be guessed from hidden states."""
    with open_at(tmp_path / "new") as cache:
        cache.write(ROWS, 3, states_for(ROWS))
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("limit", [0, 150, 3000])
def test_a_write_that_the_system_cuts_leaves_nothing_half(tmp_path, notes, limit):
    """A limit on the size of a file stops a write in the middle, as a full disk does."""
    with open_at(tmp_path, note=notes.append) as cache:
        cache.write(ROWS[:2], 3, states_for(ROWS[:2]))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (states_for(ROWS[:2]).nbytes + limit, before[1]))
        try:
            for _ in range(2):
                assert torch.equal(cache.states(ROWS * 8, 3, states_for), states_for(ROWS * 8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(notes) == (limit < 3000)
    with open_at(tmp_path) as cache:
        found = [row for row in ROWS if row not in [ROWS[i] for i in cache.missing(ROWS, 3)]]
        assert found == (ROWS if limit == 3000 else ROWS[:2])
        assert torch.equal(cache.read(found, 3), states_for(found))


def test_a_disk_with_little_space_left_is_not_filled(tmp_path, notes):
    free = shutil.disk_usage(tmp_path).free
    with open_at(tmp_path, keep_free_bytes=2 * free, note=notes.append) as cache:
        assert torch.equal(cache.states(ROWS, 3, states_for), states_for(ROWS))
        assert cache.missing(ROWS, 3) == list(range(len(ROWS)))
    assert len(notes) == 1
    assert "of the disk would stay free" in notes[0]


# The budget


def test_everything_together_stays_in_the_budget_and_what_was_used_longest_ago_goes(tmp_path):
    rows = [make_row(i, length=10) for i in range(40)]
    budget = 20 * (10 * D_MODEL * 4 + 96)
    for i, row in enumerate(rows):  # each a shard of its own, as from runs on different days
        with open_at(tmp_path, budget_bytes=budget) as cache:
            cache.write([row], 3, states_for([row]))
        for file in files_in(tmp_path, ".states"):
            if name_of(row) in file.with_suffix(".index").read_bytes():
                os.utime(file, (i, i))
        assert sum(file.stat().st_size for file in tmp_path.glob("*/*.*") if file.suffix != ".json") <= budget
    with open_at(tmp_path, budget_bytes=budget) as cache:
        assert cache.missing(rows, 3) == list(range(20))
        assert torch.equal(cache.read(rows[20:], 3), states_for(rows[20:]))


def test_reading_counts_as_use(tmp_path):
    rows = [make_row(i, length=10) for i in range(3)]
    budget = 2 * (10 * D_MODEL * 4 + 96)
    for i in (0, 1):
        with open_at(tmp_path, budget_bytes=budget) as cache:
            cache.write([rows[i]], 3, states_for([rows[i]]))
        for file in files_in(tmp_path, ".states"):
            os.utime(file, (1000 - i, 1000 - i))
    with open_at(tmp_path, budget_bytes=budget) as cache:
        cache.read([rows[0]], 3)
    with open_at(tmp_path, budget_bytes=budget) as cache:
        cache.write([rows[2]], 3, states_for([rows[2]]))
        assert cache.missing(rows, 3) == [1]


def test_another_base_makes_room_too(tmp_path):
    rows = [make_row(i, length=10) for i in range(2)]
    budget = 10 * D_MODEL * 4 + 96
    with open_at(tmp_path, budget_bytes=budget) as cache:
        cache.write([rows[0]], 3, states_for([rows[0]]))
    with open_at(tmp_path, budget_bytes=budget, base_sha256="another") as cache:
        cache.write([rows[1]], 3, states_for([rows[1]]))
        assert cache.missing([rows[1]], 3) == []
    with open_at(tmp_path, budget_bytes=budget) as cache:
        assert cache.missing([rows[0]], 3) == [0]


def test_what_is_in_use_is_not_evicted(tmp_path, notes):
    rows = [make_row(i, length=10) for i in range(2)]
    budget = 10 * D_MODEL * 4 + 96
    with (
        open_at(tmp_path, budget_bytes=budget) as first,
        open_at(tmp_path, budget_bytes=budget, note=notes.append) as second,
    ):
        first.write([rows[0]], 3, states_for([rows[0]]))
        assert torch.equal(second.states([rows[1]], 3, states_for), states_for([rows[1]]))
        assert torch.equal(first.read([rows[0]], 3), states_for([rows[0]]))
    assert len(notes) == 1
    assert f"reached its budget of {budget} bytes with what is in use" in notes[0]


def test_an_arm_that_is_over_makes_room_for_the_next_one(tmp_path, notes):
    """The same process goes on with another lowest block."""
    rows = [make_row(i, length=10) for i in range(4)]
    budget = 4 * (10 * D_MODEL * 4 + 96)
    with open_at(tmp_path, budget_bytes=budget, note=notes.append) as cache:
        for k in (3, 2, 1):
            for _ in range(2):
                for row in rows:
                    assert torch.equal(cache.states([row], k, states_for), states_for([row]))
            assert cache.missing(rows, k) == []
    assert notes == []


def test_a_batch_larger_than_the_budget_is_computed(tmp_path, notes):
    with open_at(tmp_path, budget_bytes=100, note=notes.append) as cache:
        assert not cache.make_room(ROWS, 3)
        assert torch.equal(cache.states(ROWS, 3, states_for), states_for(ROWS))
    assert len(notes) == 1
    assert sum(file.stat().st_size for file in tmp_path.glob("*/*.states")) == 0


def test_files_do_not_grow_without_end(tmp_path):
    """Eviction goes by file, so one file must not be the whole budget."""
    rows = [make_row(i, length=10) for i in range(32)]
    budget = 64 * 10 * D_MODEL * 4
    with open_at(tmp_path, budget_bytes=budget) as cache:
        for row in rows:
            cache.write([row], 3, states_for([row]))
    assert all(file.stat().st_size <= budget // 16 for file in files_in(tmp_path, ".states"))
    assert len(files_in(tmp_path, ".states")) == 8


def test_a_cache_that_was_released_opens_again(filled):
    with open_at(filled) as cache:
        cache.read(ROWS, 3)
        cache.release()
        assert torch.equal(cache.read(ROWS, 3), states_for(ROWS))
        cache.write([make_row(70)], 3, states_for([make_row(70)]))
        cache.release()
        assert cache.missing([make_row(70)], 3) == []


def test_reading_does_not_grow_the_memory_of_the_process(tmp_path):
    """Pages of the memory map are given back: they would count as memory of this process."""
    rows = [make_row(i, length=9) for i in range(8)]
    wide = 1 << 17
    with open_cache(
        tmp_path, base_sha256=BASE_WIDE, dtype=torch.float32, d_model=wide, budget_bytes=BUDGET, keep_free_bytes=0
    ) as cache:
        for row in rows:
            cache.write([row], 3, torch.zeros(9, wide))
        for _ in range(2):
            for row in rows:
                cache.read([row], 3)
        lines = [line.split() for line in Path("/proc/self/smaps").read_text().splitlines()]
        mapped = resident = 0
        inside = False
        for words in lines:
            if "-" in words[0] and not words[0].endswith(":"):
                inside = words[-1].endswith(".states")
            elif inside and words[0] == "Rss:":
                resident += int(words[1])
                mapped += 1
        assert mapped == len(files_in(tmp_path, ".states")) > 0
        assert resident < 1000, f"{resident} KB of 36,864 are resident"


BASE_WIDE = "w" * 64
