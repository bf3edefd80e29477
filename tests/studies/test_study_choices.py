"""The comparison of choices: what it tunes, that it goes on, and that its numbers are those of the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunescope.config import Config, load
from tunescope.errors import ConfigError
from tunescope.runs.folder import RunFolder
from tunescope.studies import choices

SCORES = ("gradient_norm", "layer_map")


@pytest.fixture(scope="module")
def settings(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("choices")
    wanted = [
        "tuning.num_epochs=1",
        "tuning.learning_rate=1e-3",
        "data.max_train_examples=8",
        f"output_dir={folder / 'runs'}",
    ]
    return load(study, overrides=wanted)


@pytest.fixture(scope="module")
def found(settings: Config) -> dict[str, Any]:
    return choices.run(settings, scores=SCORES, seeds=(1, 2))


def test_all_choices_have_the_same_budget(found: dict[str, Any]) -> None:
    sizes = {len(blocks) for by_seed in found["chosen"].values() for blocks in by_seed}
    assert len(sizes) == 1
    assert set(found["chosen"]) == {*SCORES, "random", "top-third"}


def test_controls_are_tuned_once_per_seed(settings: Config, found: dict[str, Any]) -> None:
    arms = {
        folder.name: {row["arm"] for row in RunFolder.open(folder).read_jsonl("steps.jsonl")}
        for folder in sorted(settings.output_dir.iterdir())
        if folder.is_dir()
    }
    assert arms == {
        "gradient_norm-1": {"selected", "random", "top-third"},
        "gradient_norm-2": {"selected", "random", "top-third"},
        "layer_map-1": {"selected"},
        "layer_map-2": {"selected"},
    }


def test_means_are_those_of_the_samples(settings: Config, found: dict[str, Any]) -> None:
    for name, run, arm in (("layer_map", "layer_map-2", "selected"), ("random", "gradient_norm-2", "random")):
        by_task: dict[str, list[float]] = {}
        for row in RunFolder.open(settings.output_dir / run).read_jsonl("samples.jsonl"):
            if row["role"] == "in_domain":
                by_task.setdefault(row["task"], []).append(row["answers"][arm]["score"])
        assert found["compared"]["in_domain"]["means"][name][1] == pytest.approx(
            np.mean([np.mean(scores) for scores in by_task.values()])
        )


def test_a_second_call_reads_everything_back(
    settings: Config, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "tune_arm", lambda *_args: pytest.fail("tuned again"))
    assert choices.run(settings, scores=SCORES, seeds=(1, 2)) == found
    assert RunFolder(settings.output_dir).read_json(choices.RESULT)["compared"] == found["compared"]


@pytest.mark.parametrize(
    ("scores", "seeds", "message"),
    [
        ((), (1,), "scores: got none"),
        (("causal",), (1, 1), "seeds: got 1, 1"),
        (("top_third",), (1,), "control of this study"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    settings: Config, scores: tuple[str, ...], seeds: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choices.run(settings, scores=scores, seeds=seeds)


def test_interval_of_one_seed_agrees_with_the_paired_normal_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((1, 400)), rng.random((1, 400))
    row = choices.compare({"a": {"t": a}, "b": {"t": b}}, n_bootstrap=4000)["differences"][0]
    half = 1.96 * (a - b).std(ddof=1) / 20
    assert row["difference"] == pytest.approx(float((a - b).mean()))
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.06)
    assert (row["high"] + row["low"]) / 2 == pytest.approx(row["difference"], abs=0.2 * half)


def test_seeds_that_disagree_widen_the_interval() -> None:
    alike = {"t": np.tile([[0.6]], (3, 200))}
    apart = {"t": np.array([[0.4], [0.6], [0.8]]) * np.ones((1, 200))}
    none = {"t": np.zeros((3, 200))}
    found = choices.compare({"alike": alike, "apart": apart, "none": none})["differences"]
    widths = {(r["choice"], r["against"]): r["high"] - r["low"] for r in found}
    assert widths["alike", "none"] == pytest.approx(0)
    assert widths["apart", "none"] > 0.2
    assert next(r for r in found if r["choice"] == "apart")["by_seed"] == pytest.approx([0.4, 0.6, 0.8])


def test_tasks_count_alike_however_many_examples_they_have() -> None:
    a = {"small": np.ones((1, 10)), "large": np.zeros((1, 1000))}
    b = {"small": np.zeros((1, 10)), "large": np.zeros((1, 1000))}
    assert choices.compare({"a": a, "b": b})["differences"][0]["difference"] == pytest.approx(0.5)
