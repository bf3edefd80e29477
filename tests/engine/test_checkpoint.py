"""A checkpoint is whole and unchanged, or it is refused; writing one never harms the one before."""

import os
import random
import resource

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from tunescope.engine import read_tensors, write_tensors
from tunescope.errors import IntegrityError, UserError

TENSORS = {
    "matrix": torch.arange(60, dtype=torch.float32).view(4, 15) / 7,
    "half": torch.arange(9).bfloat16(),
    "count": torch.tensor(3.0),
    "empty": torch.zeros(0, 5),
    "whole": torch.tensor([[1, -2]]),
}
FACTS = {"step": 3, "arm": "選択", "recipe": {"learning_rate": 2e-4}, "best": {"loss": None}}


@pytest.fixture
def file(tmp_path):
    """A checkpoint."""
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, TENSORS, FACTS)
    return path


def assert_whole(path):
    tensors, facts = read_tensors(path)
    assert facts == FACTS
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def refused(path, said="remove it to start this arm again"):
    with pytest.raises(IntegrityError, match=said) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


def test_what_is_written_is_read_back(file):
    assert_whole(file)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_views_and_weights_that_require_a_gradient_are_written(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_tensors(
        tmp_path / "new" / "c", {"turned": whole.T, "part": whole[1:], "weight": torch.nn.Parameter(whole.clone())}, {}
    )
    tensors, _ = read_tensors(tmp_path / "new" / "c")
    assert torch.equal(tensors["turned"], whole.T)
    assert torch.equal(tensors["part"], whole[1:])
    assert not tensors["weight"].requires_grad


def test_every_truncation_is_refused(file):
    content = file.read_bytes()
    for length in [0, 1, 7, 8, *range(9, len(content), 41), len(content) - 1]:
        file.write_bytes(content[:length])
        refused(file)


def test_no_changed_byte_is_accepted(file):
    content = file.read_bytes()
    numbers = random.Random(0)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << numbers.randrange(8)
        file.write_bytes(changed)
        try:
            tensors, facts = read_tensors(file)
        except IntegrityError:
            continue
        # Spaces that fill up the header are the only bytes that say nothing.
        assert facts == FACTS
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
        assert content[place : place + 1] == b" "


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        {"tunescope-checkpoint-1": "{}"},
        {"tunescope-checkpoint-1": "["},
        {"tunescope-checkpoint-1": "3"},
    ],
)
def test_another_safetensors_file_is_not_a_checkpoint(file, metadata):
    save_file(TENSORS, file, metadata=metadata)
    refused(file)


def test_a_missing_checkpoint_is_refused(tmp_path):
    refused(tmp_path / "none.safetensors")


def test_equal_contents_are_equal_bytes(file, tmp_path):
    for name in "abcde":
        write_tensors(tmp_path / name, dict(reversed(TENSORS.items())), dict(reversed(FACTS.items())))
        assert (tmp_path / name).read_bytes() == file.read_bytes()


def test_the_old_file_is_replaced_and_never_written_into(file):
    """Whoever has the old file open, a kill included, sees it whole until the new one stands in its place."""
    content = file.read_bytes()
    with file.open("rb") as old:
        write_tensors(file, {"other": torch.ones(3)}, {})
        assert old.read() == content
    assert file.read_bytes() != content


def test_a_stop_while_writing_leaves_the_last_good_one(file, monkeypatch):
    def half(tensors, filename, metadata=None):
        filename.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            write_tensors(file, {"other": torch.ones(3)}, {})
    assert_whole(file)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_stop_before_the_swap_leaves_the_last_good_one(file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_tensors(file, {"other": torch.ones(3)}, {})
    assert_whole(file)


def test_the_leftover_of_a_killed_process_does_not_disturb(file):
    leftover = file.with_name(f".{file.name}.part")
    leftover.write_bytes(b"half of it")
    assert_whole(file)
    write_tensors(file, TENSORS, FACTS)
    assert_whole(file)
    assert not leftover.exists()


def test_a_disk_that_takes_no_more_is_the_users_matter_and_leaves_the_last_good_one(file):
    """The limit on file sizes stands for a full disk: the system refuses to write in both cases."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"checkpoint\.safetensors: cannot be written .*free some space"):
            write_tensors(file, {"large": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_whole(file)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
