"""What is made of the scores of single tasks: medians, spread, gain, bands, probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunescope.config.models import MapSettings
from tunescope.errors import IntegrityError
from tunescope.studies.map_rows import bands_of, profile_of, score_rows
from tunescope.studies.map_scores import Read, TaskScores, compare, probe_labels
from tunescope.studies.map_store import load_scores, save_scores

SETTINGS = MapSettings(n_bootstrap=30, n_permutations=20)
BASE, TUNED = "cka_base_specialist", "cka_tuned_specialist"


def task(name: str, values: dict[str, np.ndarray], *, noise: float = 0.01, seed: int = 0) -> TaskScores:
    random = np.random.default_rng(seed)
    n_layers = len(next(iter(values.values())))
    resampled = {key: row + noise * random.standard_normal((30, n_layers)) for key, row in values.items()}
    null = {key: 0.1 * random.standard_normal((20, n_layers)) for key in values}
    sample = random.standard_normal((n_layers, 6, 4)).astype(np.float32)
    return TaskScores(name, 10, values, resampled, null, sample, seconds={"capture": 1.0, "similarity": 2.0})


def three_tasks() -> list[TaskScores]:
    random = np.random.default_rng(5)
    return [
        task(name, {BASE: random.random(4), TUNED: random.random(4)}, seed=i) for i, name in enumerate(("a", "b", "c"))
    ]


def test_over_all_tasks_stand_median_spread_and_gain() -> None:
    tasks = three_tasks()
    rows = {(row.name, row.task): row for row in score_rows(tasks, confidence=0.95, seed=0)}
    values = {name: np.stack([one.values[name] for one in tasks]) for name in (BASE, TUNED)}
    for name in (BASE, TUNED):
        np.testing.assert_allclose(rows[name, "*"].values, np.median(values[name], axis=0), rtol=1e-5)
        spread = np.sort(values[name], axis=0)
        np.testing.assert_allclose(rows[f"spread:{name}", "*"].values, spread[2] - spread[0], rtol=1e-5)
        assert rows[name, "*"].n == 30
    np.testing.assert_allclose(rows["gain", "*"].values, np.median(values[TUNED] - values[BASE], axis=0), rtol=1e-4)
    for row in rows.values():
        assert len(row.values) == 4
        assert row.low is not None and row.high is not None
        assert all(low <= high for low, high in zip(row.low, row.high, strict=True))


def test_a_task_has_interval_and_null_from_its_own_resamples() -> None:
    tasks = three_tasks()
    row = next(r for r in score_rows(tasks, confidence=0.9, seed=0) if (r.name, r.task) == (BASE, "b"))
    np.testing.assert_allclose(row.low, np.quantile(tasks[1].resampled[BASE], 0.05, axis=0), rtol=1e-5)
    np.testing.assert_allclose(row.high, np.quantile(tasks[1].resampled[BASE], 0.95, axis=0), rtol=1e-5)
    np.testing.assert_allclose(row.null, np.quantile(tasks[1].null[BASE], 0.95, axis=0), rtol=1e-5)


def test_over_tasks_the_interval_is_wider_than_over_prompts_alone() -> None:
    far = [task(str(i), {"cka_in_out": np.full(4, 0.1 * i)}, noise=1e-4, seed=i) for i in range(9)]
    row = next(r for r in score_rows(far, confidence=0.95, seed=0) if (r.name, r.task) == ("cka_in_out", "*"))
    assert row.values[0] == pytest.approx(0.4)
    assert row.high is not None and row.low is not None
    assert row.high[0] - row.low[0] > 0.15


def test_without_resamples_there_is_a_score_and_no_interval() -> None:
    one = three_tasks()[0]
    few = TaskScores(one.task, 4, one.values, {}, one.null, one.sample)
    rows = [r for r in score_rows([few], confidence=0.95, seed=0) if r.name != "separability"]
    assert {row.name for row in rows} == {BASE, TUNED, "gain"}  # the spread of one task says nothing
    assert all(row.low is None and row.high is None for row in rows)


def test_bands_are_found_where_the_published_signs_hold_and_the_profile_follows_the_mode() -> None:
    random = np.random.default_rng(0)
    base = np.full(16, 0.5)
    tuned = np.where(np.arange(16) < 5, 0.4, np.where(np.arange(16) >= 9, 0.9, 0.4))
    tuned[5:9] = [0.5, 0.6, 0.7, 0.8]
    width = np.where(np.arange(16) < 6, 0.08, 0.02)
    tasks = [
        task(
            str(i),
            {BASE: base + 0.005 * random.standard_normal(16), TUNED: tuned + width * random.standard_normal(16)},
            noise=0.002,
        )
        for i in range(30)
    ]
    bands = bands_of(tasks, "mossa", confidence=0.95, n_bootstrap=50, seed=0)
    assert bands.found, bands.why
    assert bands.boundaries is not None and abs(bands.boundaries[0] - 5) <= 1 and abs(bands.boundaries[1] - 9) <= 1
    assert "tasks and prompts" in bands.why
    assert profile_of(tasks, "mossa") == TUNED
    without = [task("a", {BASE: base})]
    assert (profile_of(without, "mossa"), profile_of(without, "base"), profile_of(without, "pair")) == (
        BASE,
        "cka_in_out",
        "cka_base_tuned",
    )


def states(n_layers: int = 3, n: int = 12, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).standard_normal((n_layers + 1, n, d)), axis=0).astype(np.float32)


def test_the_same_model_twice_is_alike_everywhere_and_unrelated_states_are_not() -> None:
    same = states(n=60)
    values, resampled, null = compare({"base": Read(same, same[:2]), "tuned": Read(same, same[:2])}, SETTINGS, 1)
    np.testing.assert_allclose(values["cka_base_tuned"], 1)
    other = states(n=60, seed=9)
    unrelated, _, null = compare({"base": Read(same, same[:2]), "tuned": Read(other, other[:2])}, SETTINGS, 1)
    assert (np.abs(unrelated["cka_base_tuned"]) < 0.3).all()
    assert null["cka_base_tuned"].shape == (20, 3) and resampled["cka_in_out"].shape == (30, 3)


def test_block_0_is_judged_by_means_since_its_last_token_may_always_be_the_same() -> None:
    last, mean = states(), states(seed=4)
    last[0] = last[0, 0]
    values, _, _ = compare({"base": Read(last, mean[:2])}, SETTINGS, 1)
    whole, _, _ = compare({"base": Read(mean, mean[:2])}, SETTINGS, 1)
    assert values["cka_in_out"][0] == whole["cka_in_out"][0]
    assert values["cka_in_out"][1] != whole["cka_in_out"][1]


def test_a_probe_for_labels_leaves_out_a_label_that_occurs_once() -> None:
    labels = ["x"] * 6 + ["y"] * 5 + ["z"]
    told_apart = states()
    told_apart[1:, :6] += 50
    found = probe_labels(told_apart, labels, 0)
    assert found is not None
    accuracy, n, chance = found
    assert (n, chance, len(accuracy)) == (11, 6 / 11, 3)
    assert (accuracy == 1).all()
    assert probe_labels(told_apart, ["x"] * 11 + ["y"], 0) is None


def test_what_was_kept_of_a_task_comes_back_as_it_was(tmp_path: Path) -> None:
    one = three_tasks()[0]
    save_scores(tmp_path / "a.safetensors", one)
    back = load_scores(tmp_path / "a.safetensors")
    assert (back.task, back.n, back.seconds, back.labels_read) == (one.task, one.n, one.seconds, None)
    assert list(back.values) == list(one.values)
    for table in ("values", "resampled", "null"):
        for name, array in getattr(one, table).items():
            np.testing.assert_array_equal(getattr(back, table)[name], array)
    np.testing.assert_array_equal(back.sample, one.sample)
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError):
        load_scores(tmp_path / "a.safetensors")
