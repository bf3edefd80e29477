"""Generalisation in a whole study: relations, movement of weights, other wordings, named arms, tasks of the harness."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from tiny_study import TUNED_ARMS

from tunescope import engine, models, report
from tunescope.config import Config, load
from tunescope.errors import ConfigError, DataError, IntegrityError
from tunescope.runs.folder import RunFolder
from tunescope.runs.generalisation import MatrixCell, Rewording, WeightChange
from tunescope.studies import evaluate, poc, tune

WORDINGS = "tasks.{}.paraphrases=['Who gets it?', 'Please: {{instruction}}']"
PLAIN = ["tuning.num_epochs=1", "tuning.learning_rate=2e-3", "evaluation.latency_requests=0"]


def config_of(study: Path, folder: Path, *overrides: str) -> Config:
    return load(study, [f"output_dir={folder / 'own'}", *PLAIN, *overrides])


def read(run: RunFolder) -> tuple[list[MatrixCell], list[WeightChange], list[Rewording]]:
    found = run.read_json("generalisation.json")
    return (
        [MatrixCell.from_dict(row) for row in found["cells"]],
        [WeightChange.from_dict(row) for row in found["weight_change"]],
        [Rewording.from_dict(row) for row in found["reworded"]],
    )


def test_every_study_says_how_far_the_weights_of_its_arms_moved(run: RunFolder, model: Path) -> None:
    cells, changes, _ = read(run)
    assert [c.arm for c in changes] == TUNED_ARMS
    for change in changes:
        folder = run.path / "weights" / change.arm
        assert change == engine.weight_change(models.load(str(model), dtype="bfloat16"), folder, arm=change.arm)
        assert change.mean_abs and change.mean_abs > 0
    chosen = run.read_json("layers.json")["selections"]["selected"]["layers"]
    moved = next(c for c in changes if c.arm == "selected")
    assert [block for block, value in moved.blocks.items() if value] == chosen
    assert {c.relation for c in cells} == {"same"}
    results = {(r["arm"], r["task"], r["dataset"]): r["value"] for r in run.read_json("results.json")["results"]}
    assert {(c.arm, c.task, c.dataset): c.value for c in cells if c.task != "*"} == {
        key: value for key, value in results.items() if key[1] not in ("guard", "*")
    }


def test_an_arm_tuned_on_one_task_stands_to_the_others_as_other(study: Path, tmp_path: Path) -> None:
    own = config_of(study, tmp_path / "tuned", "tasks.1.train=null", "tasks.2.train=null")
    tuned = tune.run(own, "lora-all").path / "weights" / "lora-all"
    told = json.loads((tuned / "training.json").read_text(encoding="utf-8"))
    assert told["tasks"] == ["routing"] and list(told["examples"]) == ["routing"] and told["seed"] == 3
    bare = Path(shutil.copytree(tuned, tmp_path / "bare"))
    (bare / "training.json").unlink()
    run = evaluate.run(config_of(study, tmp_path, "arms=[nothing]"), arms={"desk": tuned, "bare": bare})
    cells, changes, _ = read(run)
    relations = {(c.arm, c.task): c.relation for c in cells if c.task != "*"}
    assert (
        relations["desk", "routing"] == "same" and relations["desk", "mood"] == relations["desk", "summary"] == "other"
    )
    assert relations["bare", "routing"] == "unknown" and relations["nothing", "mood"] == "other"
    assert [c.arm for c in changes] == ["desk", "bare"] and changes[0].mean_abs == changes[1].mean_abs
    page = report.build(run.path).read_text(encoding="utf-8")
    assert "Other tasks, out of domain" in page and "How far the weights moved" in page
    (bare / "training.json").write_text('{"schema_version": 1, "tasks": "routing"}', encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"training\.json: damaged"):
        evaluate.run(config_of(study, tmp_path / "again", "arms=[nothing]"), arms={"bare": bare})


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": "nowhere"}, "--arm a=.*nowhere: no such folder"),
        ({"nothing": ""}, "not be nothing or prompt"),
        ({"a b": ""}, "the name may hold letters"),
    ],
)
def test_names_and_folders_of_arms_are_checked(arms: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate.name_arms([], {name: tmp_path / path for name, path in arms.items()})


def test_a_name_given_and_a_folder_of_that_name_are_two_arms_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert evaluate.name_arms([], {"mine": tmp_path / "one"}) == {"mine": tmp_path / "one"}
    with pytest.raises(ConfigError, match="a second arm named 'one'"):
        evaluate.name_arms([tmp_path / "one"], {"one": tmp_path})


# Other wordings.


@pytest.fixture(scope="module")
def worded(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    asked = [
        WORDINGS.format(0),
        WORDINGS.format(2),
        "evaluation.paraphrase_examples=6",
        "arms=[nothing, prompt, lora-all]",
    ]
    return poc.run(config_of(study, tmp_path_factory.mktemp("worded"), *asked))


def test_other_wordings_are_asked_of_every_arm_and_file_of_the_task(worded: RunFolder) -> None:
    _, _, found = read(worded)
    assert [(r.arm, r.task, r.role) for r in found] == [
        (arm, task, role)
        for arm in ("nothing", "prompt", "lora-all")
        for task in ("routing", "summary")
        for role in ("in_domain", "out_of_domain")
    ]
    assert all(r.n_wordings == 2 and r.n == (6 if r.role == "in_domain" else 5) for r in found)
    assert all(0 <= r.low <= r.consistency <= r.high <= 1 and len(r.values) == 2 for r in found)
    assert worded.read_json("generalisation.json")["paraphrases"]["routing"][0] == "Who gets it?"


def test_the_score_under_the_own_wording_is_that_of_the_samples(worded: RunFolder) -> None:
    _, _, found = read(worded)
    rows = worded.read_jsonl("samples.jsonl")
    for row in found:
        scores = [s["answers"][row.arm]["score"] for s in rows if (s["task"], s["role"]) == (row.task, row.role)]
        assert row.value == pytest.approx(sum(scores[: row.n]) / row.n)


def test_wordings_change_nothing_else(worded: RunFolder, study: Path, tmp_path: Path) -> None:
    plain = poc.run(config_of(study, tmp_path, "arms=[nothing, prompt, lora-all]"))
    for name in ("results.json", "samples.jsonl", "risk.json"):
        assert (plain.path / name).read_bytes() == (worded.path / name).read_bytes()
    assert read(plain)[:2] == read(worded)[:2] and read(plain)[2] == []


def test_a_wording_equal_to_the_own_one_changes_no_answer(study: Path, tmp_path: Path) -> None:
    asked = "tasks.0.paraphrases=['{instruction}']"
    _, _, found = read(evaluate.run(config_of(study, tmp_path, asked, "arms=[nothing]")))
    assert [r.consistency for r in found] == [1.0, 1.0] and all(tuple(r.values) == (r.value,) for r in found)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ("tasks.0.paraphrases=['']", ConfigError, "a template is empty"),
        ("tasks.0.paraphrases=['a {input}']", ConfigError, "always follows the instruction"),
        ("tasks.0.paraphrases=['a', 'a']", ConfigError, "a wording is listed twice"),
    ],
)
def test_wordings_that_are_none_are_refused(
    change: str, error: type[Exception], said: str, study: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        config_of(study, tmp_path, change)


def test_a_wording_that_drops_the_question_is_refused(study: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Which desk for {i}?", "output": "it"} for i in range(6)]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    config = config_of(
        study, tmp_path, f"tasks.0.test={tmp_path / 'bare.jsonl'}", "tasks.0.paraphrases=['Who?']", "arms=[nothing]"
    )
    with pytest.raises(DataError, match=r"has no \{instruction\}"):
        evaluate.run(config)
    assert not config.output_dir.exists()


# Data that leaves nothing to learn, and tasks that share their labels.


def test_an_out_of_domain_file_equal_to_the_training_file_leaves_nothing_to_tune_on(
    study: Path, tmp_path: Path
) -> None:
    train = study.parent / "data" / "routing.train.jsonl"
    other = shutil.copyfile(train, tmp_path / "same.jsonl")
    alone = [
        f"tasks.0.out_of_domain=['{other}']",
        "tasks.1.train=null",
        "tasks.2.train=null",
        "arms=[nothing, lora-all]",
    ]
    config = config_of(study, tmp_path, *alone)
    with pytest.raises(ConfigError, match=r"nothing to tune on, there is no .usable. training example"):
        poc.run(config)
    assert not config.output_dir.exists()


def test_tasks_that_share_their_labels_collapse_to_none_of_each_other(study: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(study.parent / "data", tmp_path / "data"))
    for file in data.glob("mood.*.jsonl"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace('"good"', '"it"').replace('"bad"', '"hr"'), encoding="utf-8")
    own = shutil.copyfile(study, tmp_path / "study.yaml")
    config = config_of(own, tmp_path, "tasks.1.labels=[it, hr]", "arms=[nothing]")
    cells, _, _ = read(evaluate.run(config))
    assert all(c.collapse_rate is None for c in cells if c.task in ("routing", "mood"))
    assert all(c.collapse_rate is not None for c in cells if c.task == "summary")


# Risk.


def test_the_rule_for_people_is_chosen_on_the_held_out_slice(study: Path, tmp_path: Path) -> None:
    more = ["data.validation_fraction=0.3", "evaluation.max_error_rate=0.2", "arms=[nothing, lora-all]"]
    run = poc.run(config_of(study, tmp_path, *more))
    rows = run.read_json("risk.json")["risks"]
    assert {(r["chosen_on"], r["n_chosen"], r["target_error"]) for r in rows} == {("validation", 8, 0.2)}
    assert {r["role"] for r in rows} == {"in_domain", "out_of_domain"}
    for arm in ("nothing", "lora-all"):
        assert len({r["threshold"] for r in rows if r["arm"] == arm}) == 1


def test_a_small_slice_leaves_the_rule_to_half_of_the_test(run: RunFolder) -> None:
    rows = run.read_json("risk.json")["risks"]
    assert {r["chosen_on"] for r in rows} == {"half"} and {r["target_error"] for r in rows} == {0.05}


# Tasks of lm-evaluation-harness.

TASK = """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
doc_to_choice: "{{c}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_task(folder: Path) -> Path:
    rows = [{"q": f"{i}?", "c": ["a", "b"], "a": i % 2} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")
    return folder / "task.yaml"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed")
@pytest.mark.filterwarnings("ignore")
def test_every_arm_is_asked_the_tasks_of_the_harness(study: Path, run: RunFolder, tmp_path: Path) -> None:
    file, adapter = write_task(tmp_path), run.path / "weights" / "lora-all"
    config = config_of(study, tmp_path, "arms=[nothing]")
    found = evaluate.run(config, arms={"mine": adapter}, lm_eval=[file]).read_json("lm_eval.json")["arms"]
    assert list(found) == ["nothing", "mine"]
    assert all(row["n"] == {"sums": 6} and 0 <= row["results"]["sums"]["acc,none"] <= 1 for row in found.values())
    assert [row["event"] for row in RunFolder(config.output_dir).read_jsonl("ledger.jsonl")].count(
        "tasks of lm-evaluation-harness"
    ) == 1


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="only where the extra lm-eval is missing")
def test_without_the_extra_nothing_is_written(study: Path, tmp_path: Path) -> None:
    config = config_of(study, tmp_path, "arms=[nothing]")
    with pytest.raises(ConfigError, match="pip install"):
        evaluate.run(config, lm_eval=[write_task(tmp_path)])
    assert not config.output_dir.exists()
