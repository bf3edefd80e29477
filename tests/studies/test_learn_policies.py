"""Policies compared over orders and seeds: paired where both ran, against a naive computation, and resumable."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny_stream import TASKS, stream

from tunescope.errors import ConfigError
from tunescope.runs.folder import RunFolder
from tunescope.studies import learn_policies as study
from tunescope.studies.learn_policies import Finished, compare
from tunescope.studies.learn_why import within_stages

HOW = {"n_bootstrap": 200, "seed": 1}


def run(policy: str, order: str = "as_given", seed: int = 1, *, level: float = 0.5, upper: float = 0.8) -> Finished:
    dice = np.random.default_rng([seed, *policy.encode(), *order.encode()])
    tasks = ("a", "b", "c") if order == "as_given" else ("c", "b", "a")
    learned = {task: dice.random(20) for task in tasks}
    final = {task: np.clip(scores * level * 2, 0, 1) for task, scores in learned.items()}
    return Finished(policy, order, seed, tasks, final, learned, dict.fromkeys(tasks, upper), {}, 60.0)


def test_every_measure_is_the_mean_over_runs_of_what_the_scores_say() -> None:
    runs = [run("inscl", order, seed, level=0.4) for order, seed in itertools.product(("as_given", "reverse"), (1, 2))]
    found = compare(runs, **HOW)["policies"]["inscl"]  # type: ignore[arg-type]
    assert found["runs"] == 4
    average = [np.mean([r.final[t].mean() for t in r.tasks]) for r in runs]
    gain = [100 * np.mean([r.final[t].mean() / 0.8 for t in r.tasks[:-1]]) for r in runs]
    lost = [np.mean([(r.learned[t] - r.final[t]).mean() for t in r.tasks[:-1]]) for r in runs]
    for name, values in (("average", average), ("relative_gain", gain), ("forgetting", lost)):
        assert found[name]["runs"] == pytest.approx(values)
        assert found[name]["value"] == pytest.approx(np.mean(values))
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_policies_are_paired_by_order_and_seed() -> None:
    runs = [run("inscl", seed=seed, level=0.5) for seed in (1, 2, 3)] + [
        run("random", seed=seed, level=0.4) for seed in (2, 3, 4)
    ]
    found = compare(runs, **HOW)["against_random"]["inscl"]  # type: ignore[arg-type]
    assert found["pairs"] == 2
    by_setting = {(r.policy, r.seed): np.mean([r.final[t].mean() for t in r.tasks]) for r in runs}
    expected = [by_setting["inscl", seed] - by_setting["random", seed] for seed in (2, 3)]
    assert found["average"]["runs"] == pytest.approx(expected)


def test_equal_scores_differ_by_nothing_with_certainty() -> None:
    runs = [run("random", seed=seed) for seed in (1, 2)]
    same = [Finished("inscl", r.order, r.seed, r.tasks, r.final, r.learned, r.upper, {}, 1.0) for r in runs]
    found = compare([*runs, *same], **HOW)["against_random"]["inscl"]  # type: ignore[arg-type]
    assert all((found[name]["low"], found[name]["high"]) == (0.0, 0.0) for name in study.MEASURES)


def test_without_random_or_without_common_settings_nothing_is_paired() -> None:
    assert compare([run("inscl"), run("none")], **HOW)["against_random"] == {}  # type: ignore[arg-type]
    assert compare([run("inscl", seed=1), run("random", seed=2)], **HOW)["against_random"] == {}  # type: ignore[arg-type]


def test_joint_forgets_nothing_by_definition_and_is_not_held_against_random() -> None:
    found = compare([run("joint"), run("random")], **HOW)  # type: ignore[arg-type]
    assert "forgetting" not in found["policies"]["joint"] and "average" in found["policies"]["joint"]
    assert found["against_random"] == {}


def test_without_experts_there_is_no_relative_gain() -> None:
    bare = run("inscl")
    bare = Finished("inscl", bare.order, 1, bare.tasks, bare.final, bare.learned, {}, {}, 1.0)
    found = compare([bare], **HOW)  # type: ignore[arg-type]
    assert "relative_gain" not in found["policies"]["inscl"] and "average" in found["by_order"]["as_given"]["inscl"]


def test_no_runs_compare_to_nothing() -> None:
    found = compare([], **HOW)  # type: ignore[arg-type]
    assert found.pop("distance_and_loss") is None
    assert found == {"policies": {}, "against_random": {}, "by_order": {}, "seconds": {}}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"policies": ["insl"]}, r"did you mean inscl\?"),
        ({"policies": ["none", "none"]}, "give each once"),
        ({"policies": []}, "got none"),
        ({"orders": ["shuffled"]}, "of as_given, reverse, random"),
    ],
)
def test_unknown_policies_and_orders_are_refused(
    how: dict[str, list[str]], said: str, model: Path, tmp_path: Path
) -> None:
    config = stream(tmp_path, model, "compared", TASKS[:2])
    with pytest.raises(ConfigError, match=said):
        study.run(config, **how)  # type: ignore[arg-type]
    assert not config.output_dir.exists()


def test_the_study_runs_every_setting_once_and_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    config = stream(tmp_path, model, "compared", TASKS[:2])
    how = {"orders": ["as_given", "random"], "seeds": [1]}
    first = study.run(config, policies=["none", "joint"], **how)  # type: ignore[arg-type]
    names = sorted(path.name for path in config.output_dir.iterdir() if path.is_dir())
    assert names == ["joint-as_given-1", "none-as_given-1", "none-random-1"]
    orders = {RunFolder(config.output_dir / name).read_json("stream.json")["order"][0] for name in names[1:]}
    times = {name: (config.output_dir / name / "stream.json").stat().st_mtime_ns for name in names}
    again = study.run(config, policies=["none", "joint"], **how)  # type: ignore[arg-type]
    assert again == first and orders <= set(TASKS)
    assert times == {name: (config.output_dir / name / "stream.json").stat().st_mtime_ns for name in names}
    assert RunFolder(config.output_dir).read_json("policies.json")["policies"]["none"]["runs"] == 2
    unfinished = RunFolder(config.output_dir / "none-random-1")
    (unfinished.path / "costs.json").unlink()
    assert [r.policy for r in study.read_finished(config)] == ["none", "joint"]


def staged(policy: str, seed: int, distances: list[dict[str, float]], scores: list[dict[str, float]]) -> Finished:
    plain = run(policy, seed=seed)
    return dataclasses.replace(plain, distances=distances, scores=scores)


def test_distance_is_held_against_what_the_stream_without_repetition_lost() -> None:
    """One stage of three earlier tasks, in two seeds: far tasks lose most, then least."""
    far = [{}, {"a": 0.1}, {"a": 0.1, "b": 0.5}, {"a": 0.1, "b": 0.5, "c": 0.9}]
    middle = {"a": 0.85, "b": 0.5, "c": 0.9}, {"a": 0.5, "b": 0.85, "c": 0.9}
    last = {"a": 0.8, "b": 0.3, "c": 0.3}, {"a": 0.0, "b": 0.6, "c": 0.85}

    def scores(seed: int) -> list[dict[str, float]]:
        return [{"a": 0.9}, {"a": 0.9, "b": 0.9}, middle[seed], last[seed] | {"d": 1.0}]

    for n, expected in ((1, 1.0), (2, 0.0)):
        runs = [staged("inscl", seed, far, []) for seed in range(n)]
        runs += [staged("none", seed, [], scores(seed)) for seed in range(n)]
        found = compare(runs, **HOW)["distance_and_loss"]  # type: ignore[arg-type]
        assert (found["stages"], found["pairs"]) == (2 * n, 5 * n)
        assert found["value"] == pytest.approx(expected) and found["low"] <= found["value"] <= found["high"]
    assert compare(runs[:2], **HOW)["distance_and_loss"] is None  # type: ignore[arg-type]


def test_within_stages_is_spearman_for_one_stage_and_does_not_mix_stages() -> None:
    dice = np.random.default_rng(0)
    far, lost = dice.random(30), dice.random(30)
    found = within_stages([(far, lost)])
    assert found is not None and found["value"] == pytest.approx(spearmanr(far, lost).statistic)
    shifted = within_stages(
        [(far, lost), (far + 10, lost + 10)]
    )  # between stages everything agrees, and does not count
    assert shifted is not None and shifted["value"] == pytest.approx(found["value"])
    assert within_stages([(np.array([0.1]), np.array([0.2]))]) is None
    assert within_stages([(np.array([0.1, 0.1]), np.array([0.2, 0.3]))]) is None
    assert within_stages([]) is None
