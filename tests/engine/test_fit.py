"""A run with checks keeps the best, stops early when told to, and goes on after any interruption; a race picks the best rate."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_runs import RECIPE, assert_same, facts_of, make_moving, make_rows, make_tuner, weights_of

from tunescope.engine import CANDIDATES, Checks, Fit, Recipe, Tuner, race, race_steps, validation_loss, write_tensors
from tunescope.errors import IntegrityError, TunescopeError
from tunescope.models import pad_right

HELD_OUT = make_rows(5, seed=9)
CHECKS = Checks(HELD_OUT, every=2, patience=0)
LONG = replace(RECIPE, learning_rate=1e-2, num_epochs=4)  # 12 steps


def run(fit):
    """All records of a fit, which must end."""
    records = list(fit)
    assert fit.outcome is not None
    return records


def planted(monkeypatch, losses):
    """Makes the held-out checks give these losses, one after the other."""
    values = iter(losses)
    monkeypatch.setattr("tunescope.engine.fit.validation_loss", lambda moving, checks, **_: next(values))


# --- checks and early stopping ---


def test_checks_come_when_asked_and_after_the_last_step():
    for every, wanted in ((2, [2, 4, 6]), (4, [4, 6]), (5, [5, 6]), (99, [6])):
        records = run(Fit(make_tuner(), replace(CHECKS, every=every)))
        assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
        assert [r.step for r in records if r.validation_loss is not None] == wanted


def test_a_check_is_the_mean_loss_and_changes_nothing(kind):
    plain, checked = make_tuner(kind), make_tuner(kind)
    records = run(Fit(plain, Checks((), every=2)))
    seen = run(Fit(checked, replace(CHECKS, every=1)))
    assert facts_of(records) == [r | {"validation_loss": None} for r in facts_of(seen)]
    assert min(r.validation_loss for r in seen) == validation_loss(checked.moving, CHECKS)
    rows = [plain_mean(checked.moving.model, row) for row in HELD_OUT]
    assert validation_loss(checked.moving, CHECKS) == pytest.approx(sum(rows) / len(rows), abs=1e-5)


@torch.no_grad()
def plain_mean(model, row):
    """The loss of transformers for one row."""
    input_ids, attention_mask, labels = pad_right([row])
    return float(model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss)


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_weights_of_the_best_check_are_kept(on_disk, tmp_path, monkeypatch):
    planted(monkeypatch, [3.0, 1.0, 2.0])
    tuner = make_tuner()
    fit = Fit(tuner, CHECKS, folder=tmp_path if on_disk else None)
    at_step_4 = None
    for record in fit:
        if record.step == 4:
            at_step_4 = weights_of(tuner.moving)
    assert (fit.outcome.steps, fit.outcome.best_step, fit.outcome.best_loss, fit.outcome.stopped_early) == (
        6,
        4,
        1.0,
        False,
    )
    assert_same(weights_of(tuner.moving), at_step_4)


def test_a_tie_keeps_the_earlier_weights(monkeypatch):
    planted(monkeypatch, [1.0, 1.0, 1.0])
    fit = Fit(make_tuner(), CHECKS)
    run(fit)
    assert fit.outcome.best_step == 2


@pytest.mark.parametrize(
    ("patience", "losses", "steps", "best"),
    [
        (1, [3, 2, 2.5], 6, 4),
        (2, [3, 2, 2.5, 2.4], 8, 4),
        (2, [3, 2, 2.5, 1.9, 2, 2], 12, 8),
        (3, [1, 2, 2, 2], 8, 2),
        (0, [1, 2, 2, 2, 2, 2], 12, 2),
    ],
)
def test_early_stopping_waits_as_long_as_it_is_told(monkeypatch, patience, losses, steps, best):
    planted(monkeypatch, losses)
    fit = Fit(make_tuner(recipe=LONG), replace(CHECKS, patience=patience))
    records = run(fit)
    assert [r.validation_loss for r in records if r.validation_loss is not None] == losses
    assert (fit.outcome.steps, fit.outcome.best_step, fit.outcome.best_loss) == (steps, best, min(losses))
    assert fit.outcome.stopped_early is (steps < 12)


def test_without_held_out_examples_the_last_weights_are_kept():
    tuner, plain = make_tuner(), make_tuner()
    fit = Fit(tuner, Checks((), every=1, patience=1))
    assert all(r.validation_loss is None for r in run(fit))
    assert (fit.outcome.steps, fit.outcome.best_step, fit.outcome.best_loss, fit.outcome.stopped_early) == (
        6,
        6,
        None,
        False,
    )
    list(plain.steps())
    assert_same(weights_of(tuner.moving), weights_of(plain.moving))


def test_early_stopping_happens_on_data_that_is_learned_by_heart():
    """Not planted: the rows are learned by heart while the held-out ones get worse."""
    recipe = Recipe(5e-2, num_epochs=30, batch_size=4)
    fit = Fit(make_tuner("full", rows=make_rows(4), recipe=recipe), replace(CHECKS, patience=2))
    records = run(fit)
    losses = [r.validation_loss for r in records if r.validation_loss is not None]
    assert fit.outcome.stopped_early
    assert fit.outcome.steps < 30
    assert fit.outcome.best_loss == min(losses) == validation_loss(fit.tuner.moving, CHECKS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_held_out_loss_that_is_not_finite_is_an_error(monkeypatch, bad):
    planted(monkeypatch, [3.0, bad])
    with pytest.raises(
        TunescopeError, match=r"arm test: the held-out loss is (nan|inf) after step 4; lower the learning rate"
    ):
        run(Fit(make_tuner(), CHECKS))


# --- resume ---


def cut(folder, steps, checks, make=lambda: make_tuner(recipe=LONG)):
    """Reads a fit up to the given step and drops it, as a kill between two records does."""
    records = []
    for record in Fit(make(), checks, folder=folder):
        records.append(record)
        if record.step == steps:
            break
    return records


@pytest.mark.parametrize(
    ("every", "patience", "kind"), [(1, 0, "lora on one block"), (2, 2, "weights of parts"), (3, 1, "full")]
)
def test_resume_after_a_cut_at_every_step_equals_the_uninterrupted_run(tmp_path, every, patience, kind):
    def make(seed=0):
        return make_tuner(kind, recipe=replace(LONG, batch_size=6), seed=seed)  # 8 steps

    checks = Checks(HELD_OUT, every=every, patience=patience)
    whole = Fit(make(), checks, folder=tmp_path / "whole")
    records = facts_of(run(whole))
    for step in range(1, len(records)):
        folder = tmp_path / str(step)
        assert facts_of(cut(folder, step, checks, make)) == records[:step]
        # Another adapter where there is a checkpoint: all of it must come from there.
        resumed = Fit(make(5 if (folder / "checkpoint.safetensors").is_file() else 0), checks, folder=folder)
        done = resumed.tuner.step
        assert 0 <= step - done <= every
        assert facts_of(run(resumed)) == records[done:]
        assert resumed.outcome == whole.outcome
        assert_same(weights_of(resumed.tuner.moving), weights_of(whole.tuner.moving))
        assert_same_files(folder, tmp_path / "whole")


def assert_same_files(left, right):
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert (left / name).read_bytes() == (right / name).read_bytes()


def test_many_cuts_in_one_run_change_nothing(tmp_path):
    checks = Checks(HELD_OUT, every=1)
    whole = Fit(make_tuner(recipe=LONG), checks, folder=tmp_path / "whole")
    records = {r["step"]: r for r in facts_of(run(whole))}
    found = {}
    for stop in (1, 3, 4, 5, 9, 12):
        for record in facts_of(cut(tmp_path / "cut", stop, checks)):
            assert found.setdefault(record["step"], record) == record
    last = Fit(make_tuner(recipe=LONG), checks, folder=tmp_path / "cut")
    found |= {r["step"]: r for r in facts_of(run(last))}
    assert found == records
    assert_same(weights_of(last.tuner.moving), weights_of(whole.tuner.moving))


def test_a_finished_fit_only_loads_its_best_weights(tmp_path, monkeypatch):
    planted(monkeypatch, [3, 1, 2])
    whole = Fit(make_tuner(), CHECKS, folder=tmp_path)
    run(whole)
    again = Fit(make_tuner(seed=5), CHECKS, folder=tmp_path)
    assert run(again) == []
    assert again.outcome == whole.outcome
    assert_same(weights_of(again.tuner.moving), weights_of(whole.tuner.moving))


def test_a_fit_that_stopped_early_stays_stopped(tmp_path, monkeypatch):
    planted(monkeypatch, [1, 2, 2])
    whole = Fit(make_tuner(recipe=LONG), replace(CHECKS, patience=2), folder=tmp_path)
    run(whole)
    assert whole.outcome.stopped_early
    again = Fit(make_tuner(recipe=LONG), replace(CHECKS, patience=2), folder=tmp_path)
    assert run(again) == []
    assert again.outcome == whole.outcome


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_wish_to_stop_writes_a_checkpoint_and_raises(tmp_path, stop):
    checks = Checks(HELD_OUT, every=4)
    tuner = make_tuner()
    fit = Fit(tuner, checks, folder=tmp_path, should_stop=lambda: tuner.step == stop)
    with pytest.raises(KeyboardInterrupt):
        list(fit)
    assert fit.outcome is None
    resumed = Fit(make_tuner(), checks, folder=tmp_path)
    assert resumed.tuner.step == stop
    whole = Fit(make_tuner(), checks)
    records = facts_of(run(whole))
    assert facts_of(run(resumed)) == records[stop:]
    assert_same(weights_of(resumed.tuner.moving), weights_of(whole.tuner.moving))


def test_a_wish_to_stop_after_the_last_step_comes_too_late(tmp_path):
    tuner = make_tuner()
    fit = Fit(tuner, CHECKS, folder=tmp_path, should_stop=lambda: tuner.step == tuner.total_steps)
    assert len(run(fit)) == tuner.total_steps


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    cut(tmp_path, 3, CHECKS)
    with pytest.raises(IntegrityError, match="belongs to other settings; remove it"):
        Fit(make_tuner(recipe=replace(LONG, learning_rate=1e-4)), CHECKS, folder=tmp_path)


DAMAGES = {
    "cut short": lambda b: b[:-1],
    "changed": lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:],
    "empty": lambda b: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("step", [5, 7, 12])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage, step):
    whole = Fit(make_tuner(recipe=LONG), CHECKS, folder=tmp_path / "whole")
    records = facts_of(run(whole))
    cut(tmp_path / "cut", step, CHECKS)
    file = tmp_path / "cut" / "checkpoint.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    said = []
    resumed = Fit(make_tuner(seed=5, recipe=LONG, note=said.append), CHECKS, folder=tmp_path / "cut")
    done = resumed.tuner.step
    assert done == 2 * ((step - 1) // 2) - 2  # checks and checkpoints come every other step, after the record
    assert said == [f"{file}: damaged or cut short; going on from the checkpoint before it, after step {done}"]
    assert facts_of(run(resumed)) == records[done:]
    assert resumed.outcome == whole.outcome
    assert_same(weights_of(resumed.tuner.moving), weights_of(whole.tuner.moving))
    assert_same_files(tmp_path / "cut", tmp_path / "whole")


def test_the_damaged_file_never_takes_the_place_of_the_good_one(tmp_path):
    cut(tmp_path, 5, CHECKS)
    file = tmp_path / "checkpoint.safetensors"
    for _ in range(3):  # damaged again after every resume, before the next check
        file.write_bytes(b"nonsense")
        fit = Fit(make_tuner(recipe=LONG), CHECKS, folder=tmp_path)
        assert fit.tuner.step == 2
        next(iter(fit))
    steps = iter(fit)
    for _ in range(2):  # over the next check, whose checkpoint is good
        next(steps)
    file.write_bytes(b"nonsense")
    assert Fit(make_tuner(recipe=LONG), CHECKS, folder=tmp_path).tuner.step == 2


def test_best_weights_of_a_checkpoint_that_was_gone_back_to_are_still_there(tmp_path, monkeypatch):
    planted(monkeypatch, [3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    tuner, at = make_tuner(recipe=LONG), {}
    fit = Fit(tuner, CHECKS, folder=tmp_path)
    for record in fit:
        at[record.step] = weights_of(tuner.moving)
        if record.step == 7:
            break
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    resumed = Fit(make_tuner(recipe=LONG), CHECKS, folder=tmp_path)
    assert (
        resumed.tuner.step == 4
    )  # its best check is the one after step 4; that after step 6 comes out otherwise this time
    run(resumed)
    assert (resumed.outcome.best_step, resumed.outcome.best_loss) == (4, 2.0)
    assert_same(weights_of(resumed.tuner.moving), at[4])


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_good_checkpoint_it_is_refused_with_what_to_do(tmp_path, damage):
    for step in (3, 5):  # one checkpoint, then two
        cut(tmp_path, step, CHECKS)
        for file in tmp_path.glob("checkpoint*"):
            file.write_bytes(DAMAGES[damage](file.read_bytes()))
        with pytest.raises(IntegrityError, match=r"checkpoint\.safetensors: .*remove it to start this arm again"):
            Fit(make_tuner(recipe=LONG), CHECKS, folder=tmp_path)
        (tmp_path / "checkpoint.safetensors").unlink()
    assert len(run(Fit(make_tuner(recipe=LONG), CHECKS, folder=tmp_path))) == 12


def test_what_lies_beside_a_checkpoint_that_was_removed_is_not_used(tmp_path):
    cut(tmp_path, 7, CHECKS)
    assert (tmp_path / "checkpoint.previous.safetensors").is_file()
    (tmp_path / "checkpoint.safetensors").unlink()
    assert Fit(make_tuner(recipe=LONG), CHECKS, folder=tmp_path).tuner.step == 0
    assert list(tmp_path.iterdir()) == []


def test_damaged_best_weights_are_refused(tmp_path, monkeypatch):
    planted(monkeypatch, [1, 2, 3])
    run(Fit(make_tuner(), CHECKS, folder=tmp_path))
    file = tmp_path / "best.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"best\.safetensors"):
        run(Fit(make_tuner(), CHECKS, folder=tmp_path))


# --- the race of learning rates ---


def racers(kind="weights of parts", recipe=LONG):
    """One prepared model, and what makes a tuner of it for a rate."""
    moving = make_moving(kind)
    return moving, lambda rate: Tuner(moving, make_rows(), replace(recipe, learning_rate=rate), arm="race")


def test_the_best_of_planted_candidates_wins():
    _, make = racers()
    found = race(make, CHECKS, (1e-7, 1e-2, 1e3))
    assert found.learning_rate == 1e-2
    assert found.losses[1e-2] == min(found.losses.values())
    assert found.steps == race_steps(12) == 6
    assert "edge" not in found.why
    assert "after 6 steps" in found.why


def test_each_candidate_does_what_a_run_of_its_own_would_do(kind):
    """Same start, same batches, same schedule; nothing is left over from the candidate before."""
    _, make = racers(kind)
    seen = []
    found = race(make, CHECKS, (3e-3, 1e-2), done=seen.append)
    for i, rate in enumerate((3e-3, 1e-2)):
        _, make_alone = racers(kind)
        tuner = make_alone(rate)
        steps = tuner.steps()
        alone = [next(steps) for _ in range(6)]
        assert facts_of(seen[6 * i : 6 * i + 6]) == facts_of(alone)
        assert found.losses[rate] == validation_loss(tuner.moving, CHECKS)
    assert found.tokens == sum(r.tokens for r in seen)


def test_the_run_after_a_race_equals_a_run_without_one(kind):
    moving, make = racers(kind)
    start = weights_of(moving)
    race(make, CHECKS, (3e-3, 1e-2))
    assert_same(weights_of(moving), start)
    assert all(p.grad is None for p in moving.parameters.values())
    after = facts_of(make(1e-2).steps())
    _, make_alone = racers(kind)
    assert facts_of(make_alone(1e-2).steps()) == after


def test_a_candidate_that_diverges_loses_and_harms_no_other():
    moving, make = racers("full")
    start = weights_of(moving)
    found = race(make, CHECKS, (1e-3, 1e30))
    assert found.learning_rate == 1e-3
    assert found.losses[1e30] == math.inf
    assert_same(weights_of(moving), start)
    _, make_alone = racers("full")
    other_order = race(make_alone, CHECKS, (1e30, 1e-3))
    assert other_order.losses[1e-3] == found.losses[1e-3]


def test_if_all_diverge_the_lowest_is_named_and_the_run_says_why():
    _, make = racers("full")
    found = race(make, CHECKS, (1e29, 1e30))
    assert found.learning_rate == 1e29
    with pytest.raises(TunescopeError, match="lower the learning rate"):
        list(make(found.learning_rate).steps())


def test_a_tie_goes_to_the_lower_rate_and_an_edge_is_told(monkeypatch):
    planted(monkeypatch, [2.0, 1.0, 1.0])
    _, make = racers()
    found = race(make, CHECKS, (1e-4, 1e-3, 1e-2))
    assert found.learning_rate == 1e-3
    planted(monkeypatch, [1.0, 2.0, 3.0])
    assert "at the edge of the candidates" in race(make, CHECKS, (1e-4, 1e-3, 1e-2)).why


def test_a_race_is_a_fraction_of_the_run_but_no_shorter_than_six_steps():
    assert [race_steps(n) for n in (1, 5, 6, 40, 100, 1000)] == [1, 5, 6, 6, 15, 150]
    assert set(CANDIDATES) == {"lora", "weights", "sparse"}
    assert all(list(rates) == sorted(rates) and len(rates) >= 3 for rates in CANDIDATES.values())


def test_best_weights_of_another_selection_cannot_slip_in(tmp_path, monkeypatch):
    planted(monkeypatch, [1, 2, 3])
    run(Fit(make_tuner(), CHECKS, folder=tmp_path))
    write_tensors(tmp_path / "best.safetensors", {"weight.other": torch.ones(1)}, {"step": 2})
    with pytest.raises(
        IntegrityError, match=r"best\.safetensors: does not belong to the checkpoint beside it; remove both"
    ):
        run(Fit(make_tuner(), CHECKS, folder=tmp_path))
