"""A packed row holds every token of every row once per group, and each row's own way through it."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.models import Group, Layout, pack, passes, sharing


@dataclass(frozen=True)
class Row:
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


def ids_of(row):
    return (*row.prompt_ids, *row.target_ids)


tokens = st.lists(st.integers(0, 2), max_size=40).map(tuple)
lines = st.builds(Row, tokens, st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple))
SHARED = st.sampled_from([(1,) * 20, (2,) * 30, (0,) * 15, ()])
rows_that_share = st.lists(
    st.builds(lambda start, row: Row(start + row.prompt_ids, row.target_ids), SHARED, lines), min_size=1, max_size=12
)


@given(rows_that_share, st.booleans())
def test_every_row_is_found_again_with_its_positions_and_targets(rows, share):
    packed = pack(rows, share=share)
    assert packed.layout.n_tokens == len(packed.input_ids) == len(packed.layout.positions)
    start = 0
    for row in rows:
        where = packed.places[start : start + len(ids_of(row))]
        assert packed.input_ids[where].tolist() == list(ids_of(row))
        assert packed.layout.positions[where].tolist() == list(range(len(ids_of(row))))
        start += len(ids_of(row))
    assert start == len(packed.places)
    everything = torch.tensor([i for row in rows for i in ids_of(row)])
    assert torch.equal(everything[packed.sources], packed.input_ids)
    assert torch.equal(packed.places[packed.sources], torch.arange(packed.layout.n_tokens))


@given(rows_that_share, st.booleans())
def test_every_target_is_predicted_from_the_token_before_it_in_its_own_row(rows, share):
    packed = pack(rows, share=share)
    wanted = []
    for i, row in enumerate(rows):
        for place in range(max(1, len(row.prompt_ids)), len(ids_of(row))):
            wanted.append((i, ids_of(row)[place - 1], place - 1, ids_of(row)[place]))
    positions = packed.layout.positions[packed.predictors].tolist()
    before = packed.input_ids[packed.predictors].tolist()
    assert list(zip(packed.owners.tolist(), before, positions, packed.targets.tolist(), strict=True)) == wanted


def test_the_loss_mask_is_that_of_padded_rows():
    from tunescope.models import IGNORED, pad_right

    rows = [Row((5, 6), (7, 8)), Row((), (9, 10, 11)), Row((12,), (13,))]
    packed = pack(rows)
    labels = pad_right(rows)[2]
    wanted, _ = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    assert packed.owners.tolist() == wanted.tolist()
    assert packed.targets.tolist() == labels[:, 1:][labels[:, 1:] != IGNORED].tolist()


# --- what is shared ---


def brute_force(rows):
    """Fewest tokens over all cuts of the lexicographic order into runs."""
    ordered = sorted(rows)

    def cost(run):
        shortest = min(len(r) for r in run) - 1
        prefix = next((i for i in range(shortest) if len({r[i] for r in run}) > 1), shortest)
        prefix = prefix if prefix >= 16 and len(run) > 1 else 0
        return sum(len(r) for r in run) - (len(run) - 1) * prefix

    best = [0]
    for n in range(1, len(ordered) + 1):
        best.append(min(best[k] + cost(ordered[k:n]) for k in range(n)))
    return best[-1]


@given(rows_that_share)
def test_as_few_tokens_as_possible_are_computed(rows):
    ids = [ids_of(row) for row in rows]
    groups = sharing(ids)
    assert sorted(i for _, members in groups for i in members) == list(range(len(rows)))
    for prefix, members in groups:
        assert prefix == 0 or (prefix >= 16 and len(members) > 1)
        assert len({ids[i][:prefix] for i in members}) == 1
        assert all(len(ids[i]) > prefix for i in members)
    computed = sum(prefix + sum(len(ids[i]) - prefix for i in members) for prefix, members in groups)
    assert computed == brute_force(ids) == pack(rows).layout.n_tokens


def test_rows_of_two_tasks_share_each_their_own_beginning():
    rows = [Row((task,) * 50 + (i,), (1,)) for i in range(3) for task in (7, 8)]
    assert pack(rows).layout == Layout((Group(50, (2, 2, 2)), Group(50, (2, 2, 2))))


@pytest.mark.parametrize(("length", "shared"), [(15, False), (16, True)])
def test_a_beginning_is_shared_from_sixteen_tokens_on(length, shared):
    rows = [Row((7,) * length + (i,), (1,)) for i in range(2)]
    assert (pack(rows).layout.n_tokens == length + 4) == shared
    assert pack(rows, share=False).layout.n_tokens == 2 * length + 4


def test_rows_that_are_equal_keep_a_token_of_their_own():
    row = Row((7,) * 30, (1, 2, 3))
    assert pack([row, row]).layout.groups == (Group(32, (1, 1)),)


def test_many_rows_take_little_time_and_still_share():
    """The search looks at 64 rows back; 2,000 equal beginnings are shared in runs of that."""
    rows = [Row((7,) * 30 + (i,), (1,)) for i in range(2000)]
    assert pack(rows).layout.n_tokens == 2000 * 2 + 30 * -(-2000 // 64)


# --- passes ---


@given(rows_that_share, st.integers(1, 200), st.booleans())
def test_passes_leave_nothing_out_and_compute_no_more_than_allowed(rows, batch_tokens, share):
    cut = passes(rows, batch_tokens, share=share)
    assert sorted(i for batch in cut for i in batch) == list(range(len(rows)))
    for batch in cut:
        assert len(batch) == 1 or pack([rows[i] for i in batch], share=share).layout.n_tokens <= batch_tokens


@given(rows_that_share, st.integers(1, 200))
def test_a_pass_alone_is_again_one_pass(rows, batch_tokens):
    for batch in passes(rows, batch_tokens):
        assert len(passes([rows[i] for i in batch], batch_tokens)) == 1


def test_no_rows_are_no_passes():
    assert passes([], 100) == []
    assert pack([]).layout.n_tokens == len(pack([]).places) == 0


# --- what attention computes together ---


@given(st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(1, 70), min_size=1, max_size=5)), max_size=4))
def test_parts_hold_every_token_once_and_are_filled_up_by_the_length_of_a_segment_alone(shapes):
    layout = Layout(tuple(Group(prefix, tuple(lengths)) for prefix, lengths in shapes))
    real = layout.gather[layout.gather < layout.n_tokens]
    assert sorted(real.tolist()) == list(range(layout.n_tokens))
    assert layout.gather[layout.scatter].tolist() == list(range(layout.n_tokens))
    assert sum(part.n_segments * part.length for part in layout.parts) == len(layout.gather)
    start = 0
    for part in layout.parts:
        for _ in range(part.n_segments):
            places = layout.gather[start : start + part.length]
            length = int((places < layout.n_tokens).sum())
            assert places[:length].diff().eq(1).all()  # in order, the filled-up ones behind
            assert part.length - length < (4 if length < 16 else 16)
            assert int(layout.positions[places[0]]) == part.prefix[1] - part.prefix[0]
            start += part.length
