"""On a device that is not the processor tuning comes out as on it, nothing is mixed up, and the processor waits once a step."""

from dataclasses import replace

import pytest
import torch
from test_fast_path import ABOVE_A_CUT, shown
from test_sparse import make_sparse
from tiny_runs import DTYPES, N_LAYERS, RECIPE, SELECTIONS, make_moving, make_rows

from simulated_device import NAME, Elsewhere, simulated, waits
from tunescope.engine import L2SP, KLToBase, Tuner, calibrate_dtype, open_cache, read_tensors, widths_of, write_tensors
from tunescope.testing import tiny_model

KINDS = [*SELECTIONS, "sparse"]


def moving_on(device, kind, family="llama", dtype="float32"):
    model = tiny_model(family, n_layers=N_LAYERS, dtype=DTYPES[dtype]).to(device)
    if kind == "sparse":
        return make_sparse(family, dtype, model=model, layers=["block.2-3"])[0]
    return make_moving(kind, family, dtype, model=model)


def tune(device, kind, *, family="llama", dtype="float32", recipe=RECIPE, rows=None, terms=None, **settings):
    moving = moving_on(device, kind, family, dtype)
    tuner = Tuner(moving, rows or make_rows(), recipe, terms=terms(moving) if terms else (), **settings)
    return tuner, list(tuner.steps())


def cache_in(folder):
    return open_cache(
        folder, base_sha256="0" * 64, dtype=torch.float32, d_model=32, budget_bytes=1 << 20, keep_free_bytes=0
    )


def assert_alike(found, wanted, *, rel=1e-4):
    """The same steps and the same weights, but for the order of sums in another form of attention."""
    (tuner, records), (other, theirs) = found, wanted
    for key in ("loss", "grad_norm"):
        assert [getattr(r, key) for r in records] == pytest.approx([getattr(r, key) for r in theirs], rel=rel)
    for name, parameter in tuner.moving.parameters.items():
        assert parameter.device.type != "cpu"
        torch.testing.assert_close(
            parameter.detach().cpu(), other.moving.parameters[name].detach(), rtol=0, atol=0.3 * RECIPE.learning_rate
        )


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_may_move_moves_alike(kind, device):
    assert_alike(tune(device, kind), tune("cpu", kind))


def test_every_family_moves_alike_over_common_beginnings(family, device):
    rows = shown()
    assert_alike(
        tune(device, "lora on some blocks", family=family, rows=rows),
        tune("cpu", "lora on some blocks", family=family, rows=rows),
    )


@pytest.mark.parametrize("kind", ["lora on some blocks", "weights of blocks", "sparse"])
def test_terms_decay_smoothing_and_checkpointing_are_alike(kind, device):
    recipe = replace(RECIPE, weight_decay=0.1, label_smoothing=0.1, checkpointing=True)

    def terms(moving):
        return [L2SP(moving, 0.3), KLToBase(moving, make_rows(5, seed=4), 0.5)]

    found, wanted = (tune(where, kind, recipe=recipe, terms=terms) for where in (device, "cpu"))
    assert_alike(found, wanted)
    assert found[0].term_values == pytest.approx(wanted[0].term_values, rel=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in ABOVE_A_CUT if kind != "lora on some blocks"] + ["sparse"])
def test_kept_states_are_filled_and_read(kind, device, tmp_path):
    with cache_in(tmp_path) as states:
        found = tune(device, kind, states=states)
        assert states.counts.tokens_read > 0
    assert_alike(found, tune("cpu", kind))


@pytest.mark.parametrize("kind", ["lora on some blocks", "full", "sparse"])
def test_bfloat16_under_the_rules_of_autocast_there_is_as_close_as_on_the_processor(kind, device):
    plain = tune("cpu", kind)[1]
    for where in (device, "cpu"):
        records = tune(where, kind, dtype="bfloat16")[1]
        assert [r.loss for r in records] == pytest.approx([r.loss for r in plain], abs=0.05)


@pytest.mark.parametrize("kind", ["lora on some blocks", "full", "sparse"])
def test_what_was_saved_on_one_goes_on_on_the_other(kind, device, tmp_path):
    wanted = tune("cpu", kind)
    for here, there in ((device, "cpu"), ("cpu", device)):
        tuner = Tuner(moving_on(here, kind), make_rows(), RECIPE)
        steps = tuner.steps()
        first = [next(steps) for _ in range(3)]
        write_tensors(tmp_path / "state", *tuner.state())
        later = Tuner(moving_on(there, kind), make_rows(), RECIPE)
        later.restore(*read_tensors(tmp_path / "state"))
        records = [*first, *later.steps()]
        assert [r.loss for r in records] == pytest.approx([r.loss for r in wanted[1]], rel=1e-4)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_waits_once_a_step(kind, kept, tmp_path):
    with simulated() as device:
        states = cache_in(tmp_path) if kept else None
        recipe = replace(RECIPE, batch_tokens=30, num_epochs=3)  # several passes a step
        if kept:
            list(Tuner(moving_on(device, kind), make_rows(), recipe, states=states).steps())
        moving = moving_on(device, kind)
        terms = [L2SP(moving, 0.3), KLToBase(moving, make_rows(5, seed=4), 0.5, states=states)]
        tuner = Tuner(moving, make_rows(), recipe, states=states, terms=terms)
        steps = tuner.steps()
        for _ in range(2):  # the first two look whether everything moved that should
            next(steps)
        before = waits.total()
        for _ in range(3):
            next(steps)
        assert waits.total() - before == 3, waits


def test_the_number_format_is_measured_there(device):
    found = calibrate_dtype(widths_of(tiny_model().config), device=device, seconds=0.01)
    assert found.device == device
    assert all(seconds > 0 for seconds in found.seconds.values())


# --- that the simulated device refuses what a GPU refuses ---


def test_what_is_there_and_what_is_here_do_not_mix():
    with simulated() as device:
        there = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.Linear(3, 2).to(device)(torch.ones(1, 3))
        assert isinstance(there + 1, Elsewhere)
        assert (there + torch.tensor(1.0)).device.type == NAME
        assert not isinstance(there.cpu(), Elsewhere)


def test_waiting_is_counted_and_what_need_not_wait_is_not():
    with simulated() as device:
        there = torch.ones(3).to(device, non_blocking=True) * 2
        assert waits.total() == 0
        assert float(there.sum()) == 6.0
        assert there.tolist() == [2.0] * 3
        assert there[there > 1].sum().cpu() == 6
        assert waits.total() == 4


def test_autocast_there_keeps_to_the_lists_of_cuda():
    with simulated() as device, torch.autocast(NAME, dtype=torch.bfloat16):
        there = torch.ones(2, 2, device=device)
        assert (there @ there).dtype == torch.bfloat16
        assert (there @ there).softmax(-1).dtype == (there @ there).sum().dtype == torch.float32
        assert torch.ones(2, 2).bfloat16().sum().dtype == torch.bfloat16
