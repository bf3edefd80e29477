"""The search for settings: what it tries, what it keeps, and that an interruption changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunescope.config import Config, load
from tunescope.errors import ConfigError, IntegrityError
from tunescope.runs.folder import RunFolder
from tunescope.studies import tune
from tunescope.studies.progress import Silent

pytest.importorskip("optuna")
ARM = "top-third"  # leaves blocks below it whose states are kept
QUICK = ("tuning.num_epochs=1", "tuning.batch_size=8", "tuning.learning_rate=1e-3", "data.validation_fraction=0.25")


def config_of(study: Path, folder: Path, name: str = "own", *more: str) -> Config:
    return load(study, [f"output_dir={folder / name}", *QUICK, *more])


def trials_of(run: RunFolder) -> list[dict[str, Any]]:
    rows = run.read_json("search.json")["trials"]
    return [{k: row[k] for k in ("state", "values", "held_out_loss", "checks")} for row in rows]


class Interrupting(Silent):
    """Asks to stop after a number of steps of the search."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.searching = False

    def stage(self, name: str, total: int | None = None) -> None:
        self.searching = name.endswith("search")

    def stopping(self) -> bool:
        self.left -= self.searching
        return self.left < 0


def test_the_arm_is_tuned_with_the_values_of_the_best_trial(study: Path, tmp_path: Path) -> None:
    run = tune.run(config_of(study, tmp_path), ARM, trials=5)
    found = run.read_json("search.json")
    complete = [t for t in found["trials"] if t["state"] == "complete"]
    assert len(found["trials"]) == 5 and len(complete) >= 4  # nothing is pruned before four trials ended
    assert found["best"]["held_out_loss"] == min(t["held_out_loss"] for t in complete)
    first = found["trials"][0]["values"]
    assert first["learning_rate"] == pytest.approx(1e-3) and first["batch_size"] == 8  # the settings as they are
    assert len({json.dumps(t["values"]) for t in found["trials"]}) == 5
    best = found["best"]["values"]
    steps = run.read_jsonl("steps.jsonl")
    assert max(row["learning_rate"] for row in steps) == pytest.approx(best["learning_rate"], rel=0.3)
    adapter = json.loads((run.path / "weights" / ARM / "adapter_config.json").read_text())
    assert (
        adapter["r"] == best["lora_rank"] and adapter["lora_alpha"] == best["lora_rank"] * best["lora_alpha_per_rank"]
    )
    assert steps[-1]["validation_loss"] == pytest.approx(found["best"]["held_out_loss"], abs=1e-6)
    (cost,) = run.read_json("costs.json")["actual"]
    assert cost["learning_rate_why"] == "lowest held-out loss of 5 trials"
    assert [row["event"] for row in run.read_jsonl("ledger.jsonl")][-1] == "search"
    assert not (run.path / "arms").exists()


@pytest.mark.parametrize("after", [1, 6, 13])
def test_an_interrupted_search_goes_on_to_the_same_trials(
    after: int, study: Path, run_searched: RunFolder, tmp_path: Path
) -> None:
    config = config_of(study, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tune.run(config, ARM, trials=3, progress=Interrupting(after))
    resumed = tune.run(config, ARM, resume=True)  # it knows how many trials were wanted
    assert trials_of(resumed) == trials_of(run_searched)
    weights = [run.path / "weights" / ARM / "adapter_model.safetensors" for run in (resumed, run_searched)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.fixture(scope="module")
def run_searched(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tune.run(config_of(study, tmp_path_factory.mktemp("searched")), ARM, trials=3)


def test_values_that_are_not_searched_stay_as_the_list_has_them(study: Path, tmp_path: Path) -> None:
    fixed = ["tuning.search.lora_rank=[2]", "tuning.search.batch_size=[8]", "tuning.search.learning_rate=[1e-3, 2e-3]"]
    run = tune.run(config_of(study, tmp_path, "own", *fixed), ARM, trials=2)
    for trial in run.read_json("search.json")["trials"]:
        assert 1e-3 <= trial["values"]["learning_rate"] <= 2e-3
        assert not {"lora_rank", "batch_size"} & set(trial["values"])
    assert json.loads((run.path / "weights" / ARM / "adapter_config.json").read_text())["r"] == 2


def test_kept_states_change_no_trial(study: Path, run_searched: RunFolder, tmp_path: Path) -> None:
    without = tune.run(config_of(study, tmp_path, "own", "engine.keep_states=false"), ARM, trials=3)
    mine, theirs = trials_of(without), trials_of(run_searched)
    assert [t["values"] for t in mine] == [t["values"] for t in theirs]
    assert [t["held_out_loss"] for t in mine] == pytest.approx([t["held_out_loss"] for t in theirs], abs=1e-5)


def test_a_search_without_held_out_examples_is_refused(study: Path, tmp_path: Path) -> None:
    config = config_of(study, tmp_path, "own", "data.validation_fraction=0")
    with pytest.raises(ConfigError, match=r"there are none; raise data\.validation_fraction"):
        tune.run(config, ARM, trials=2)


def test_a_damaged_journal_is_an_integrity_error(study: Path, tmp_path: Path) -> None:
    config = config_of(study, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tune.run(config, ARM, trials=3, progress=Interrupting(4))
    journal = config.output_dir / "search.journal"
    lines = journal.read_text(encoding="utf-8").splitlines()
    journal.write_text("\n".join([lines[0][: len(lines[0]) // 2], *lines[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"search\.journal: damaged"):
        tune.run(config, ARM, resume=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learning_rate=[1e-2, 1e-3]", "give the lower one first"),
        ("lora_rank=[0]", "lora_rank: got 0, allowed: 1 to 1024"),
        ("batch_size=[4, 4]", "batch_size: a value stands there twice"),
        ("warmup_fraction=[0.9]", "warmup_fraction: got 0.9, allowed: 0 to 0.5"),
    ],
)
def test_impossible_spaces_are_refused(setting: str, said: str, study: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(study, [f"tuning.search.{setting}"])
    assert said in str(error.value)
