"""Several processes take the steps of one: the same losses and weights, one error for all, and checkpoints for any number of them."""

from dataclasses import replace

import pytest
import several_processes as several
import torch
from kept_states import files_in
from safetensors.torch import load_file, save_file
from tiny_runs import N_LAYERS, RECIPE, make_rows

from tunescope.engine import Workers, join_workers, prepare
from tunescope.engine.divide import own_passes, shares
from tunescope.engine.shards import STATES
from tunescope.errors import ConfigError
from tunescope.models import family_of
from tunescope.select import Mask, selection_of
from tunescope.testing import save_tiny, tiny_model

# Every step is clipped, matrices decay, and a step takes several passes: not as many for every worker.
HARD = replace(RECIPE, num_epochs=1, weight_decay=0.1, max_grad_norm=0.05, batch_tokens=24)
CASES = {
    f"{kind}, {family}, {sharding}": {"sharding": sharding, "kind": kind, "family": family, "recipe": HARD}
    for kind in ("lora on some blocks", "full")
    for family in ("llama", "qwen2", "gemma3_text")
    for sharding in ("none", "fsdp2")
}
CASES |= {
    f"{kind} with terms, {sharding}": {"sharding": sharding, "kind": kind, "recipe": RECIPE, "terms": True}
    for kind in ("lora on some blocks", "full")
    for sharding in ("none", "fsdp2")
}
CASES["checkpointing"] = {
    "sharding": "fsdp2",
    "kind": "weights of parts",
    "recipe": replace(HARD, checkpointing=True),
}


@pytest.fixture(scope="module", params=[2, 3])
def answers(request, tmp_path_factory):
    """What two and three workers found in every case."""
    found = several.together(several.tune_all, request.param, tmp_path_factory.mktemp("together"), cases=CASES)
    assert [answer for answer in found if isinstance(answer, str)] == []
    return found


@pytest.fixture(scope="module")
def alone():
    """What one process finds; the sharding makes no case of its own."""
    found = {}

    def of(name):
        case = CASES[name] | {"sharding": None}
        key = str(case)
        if key not in found:
            found[key] = several.tune(0, **case)
        return found[key]

    return of


# --- the same step ---


def assert_near(answer, single, *, rate):
    """Equal within rounding."""
    for ours, theirs in zip(answer["records"], single["records"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=3e-5)
        rest = ("step", "epoch", "learning_rate", "tokens", "target_tokens")
        assert {key: ours[key] for key in rest} == {key: theirs[key] for key in rest}
    for name, weight in single["weights"].items():
        # Adam divides by the size of the gradient, so where that is almost 0 a rounding error becomes a part of a step.
        assert abs(answer["weights"][name] - weight).max() < 0.2 * rate, name


@pytest.mark.parametrize("name", CASES)
def test_several_workers_take_the_steps_of_one(name, answers, alone):
    assert_near(answers[0][name], alone(name), rate=RECIPE.learning_rate)
    for ours, theirs in zip(answers[0][name]["terms"], alone(name)["terms"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_records_and_weights_have_the_same_bits_on_every_worker(name, answers):
    first = answers[0][name]
    for other in (answer[name] for answer in answers[1:]):
        assert other["records"] == first["records"]
        assert all((other["weights"][key] == first["weights"][key]).all() for key in first["weights"])


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_kept_states_are_written_once_and_give_the_same_steps(sharding, tmp_path):
    case = {"kind": "lora on one block", "recipe": HARD}
    single = several.tune(0, **case)
    root = tmp_path / "cache"
    first = several.together(several.tune, 2, tmp_path, sharding=sharding, cache=root, **case)
    again = several.together(several.tune, 3, tmp_path, sharding=sharding, cache=root, **case)
    for answer in (*first, *again):
        assert_near(answer, single, rate=RECIPE.learning_rate)
    tokens = sum(len(row) for row in make_rows(10))
    assert sum(answer["cache"]["tokens_written"] for answer in first) == tokens
    assert sum(answer["cache"]["tokens_written"] for answer in again) == 0
    assert len(files_in(root, STATES)) == 2


def test_a_tail_alone_in_memory_can_be_cut(tmp_path):
    model = save_tiny(tmp_path / "model", n_layers=N_LAYERS)
    losses = several.tune_tail(0, sharding=None, folder_of_model=model, cache=tmp_path / "one")
    found = several.together(
        several.tune_tail, 2, tmp_path, sharding="fsdp2", folder_of_model=model, cache=tmp_path / "two"
    )
    assert found == [found[0]] * 2
    assert found[0] == pytest.approx(losses, abs=1e-5)


def test_blocks_are_read_and_cut_one_by_one_with_the_same_bits(tmp_path):
    """Tied and untied heads, LoRA and weights; never more in memory than the parts, the ends, what moves, and one block."""
    kinds = ("lora on all blocks", "lora on some blocks", "weights of parts", "full")
    folders = [save_tiny(tmp_path / str(i), n_layers=N_LAYERS, family=f) for i, f in enumerate(("llama", "qwen2"))] * 2
    n_workers = 2
    for answer in several.together(
        several.tune_from_files, n_workers, tmp_path, sharding="fsdp2", folders=folders, kinds=kinds
    ):
        assert not isinstance(answer, str), answer
        for kind in kinds:
            cut, first = answer[kind, "cut"], answer[kind, "read first"]
            assert cut["records"] == first["records"] and len(cut["records"]) == 6
            assert all((cut["weights"][name] == weight).all() for name, weight in first["weights"].items())
            held, sizes = answer[kind, "held"]
            ends = sizes.whole - sum(sizes.blocks)
            lora = 4 * sum(w.size for w in cut["weights"].values()) if kind.startswith("lora") else 0
            assert ends < held <= ends + lora + sum(sizes.blocks[:-1]) / n_workers + sizes.blocks[-1] + 4096


def test_a_block_that_another_worker_reads_otherwise_is_refused(tmp_path):
    one = save_tiny(tmp_path / "one", n_layers=N_LAYERS)
    other = save_tiny(tmp_path / "other", n_layers=N_LAYERS)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    for answer in several.together(several.prepare_from_files, 2, tmp_path, folders=[one, other]):
        assert answer.startswith(
            "IntegrityError: block.2 of the base model: 1 tensors are not the same on all 2 workers"
        )


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_race_has_the_winner_of_one_process_and_puts_the_weights_back(sharding, tmp_path):
    rate, losses, start = several.race_rates(0, sharding=None)
    assert losses[-1] == float("inf")  # it diverged, on all of them alike
    for answer in several.together(several.race_rates, 2, tmp_path, sharding=sharding):
        assert answer[0] == rate
        assert answer[1] == pytest.approx(losses, abs=1e-5)
        assert all((answer[2][name] == weight).all() for name, weight in start.items())


# --- checkpoints and files ---


@pytest.mark.parametrize(("kind", "sharding"), [("lora on some blocks", "none"), ("full", "fsdp2")])
def test_a_run_goes_on_with_another_number_of_workers(kind, sharding, tmp_path):
    whole = several.fit(0, sharding=None, kind=kind, run=tmp_path / "whole", target=tmp_path / "expected")
    run, target = tmp_path / "parts", tmp_path / "saved"
    two = several.together(several.fit, 2, tmp_path, sharding=sharding, kind=kind, run=run, stop_at=3)
    one = several.fit(0, sharding=None, kind=kind, run=run, stop_at=5)
    three = several.together(several.fit, 3, tmp_path, sharding=sharding, kind=kind, run=run, target=target)
    assert [answer for answer in (*two, *three) if isinstance(answer, str)] == []
    records = [*two[0]["records"], *one["records"], *three[0]["records"]]
    assert [record["step"] for record in records] == list(range(1, 10))
    for ours, theirs in zip(records, whole["records"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-5)
    assert [answer["outcome"].best_step for answer in three] == [whole["outcome"].best_step] * 3
    assert [answer["size"] for answer in three] == [whole["size"]] * 3
    assert_saved_alike(target, tmp_path / "expected", within=0.2 * RECIPE.learning_rate)


@pytest.mark.parametrize("kind", ["full", "weights of blocks", "lora on some blocks"])
def test_a_sharded_model_is_saved_like_a_whole_one(kind, tmp_path):
    target, expected = tmp_path / "saved", tmp_path / "expected"
    sizes = several.together(several.save_rounded, 2, tmp_path, sharding="fsdp2", kind=kind, target=target)
    assert sizes == [several.save_rounded(0, sharding=None, kind=kind, target=expected)] * 2
    assert_saved_alike(target, expected, within=0)


def assert_saved_alike(target, expected, *, within):
    """The same files, tensors and number formats; the numbers as near as that."""
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in expected.iterdir())
    for file in expected.glob("*.safetensors"):
        ours, theirs = load_file(target / file.name), load_file(file)
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=within, msg=name)


# --- what goes wrong on one worker ---


@pytest.mark.parametrize(
    ("how", "sharding", "kind", "words"),
    [
        ("rows", "none", "DataError", "example 7 is not there"),
        ("error", "none", "TunescopeError", "ValueError: no such luck"),
        ("error", "fsdp2", "TunescopeError", "ValueError: no such luck"),
        ("memory", "fsdp2", "RunError", "memory is short"),
    ],
)
def test_an_error_of_one_worker_ends_all_with_its_name_and_its_words(how, sharding, kind, words, tmp_path):
    (name, text, _), (own_name, own_text, _) = several.together(several.fail, 2, tmp_path, how=how, sharding=sharding)
    assert name == kind
    assert text.startswith("worker 1 of 2: ")
    assert words in text
    assert own_name in (kind, "ValueError")
    assert not own_text.startswith("worker")


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_killed_worker_ends_the_others_at_once(sharding, tmp_path):
    (name, text, seconds), killed = several.together(several.fail, 2, tmp_path, how="kill", sharding=sharding)
    assert killed == "ended with -9"
    assert name == "WorkerError"
    assert "worker 0 of 2 lost the others" in text
    assert seconds < several.MESSAGE_SECONDS  # noticed by the connection, not by the time limit


def test_a_worker_that_hangs_ends_the_others_at_the_time_limit(tmp_path):
    processes, answers = several.start(several.fail, 2, tmp_path, how="hang", message_seconds=5)
    try:
        rank, (name, _, _) = answers.get(timeout=several.HARD_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert (rank, name) == (0, "WorkerError")


def test_when_one_worker_is_short_of_memory_all_take_smaller_passes(tmp_path):
    found = several.together(several.fail, 2, tmp_path, how="memory")
    assert [answer[:2] for answer in found] == [("done", 64)] * 2


@pytest.mark.parametrize(
    ("how", "words"), [("another base", "the base model"), ("another weight", "weights after step")]
)
def test_workers_with_other_weights_are_refused(how, words, tmp_path):
    for name, text, _ in several.together(several.fail, 2, tmp_path, how=how):
        assert name == "IntegrityError"
        assert words in text


# --- one process, and what cannot be ---


def test_without_a_process_group_there_is_one_worker():
    assert join_workers() == Workers(rank=0, world_size=1, sharding="none", group=None)
    assert join_workers().alone
    with pytest.raises(ConfigError, match="needs several processes"):
        join_workers("fsdp2")
    with pytest.raises(ConfigError, match="did you mean fsdp2"):
        join_workers("fsdp")


def test_sparse_entries_are_refused_where_blocks_are_cut():
    chosen = torch.zeros(32, 32, dtype=torch.bool)
    chosen[0, :5] = True
    mask = Mask({"block.1.q": chosen}, total=1024, granularity="entry")
    selection = selection_of(mask, method="sparse", why="a test")
    with pytest.raises(ConfigError, match="does not know method 'sparse'"):
        prepare(tiny_model(), family_of("llama"), selection, mask=mask, workers=Workers(0, 2, "fsdp2"))


@pytest.mark.parametrize("n_workers", [1, 2, 3, 7, 20])
def test_every_row_has_one_worker_and_all_have_as_many_tokens_as_can_be(n_workers):
    rows = make_rows(17)
    found = shares(rows, n_workers)
    assert sorted(i for share in found for i in share) == list(range(17))
    tokens = [sum(len(rows[i]) for i in share) for share in found]
    assert max(tokens) - min(tokens) <= max(len(row) for row in rows)


def test_rows_of_the_same_tokens_have_the_same_worker():
    rows = make_rows(6) * 3
    for share in shares(rows, 4):
        assert {i % 6 for i in share} == {i % 6 for i in share if i < 6}


def test_sharded_workers_run_as_many_passes_as_each_other_and_count_every_row_once():
    rows = make_rows(10)
    plans = [own_passes(rows, 30, Workers(rank, 4, "fsdp2")) for rank in range(4)]
    assert len({len(plan) for plan in plans}) == 1
    assert any(one.idle for plan in plans for one in plan)
    assert sorted(i for plan in plans for one in plan if not one.idle for i in one.rows) == list(range(10))
